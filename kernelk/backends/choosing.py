"""Options that several backends check alike: the device, threads, precision, denormal numbers."""

import os

from .errors import OptionError

# What a library has but once in a process: said where this is the notebook's own.
SHARED_THREADS = "%s has one thread pool per process: these %d threads also serve your own %s code in this notebook"
FLUSHES = "%s flushes denormal numbers to zero in the notebook's own process (its default); a worker keeps them"

# How float32 is multiplied; the first is what every engine has, and does unless it is asked for another.
PRECISIONS = ("float32", "tf32", "bfloat16")
FLOAT32 = PRECISIONS[:1]

# What makes oneDNN round the factors of its products, in a process whose environment has it.
ONEDNN_VARIABLES = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "TF_SET_ONEDNN_FPMATH_MODE")


def positive_threads(options):
    """The option "threads" as an int, or None where it isn't given. Raises OptionError."""
    threads = options.get("threads")
    if threads is None:
        return None
    if int(threads) < 1:
        raise OptionError("threads=%r is unknown" % (threads,), allowed="allowed are 1 and more")
    return int(threads)


def settled_threads(title, name, settled, wanted):
    """The error for a library that takes no other number of threads any more, since its process has used it."""
    return OptionError(
        "%s already runs with %s threads in this process: restart it to have %s" % (title, settled, wanted),
        next_step="%%kbackend %s --worker --threads %s, or restart the notebook's kernel" % (name, wanted),
    )


def listed_device(wanted, devices):
    """The name among `devices` that `wanted` means, or None: "cpu" is "cpu:0", and "gpu" "gpu:0"."""
    for name in (wanted, wanted + ":0", wanted[:-2] if wanted.endswith(":0") else wanted):
        if name in devices:
            return name
    return None


def chosen_device(title, name, options, devices, default):
    """The device to use, as the engine lists it. Raises OptionError with all of `devices`."""
    wanted = options.get("device")
    if wanted is None:
        return default
    device = listed_device(str(wanted), devices)
    if device is None:
        raise OptionError(
            "%s has no device %r here" % (title, str(wanted)),
            allowed="allowed are %s" % ", ".join(devices),
            next_step="%%kbackend %s --device %s" % (name, default),
        )
    return device


def precisions(has_tf32):
    """The precisions of a device: whatever it is, factors can be rounded to bfloat16 before they are multiplied."""
    return [name for name in PRECISIONS if has_tf32 or name != "tf32"]


def chosen_precision(title, name, options, device, available):
    """The option "precision", or float32 where it isn't given. Raises OptionError with those that are `available`."""
    wanted = options.get("precision") or FLOAT32[0]
    if wanted not in available:
        raise OptionError(
            "%s has no %s on %s" % (title, wanted, device),
            allowed="allowed %s %s" % ("is" if len(available) == 1 else "are", ", ".join(available)),
            next_step="%%kbackend %s --precision %s" % (name, FLOAT32[0]),
        )
    return wanted


def check_environment(title, name, precision, device):
    """Raises OptionError where the notebook's own process was started with a variable that decides on the precision.

    The libraries have read it when they were loaded. A worker is started without it.
    """
    decided = None
    if device.startswith("cpu"):
        for variable in ONEDNN_VARIABLES:
            if os.environ.get(variable, "").upper() not in ("", "STRICT", "DEFAULT"):
                decided = variable
    elif os.environ.get("NVIDIA_TF32_OVERRIDE", "") == ("1" if precision == FLOAT32[0] else "0"):
        decided = "NVIDIA_TF32_OVERRIDE"
    if decided is not None:
        raise OptionError(
            "%s can't be kept to %s in the notebook's own process: %s=%s is set there"
            % (title, precision, decided, os.environ[decided]),
            next_step="%%kbackend %s --worker, or restart the notebook's kernel without it" % name,
        )


def wanted_denormals(options):
    """The option "denormals": "keep", "flush", or None where it isn't given. Raises OptionError."""
    wanted = options.get("denormals")
    if wanted not in (None, "keep", "flush"):
        raise OptionError("denormals=%r is unknown" % (wanted,), allowed="allowed are 'keep' and 'flush'")
    return wanted


def settled_denormals(title, wanted, kept, in_kernel, notes, settled):
    """Checks how a started engine treats denormals, "keep" or "flush". Raises OptionError unless that was wanted.

    Where nothing was, and the kernel's own library flushes, `notes` gets a line. `settled`: what settles it.
    """
    if in_kernel and not kept and wanted is None:
        notes.append(FLUSHES % title)
    if wanted == "keep" and not kept:
        if in_kernel:
            raise OptionError(FLUSHES % title, next_step="leave the option 'denormals' out, or use a worker")
        raise OptionError(
            "%s flushes denormal numbers here, as it %s earlier or can't be kept from it" % (title, settled),
            next_step="restart the process, or leave the option 'denormals' out",
        )
    return "keep" if kept else "flush"
