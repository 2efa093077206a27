#!/usr/bin/env bash
# TensorFlow 2.21 on a CPU keeps the memory of all tensors that are gone, more than twice what ever lived at a time.
#
# Numpy, PyTorch and JAX give an array of 100 MB back to the system when it is deleted, and one would expect a
# TensorFlow without a GPU to do so as well: its pool of device memory is a GPU's affair. But builds with oneDNN, the
# default on x86, take the memory of CPU tensors from a pool of the same kind, which never shrinks: after a function of
# two tensors of 100 MB was called a few times, the process holds 500 MB, and still does when every tensor is deleted
# and malloc_trim was called. TF_ENABLE_ONEDNN_OPTS=0, documented for its numerical differences, is what turns that off:
# then all of it goes back. A notebook that has once trained something large stays as large until its process ends.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check tensorflow-cpu==2.21.0 numpy==2.4.6
cat > "$dir/held.py" <<'PY'
import ctypes
import gc

import tensorflow as tf

SIZE = 25_000_000  # 100 MB of float32


def private():
    rows = [line.split() for line in open("/proc/self/smaps_rollup")][1:]
    return sum(int(row[1]) for row in rows if row[0].startswith("Private")) / 1e3


step = tf.function(lambda w, v: (w + v * 0.9, v * 0.9 - 1.0), autograph=False)
call = step.get_concrete_function(tf.TensorSpec((SIZE,)), tf.TensorSpec((SIZE,)))
tf.zeros(3)
before = private()
w, v = tf.zeros(SIZE), tf.zeros(SIZE)
two = private() - before
for _ in range(4):
    w, v = call(w, v)
most = private() - before
del w, v
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
print(tf.__version__, round(two), round(most), round(private() - before))
PY
held() { TF_CPP_MIN_LOG_LEVEL=3 TF_ENABLE_ONEDNN_OPTS=$1 "$dir/venv/bin/python" "$dir/held.py" 2> /dev/null; }
for onednn in 1 0; do
  read -r version two most left < <(held "$onednn")
  echo "tensorflow $version, oneDNN $onednn: two tensors $two MB, after four calls $most MB, all deleted $left MB"
  eval "left_$onednn=$left"
done
[ "$left_1" -gt 400 ] || { echo "with oneDNN memory goes back now" >&2; exit 1; }
[ "$left_0" -lt 50 ] || { echo "without oneDNN it is kept, too" >&2; exit 1; }
echo "as described: freed tensors keep their memory, unless oneDNN is off"
