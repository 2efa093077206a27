#!/usr/bin/env bash
# JAX 0.10.2 on a CPU: how many programs a process can hold is bounded by its memory maps, long before its memory.
#
# XLA gives the code of each fused piece of a program two memory maps of its own. A program of 36 such pieces takes some
# 80 maps and a few MB, and Linux lets a process have 65,530 maps (vm.max_map_count): with some 800 of these programs
# nothing more can be mapped, in the whole process, though most of the memory is free. A function that is called with
# many lengths gets there by itself, since each length is another program. Fewer modules for the code's generation
# (xla_cpu_parallel_codegen_split_count) make no difference. Programs that nobody holds any more give their maps back.
# See also https://github.com/pasteurlabs/mosaic/issues/15.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$dir/maps.py" <<'PY'
import gc

import jax
import jax.numpy as jnp
import numpy as np

FUNCTIONS = [jnp.sin, jnp.cos, jnp.exp, jnp.tanh, jax.nn.sigmoid, jax.nn.softplus]


def many(x):
    return [outer(inner(x)) for outer in FUNCTIONS for inner in FUNCTIONS]


def maps():
    with open("/proc/self/maps") as file:
        return sum(1 for _ in file)


def compiled(length, options):
    return jax.jit(many).lower(np.ones(length, "float32")).compile(options)


print("jax", jax.__version__)
with open("/proc/sys/vm/max_map_count") as file:
    limit = int(file.read())
taken = {}
for title, options in [("by default", {}), ("in one module", {"xla_cpu_parallel_codegen_split_count": 1})]:
    compiled(3, options)
    before = maps()
    held = [compiled(length, options) for length in range(5, 13)]
    taken[title] = (maps() - before) / len(held)
    print(f"{title}: a program of 36 pieces takes {taken[title]:.0f} maps; {limit} would hold {limit / taken[title]:.0f}")
    del held
    jax.clear_caches()
    gc.collect()
    print(f"  held no more: {maps() - before} maps more than before them")
    assert maps() - before < 2 * taken[title]
assert all(count > 36 for count in taken.values()), taken
PY
"$dir/venv/bin/python" "$dir/maps.py"
