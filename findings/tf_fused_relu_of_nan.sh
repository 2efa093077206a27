#!/usr/bin/env bash
# TensorFlow 2.21 on x86: in a tf.function, relu behind a dense layer or a convolution makes 0 of NaN.
#
# tf.nn.relu(nan) is NaN, and so is each layer's value before it. In a tf.function, though, Grappler's remapper fuses a
# product or convolution, its bias and its relu into one kernel of oneDNN's, which takes the maximum in such a way that 0
# wins: a net that has diverged goes on with zeros. Where something else takes the value before the relu as well, nothing
# is fused, and the NaN is back. set_experimental_options({"remapping": False}) keeps it everywhere, and took no longer
# where it was measured. (Of one kind of layer the fused node was seen to end the process; that isn't shown here.)
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check tensorflow-cpu==2.21.0 numpy==2.4.6
cat > "$dir/layers.py" <<'PY'
import sys

import numpy as np
import tensorflow as tf

if "without" in sys.argv:
    tf.config.optimizer.set_experimental_options({"remapping": False})


def dense(x, bias):
    return tf.matmul(x[:, 0, 0], tf.ones((2, 2))) + bias


def convolution(x, bias):
    return tf.raw_ops.Conv2D(input=x, filter=tf.ones((3, 3, 2, 2)), strides=[1] * 4, padding="VALID") + bias


@tf.function(autograph=False)
def relu_of(x, bias):
    return tf.nn.relu(layer(x, bias))


layer = globals()[sys.argv[1]]
x = np.ones((1, 4, 4, 2), np.float32)
x[0, 0, 0, 0] = np.nan
bias = tf.constant([1.0, 1.0])
at_once, fused = [f(tf.constant(x), bias).numpy().reshape(-1)[0] for f in (lambda *a: tf.nn.relu(layer(*a)), relu_of)]
print(f"{' '.join(sys.argv[1:])}: {at_once} op by op, {fused} in a tf.function")
PY
export TF_CPP_MIN_LOG_LEVEL=3
"$dir/venv/bin/python" -c 'import tensorflow; print("tensorflow", tensorflow.__version__)' 2> /dev/null
for layer in dense convolution; do
    "$dir/venv/bin/python" "$dir/layers.py" $layer without 2> /dev/null | tee "$dir/without"
    grep -q "nan op by op, nan in" "$dir/without" || { echo "$layer: NaN is lost without the remapper, too" >&2; exit 1; }
done
for layer in dense convolution; do
    "$dir/venv/bin/python" "$dir/layers.py" $layer 2> /dev/null | tee "$dir/with"
    grep -q "nan op by op, 0.0 in" "$dir/with" || { echo "$layer: NaN is kept now" >&2; exit 1; }
done
