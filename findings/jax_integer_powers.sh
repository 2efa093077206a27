#!/usr/bin/env bash
# JAX 0.10.2: integer powers use the exponent's lowest six bits, so 3 ** -2 is 703701817 and 2 ** 64 is 1.
#
# One would expect 3 ** -2 of integers to be refused, as numpy, TensorFlow and PyTorch (for arrays) do, or to be 0. JAX
# refuses it too if the exponent is a Python number; if it is an array, or traced under jit, -2 is taken for 62 (the
# exponent modulo 64), and the product wraps around. With even bases the result happens to be 0, so
# 10 ** [-2, -1, 0, 1] looks fine and hides it. For the same reason 2 ** 64 is 1 and 3 ** 64 is 1, where numpy's
# wrapped product is 0 and another number.
# Code that relied on another engine's error gets plausible integers, and jit alone turns the error into a number.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$dir/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import numpy as np

print("jax", jax.__version__, "numpy", np.__version__)
base, exponent = np.array([2, 3, -3, 5, 10], np.int32), np.array([-1, -2, -2, -1, -3], np.int32)


def attempt(f):
    try:
        return f()
    except (TypeError, ValueError) as e:
        return f"{type(e).__name__}: {str(e)[:60]}"


in_numpy = attempt(lambda: base**exponent)
in_jax = jnp.asarray(base) ** jnp.asarray(exponent)
literal = attempt(lambda: jnp.asarray(base) ** -2)
power = jax.jit(lambda a, b: a**b)
traced = int(power(3, -2))
tens = (10 ** jnp.arange(-2, 3)).tolist()
print("bases", base.tolist(), "exponents", exponent.tolist())
print("numpy:          ", in_numpy)
print("JAX:            ", in_jax.tolist(), in_jax.dtype)
print("JAX, ** -2:     ", literal)
print("jit of 3 ** -2: ", traced)
print("10 ** [-2..2]:  ", tens)
# What it is: the power by the exponent modulo 64, wrapped to 32 bits.
wrapped = [pow(int(b), int(e) % 64, 2**32) for b, e in zip(base, exponent)]
big = (jnp.array([2, 3]) ** jnp.array([64, 64])).tolist()
big_numpy = (np.array([2, 3], np.int32) ** np.int32(64)).tolist()
print("2 ** 64, 3 ** 64 in int32: JAX", big, "numpy", big_numpy)

assert isinstance(in_numpy, str) and in_numpy.startswith("ValueError"), "numpy takes it now"
assert isinstance(literal, str) and literal.startswith("TypeError"), "JAX takes a literal now"
assert in_jax.tolist() == [0, 703701817, 703701817, 1501274061, 0], "JAX's numbers changed"
assert in_jax.view(np.uint32).tolist() == wrapped, "the numbers have another origin"
assert big == [1, 1] and big_numpy[0] == 0, "exponents from 64 on changed"
assert traced == 703701817 and tens == [0, 0, 1, 10, 100], "jit or powers of ten changed"
print("as described: numbers where the others raise an error")
PY
