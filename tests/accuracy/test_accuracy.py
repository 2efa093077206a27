"""The accuracy suite: a seeded sample of it here, all of it under `make accuracy`; and that it measures rightly."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity.case import FLOATS

from accuracy import bars, formulas, measure, points, reductions, report, suite, ulps
from accuracy.arrays import ArrayFunction, by_steps, exact
from accuracy.bars import Excess
from accuracy.formulas import Held
from accuracy.measure import Measured
from kernelk import backend as K
from kernelk.backends.numpy.ops import OPS

# Another number tries other inputs.
SEED = int(os.environ.get("KERNELK_ACCURACY_SEED", "1"))


@functools.cache
def sample() -> list[measure.Prepared]:
    """Prepared once for all engines."""
    return list(suite.sample(SEED))


def function(name: str, label: str = "") -> Any:
    return next(one for one in suite.functions() if (one.name, one.label) == (name, label))


def of(name: str, dtype: str = "float32", label: str = "", count: int = 60) -> measure.Prepared:
    return measure.prepared(function(name, label), dtype, count, 1, SEED)


def test_sample(backend: str) -> None:
    # Between two whole runs, one dtype of each elementwise function is enough for an engine beside numpy.
    batch = [
        one
        for i, one in enumerate(sample())
        if backend == "numpy" or isinstance(one.function, ArrayFunction) or i % 3 == (i // 3 + SEED) % 3
    ]
    results = measure.measured(backend, batch, backend in bars.FLUSHING)
    wrong = bars.failures(results, suite.elementwise(), {}, bars.load())
    assert not wrong, "\n".join(wrong)


# The harness -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("steps", [1, 3, 700])
def test_a_function_that_is_off_by_n_ulps_is_reported_as_n(
    dtype: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPS, "abs", lambda instruction, x: ulps.moved(np.abs(x), steps))
    one = measure.prepared(function("abs"), dtype, 60, 1, SEED)
    # So far from the next power of two that all these neighbours are an ulp apart.
    near = [np.array([1.25, -1.25, 5, 0.3125], dtype)]
    fed = dataclasses.replace(one, feeds=[near], rounds=[list(measure._elementwise(one.function, dtype, near))])
    values, slopes = measure.measured("numpy", [fed])
    assert (values.part, values.worst, values.typical, values.count) == ("value", steps, steps, 4)
    assert (slopes.part, slopes.worst) == ("gradient", 0)


def test_a_wrong_result_is_infinitely_far_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPS, "abs", lambda instruction, x: np.where(x == 1, np.nan, np.abs(x)))
    values, _ = measure.measured("numpy", [of("abs")])
    assert values.worst == math.inf
    assert values.at == "1.0"


def test_every_function_of_floats_is_accounted_for() -> None:
    assert suite.unaccounted() == set()
    assert not {one.name for one in suite.functions()} & set(suite.WITHOUT)


def test_titles_and_labels_tell_functions_apart() -> None:
    titles = [one.title for one in formulas.FUNCTIONS]
    assert len(titles) == len(set(titles))
    pairs = [(one.name, one.label) for one in [*reductions.FUNCTIONS, *reductions.linear()]]
    assert len(pairs) == len(set(pairs))


@pytest.mark.parametrize("one", formulas.FUNCTIONS, ids=lambda one: one.title)
def test_slopes_are_those_of_the_formulas(one: formulas.Function) -> None:
    """Where the formula is smooth, by a small step of each operand."""
    held, step = Held("float64"), ulps.MP.ldexp(1, -70)
    for operands in ((0.3, 0.8), (0.7, 0.2), (-0.4, 2.0), (-3.1, 0.6)):
        count = one.graph.__code__.co_argcount
        at = [ulps.mpf(x) for x in operands[:count]]
        if one.points in ("targets", "chances") and at[0] < 0:
            continue
        for number, slope in enumerate(one.slopes):
            right = slope(held, *at) if slope is not None else None
            if right is None:
                continue
            sides = []
            for sign in (1, -1):
                near = list(at)
                near[number] += sign * step
                value = one.value(held, *near)
                sides.append(value[0] if isinstance(value, tuple) else value)
            value = right[0] if isinstance(right, tuple) else right
            if all(side is not None and ulps.MP.isfinite(side) for side in sides):
                assert abs((sides[0] - sides[1]) / (2 * step) - value) < 1e-15, (operands, number)


@pytest.mark.parametrize("name", ["softmax", "sum", "mean", "cumsum"])
def test_slopes_of_arrays_are_those_of_their_truths(name: str) -> None:
    random = np.random.default_rng(SEED)
    for one in reductions.FUNCTIONS:
        operands = [exact(x) for x in one.operands(random, "float64")]
        if one.name != name or one.slopes is None or operands[0].size > 50:
            continue
        weights = exact(random.uniform(-1, 1, np.shape(one.truth(Held("float64"), *operands)[0])))
        given = one.slopes(Held("float64"), weights, *operands)
        stepped = by_steps()(one.truth)(Held("float64"), weights, *operands)
        for (values, _), (right, _) in zip(given, stepped):
            assert np.max(abs(values - right)) < 1e-15


@pytest.mark.parametrize("dtype", FLOATS)
def test_inputs_cover_the_range(dtype: str) -> None:
    found = points.sample(dtype, 3000, np.random.default_rng(SEED), kinks=[1.5])
    assert found.dtype == dtype
    limits = np.finfo(dtype)
    for value in (0, np.inf, limits.max, limits.tiny, limits.smallest_subnormal, 1, 1 - limits.epsneg, 1.5):
        assert value in found
        assert -value in found
    exponents = np.frexp(found[np.isfinite(found) & (found != 0)].astype("float64"))[1]
    form = ulps.FORMATS[dtype]
    counts, _ = np.histogram(exponents, 8, (form.least - form.digits, form.largest + 1))
    assert counts.min() > 30
    assert len(np.unique(points.everything().view("uint16"))) == 2**16


# The bars ---------------------------------------------------------------------------------------------------


def result(worst: float, **more: Any) -> Measured:
    return Measured(**{**dict(engine="numpy", title="`K.exp`", dtype="float64", part="value", typical=0.1, count=9),
                       "worst": worst, **more})  # fmt: skip


def test_an_error_over_its_bar_fails_unless_it_is_known() -> None:
    titles = ["`K.exp`"]
    assert bars.failures([result(2)], titles, {}, []) == []
    (line,) = bars.failures([result(2.1)], titles, {}, [])
    assert "the bar is 2" in line
    assert bars.failures([result(2.1)], [], {}, []) == []
    assert len(bars.failures([result(0.51, dtype="float16")], titles, {}, [])) == 1
    assert len(bars.failures([result(math.nan)], titles, {}, [])) == 1
    known = Excess("numpy", "K.exp", "*", "value", 3.0, "a reason")
    assert bars.failures([result(2.9)], titles, {}, [known]) == []
    assert len(bars.failures([result(3.1)], titles, {}, [known])) == 1


def test_an_engines_own_error_is_its_bar() -> None:
    own = {("jax", "`K.exp`", "float64"): result(7, engine="jax")}
    assert bars.failures([result(6.9, engine="jax")], ["`K.exp`"], own, []) == []
    assert len(bars.failures([result(7.1, engine="jax")], ["`K.exp`"], own, [])) == 1
    assert len(bars.failures([result(6.9, engine="jax", part="gradient")], ["`K.exp`"], own, [])) == 1


def test_an_excess_that_is_none_is_named() -> None:
    known = Excess("numpy", "K.exp", "*", "value", 8.0, "a reason")
    assert "no longer" in bars.needless([result(1)], ["`K.exp`"], [known])[0]
    assert "too large" in bars.needless([result(3)], ["`K.exp`"], [known])[0]
    assert bars.needless([result(7)], ["`K.exp`"], [known]) == []
    assert bars.needless([], ["`K.exp`"], [known]) == []


def test_what_is_proposed_can_be_read(tmp_path: Path) -> None:
    found = [result(3), result(math.inf, dtype="float16"), result(700, engine="jax")]
    assert len(bars.failures(found, ["`K.exp`"], {}, [])) == 3
    file = tmp_path / "excesses.toml"
    file.write_text(bars.proposed(found))
    known = bars.load(file)
    assert [(one.engine, one.dtype, one.ulps) for one in known] == [("jax", "float64", 880), ("numpy", "*", math.inf)]
    assert bars.failures(found, ["`K.exp`"], {}, known) == []


def test_known_excesses_have_reasons_and_functions() -> None:
    titles = {one.title.replace("`", "") for one in suite.functions()}
    for excess in bars.load():
        assert excess.reason.endswith("."), excess
        assert any(excess.covers(result(1, engine=excess.engine.replace("*", "x"), title=title,
                                        dtype=excess.dtype.replace("*", "x"), part=excess.part.replace("*", "x")))
                   for title in titles), excess  # fmt: skip


def test_the_page(tmp_path: Path) -> None:
    own = {("numpy", "`K.exp`", "float32"): result(2.4, dtype="float32")}
    shown = report.page(
        ["numpy"],
        [result(1.25), result(math.inf, dtype="float32")],
        own,
        [Excess("numpy", "K.exp", "float32", "*", math.inf, "It is wrong.")],
        "Measured once.",
    )
    assert "| `K.exp` | 1.25 (0.10) |" in shown
    assert "| `K.exp` | wrong (0.10)<br>own: 2.40 |" in shown
    assert "- `K.exp` (numpy, float32), wrong: It is wrong." in shown


def test_functions_that_K_lacks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = formulas.Function("no_such_function", "", lambda x: K.no_such_function(x), lambda held, x: x)
    monkeypatch.setattr(formulas, "FUNCTIONS", [lacking, function("abs")])
    assert [one.name for one in formulas.functions()] == ["abs"]
