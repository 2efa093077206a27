#!/usr/bin/env bash
# JAX 0.10.2 on a CPU: a float32 sum over axes 0 and 2 is 1 % off where the process has one core, and right where it has
# more, or where the array is doubled first and the sum halved.
#
# XLA hands a bare reduction to YNNPACK, which adds along axes that aren't neighbours one number after the other, in one
# float32, in as many parts as it has threads: a million rows around 10,000 lose 1.3 % on one core (a container's limit,
# taskset, a cluster's job), and nothing on two. A reduction whose operand is computed in the same program is compiled by
# XLA itself, which adds in a tree: jnp.sum(2 * x) / 2, whose factors are powers of two and round nothing, is right to
# 1e-7 on any number of cores. The same call so gives other digits on a laptop and in a job with one core.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$dir/sums.py" <<'PY'
import os
import sys

cores = sorted(os.sched_getaffinity(0))[: int(sys.argv[1])]
os.sched_setaffinity(0, cores)

import jax
import jax.numpy as jnp
import numpy as np

x = (1e4 + np.random.RandomState(0).randn(1_000_000, 2, 2)).astype("float32")
right = x.sum((0, 2), dtype="float64")


def error(function):
    return float(np.abs(np.asarray(jax.jit(function)(x)) / right - 1).max())


bare, doubled = error(lambda x: jnp.sum(x, (0, 2))), error(lambda x: jnp.sum(2 * x, (0, 2)) / 2)
print(f"JAX {jax.__version__}, {len(cores)} core(s): the sum is {bare:.1e} off, half the sum of 2 x {doubled:.1e}")
assert doubled < 1e-6, doubled
if len(cores) == 1:
    assert bare > 0.005, bare
PY
JAX_PLATFORMS=cpu "$dir/venv/bin/python" "$dir/sums.py" 2
JAX_PLATFORMS=cpu "$dir/venv/bin/python" "$dir/sums.py" 1
echo "as found: on one core a bare sum over axes 0 and 2 is added one by one"
