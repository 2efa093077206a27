#!/usr/bin/env bash
# JAX 0.10.2 on a CPU: an array that somebody has a numpy view of isn't donated, and nothing says so.
#
# `donate_argnums` lets a call write its result over an argument, which is then deleted: a training step needs its state
# once, not twice. On a CPU np.asarray(x) is a view of x's own memory. While the view lives, the same call takes new
# memory, x is neither overwritten nor deleted, and there is no warning. So code that keeps one numpy array of its
# weights, to log or to compare them, has its state twice; and a use after donation, which fails on a GPU, goes unseen.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$dir/venv/bin/python" - <<'PY'
import warnings

import jax
import numpy as np

warnings.simplefilter("error")
step = jax.jit(lambda state: state * 2, donate_argnums=0)
print("JAX", jax.__version__, "numpy", np.__version__)
for what in ("no view", "a view that has gone", "a view that is kept"):
    state = jax.numpy.arange(1000.0) + 1
    place = state.unsafe_buffer_pointer()
    view = None if what == "no view" else np.asarray(state)
    assert view is None or view.ctypes.data == place
    if what == "a view that has gone":
        view = None
    new = step(state)
    in_place, deleted = new.unsafe_buffer_pointer() == place, state.is_deleted()
    print(f"{what}: written over the old state: {in_place}, the old state deleted: {deleted}")
    kept = what == "a view that is kept"
    assert (in_place, deleted) == (not kept, not kept)
    if kept:
        assert view[0] == 1 and float(state[0]) == 1 and float(new[0]) == 2
PY
