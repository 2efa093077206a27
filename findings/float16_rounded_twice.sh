#!/usr/bin/env bash
# TensorFlow 2.21.0, PyTorch 2.13.0 and JAX 0.10.2 round float64 to float16 twice, by way of float32; numpy rounds once.
#
# One would expect a conversion to give the nearest float16, as each library's conversions to float32 do. A float64 a
# little beyond the middle between two float16 becomes exactly that middle in float32, and is then rounded to the even
# neighbour, which may be the farther one. So a number next to the largest float16, 65504, which lies nearer to it than
# to 65536, becomes infinite; one above half of the least float16 becomes 0; and a result that was computed in float64
# to be stored in float16 isn't the correctly rounded one. numpy 2.4.6 gives the nearest in each case.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
pip=("$dir/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check)
"${pip[@]}" numpy==2.4.6 tensorflow-cpu==2.21.0 jax==0.10.2 jaxlib==0.10.2 torch==2.13.0
cat >"$dir/casts.py" <<'PY'
import jax
import numpy as np
import tensorflow as tf
import torch

jax.config.update("jax_enable_x64", True)
given = np.array([65520 - 2.0**-20, 2.0**-25 + 2.0**-50, 1 + 2.0**-11 + 2.0**-30])
nearest = np.array([65504, 2.0**-24, 1 + 2.0**-10])
twice = np.array([np.inf, 0, 1])
found = {
    f"numpy {np.__version__}": given.astype("float16"),
    f"TensorFlow {tf.__version__}": tf.cast(tf.constant(given), tf.float16).numpy(),
    f"PyTorch {torch.__version__}": torch.from_numpy(given).to(torch.float16).numpy(),
    f"JAX {jax.__version__}": np.asarray(jax.numpy.asarray(given).astype("float16")),
}
for name, made in found.items():
    print(f"{name}: {made.astype('float64').tolist()}")
    wanted = nearest if name.startswith("numpy") else twice
    assert np.array_equal(made.astype("float64"), wanted), (name, made)
print("as found: all but numpy round twice")
PY
TF_CPP_MIN_LOG_LEVEL=3 JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES= "$dir/venv/bin/python" "$dir/casts.py" 2>/dev/null
