"""Runs one file of Keras 2.3.1's own tests on one engine, as `run.py` asks: ENGINE FILE REPORT [pytest's arguments]."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import exclusions
import keras_on_kernelk
import numpy as np
import pytest
from keras_on_kernelk import BACKEND_TEST, BUILD, ENGINE_PACKAGES, MODELS, SITE, SUITE, TESTS

# These compare two engines' modules: the second one is kernelk on numpy there.
PAIRED = ("test_gradient", "test_function")
# Threads share a generator that fails in these: Keras takes the end that one thread finds after that for its plain end,
# if it comes first. Keras has its other test of that run again, too.
RACING = ("test_multithreading_fit_error", "test_multithreading_evaluate_error", "test_multithreading_predict_error")
# Every test in these has to call kernelk; others have tests of plain Python, too.
ALL_CALL = (BACKEND_TEST, MODELS)


class KerasSuite:
    """The pytest plugin: kernelk in the engines' places, every test run, and what came of it as `results`."""

    def __init__(self, engine: str, file: str) -> None:
        self.begin = time.monotonic()
        self.engine = engine
        self.file = file
        self.reasons = exclusions.of(file, engine)
        self.results: dict[str, list[str]] = {}
        self.silent: set[str] = set()
        self.backend, self.counts, self.missing = keras_on_kernelk.load(engine)
        import kernelk
        from kernelk.session.current import current

        self.kernelk = kernelk
        if engine == "theano":
            # As where there is no C compiler: it computes the same, and each function is ready seconds earlier.
            current().engine_options["theano"] = {"compiler": ""}
        self.second = self._module("theano")
        if file == BACKEND_TEST:
            # Some tests feed placeholders to CNTK's module where others get variables.
            sys.modules.update(
                {
                    "keras.backend.tensorflow_backend": self.backend,
                    "keras.backend.theano_backend": self.second,
                    "keras.backend.cntk_backend": self.backend if engine == "cntk" else self._module("cntk"),
                }
            )

    def _module(self, engine: str) -> types.ModuleType:
        """kernelk once more: equal to no other module, as the tests expect of the engines'."""
        module = types.ModuleType(f"keras.backend.{engine}_backend")
        vars(module).update({name: value for name, value in vars(self.backend).items() if not name.startswith("__")})
        return module

    def _function_on_numpy(self, *args: Any, **kwargs: Any) -> Any:
        function = self.backend.function(*args, **kwargs)

        def call(inputs: Any) -> Any:
            self.kernelk.set_backend("numpy")
            try:
                return function(inputs)
            finally:
                self.kernelk.set_backend(self.engine)

        return call

    def absence(self) -> str:
        """Returns why the engine isn't available on this machine; "" if it is."""
        from kernelk.engines import registry
        from kernelk.errors import BackendNotInstalledError

        engine = registry.engine(self.engine)
        try:
            if not engine.in_kernel:
                registry.interpreter(engine)
        except BackendNotInstalledError as error:
            return " ".join(str(error).split())
        return ""

    def pytest_configure(self) -> None:
        """Keras's modules come by kernelk's finder, before pytest's own, which would take `keras.utils.test_utils`."""
        from kernelk.keras2.importing import Finder

        sys.meta_path.sort(key=lambda finder: not isinstance(finder, Finder))

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keras's own skips, which are by its engines' names and faults, give way to `excluded.txt`."""
        from flaky import flaky

        known = set()
        for item in items:
            if item.originalname in RACING:
                flaky(rerun_filter=_ended_early)(item.function)
            for node in item.listchain():
                node.own_markers = [mark for mark in node.own_markers if mark.name != "skipif"]
            name = _name(item.nodeid)
            for one in (name, name.split("[")[0], name.split("::")[0]):
                if one in self.reasons:
                    known.add(one)
                    item.add_marker(pytest.mark.skip(reason=self.reasons[one]))
        unknown = set(self.reasons) - known
        if items and unknown:
            raise pytest.UsageError(
                f"excluded.txt names tests that {self.file} doesn't have: {', '.join(sorted(unknown))}"
            )

    @pytest.fixture(name="engine")
    def engine_name(self) -> str:
        """The engine under test, for the models."""
        return self.engine

    @pytest.fixture(autouse=True)
    def kept_apart(self, request: pytest.FixtureRequest) -> Iterator[None]:
        """Each test has the same random numbers whichever ran before, and leaves nothing in the session."""
        # Ops without a seed draw theirs from numpy's, as in Keras.
        np.random.seed(0)
        paired = request.node.originalname in PAIRED
        self.second.function = self._function_on_numpy if paired else self.backend.function  # type: ignore[attr-defined]
        before = self.counts.calls
        yield
        if self.counts.calls == before:
            self.silent.add(_name(request.node.nodeid))
        self.backend.clear_session()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One result for each test: the first that isn't "passed", else that of the call."""
        name = _name(report.nodeid)
        if self.results.get(name, ["passed"])[0] != "passed" or (report.when != "call" and report.passed):
            return
        message = ""
        if report.failed:
            message = getattr(getattr(report.longrepr, "reprcrash", None), "message", str(report.longrepr))
        elif report.skipped:
            message = str(report.longrepr[2]).removeprefix("Skipped: ")  # type: ignore[index]
            if message not in self.reasons.values():
                # What a test finds out only as it runs, such as a package that isn't there.
                self.results[name] = ["failed", f"it skips itself, and excluded.txt doesn't name it: {message}"]
                return
        self.results[name] = [report.outcome, message]

    def report(self) -> dict[str, Any]:
        """Everything that `run.py` shows of this file."""
        if self.file in ALL_CALL:
            for name in self.silent:
                if self.results[name][0] == "passed":
                    self.results[name] = ["failed", "it passes without calling kernelk"]
        return {
            "results": self.results,
            "missing": self.missing,
            "calls": self.counts.calls,
            "runs": self.counts.runs[self.engine],
            "seconds": time.monotonic() - self.begin,
        }


def _ended_early(error: tuple[type[BaseException], Any, Any], *args: Any) -> bool:
    return issubclass(error[0], StopIteration)


def _name(nodeid: str) -> str:
    """The test's name within its file: its class, if any, itself and its parameters."""
    return nodeid.split("::", 1)[1]


def main(engine: str, file: str, report: str, *arguments: str) -> int:
    """pytest's exit status; the report is written to a file unless nothing could be run."""
    sys.path.insert(0, str(SITE))
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), str(SITE / "bin")])
    suite = KerasSuite(engine, file)
    reason = suite.absence()
    if reason:
        Path(report).write_text(json.dumps({"absent": reason}))
        return 0
    (BUILD / "pytest.ini").write_text("[pytest]\npython_files = *_test.py test_*.py *_tests.py keras_models.py\n")
    path = SUITE / file if file == MODELS else TESTS / file
    options = ["-c", str(BUILD / "pytest.ini"), "--rootdir", str(path.parent), "--noconftest", "-q", "--timeout=300"]
    options += ["-p", "no:cacheprovider", "-p", "no:xdist"]
    # Some tests write files where they run.
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        status = pytest.main([*options, *arguments, str(path)], plugins=[suite])
        os.chdir(BUILD)
    from kernelk.session.current import stop_engines

    stop_engines()
    ran = [name for name in ENGINE_PACKAGES if name in sys.modules]
    assert not ran, f"{ran} ran in this process, beside kernelk's"
    if status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        Path(report).write_text(json.dumps(suite.report()))
    return int(status)


if __name__ == "__main__":
    status = main(*sys.argv[1:])
    sys.exit(status)
