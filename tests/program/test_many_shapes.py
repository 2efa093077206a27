"""Batches of many sizes and sequences of many lengths: values, what is kept, what is told of recompiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.arrays import assert_close
from helpers.engines import activate
from helpers.notebooks import run_cells

import kernelk
from kernelk import backend as K
from kernelk import config
from kernelk.eviction import drop_oldest
from kernelk.program import program as programs
from kernelk.session import calls
from kernelk.session import function as functions
from kernelk.session.current import current
from kernelk.session.function import Function

# A new shape costs some engines seconds, others nothing.
COUNTS = {"numpy": 300, "jax": 40, "torch": 60, "tensorflow": 12, "theano": 12, "cntk": 6}


def status(name: str) -> Any:
    (found,) = [engine for engine in kernelk.list_backends().engines if engine.name == name]
    return found


def step() -> tuple[Function, Any]:
    """A training step on sequences of unknown number and length, and its weights."""
    x = K.placeholder((None, None, 3), name="x")
    w = K.variable(np.full((3, 2), 0.5), name="w")
    loss = K.mean(K.sum(K.square(K.dot(x, w)), axis=1))
    return K.function([x], [loss], [K.update_sub(w, 0.01 * K.gradients(loss, [w])[0])], name="step"), w


def test_batches_and_sequences_of_many_shapes(backend: str) -> None:
    """Twice through all shapes; the second time nothing is compiled."""
    call, w = step()
    host = current().host()
    random = np.random.RandomState(0)
    shapes = [(1 + i % 7, 1 + i) for i in range(COUNTS[backend])]
    for turn in range(2):
        before = host.compile_count
        for shape in shapes:
            data, weights = random.rand(*shape, 3).astype(np.float32) * 0.1, K.get_value(w)
            product = data @ weights
            (loss,) = call([data])
            assert_close(loss, np.mean(np.sum(product**2, axis=1)), "float32")
            slope = np.einsum("btk,btn->kn", data, 2 * product) / (shape[0] * 2)
            assert_close(K.get_value(w), weights - 0.01 * slope, "float32")
        if turn:
            assert host.compile_count == before
    if host.specialises != "all":
        assert call.specialisations(host) <= 4
    else:
        assert call.specialisations(host) == len(shapes)


def test_what_is_kept_for_each_shape_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "MOST_SHAPES", 8)
    monkeypatch.setattr(calls, "MOST_PROGRAM_PLANS", 8)
    activate("jax")
    call, _ = step()
    host = current().host()
    for turn in range(2):
        for length in range(1, 13):
            call([np.ones((2, length, 3))])
            program = call.program_for(current(), host.ops, 0, None)
            for kept in (program._specialised, program.plans):
                assert 0 < len(kept) <= 8
        assert call.specialisations(host) == 12, turn


def test_a_long_program_keeps_fewer_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "MOST_SHAPED_VALUES", 1000)
    x = K.placeholder((None,))
    y = x
    for i in range(60):
        y = y + float(i)
    call = K.function([x], [y])
    program = call.program_for(current(), current().ready_host().ops, 0, None)
    for length in range(1, 50):
        call([np.ones(length)])
        assert len(program._specialised) <= 16


def test_the_oldest_go() -> None:
    entries = {i: None for i in range(9)}
    assert drop_oldest(entries, 9) == []
    assert drop_oldest(entries, 8) == [0, 1, 2]
    assert list(entries) == [3, 4, 5, 6, 7, 8]
    assert drop_oldest({1: 1, 2: 2}, 1) == [1]


def test_recompiles_are_counted_and_shown(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host = current().host()
    v = K.variable([1.0, 2.0])
    # Numbers that no other test has: its programs may have been dropped.
    calls = [K.function([], [v * (i + 1237.25)]) for i in range(3)]
    before = status(backend)
    for call in calls:
        call([])
    now = status(backend)
    assert now.compile_count - before.compile_count == 3
    assert now.compiled - before.compiled == 3
    assert now.compiled_bytes > before.compiled_bytes
    assert (now.dropped, now.recompiled) == (before.dropped, before.recompiled)
    monkeypatch.setattr(config.LIMITS, "compiled_bytes", 1)
    fourth = K.function([], [v * 1249.25])
    fourth([])
    assert status(backend).compiled == 1
    assert status(backend).dropped - now.dropped == now.compiled
    for call in calls[:2]:
        call([])
    last = status(backend)
    assert last.recompiled - now.recompiled == 2
    assert last.compile_count - now.compile_count == 3
    text = repr(kernelk.list_backends())
    assert f"{last.compile_count} in all, {last.dropped} dropped, {last.recompiled} compiled again" in text
    assert f"active: {backend}, chosen by set_backend" in text
    assert host.compile_count == last.compile_count


def test_the_tables_line_on_functions() -> None:
    assert "compiled function" not in repr(kernelk.list_backends())
    call, _ = step()
    other = K.function([], [K.ones((2,)) * 2.0], name="other")
    kernelk.set_backend("numpy")
    for shape in ((1, 1), (1, 4), (4, 1), (4, 4), (5, 5)):
        call([np.ones((*shape, 3))])
    other([])
    table = kernelk.list_backends()
    assert [(label.split()[0], count) for label, count in table.functions] == [("'step'", 4), ("'other'", 1)]
    assert "2 compiled functions; most often 'step' (test_many_shapes.py, line" in repr(table)
    assert "): 4 forms" in repr(table)
    del call, other


def test_many_shapes_in_a_row_are_told_of_once(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.delenv("KERNELK_QUIET")
    activate("jax")
    capsys.readouterr()
    call, _ = step()
    for length in range(1, 8):
        call([np.ones((2, length, 3))])
    assert capsys.readouterr().err == ""
    call([np.ones((2, 8, 3))])
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert told.startswith("kernelk: JAX has compiled 'step' (test_many_shapes.py, line ")
    assert "8 times in a row, each for another shape of 'x': feed batches of one size, or pad them" in told
    for length in range(9, 20):
        call([np.ones((2, length, 3))])
    assert capsys.readouterr().err == ""


def test_a_few_shapes_and_repeated_ones_are_not(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A few sizes that come again, in training and in test phase, are no reason for a hint."""
    monkeypatch.delenv("KERNELK_QUIET")
    activate("jax")
    capsys.readouterr()
    x, y = K.placeholder((None,), name="x"), K.placeholder((None,), name="y")
    z = K.in_train_phase(x * 2.0, x) + y
    call = K.function([x, y, K.learning_phase()], [z])
    for length in range(1, 20):
        call([np.ones(length), np.ones(1), 0])
        call([np.ones(length), np.ones(1), 0])
    assert capsys.readouterr().err == ""
    # The same function on numpy isn't compiled for each shape.
    kernelk.set_backend("numpy")
    for length in range(2, 20):
        call([np.ones(length), np.ones(length), 1])
    assert "times in a row" not in capsys.readouterr().err


