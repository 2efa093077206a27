"""Makes files.tar.xz: has Keras 2.3.1 on TensorFlow 1.15.5 and on Theano write the models of `write.py`.

It needs Python 3.7, for TensorFlow, and kernelk's environment of Theano; Keras and TensorFlow come from the package
index into build/old-keras. `python tests/keras2/old_files/make.py [python3.7]`
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

from kernelk.engines import registry

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[2] / "build" / "old-keras"
KERAS = ["keras==2.3.1", "keras-applications==1.0.8", "keras-preprocessing==1.1.2", "h5py==2.10.0", "pyyaml==5.4.1"]
TENSORFLOW = ["tensorflow==1.15.5", "protobuf==3.20.3", "numpy==1.18.5"]


def tensorflow_python(python: str) -> Path:
    """A Python 3.7 with TensorFlow 1.15.5 and Keras 2.3.1."""
    folder = BUILD / "tensorflow"
    program = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(program), "-m", "pip", "install", "--quiet", *TENSORFLOW, *KERAS], check=True)
        (folder / "ready").touch()
    return program


def keras_beside(python: Path) -> Path:
    """A folder with Keras 2.3.1 for kernelk's environment of Theano or CNTK, which stays as it is."""
    folder = BUILD / "keras-3.6"
    if not (folder / "ready").exists():
        command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*command, *KERAS, "six==1.16.0"], check=True)
        (folder / "ready").touch()
    return folder


def write(python: Path, backend: str, **settings: str) -> None:
    """Has the models of this backend written."""
    folder = BUILD / "files" / backend
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "KERAS_BACKEND": backend, **settings}
    subprocess.run([str(python), "-W", "ignore", str(HERE / "write.py"), str(folder)], env=environment, check=True)


def main(python: str = "python3.7") -> None:
    write(tensorflow_python(python), "tensorflow", CUDA_VISIBLE_DEVICES="", TF_CPP_MIN_LOG_LEVEL="3")
    theano = Path(registry.interpreter(registry.engine("theano")))
    # Its own Python code computes the same as its C code, and is ready at once.
    flags = f"cxx=,optimizer=None,device=cpu,base_compiledir={BUILD / 'theano'}"
    write(theano, "theano", THEANO_FLAGS=flags, PYTHONPATH=str(keras_beside(theano)))
    with tarfile.open(HERE / "files.tar.xz", "w:xz", preset=9) as archive:
        for file in sorted((BUILD / "files").glob("*/*")):
            archive.add(file, str(file.relative_to(BUILD / "files")), filter=_without_owner)


def _without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    main(*sys.argv[1:])
