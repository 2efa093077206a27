#!/usr/bin/env bash
# PyTorch 2.13.0 and JAX 0.10.2 on a CPU: each result above 32 MiB lies in fresh pages, which may take as long to get as
# the result takes to compute. TensorFlow 2.21.0 keeps what it has freed; numpy 2.4.6 asks for huge pages.
#
# The GNU C library gives a block of that size a mapping of its own, and unmaps it when it is freed, however often the
# same size is asked for: its threshold grows with what is freed, but only up to 32 MiB. So a call that makes two arrays
# of 48 MiB meets 24,576 page faults of 4 KiB each time. Below that size there is none after the first calls. Told to
# map nothing and to trim nothing (glibc.malloc.mmap_max, glibc.malloc.trim_threshold), it uses the same pages again: a
# training step of a net with 105 MB of weights and velocities then took about half the time by hand on both.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check torch==2.13.0 jax==0.10.2 jaxlib==0.10.2 \
  tensorflow==2.21.0 numpy==2.4.6
cat >"$dir/faults.py" <<'PY'
import importlib
import resource
import sys

import numpy as np

CALLS = 20
name, mebibytes = sys.argv[1], int(sys.argv[2])
engine = importlib.import_module(name)
data = np.ones(mebibytes << 18, "float32")
if name == "jax":
    step = engine.jit(lambda x: (x + 1, x * 2))
    x = engine.numpy.asarray(data)
    call = lambda: engine.block_until_ready(step(x))
else:
    x = {"torch": "from_numpy", "tensorflow": "constant", "numpy": "asarray"}[name]
    x = getattr(engine, x)(data)
    call = lambda: (x + 1, x * 2)


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


for _ in range(5):
    call()
before = faults()
for _ in range(CALLS):
    call()
print(round((faults() - before) / CALLS))
PY
export TF_CPP_MIN_LOG_LEVEL=3
counted() { GLIBC_TUNABLES=$3 "$dir/venv/bin/python" "$dir/faults.py" "$1" "$2" 2>/dev/null; }
kept=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776
ldd --version | head -n 1
echo "page faults of a call that makes two float32 arrays:"
echo "engine      2 x 48 MiB   2 x 12 MiB   2 x 48 MiB, freed memory kept"
for name in numpy tensorflow torch jax; do
  large=$(counted $name 48 "")
  small=$(counted $name 12 "")
  reused=$(counted $name 48 $kept)
  printf '%-10s %11d %12d %12d\n' "$name" "$large" "$small" "$reused"
  case $name in
    torch | jax) ((large > 24000 && small < 2000 && reused < large / 4)) ;;
    *) ((large < 2000)) ;;
  esac
done
