"""The parity suite: a seeded sample of it here, all of it under `make parity`; and that no name is forgotten."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
import pytest
from helpers.engines import ENGINES
from helpers.fake_engines import lacking_engine
from hypothesis import given, settings

import kernelk
from kernelk import backend as K
from parity import check, gaps, search, sizes, slopes, suite
from parity.__main__ import PAGE, page
from parity.case import FLOATS, Trial

# Another number tries other shapes and values.
SEED = int(os.environ.get("KERNELK_PARITY_SEED", "1"))


@pytest.mark.parametrize("family", suite.FAMILIES)
def test_sample(backend: str, family: str) -> None:
    trials = list(check.sampled(suite.cases(family), SEED))
    if backend != "numpy":
        # Another part on each engine: together they see all of them.
        skipped = ENGINES.index(backend) % 5
        trials = [one for number, one in enumerate(trials) if number % 5 not in (skipped, (skipped + 2) % 5)]
    found = check.failures(backend, trials)
    assert not found, "\n".join(found)


@settings(max_examples=100, derandomize=True)
@given(one=search.trials())
def test_what_hypothesis_makes_of_it(backend: str, one: Trial) -> None:
    assert check.failures(backend, [one]) == []


def test_gradients(backend: str) -> None:
    found = list(slopes.slopes(suite.cases(), SEED))
    if backend != "numpy":
        # The graph of a gradient is the same for all engines: a part of them is enough between two whole runs.
        found = found[SEED % 8 :: 8]
    wrong = slopes.failures(backend, found)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("group", sizes.GROUPS)
def test_sizes(backend: str, group: str) -> None:
    # Below, at and beyond the lengths of vectors, and one that is cut into parts for threads.
    lengths = (1, 3, 8, 17 + SEED % 16, 101 + SEED % 30, sizes.LONG)
    found = sizes.failures(backend, sizes.sample(group, SEED, 12), lengths, most=3)
    assert not found, "\n".join(found)


def test_every_name_is_accounted_for() -> None:
    tested = {case.function for family in suite.FAMILIES.values() for case in family}
    assert not tested & set(suite.WITHOUT), "a name with cases needs no reason to have none"
    assert set(suite.names()) == tested | set(suite.WITHOUT)
    assert all(hasattr(K, name) for name in suite.names())


def test_labels_are_unique() -> None:
    for family in suite.FAMILIES.values():
        for case in family:
            twins = [other for other in family if (other.function, other.label) == (case.function, case.label)]
            dtypes = [dtype for twin in twins for dtype in twin.dtypes]
            assert len(dtypes) == len(set(dtypes)), str(case)


def test_gaps_are_few_and_explained() -> None:
    assert len({gap.cause for gap in gaps.GAPS}) <= gaps.MOST
    for gap in gaps.GAPS:
        assert all((gap.cause, gap.reason, gap.proof, gap.message)), gap
        covered = [one for one in check.whole(suite.cases(), 0, 1) if gap.covers(one)]
        assert covered, f"no case falls into {gap}"
        assert check.swap_refused(covered[0], gap.engine), f"a swap isn't refused for {gap}"


def test_a_gap_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking_engine(monkeypatch, "partial", ops={"cumsum"})
    table = [case for case in suite.cases("reductions") if case.function in ("cumsum", "cumprod")]
    trials = list(check.sampled(table, SEED))
    partial = gaps.Gap("partial", "cumsum", "*", "*", "no op", "It has none.", "", "it has no op 'cumsum'")
    assert check.swap_refused(trials[0], "partial")
    kernelk.set_backend("partial")
    assert len(check.failures("partial", trials)) == sum(one.case.function == "cumsum" for one in trials)
    monkeypatch.setattr(gaps, "GAPS", [partial])
    assert check.failures("partial", trials) == []
    monkeypatch.setattr(gaps, "GAPS", [dataclasses.replace(partial, function="cum*")])
    wrong = check.failures("partial", trials)
    assert len(wrong) == sum(one.case.function == "cumprod" for one in trials)
    assert all(line.endswith("is listed in tests/known_gaps and works: take it out") for line in wrong)


def test_a_wrong_value_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    module = lacking_engine(monkeypatch, "wrong")
    module.Lacking.ops["exp"] = lambda instruction, x: np.exp(x) * np.asarray(1.001, x.dtype)
    kernelk.set_backend("wrong")
    found = check.failures("wrong", check.sampled(suite.cases("elementwise"), SEED))
    assert {line.split(" ")[1] for line in found} >= {"exp"}


def test_a_result_that_depends_on_a_place_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def eight_at_a_time(instruction: Any, x: Any) -> Any:
        made = np.sign(x)
        rest = made.reshape(-1)[x.size // 8 * 8 :]
        rest[np.isnan(rest)] = 0
        return made

    module = lacking_engine(monkeypatch, "wrong")
    module.Lacking.ops["sign"] = eight_at_a_time
    kernelk.set_backend("wrong")
    chosen = [one for one in sizes.every("elementwise", SEED) if one.case.function == "sign"]
    assert sizes.failures("wrong", chosen, (8, 16)) == []
    found = sizes.failures("wrong", chosen, (7, 19))
    assert {line.partition(", fed")[0].rpartition(" in ")[2] for line in found} == set(FLOATS)


def test_the_table_of_the_docs_is_the_suites() -> None:
    # Its numbers too: they are counted from the cases, which `make parity` runs before it writes them down.
    assert PAGE.read_text(encoding="utf-8") == page(), "next: make parity"
