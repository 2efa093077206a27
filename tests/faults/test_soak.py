"""The bounded part of `make soak`: short jobs on the light engines; and that a leak is found."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from soak.jobs import Job, jobs
from soak.run import carry_out, in_child, report, slope

from kernelk import backend as K

SHORT = 0.02


@pytest.mark.parametrize("key", ["calls light", "cells kernel", "clears light", "reloads kernel"])
def test_what_is_repeated_leaves_nothing_behind(key: str) -> None:
    result = in_child(key, SHORT)
    # So few times don't measure memory: caches are still being filled.
    assert "memory" in result.get("failed", "memory"), result
    assert result["count"] == next(job.count for job in jobs(SHORT) if job.key == key)


def test_a_leak_is_found() -> None:
    kept = []

    def leak(job: Job) -> Iterator[None]:
        for i in range(job.count):
            kept.append((K.variable(np.zeros(1 << 16)), os.open(os.devnull, os.O_RDONLY)))
            kept[-1][0].slots.view()[:] = i
            yield

    result = carry_out(Job("leak", 80, 1000, leak))
    for _, file in kept:
        os.close(file)
    assert result["slopes"]["descriptors"] >= 1
    assert "descriptors by 1" in result["failed"]
    assert "memory by" in result["failed"]
    assert "| leak | 80 |" in report([result])


def test_a_peak_is_no_slope() -> None:
    assert slope([1, 2, 3, 4, 5], [7, 7, 100, 7, 7]) == 0
    assert slope([0, 10, 20, 30], [0, 20, 40, 60]) == 2
