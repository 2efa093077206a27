#!/usr/bin/env bash
# JAX 0.10.2 on a CPU: `jax.jit` makes x of (x + 1) - 1, so that formulas that measure what an addition was rounded by
# lose all that they are for; the same function outside of jit is right.
#
# Nobody has asked for fast arithmetic here, and (x + y) - y of two arrays is indeed left alone; but two constants that
# are added one after the other are added to each other first. Kahan's log1p, u = 1 + x; log(u) * x / (u - 1), is the
# textbook's use of that rounding: outside of jit it is within 3 ulp of the true value, inside of it thousands of ulp
# off in float32. With `jax.lax.optimization_barrier` around the sum, or with the 1 as an argument of the function, it
# is as good as outside.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$dir/rounding.py" <<'PY'
import jax
import jax.numpy as jnp
import numpy as np

print("JAX", jax.__version__, "on", jax.devices()[0].platform)
x = np.random.default_rng(0).uniform(1e-4, 0.1, 4000).astype("float32")
right = np.log1p(x.astype("float64"))


def there_and_back(x):
    return (x + 1) - 1


def log1p(x, one=1, hold=lambda total: total):
    total = hold(x + one)
    return jnp.log(total) * (x / (total - one))


def ulps(y):
    return float((np.abs(np.asarray(y).astype("float64") - right) / np.spacing(right.astype("float32"))).max())


rounded = (x + np.float32(1)) - np.float32(1)
print("(x + 1) - 1 is as numpy has it:", bool((there_and_back(jnp.asarray(x)) == rounded).all()), "outside of jit,",
      bool((jax.jit(there_and_back)(x) == rounded).all()), "inside; there it is x:",
      bool((jax.jit(there_and_back)(x) == x).all()))
found = {
    "outside of jit": ulps(log1p(jnp.asarray(x))),
    "inside": ulps(jax.jit(log1p)(x)),
    "inside, with a barrier": ulps(jax.jit(lambda x: log1p(x, hold=jax.lax.optimization_barrier))(x)),
    "inside, with 1 as an argument": ulps(jax.jit(log1p)(x, np.float32(1))),
}
for place, off in found.items():
    print(f"Kahan's log1p {place}: {off:.1f} ulp off at most")
assert (there_and_back(jnp.asarray(x)) == rounded).all()
assert (jax.jit(there_and_back)(x) == x).all() and not (rounded == x).all()
assert found["inside"] > 100
assert max(off for place, off in found.items() if place != "inside") < 5
print("as found: jit adds the two constants first")
PY
JAX_PLATFORMS=cpu "$dir/venv/bin/python" "$dir/rounding.py"
