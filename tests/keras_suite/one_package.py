"""Runs the tests of a package for Keras on one engine, as `packages.py` asks: ENGINE REPORT FOLDER [other FOLDERs]."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest


class PackageTests:
    """The pytest plugin: how each test ended, and why where it failed."""

    def __init__(self) -> None:
        self.results: dict[str, list[str]] = {}

    @pytest.fixture(autouse=True)
    def repeatable(self) -> None:
        """The tests draw their shapes and values: the same in each run."""
        np.random.seed(0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        message = getattr(getattr(report.longrepr, "reprcrash", None), "message", str(report.longrepr or ""))
        self.results[report.nodeid] = [report.outcome, message]


def main(engine: str, report: str, *folders: str) -> int:
    """pytest's exit status; the report is written to a file unless nothing could be run."""
    # As an installed package is found, which the tests' own folder, first in the path, is not.
    sys.path += folders
    import kernelk
    import kernelk.backend
    from kernelk.session.current import current, stop_engines

    if engine == "theano":
        # As where there is no C compiler: it computes the same, and each function is ready seconds earlier.
        current().engine_options["theano"] = {"compiler": ""}
    kernelk.set_backend(engine)
    kernelk.enable_keras2()
    tests = PackageTests()
    os.chdir(folders[0])
    (Path(folders[0]) / "pytest.ini").write_text("[pytest]\n")
    options = ["-p", "no:cacheprovider", "-q", "--timeout=600", "tests"]
    status = pytest.main(options, plugins=[tests])
    import keras

    assert keras.__version__ == "2.3.1"
    assert keras.backend.dot is kernelk.backend.dot
    assert current().active == engine
    compiled = current().host().compile_count
    stop_engines()
    if status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        Path(report).write_text(json.dumps({"results": tests.results, "compiled": compiled}))
    return int(status)


if __name__ == "__main__":
    status = main(*sys.argv[1:])
    sys.exit(status)
