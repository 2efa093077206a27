#!/usr/bin/env bash
# TensorFlow 2.21.0 on a CPU: a float32 sum over the first axis adds one row after the other, so that a variance of 1
# comes out as some 50.
#
# Sums along the last axis are added in blocks and keep their digits; one would expect as much of the same numbers
# along the first axis, which is the batch's. There each new row is added to a total that has long grown past it: of a
# million rows of 0.1 the sum is 1 % off, where the sum of the same numbers laid out as two long rows is off by 2e-6, and
# PyTorch's over the first axis by less. tf.nn.moments subtracts such a mean: for 100,000 rows around 10,000 with a
# deviation of 1 (a column of a table that nobody has centred) it gives a mean that is 7 too small and a variance of
# more than 50. Nothing warns. A cast to float64 before the reduction gives 1.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check tensorflow-cpu==2.21.0 numpy==2.4.6
cat >"$dir/sums.py" <<'PY'
import numpy as np
import tensorflow as tf

print("TensorFlow", tf.__version__)
rows = np.full((1_000_000, 2), 0.1, "float32")
right = len(rows) * float(np.float32(0.1))


def error(total):
    return float(np.abs(total.numpy() / right - 1).max())


first = error(tf.reduce_sum(tf.constant(rows), axis=0))
last = error(tf.reduce_sum(tf.constant(np.ascontiguousarray(rows.T)), axis=1))
print(f"a million times 0.1: {first:.2%} off along the first axis, {last:.1e} along the last")

table = np.random.default_rng(0).normal(1e4, 1, (100_000, 3)).astype("float32")
exact = table.astype("float64").var(0)
_, variance = tf.nn.moments(tf.constant(table), axes=[0])
_, wide = tf.nn.moments(tf.constant(table, tf.float64), axes=[0])
print("variances:", exact.round(3), "in float64; tf.nn.moments:", variance.numpy().round(1), "; of float64:",
      wide.numpy().round(3))
assert first > 0.005, first
assert last < 1e-5, last
assert (variance.numpy() > 20).all()
assert np.allclose(wide, exact)
print("as found: the first axis is added one by one")
PY
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$dir/venv/bin/python" "$dir/sums.py"
