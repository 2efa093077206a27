#!/usr/bin/env bash
# TensorFlow 2.21: one NaN makes top_k give the smallest value as the largest.
#
# One would expect a NaN to be ranked somewhere: last, as in numpy's argsort, or first, as in PyTorch and JAX. In
# TensorFlow (CPU) the comparison is simply false for a NaN, so an order that holds for the rest is not kept: the top 1
# of [1, 5, 2, 9, nan] is 1, and with k=2 the same list answers [9, 5]. A sort of [3, nan, 1, 2, 5] isn't sorted.
# No error, no NaN in the answer. Who swaps engines sees other beams, other accuracies ("in top k") and other
# samples as soon as one logit is NaN, and PyTorch and JAX would have shown the NaN itself.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check tensorflow-cpu==2.21.0 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 "$dir/venv/bin/python" - <<'PY'
import numpy as np
import tensorflow as tf

print("tensorflow", tf.__version__)


def top(values, k):
    found, at = tf.math.top_k(tf.constant(values, tf.float32), k)
    values = np.asarray(values, np.float32)
    assert np.array_equal(values[at.numpy()], found.numpy(), equal_nan=True)  # indices and values agree
    print(f"top_k({values.tolist()}, {k}) = {found.numpy().tolist()}")
    return found.numpy().tolist()


nan = float("nan")
assert top([1, 5, 2, 9, 0], 1) == [9]
one = top([1, 5, 2, 9, nan], 1)
two = top([1, 5, 2, 9, nan], 2)
other = top([9, 1, nan, 8, 7], 1)
ordered = tf.sort(tf.constant([3, nan, 1, 2, 5], tf.float32)).numpy()
print("sort([3, nan, 1, 2, 5]) =", ordered.tolist())
finite = ordered[~np.isnan(ordered)]

assert one == [1.0], "the top 1 is no longer the smallest"
assert two == [9.0, 5.0], "k=2 changed"
assert other == [8.0], "9 is found now"
assert (np.diff(finite) < 0).any(), "the finite values are sorted now"
print("as described: one NaN, and the largest value isn't found")
PY
