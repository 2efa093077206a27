"""Files that Keras 2.3.1 wrote on TensorFlow 1.15.5 and on Theano predict and train on as there, on every engine.

`old_files/make.py` has made them, with what Keras computed from them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from helpers.engines import ENGINES, require_installed

from kernelk.environments import keras2

HERE = Path(__file__).resolve().parent
# On an engine of which each program takes long to compile: what engines compute in different ways.
SAMPLE = ("adam", "batch_normalization", "bidirectional", "conv_lstm", "convolutions", "masking", "upsampling")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the files, by the backend that wrote them."""
    keras2.install(lambda text: None)
    folder = tmp_path_factory.mktemp("old_files")
    with tarfile.open(HERE / "old_files" / "files.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def read(engine: str, folder: Path, *names: str) -> dict[str, list[float] | str]:
    """The differences that `read.py` finds."""
    command = [sys.executable, "-W", "ignore", str(HERE / "old_files" / "read.py"), engine, str(folder), *names]
    environment = {**os.environ, "KERNELK_QUIET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parents[1])
    assert done.returncode == 0, done.stderr
    found: dict[str, list[float] | str] = json.loads(done.stdout.splitlines()[-1])
    return found


def wrong(found: dict[str, list[float] | str]) -> dict[str, list[float] | str]:
    """Those with an error, or with more than the last digits of float32 off."""
    return {name: off for name, off in found.items() if isinstance(off, str) or not max(off) < 2e-5}


@pytest.mark.parametrize(("writer", "number"), [("tensorflow", 35), ("theano", 30)])
def test_every_kind_predicts_and_trains_on_as_where_it_was_written(files: Path, writer: str, number: int) -> None:
    found = read("numpy", files / writer)
    assert len(found) == number
    assert wrong(found) == {}


@pytest.mark.slow
@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "numpy"])
def test_old_files_on_each_engine(files: Path, engine: str) -> None:
    require_installed(engine)
    assert wrong(read(engine, files / "tensorflow", *SAMPLE)) == {}


def test_a_function_in_another_pythons_bytecode_is_told_in_one_line(tmp_path: Path) -> None:
    script = """
import kernelk, numpy as np
kernelk.set_backend("numpy")
kernelk.enable_keras2()
import keras
model = keras.Sequential([keras.layers.Dense(2, input_shape=(3,)), keras.layers.Lambda(lambda t: t * 2)])
text = model.to_json()
code = text.split('"function": ["')[1].split('"')[0]
try:
    keras.models.model_from_json(text.replace(code, code[:40] + "\\\\n"))
except ValueError as error:
    print(error)
mended = {"Lambda": lambda name, **rest: keras.layers.Lambda(lambda t: t * 3, name=name)}
other = keras.models.model_from_json(text.replace(code, code[:40] + "\\\\n"), mended)
other.set_weights(model.get_weights())
x = np.ones((1, 3))
print(np.allclose(other.predict(x), model.predict(x) * 1.5))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env={**os.environ, "KERNELK_QUIET": "1"},
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
    )
    line, same = done.stdout.splitlines()[-2:]
    assert line.startswith("the function of a Lambda layer in this file is bytecode of another Python")
    assert "next: keras.models.load_model(path, custom_objects=" in line
    assert same == "True"
