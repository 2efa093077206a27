"""Runs Keras 2.3.1's backend tests and models on one engine, as `run.py` asks: ENGINE REPORT [pytest's arguments]."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras_on_kernelk
import numpy as np
import pytest
from keras_on_kernelk import BUILD, ENGINE_PACKAGES, KERAS, SUITE

# These compare two engines' modules: the second one is kernelk on numpy there.
PAIRED = ("test_gradient", "test_function")


def excluded() -> dict[str, str]:
    """Test -> why it is left out, as `excluded.txt` has it."""
    lines = (SUITE / "excluded.txt").read_text().splitlines()
    pairs = (line.split(": ", 1) for line in lines if line and not line.startswith("#"))
    return {test: reason for test, reason in pairs}


class KerasSuite:
    """The pytest plugin: kernelk in the engines' places, every test run, and what came of it as `results`."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.reasons = excluded()
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
        cntk = self._module("cntk")
        sys.modules.update(
            {
                "keras.backend.tensorflow_backend": self.backend,
                "keras.backend.theano_backend": self.second,
                # Some tests feed placeholders to CNTK's module where others get variables.
                "keras.backend.cntk_backend": self.backend if engine == "cntk" else cntk,
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

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keras's own skips, which are by its engines' names and faults, give way to `excluded.txt`."""
        known = set()
        for item in items:
            for node in item.listchain():
                node.own_markers = [mark for mark in node.own_markers if mark.name != "skipif"]
            for name in (item.originalname, item.name):
                if name in self.reasons:
                    known.add(name)
                    item.add_marker(pytest.mark.skip(reason=self.reasons[name]))
        unknown = set(self.reasons) - known
        if unknown:
            raise pytest.UsageError(f"excluded.txt names tests that Keras doesn't have: {', '.join(sorted(unknown))}")

    @pytest.fixture(name="engine")
    def engine_name(self) -> str:
        """The engine under test, for the models."""
        return self.engine

    @pytest.fixture(autouse=True)
    def kept_apart(self, request: pytest.FixtureRequest) -> Iterator[None]:
        """Each test has the same random numbers whichever ran before, and leaves nothing in the session."""
        np.random.seed(0)
        self.backend.set_random_seed(0)
        paired = request.node.originalname in PAIRED
        self.second.function = self._function_on_numpy if paired else self.backend.function  # type: ignore[attr-defined]
        before = self.counts.calls
        yield
        if self.counts.calls == before:
            self.silent.add(request.node.name)
        self.backend.clear_session()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One result for each test: the first that isn't "passed", else that of the call."""
        name = report.nodeid.split("::")[-1]
        if self.results.get(name, ["passed"])[0] != "passed" or (report.when != "call" and report.passed):
            return
        message = ""
        if report.failed:
            message = getattr(getattr(report.longrepr, "reprcrash", None), "message", str(report.longrepr))
        elif report.skipped:
            message = str(report.longrepr[2])  # type: ignore[index]
        self.results[name] = [report.outcome, message]

    def report(self) -> dict[str, Any]:
        """Everything that `run.py` shows of this engine."""
        for name in self.silent:
            if self.results[name][0] == "passed":
                self.results[name] = ["failed", "it passes without calling kernelk"]
        return {
            "results": self.results,
            "missing": self.missing,
            "calls": self.counts.calls,
            "runs": self.counts.runs[self.engine],
        }


def main(engine: str, report: str, *arguments: str) -> int:
    """pytest's exit status; the report is written to a file unless nothing could be run."""
    suite = KerasSuite(engine)
    reason = suite.absence()
    if reason:
        Path(report).write_text(json.dumps({"absent": reason}))
        return 0
    (BUILD / "pytest.ini").write_text("[pytest]\n")
    tests = KERAS / "tests" / "keras" / "backend" / "backend_test.py"
    options = ["-c", str(BUILD / "pytest.ini"), "--noconftest", "-p", "no:cacheprovider", "-q", "--timeout=300"]
    status = pytest.main([*options, *arguments, str(tests), str(SUITE / "keras_models.py")], plugins=[suite])
    if status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        Path(report).write_text(json.dumps(suite.report()))
    from kernelk.session.current import stop_engines

    stop_engines()
    assert not any(name in sys.modules for name in ENGINE_PACKAGES), "an engine ran in this process, beside kernelk's"
    return int(status)


if __name__ == "__main__":
    status = main(*sys.argv[1:])
    sys.exit(status)
