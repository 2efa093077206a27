"""`kernelk time`, `profile` and `compare` on scripts, run as their users run them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.engines import activate
from helpers.processes import PATIENCE

STEP = """
import sys
import numpy as np
from helper import SIZE
from kernelk import backend as K

assert __name__ == "__main__" and sys.argv[0].endswith("step.py")
x = K.placeholder((None, SIZE))
w = K.variable(np.full((SIZE, 2), 0.5))
f = K.function([x], [K.softmax(K.dot(x, w))])
for _ in range(3):
    f([np.ones((4, SIZE))])
print("the script ran")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "step.py").write_text(STEP)
    (tmp_path / "helper.py").write_text("SIZE = 8\n")
    return tmp_path


def kernelk(folder: Path, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kernelk", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == status, done
    assert "Traceback" not in done.stderr
    return done


def test_a_script_on_engines_side_by_side(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KERNELK_QUIET")
    written = folder / "result.json"
    done = kernelk(
        folder,
        "compare",
        "step.py",
        "numpy",
        "torch",
        "--budget",
        "0.5",
        "--json",
        str(written),
        "--plot",
        "picture.png",
    )
    assert done.stdout.count("the script ran") == 1
    # No engine but those that are compared is started.
    assert "TensorFlow" not in done.stdout + done.stderr
    assert "3 calls of float32[4, 8]" in done.stdout
    result = json.loads(written.read_text())
    assert [side["label"] for side in result["sides"]] == ["numpy", "torch"]
    assert all(side["calls"][0]["count"] == 3 and side["rounds"] for side in result["sides"])
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_two_scripts_on_one_engine(folder: Path) -> None:
    (folder / "other.py").write_text(STEP.replace("softmax", "sigmoid").replace("step.py", "other.py"))
    done = kernelk(folder, "compare", "step.py", "other.py", "numpy", "--budget", "0.3", "--json", "result.json")
    assert done.stdout.count("the script ran") == 2
    result = json.loads((folder / "result.json").read_text())
    assert result["same_engine"]
    assert [side["label"] for side in result["sides"]] == ["step.py", "other.py"]
    assert all(side["rounds"] for side in result["sides"])


def test_time_and_profile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELK_BACKEND", "numpy")
    assert "on numpy" in kernelk(folder, "time", "step.py", "--budget", "0.2").stdout
    assert "softmax" in kernelk(folder, "profile", "step.py", "--budget", "0.2").stdout
    done = kernelk(folder, "profile", "step.py", "--engine", status=1)
    assert "numpy has no profiler of its own" in done.stderr
    assert "the script ran" not in done.stdout


def test_the_engines_own_profiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    activate("torch")
    monkeypatch.setenv("KERNELK_BACKEND", "torch")
    done = kernelk(folder, "profile", "step.py", "--engine", "--budget", "0.3", "--json", "own.json")
    assert "torch.profiler, for the call as torch runs it" in done.stdout
    names = [row["name"] for row in json.loads((folder / "own.json").read_text())["engine_profile"]["rows"]]
    assert "aten::mm" in names


def test_what_goes_wrong_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELK_BACKEND", "numpy")
    monkeypatch.setenv("KERNELK_QUIET", "1")
    scripts = {
        "raises.py": (
            "x = 1\n1 / 0\n",
            "raises.py, line 2: ZeroDivisionError: division by zero; next: python raises.py",
        ),
        "wrong.py": ("x = (\n", "wrong.py, line 1: SyntaxError"),
        "ends.py": ("import sys\nsys.exit(3)\n", "ended with 3"),
        "idle.py": ("x = 1\n", "nothing was evaluated"),
        "shapes.py": (
            "from kernelk import backend as K\nK.dot(K.ones((2, 3)), K.ones((2, 3)))\n",
            "shapes.py, line 2",
        ),
    }
    for name, (text, told) in scripts.items():
        (folder / name).write_text(text)
        done = kernelk(folder, "time", name, status=1)
        assert told in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    for arguments, told in (
        (["compare", "gone.py", "numpy"], "no script gone.py"),
        (["compare", "numpy", "torch"], "name a script"),
        (["time", "step.py", "numpy"], "one script at a time"),
        (["compare", "step.py", "thaeno"], "theano"),
        (["compare", "step.py", "numpy", "--budget", "0"], "number of seconds"),
        (["time", "step.py", "--budget", "0.1", "--json", "no/such/folder.json"], "can't be written"),
    ):
        assert told in kernelk(folder, *arguments, status=1).stderr


def test_a_folder_that_is_missing_is_named_before_anything_is_measured(folder: Path) -> None:
    done = kernelk(folder, "compare", "step.py", "numpy", "--json", "no/result.json", status=1)
    assert "there is no folder no; next: mkdir -p no" in done.stderr
    assert "the script ran" not in done.stdout
