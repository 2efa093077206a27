"""The function reference is what its generator makes, and its examples print the same on two engines."""

from __future__ import annotations

import sys

import pytest
from helpers.engines import activate
from helpers.processes import PROJECT

from kernelk import backend as K

sys.path.insert(0, str(PROJECT / "docs"))
import make_reference


def test_every_name_has_an_example_and_a_docstring() -> None:
    assert set(K.__all__) == set(make_reference.EXAMPLES)
    assert not [name for name in K.__all__ if not getattr(K, name).__doc__]


@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_the_page_is_what_the_functions_are(engine: str) -> None:
    activate(engine)
    made = make_reference.page(make_reference.run_examples())
    assert make_reference.PAGE.read_text(encoding="utf-8") == made, "next: python docs/make_reference.py"
