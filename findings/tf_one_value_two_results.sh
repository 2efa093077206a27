#!/usr/bin/env bash
# TensorFlow 2.21: equal values in one tensor give different results, by their place.
#
# One would expect an elementwise function to give equal results for equal inputs. On the CPU the vectorized body of
# the loop and the rest at its end (or a tensor too short for vectors) compute differently in TensorFlow: tf.cast of
# -1.0 to uint8 is 0 in the body, where it saturates, and 255 at the end, where it wraps; 300.0 is 255 or 44, and NaN
# to int8 -128 or 0. The logarithm of a denormal is -inf or -103.97, and its sign is itself or 0.
# As each thread gets a piece of a large tensor of its own, the number of cores moves the places. Pixels outside [0,
# 255] before a cast depend on all that: clip them first. (Seen on x86-64; the script leaves with 3 elsewhere.)
set -euo pipefail
[ "$(uname -m)" = x86_64 ] || { echo "needs an x86-64 processor" >&2; exit 3; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check tensorflow-cpu==2.21.0 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 "$dir/venv/bin/python" - <<'PY'
import numpy as np
import tensorflow as tf

print("tensorflow", tf.__version__, "- 37 equal values: the first result, the last, and where it changes")


def results(name, f, value):
    r = f(tf.fill([37], tf.constant(value, tf.float32))).numpy()
    at = int(np.argmax(r != r[0]))
    print(f"  {name:22} {r[0]:.6g} ... {r[-1]:.6g} from place {at}")
    assert at > 0 and np.all(r[:at] == r[0]) and np.all(r[at:] == r[-1]), f"{name}: one result now"
    short = f(tf.fill([3], tf.constant(value, tf.float32))).numpy()
    assert np.all(short == r[-1]), f"{name}: three values alone go another way"
    return float(r[0]), float(r[-1])


nan = float("nan")
assert results("-1.0 to uint8", lambda x: tf.cast(x, tf.uint8), -1.0) == (0, 255)
assert results("300.0 to uint8", lambda x: tf.cast(x, tf.uint8), 300.0) == (255, 44)
assert results("300.0 to int8", lambda x: tf.cast(x, tf.int8), 300.0) == (127, 44)
assert results("NaN to int8", lambda x: tf.cast(x, tf.int8), nan) == (-128, 0)
assert results("-1.0 to uint16", lambda x: tf.cast(x, tf.uint16), -1.0) == (0, 65535)
body, end = results("log of 1e-40", tf.math.log, 1e-40)
assert body == -np.inf and -104 < end < -103
body, end = results("sign of 1e-40", tf.sign, 1e-40)
assert 0 < body < 2e-40 and end == 0
print("as described: equal inputs, two results")
PY
