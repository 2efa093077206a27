"""Options and commands in messages, as users have typed them: on a magic's line, in a shell, or in Python."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.notebooks import run_cells
from helpers.processes import PATIENCE, environment

import kernelk
from kernelk import backend as K
from kernelk.errors import ArgumentError, FeedError
from kernelk.twins import as_typed, option


@pytest.mark.parametrize(
    ("line", "twin"),
    [
        ("%kbackend", "kernelk.list_backends()"),
        ("%kbackend --list", "kernelk.list_backends()"),
        ("%kbackend torch --threads 2 --device cpu:0", "kernelk.set_backend('torch', threads=2, device='cpu:0')"),
        ("%kbackend torch --on hpc[2]", "kernelk.set_backend('torch', on='hpc[2]')"),
        ("%kbackend theano --no-compiler", "kernelk.set_backend('theano', compiler=False)"),
        ("%kbackend numpy --drop-calls", "kernelk.set_backend('numpy', drop_calls=True)"),
        ("%kbackend --log torch@box", "kernelk.log('torch@box')"),
        (
            "%kbackend jax --worker --threads 1, or restart the notebook's kernel",
            "kernelk.set_backend('jax', in_kernel=False, threads=1), or restart the notebook's kernel",
        ),
        (
            "%kbackend --stop theano, then %kbackend theano",
            "kernelk.stop_backend('theano'), then kernelk.set_backend('theano')",
        ),
        ("%kbackend --keras3-back", "kernelk.disable_keras2()"),
        ("fix it", "fix it"),
    ],
)
def test_a_lines_twin(line: str, twin: str) -> None:
    assert as_typed(line) == twin


def test_every_option_that_a_message_names_is_one_of_the_twins() -> None:
    parameters = inspect.signature(kernelk.set_backend).parameters
    for line in ("a --in-kernel", "a --worker", "a --compiler", "a --no-compiler", "a --save", "a --drop-calls"):
        name = as_typed(f"%kbackend {line}").partition(", ")[2].partition("=")[0]
        assert name in parameters, line
    for line in ("list", "stop a", "install a", "doctor a", "log a", "keras2", "keras3-back"):
        function = as_typed(f"%kbackend --{line}").removeprefix("kernelk.").partition("(")[0]
        assert callable(getattr(kernelk, function)), line


def test_options_in_python() -> None:
    told = [option("per_op"), option("per_op", True), option("threads", 1), option("device", "cpu:0")]
    assert told == ["per_op", "per_op=True", "threads=1", "device='cpu:0'"]


# What is done by a magic, the same in Python, and what both are told in their own words.
TOLD = [
    ("%ktime --budget 0 y", "kernelk.time(y, budget=0)", "{%ktime|time}: {--budget 0|budget=0} isn't allowed"),
    (
        "%kprofile --budget x y",
        "kernelk.profile(y, budget='x')",
        "{%kprofile|profile}: {--budget x|budget='x'} isn't allowed",
    ),
    (
        "%%kcompare numpy --budget -1\nK.eval(y)",
        "kernelk.compare(y, 'numpy', budget=-1)",
        "{%%kcompare|compare}: {--budget -1|budget=-1} isn't allowed",
    ),
    (
        "%%kcompare numpy --threads 0\nK.eval(y)",
        "kernelk.compare(y, 'numpy', threads=0)",
        "{%%kcompare|compare}: {--threads 0|threads=0} isn't allowed",
    ),
    (
        "%%kcompare numpy --per-op --sweep n=1,2\nK.eval(y)",
        "kernelk.compare(lambda n: K.eval(y), 'numpy', per_op=True, sweep={'n': [1, 2]})",
        "{%%kcompare|compare}: {--per-op|per_op} isn't possible for a sweep",
    ),
    (
        "%kdiff y numpy torch --tolerance big",
        "kernelk.diff(y, 'numpy', 'torch', tolerance='big')",
        "{%kdiff|diff}: {--tolerance big|tolerance='big'} isn't allowed",
    ),
    ("%kdiff y numpy numpy", "kernelk.diff(y, 'numpy', 'numpy')", "{%kdiff|diff}: numpy was named twice"),
    ("%kdiff 3 numpy torch", "kernelk.diff(3, 'numpy', 'torch')", "{%kdiff|diff}: int is neither a tensor nor"),
    (
        "%%kcompare numpy --sweep n=1,2,1.0\nK.eval(y)",
        "kernelk.compare(lambda n: K.eval(y), 'numpy', sweep={'n': [1, 2, 1.0]})",
        "{%%kcompare|compare}: n=1 was named twice; each value is one point of the sweep",
    ),
    (
        "%kbackend torch --threads 0",
        "kernelk.set_backend('torch', threads=0)",
        "next: {%kbackend torch --threads default|kernelk.set_backend('torch', threads='default')}",
    ),
    (
        "%kbackend torch --threads 0",
        "with kernelk.using('torch', threads=0): pass",
        "{--threads 0|threads=0} isn't allowed",
    ),
    (
        "%kbackend numpy --device cuda:0",
        "kernelk.set_backend('numpy', device='cuda:0')",
        "next: {%kbackend numpy --device cpu:0|kernelk.set_backend('numpy', device='cpu:0')}",
    ),
    # It is the worker that refuses this.
    (
        "%kbackend torch --device tpu:9",
        "kernelk.set_backend('torch', device='tpu:9')",
        "next: {%kbackend torch --device cpu:0|kernelk.set_backend('torch', device='cpu:0')}",
    ),
    (
        "%kbackend theano --in-kernel",
        "kernelk.set_backend('theano', in_kernel=True)",
        "next: {%kbackend theano|kernelk.set_backend('theano')}, which runs it in a worker",
    ),
    (
        "%kbackend cntk --no-compiler",
        "kernelk.set_backend('cntk', compiler=False)",
        "only theano takes this option; next: {%kbackend cntk|kernelk.set_backend('cntk')}",
    ),
    (
        "%kprofile --engine y",
        "kernelk.profile(y, engine=True)",
        "has no profiler of its own for single ops; next: run it without {--engine|engine}",
    ),
    # What a magic runs is the user's Python again.
    ("%ktime kernelk.time(y, budget=0)", "kernelk.time(lambda: kernelk.time(y, budget=0))", "budget=0 isn't allowed"),
]


def test_a_notebook_is_told_of_what_was_typed() -> None:
    cells = ["%load_ext kernelk", "import kernelk\nfrom kernelk import backend as K\ny = K.exp(K.variable([1.0]))"]
    for magic, python, _ in TOLD:
        cells += [magic, python]
    found = run_cells(cells, KERNELK_BACKEND="numpy")[2:]
    for (magic, python, words), by_magic, by_python in zip(TOLD, found[::2], found[1::2], strict=True):
        in_magic, in_python = (re.sub(r"\{(.*?)\|(.*?)\}", form, words) for form in (r"\1", r"\2"))
        assert in_magic in by_magic["out"], (magic, by_magic)
        assert in_python in by_python["out"], (python, by_python)
        for cell in (by_magic, by_python):
            assert len(cell["out"].strip().splitlines()) == 1, cell


def test_results_are_noted_in_the_words_that_were_typed() -> None:
    cells = run_cells(
        [
            "%load_ext kernelk",
            "import kernelk\nfrom kernelk import backend as K\nimport numpy as np\n%kbackend --keras2",
            "from keras.layers import Dense\nfrom keras.models import Sequential\n"
            "m = Sequential([Dense(2, input_shape=(3,))])\nx = np.ones((1, 3))",
            "%%kcompare numpy --budget 0.1\nm.predict(x)",
            "kernelk.compare(lambda: m.predict(x), 'numpy', budget=0.1)",
        ],
        KERNELK_BACKEND="numpy",
    )
    assert "a model's layers aren't timed separately; next: --per-op" in cells[3]["value"]
    assert "a model's layers aren't timed separately; next: per_op=True" in cells[4]["value"]


def test_a_shell_is_told_of_its_options(tmp_path: Path) -> None:
    script = tmp_path / "step.py"
    script.write_text("from kernelk import backend as K\nK.eval(K.ones((2, 2)) * 2.0)\n")
    for options, words in (
        (["--budget", "0"], "--budget 0 isn't allowed"),
        (["--threads", "0"], "compare: --threads 0 isn't allowed"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "kernelk", "compare", str(script), "numpy", *options],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode != 0
        assert words in done.stderr, done


def test_what_has_no_option_is_told_in_python() -> None:
    x = K.placeholder((2,))
    with pytest.raises(ArgumentError, match=r"next: give feeds=\{placeholder: array\}$"):
        kernelk.diff(x, "numpy", "torch", feeds=[1])
    with pytest.raises(FeedError, match=r"feeds are missing for .*; next: give feeds=\{placeholder: array\}$"):
        kernelk.diff(x, "numpy", "torch")
    with pytest.raises(ArgumentError, match=r"next: kernelk.doctor\(\)"):
        kernelk.doctor(3)  # type: ignore[arg-type]


def test_a_script_is_told_of_twins_where_a_notebook_is_of_magics() -> None:
    code = "v = K.variable([1.0])\nK.native(v)"
    start = "import kernelk\nfrom kernelk import backend as K\nkernelk.set_backend('torch')\n"
    done = subprocess.run(
        [sys.executable, "-c", start + code], env=environment(), capture_output=True, text=True, timeout=PATIENCE
    )
    assert "next: kernelk.set_backend('torch', in_kernel=True)" in done.stderr
    cells = run_cells(["%load_ext kernelk", start, code], KERNELK_BACKEND="numpy")
    assert "next: %kbackend torch --in-kernel" in cells[2]["out"]
