"""Makes files.tar.xz: has Keras 2.3.1 on TensorFlow 1.15.5 and on Theano write the models of `write.py`.

It needs Python 3.7, for TensorFlow, and kernelk's environment of Theano (see `benchmarks/old_keras.py`).
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[2] / "benchmarks"))

from old_keras import BUILD, interpreter  # noqa: E402

# Theano's own Python code computes the same as its C code, and is ready at once.
SETTINGS = {
    "tensorflow": {},
    "theano": {"THEANO_FLAGS": f"cxx=,optimizer=None,device=cpu,base_compiledir={BUILD / 'theano'}"},
}


def main() -> None:
    files = BUILD / "files"
    for backend, settings in SETTINGS.items():
        folder = files / backend
        folder.mkdir(parents=True, exist_ok=True)
        python, environment = interpreter(backend)
        command = [str(python), "-W", "ignore", str(HERE / "write.py"), str(folder)]
        subprocess.run(command, env={**environment, **settings}, check=True)
    with tarfile.open(HERE / "files.tar.xz", "w:xz", preset=9) as archive:
        for file in sorted(files.glob("*/*")):
            archive.add(file, str(file.relative_to(files)), filter=_without_owner)


def _without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    main()
