"""Keras 2.3.1 on its own backends, in old Pythons: TensorFlow 1.15.5's is built, Theano's and CNTK's are kernelk's.

Everything comes from the package index into build/old-keras; kernelk's environments stay as they are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from kernelk.engines import registry

BUILD = Path(__file__).resolve().parent.parent / "build" / "old-keras"
KERAS = ["keras==2.3.1", "keras-applications==1.0.8", "keras-preprocessing==1.1.2", "h5py==2.10.0", "pyyaml==5.4.1"]
TENSORFLOW = ["tensorflow==1.15.5", "protobuf==3.20.3", "numpy==1.18.5"]


def python_37() -> str | None:
    """The Python 3.7 that KERNELK_PYTHON37 names, or one on the path, or pyenv's; None if there is none."""
    named = os.environ.get("KERNELK_PYTHON37")
    if named:
        return named
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which("python3.7"), *(str(path) for path in sorted(versions.glob("3.7.*/bin/python3.7")))]
    # pyenv's shim is on the path even where 3.7 isn't chosen, and doesn't run then.
    return next((path for path in found if path and _runs(path)), None)


def _runs(python: str) -> bool:
    return subprocess.run([python, "-c", "import venv"], capture_output=True).returncode == 0


def interpreter(backend: str) -> tuple[Path, dict[str, str]]:
    """The Python in which Keras 2.3.1 runs on this backend, and the environment variables for it.

    Raises RuntimeError where there is no Python 3.7, and BackendNotInstalledError.
    """
    settings = {**os.environ, "KERAS_BACKEND": backend, "PYTHONDONTWRITEBYTECODE": "1"}
    if backend == "tensorflow":
        return _tensorflow(), {**settings, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    python = Path(registry.interpreter(registry.engine(backend)))
    return python, {**settings, "PYTHONPATH": str(_keras_beside(python))}


def _tensorflow() -> Path:
    folder = BUILD / "tensorflow"
    program = folder / "bin" / "python"
    if not (folder / "ready").exists():
        python = python_37()
        if python is None:
            raise RuntimeError("TensorFlow 1.15 needs Python 3.7; next: KERNELK_PYTHON37=/path/to/python3.7")
        subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(program), "-m", "pip", "install", "--quiet", *TENSORFLOW, *KERAS], check=True)
        (folder / "ready").touch()
    return program


def _keras_beside(python: Path) -> Path:
    folder = BUILD / "keras-3.6"
    if not (folder / "ready").exists():
        command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*command, *KERAS, "six==1.16.0"], check=True)
        (folder / "ready").touch()
    return folder
