#!/usr/bin/env bash
# TensorFlow 2.21 and JAX 0.10.2: Python code called back by the engine computes with other arithmetic.
#
# One would expect a Python function to give one answer wherever it is called. The engines' worker threads make the
# processor treat denormal numbers as zero, and Python called in such a thread inherits that: in a generator of
# tf.data, in tf.numpy_function in a tf.function, and in jax.pure_callback, 1e-310 * 1.0 is 0.0, for plain Python
# floats and for numpy, float64 included, and numpy's smallest positive number isn't above 0. The same function called
# directly, by an eager tf.numpy_function or by an eager jax.debug.callback is right.
# So log-probabilities, tests for x > 0 and checks by finfo differ between an engine's eager and compiled modes.
# (x86-64: other processors flush in other ways, so the script leaves with 3 there.)
set -euo pipefail
[ "$(uname -m)" = x86_64 ] || { echo "needs an x86-64 processor" >&2; exit 3; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    tensorflow-cpu==2.21.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$dir/callbacks.py" <<'PY'
import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf

print("tensorflow", tf.__version__, "jax", jax.__version__, "numpy", np.__version__)
TINY, SUB64, SUB32 = float("1e-310"), np.float64(5e-324), np.float32(1e-45)


def probe(*ignored):
    """1 where arithmetic keeps a denormal: a Python float, numpy in float64, numpy in float32."""
    return np.array([TINY * 1.0 != 0.0, SUB64 > 0, SUB32 * np.float32(2) != 0], np.float32)


x = np.zeros(3, np.float32)
spec, shape = tf.TensorSpec([3], tf.float32), jax.ShapeDtypeStruct((3,), jnp.float32)
seen = []
jax.debug.callback(lambda a: seen.append(probe()), x)
jax.effects_barrier()
kept = {
    "called directly": probe(),
    "tf.numpy_function, eager": tf.numpy_function(probe, [x], tf.float32).numpy(),
    "jax.debug.callback, eager": seen[0],
}
lost = {
    "generator of tf.data": next(iter(tf.data.Dataset.from_generator(lambda: iter([probe()]), output_signature=spec))),
    "tf.numpy_function, tf.function": tf.function(lambda a: tf.numpy_function(probe, [a], tf.float32))(x),
    "jax.pure_callback": jax.pure_callback(probe, shape, x),
    "jax.pure_callback, jit": jax.jit(lambda a: jax.pure_callback(probe, shape, a))(x),
}
print("denormals kept by: Python float, numpy float64, numpy float32")
for name, found in {**kept, **lost, "directly, afterwards": probe()}.items():
    print(f"  {name:32}", np.asarray(found).astype(bool).tolist())
assert all(np.all(np.asarray(found) == 1) for found in kept.values()), "a direct call loses denormals"
assert all(np.all(np.asarray(found) == 0) for found in lost.values()), "a callback keeps denormals now"
assert np.all(probe() == 1)
print("as described: the same Python function, two arithmetics")
PY
TF_CPP_MIN_LOG_LEVEL=3 JAX_PLATFORMS=cpu "$dir/venv/bin/python" "$dir/callbacks.py"
