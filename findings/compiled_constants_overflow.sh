#!/usr/bin/env bash
# TensorFlow 2.21 and JAX 0.10.2: compiling joins constants, and a finite result becomes infinite (or the reverse).
#
# One would expect a compiled function to differ from the eager one in the last digits. tf.function (even without XLA,
# by its graph optimizer) and jax.jit turn (x * a) * b into x * (a * b) and (x + a) - b into x + (a - b), and the
# joined constant may overflow or vanish by itself. Then (x * 1e30) * 1e30 is infinite for x = 1e-35, where eager mode
# gives 1e25; and (x + 1e10) - 1e10, written to round x away, is x. XLA also takes log(exp(x)) for x, so an overflow
# disappears.
# A scale in steps, there to avoid overflow, causes it once the function is compiled.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    tensorflow-cpu==2.21.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$dir/constants.py" <<'PY'
import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf

print("tensorflow", tf.__version__, "jax", jax.__version__)


def times_up(x):
    return (x * 1e30) * 1e30


def divided(x):
    return (x / 1e30) / 1e30


def plus(x):
    return (x + 3e38) + 3e38


def rounded(x):
    return (x + 1e10) - 1e10


def log_exp(x):
    return jnp.log(jnp.exp(x)) if isinstance(x, jax.Array) else tf.math.log(tf.exp(x))


cases = [  # function, x, eager, compiled
    (times_up, 1e-35, 1e25, np.inf),
    (divided, 1e38, 1e-22, 0.0),
    (plus, -3e38, 3e38, np.inf),
    (rounded, 1.0, 0.0, 1.0),
    (log_exp, 1000.0, np.inf, 1000.0),
]
for f, x, eager, compiled in cases:
    with jax.disable_jit():
        in_jax = float(f(jnp.float32(x)))
    seen = {
        "TensorFlow eager": float(f(tf.constant(x))),
        "tf.function": float(tf.function(f)(tf.constant(x))),
        "tf.function, XLA": float(tf.function(f, jit_compile=True)(tf.constant(x))),
        "JAX without jit": in_jax,
        "jax.jit": float(jax.jit(f)(jnp.float32(x))),
    }
    print(f"{f.__name__}({x:g}):", ", ".join(f"{name} {value:.4g}" for name, value in seen.items()))
    expected = [eager, eager if f is log_exp else compiled, compiled, eager, compiled]
    assert np.allclose(list(seen.values()), expected, rtol=1e-4, atol=0), f"{f.__name__}: expected {expected}"
print("as described: compiling moves overflow in or out")
PY
TF_CPP_MIN_LOG_LEVEL=3 JAX_PLATFORMS=cpu "$dir/venv/bin/python" "$dir/constants.py"
