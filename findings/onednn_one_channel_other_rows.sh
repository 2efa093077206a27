#!/usr/bin/env bash
# oneDNN, as TensorFlow 2.21 and PyTorch 2.13 have it: with AVX-512 a strided convolution of one channel returns other
# rows than those asked for.
#
# A convolution of images of one channel, by a kernel of one row, with strides (1, 2), whose result has one place along
# each row: finite numbers come back, in the right shape, and from two samples on they are those of other rows. No error
# or warning tells of it. One sample alone is right, as are two channels, equal strides, TensorFlow with
# TF_ENABLE_ONEDNN_OPTS=0, and oneDNN's code for AVX2 (ONEDNN_MAX_CPU_ISA=AVX2), so that a test on an older processor
# passes. PyTorch has it where channels come last in memory, as in a view of an array that images are stored in, and for
# wider kernels; torch.rand's own memory is right. Layers that read a table or a spectrogram row by row look like this.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    tensorflow-cpu==2.21.0 torch==2.13.0 numpy==2.4.6
cat > "$dir/rows.py" <<'PY'
import sys

import numpy as np


def right(x, kernel, stride):
    width = kernel.shape[1]
    places = range(0, x.shape[2] - width + 1, stride)
    return np.stack([np.tensordot(x[:, :, i : i + width, 0], kernel[0, :, 0], (2, 0)) for i in places], 2)


def tensorflow(x, kernel, stride):
    import tensorflow as tf

    return tf.raw_ops.Conv2D(input=x, filter=kernel, strides=[1, 1, stride, 1], padding="VALID").numpy()


def torch(x, kernel, stride):
    import torch

    images = torch.from_numpy(x).permute(0, 3, 1, 2)  # no copy
    weights = torch.from_numpy(kernel).permute(3, 2, 0, 1)
    return torch.nn.functional.conv2d(images, weights, stride=(1, stride)).permute(0, 2, 3, 1).numpy()


engine = globals()[sys.argv[1]]
width, filters, stride = (2, 1, 2) if sys.argv[1] == "tensorflow" else (5, 4, 2)
random = np.random.RandomState(0)
x = random.rand(3, 6, width + 1, 1).astype(np.float32)
kernel = random.rand(1, width, 1, filters).astype(np.float32)
wrong = [
    int((abs(engine(x[:n], kernel, stride) - right(x[:n], kernel, stride)) > 1e-4).sum()) for n in (1, 2, 3)
]
twice = engine(np.repeat(x, 2, 3), np.repeat(kernel, 2, 2) / 2, stride)
both = int((abs(twice - right(x, kernel, stride)) > 1e-4).sum())
print(f"{sys.argv[1]}: {wrong} of {[n * 6 * filters for n in (1, 2, 3)]} values wrong for 1, 2 and 3 samples; {both} as two channels")
sys.exit(0 if wrong[0] == both == 0 < min(wrong[1:]) else 1)
PY
export TF_CPP_MIN_LOG_LEVEL=3
"$dir/venv/bin/python" -c 'import importlib.metadata as m
print(*(f"{name} {m.version(name)}" for name in ("tensorflow-cpu", "torch", "numpy")))'
grep -qm 1 avx512f /proc/cpuinfo || { echo "needs a processor with AVX-512" >&2; exit 3; }
for engine in tensorflow torch; do
    "$dir/venv/bin/python" "$dir/rows.py" $engine 2> "$dir/errors" || {
        tail -n 3 "$dir/errors" >&2
        echo "$engine: that has changed" >&2
        exit 1
    }
done
right() {
    echo "with $1:"
    for engine in tensorflow torch; do
        [ "$1 $engine" != "TF_ENABLE_ONEDNN_OPTS=0 torch" ] || continue
        ! env "$1" "$dir/venv/bin/python" "$dir/rows.py" $engine 2> /dev/null || { echo "wrong there, too" >&2; exit 1; }
    done
}
right TF_ENABLE_ONEDNN_OPTS=0
right ONEDNN_MAX_CPU_ISA=AVX2