def test_lengths_that_are_values_are_told_of_too(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.delenv("KERNELK_QUIET")
    kernelk.set_backend("numpy")
    n = K.placeholder((), dtype="int32", name="n")
    call = K.function([n], [K.arange(n) * 2])
    capsys.readouterr()
    for length in range(2, 12):
        assert call([length])[0].tolist() == list(range(0, 2 * length, 2))
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert "8 times in a row, each for other lengths, which depend on its inputs' values: feed" in told
    assert call.specialisations(current().host()) == 10
    monkeypatch.setattr(functions, "MANY_KEYS", 4)
    for length in range(20, 40):
        call([length])
        assert len(call._keys) <= 4


def test_the_hint_in_a_notebook_can_be_silenced() -> None:
    activate("jax")
    cells = [
        "%load_ext kernelk",
        "import numpy as np\nfrom kernelk import backend as K\nx = K.placeholder((None,), name='x')\n"
        "f = K.function([x], [x * 2.0], name='double')",
        "for n in range(1, 30):\n    f([np.ones(n)])",
        "%kbackend",
    ]
    spoken = run_cells(cells, KERNELK_BACKEND="jax", KERNELK_QUIET=None)
    lines = [line for line in (spoken[2]["out"] + spoken[2]["err"]).splitlines() if "Using" not in line]
    assert lines == [
        "kernelk: JAX has compiled 'double' (cell 2, line 4: f = K.function([x], [x * 2.0], name='double')) 8 times in "
        "a row, each for another shape of 'x': feed batches of one size, or pad them to a few sizes"
    ]
    assert "1 compiled function; most often 'double' (cell 2, line 4" in spoken[3]["value"]
    assert ": 29 forms" in spoken[3]["value"]
    quiet = run_cells(cells, KERNELK_BACKEND="jax", KERNELK_QUIET="1")
    assert "times in a row" not in quiet[2]["out"] + quiet[2]["err"]
