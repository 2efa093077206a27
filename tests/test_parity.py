"""The parity suite: a seeded sample of it here, all of it under `make parity`; and that no name is forgotten."""

from __future__ import annotations

import os

import pytest
from parity import check, gaps, suite
from parity.__main__ import PAGE, page

from kernelk import backend as K

# Another number tries other shapes and values.
SEED = int(os.environ.get("KERNELK_PARITY_SEED", "1"))


@pytest.mark.parametrize("family", suite.FAMILIES)
def test_sample(backend: str, family: str) -> None:
    cases = [case for case in suite.FAMILIES[family] if case.function not in suite.PENDING]
    found = check.failures(backend, check.sampled(cases, SEED))
    assert not found, "\n".join(found)


def test_every_name_is_accounted_for() -> None:
    tested = {case.function for family in suite.FAMILIES.values() for case in family}
    assert not tested & set(suite.WITHOUT), "a name with cases needs no reason to have none"
    assert set(suite.names()) == tested | set(suite.WITHOUT) | suite.PENDING
    assert not [name for name in suite.PENDING if hasattr(K, name)], "take these out of PENDING"
    assert not [name for name in suite.names() if not hasattr(K, name) and name not in suite.PENDING]


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
        assert any(gap.covers(one) for one in check.whole(suite.cases(), 0, 1)), f"no case falls into {gap}"


def test_the_table_of_the_docs_is_the_suites() -> None:
    # Its numbers too: they are counted from the cases, which `make parity` runs before it writes them down.
    assert PAGE.read_text(encoding="utf-8") == page(), "next: make parity"
