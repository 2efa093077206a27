"""Sets up Theano's surroundings: numpy's BLAS, a C compiler, a folder for compiled code that workers share."""

import ctypes
import glob
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
import zlib

import numpy as np

from ..errors import OptionError


def quoted(value):
    """Escapes a value for THEANO_FLAGS, which shlex splits at commas."""
    return re.sub(r"""([\\,'"#])""", r"\\\1", value)


def numpy_blas():
    """The OpenBLAS that numpy itself has loaded: (path, library), or (None, None)."""
    folder = os.path.dirname(np.__file__)
    paths = glob.glob(os.path.join(folder + ".libs", "*openblas*"))
    paths += glob.glob(os.path.join(folder, ".libs", "*openblas*"))
    if not paths and os.path.exists("/proc/self/maps"):
        with open("/proc/self/maps") as file:
            paths = sorted(set(line.split(None, 5)[-1].strip() for line in file if "openblas" in line))
    for path in paths:
        try:
            library = ctypes.CDLL(path)
            # 64-bit integer builds have other names, and other arguments, than Theano's C code.
            for symbol in ("dgemm_", "openblas_get_num_threads"):
                getattr(library, symbol)
        except (OSError, AttributeError):
            continue
        return path, library
    return None, None


def find_compiler(wanted):
    """The compiler's path, or "" and the reason."""
    if wanted == "":
        return "", "no compiler"
    name = wanted or "g++"
    path = shutil.which(name)
    if path is None:
        if wanted:
            raise OptionError(
                "compiler %r isn't found" % wanted, allowed='allowed: a C++ compiler\'s name or path, "" or None'
            )
        return "", "no compiler: g++ isn't found"
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        return "", "no compiler: this Python has no Python.h"
    version = subprocess.run(
        [path, "-dumpfullversion", "-dumpversion"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return path, "C, %s %s" % (os.path.basename(path), version.stdout.decode().split("\n")[0])


def writable(*folders):
    """The first of these folders that takes a file, made if need be: a home may be read-only; None if none does."""
    for folder in folders:
        if folder:
            try:
                os.makedirs(folder, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    return folder
            except OSError:
                pass
    return None


def keep_cache_keys(theano):
    """Makes the compile cache last: some of Theano's ops would be compiled again by every process."""
    # Theano 1.0.5 counts an op with no properties (softmax, dot22) as one of unknown version.
    pending = [theano.gof.op.PureOp]
    while pending:
        kind = pending.pop()
        pending.extend(kind.__subclasses__())
        if kind.__dict__.get("__props__") == ():
            # The methods made from it keep it.
            del kind.__props__

    # The version of an op with its C code in a file (dimshuffle) is Python's hash of that code, new in every process.
    def version(self):
        code = "\0".join(self.func_codes).encode("utf-8")
        version = (zlib.crc32(code),)
        if hasattr(self, "params_type"):
            version += (self.params_type.c_code_cache_version(),)
        return version

    theano.gof.op.COp.c_code_cache_version = version


def join(folder):
    """Removes the locks of workers that were ended while they compiled; what it returns is kept for this one's life.

    Theano overrides a lock whose owner is dead, but waits two minutes for one that was hardly begun, or whose process
    number is another process's by now. Each worker holds the system's own lock on the folder, shared, all its life: who
    has it alone knows that Theano's are nobody's.
    """
    try:
        import fcntl

        os.makedirs(folder, exist_ok=True)
        file = open(os.path.join(folder, "workers"), "a+")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in os.listdir(folder):
                shutil.rmtree(os.path.join(folder, name, "lock_dir"), ignore_errors=True)
        except OSError:
            pass  # There are others; or the file system has no such locks, and the next line says so.
        fcntl.flock(file, fcntl.LOCK_SH)
        return file
    except (ImportError, OSError):
        return None


def shorten_waits():
    """Two workers that share a cache take turns by a lock, which the waiting one would look at only once a second."""
    from theano.gof import compilelock

    lock = compilelock.lock

    def patient(folder, **settings):
        settings = dict({"min_wait": 0.02, "max_wait": 0.1, "verbosity": 0}, **settings)
        return lock(folder, **settings)

    compilelock.lock = patient
    # Its parts are found by underscores.
    compilelock.hostname = compilelock.hostname.replace("_", "-")
