"""The environment variables that a worker is started with: the user's own, less what would change it in silence."""

from __future__ import annotations

import os

from ..display import messages

# Each makes some library multiply float32 in fewer bits, or forbids that, whatever was asked of it.
PRECISION_VARIABLES = (
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "HIPBLASLT_ALLOW_TF32",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "TF_SET_ONEDNN_FPMATH_MODE",
    "TF_ENABLE_AUTO_MIXED_PRECISION",
)
# Those are for the kernel's interpreter, and must not reach one of another version.
_PYTHON_VARIABLES = ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "LD_PRELOAD")

# The settings of variables that the user was told of.
_told: set[str] = set()


def worker_variables(own_interpreter: bool) -> dict[str, str]:
    """The variables of a worker; a line says, once, which of the user's are kept out of it."""
    variables = dict(os.environ)
    if not own_interpreter:
        for name in _PYTHON_VARIABLES:
            variables.pop(name, None)
    for name in PRECISION_VARIABLES:
        value = variables.pop(name, "")
        setting = f"{name}={value}"
        if value and setting not in _told:
            _told.add(setting)
            messages.say(f"kernelk: {setting} is kept out of workers, where --precision decides (float32 by default)")
    return variables
