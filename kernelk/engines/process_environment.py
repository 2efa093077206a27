"""The environment variables that a worker is started with: the user's own, less what would change it in silence."""

from __future__ import annotations

import os

from ..display import messages
from ..twins import option

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

# The GNU C library gives freed blocks of 32 MiB and more back at once, and takes fresh pages for the next ones: in a
# step with arrays of that size this takes as long as the arithmetic. A worker gives back what is free once it rests.
_KEEP_FREED = {"glibc.malloc.mmap_max": "0", "glibc.malloc.trim_threshold": str(1 << 40)}
_OWN_MALLOC = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")

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
            messages.say(
                f"kernelk: {setting} is kept out of workers, where {option('precision')} decides (float32 by default)"
            )
    _keep_freed_memory(variables)
    return variables


def _keep_freed_memory(variables: dict[str, str]) -> None:
    """Sets how the GNU C library treats large freed blocks, unless the user has; elsewhere it means nothing."""
    given = variables.get("GLIBC_TUNABLES", "")
    if not any(name in variables for name in _OWN_MALLOC) and not any(name in given for name in _KEEP_FREED):
        own = [f"{name}={value}" for name, value in _KEEP_FREED.items()]
        variables["GLIBC_TUNABLES"] = ":".join([*([given] if given else []), *own])
