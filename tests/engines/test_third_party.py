"""A third party's backend: the worked example, made known by a real entry point, passes the parity suite."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_engines import register
from helpers.processes import PROJECT
from parity import check, suite

import kernelk
from kernelk import backend as K
from kernelk.backends.base import COMPOSITES, PRIMITIVES, STAGED
from kernelk.engines import registry
from kernelk.errors import ArgumentError, BackendNotInstalledError, EngineError, UnknownBackendError
from kernelk.session.current import current

EXAMPLE = PROJECT / "examples" / "kernelk_tinyarray"


def install(folder: Path, name: str, version: str, points: dict[str, str]) -> None:
    """What pip leaves of a package: its metadata and its entry points."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{point} = {value}" for point, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[kernelk.backends]", *lines, ""]))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose packages are found by this process; the registry looks anew."""
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._entries.cache_clear()
    registry._descriptor.cache_clear()
    yield tmp_path
    registry._entries.cache_clear()
    registry._descriptor.cache_clear()


@pytest.fixture
def tinyarray(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The example, active."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    install(installed, project["name"], project["version"], project["entry-points"]["kernelk.backends"])
    monkeypatch.syspath_prepend(str(EXAMPLE))
    kernelk.set_backend("tinyarray")
    yield "tinyarray"
    current().hosts.pop("tinyarray").stop()
    for module in [name for name in sys.modules if name.startswith("kernelk_tinyarray")]:
        del sys.modules[module]


def test_it_defines_the_primitives_and_nothing_else(tinyarray: str) -> None:
    # Loops and searches are run in stages for an engine that has none.
    assert current().host().ops - set(STAGED) == set(PRIMITIVES)
    assert not current().host().ops & set(COMPOSITES)


@pytest.mark.parametrize("family", suite.FAMILIES)
def test_it_passes_the_parity_suite(tinyarray: str, family: str) -> None:
    found = check.failures(tinyarray, check.sampled(suite.cases(family), 1))
    assert not found, "\n".join(found)


def test_it_is_listed_and_trains_in_a_worker_and_hands_over(tinyarray: str) -> None:
    assert "kernelk_tinyarray.backend" not in sys.modules
    (status,) = [status for status in kernelk.list_backends().engines if status.name == tinyarray]
    assert (status.state, status.placement, status.version) == ("active", "worker", "0.1.0")
    x = K.placeholder((None, 2))
    w = K.variable([[1.0], [2.0]])
    loss = K.mean(K.square(K.dot(x, w) - 1.0))
    step = K.function([x], [loss], [K.update_sub(w, 0.1 * K.gradients(loss, w)[0])])
    losses = [float(step([[[1.0, 0.5], [0.0, 1.0]]])[0]) for _ in range(3)]
    assert losses == sorted(losses, reverse=True)
    value = K.get_value(w)
    kernelk.set_backend("numpy")
    np.testing.assert_array_equal(K.get_value(w), value)
    assert float(step([[[1.0, 0.5], [0.0, 1.0]]])[0]) < losses[-1]


def test_one_that_is_installed_while_the_notebook_runs_is_found(installed: Path) -> None:
    assert "late" not in registry.names()
    with pytest.raises(UnknownBackendError):
        kernelk.set_backend("late")
    install(installed, "kernelk-late", "1.0", {"late": "late_engine:ENGINE"})
    (installed / "late_engine.py").write_text(
        "from kernelk.engines import Engine\n"
        "ENGINE = Engine('late', 'late', 'kernelk.backends.numpy.backend', 'NumpyBackend', in_kernel=True)\n"
    )
    kernelk.set_backend("late")
    assert "late" in [status.name for status in kernelk.list_backends().engines]
    assert K.eval(K.constant([1.0]) + 1.0).tolist() == [2.0]
    kernelk.set_backend("numpy")
    del current().hosts["late"], sys.modules["late_engine"]


def test_it_runs_in_the_kernel_too(tinyarray: str, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, dataclasses.replace(registry.engine(tinyarray), name="here", in_kernel=True))
    kernelk.set_backend("here")
    assert current().host().pid == os.getpid()
    assert check.failures("here", check.sampled(suite.cases("networks"), 2)) == []
    assert "kernelk_tinyarray.backend" in sys.modules
    del current().hosts["here"]


def test_it_may_be_asked_for_in_the_kernel_where_its_description_says_so(
    tinyarray: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ArgumentError, match="tinyarray can't run in the notebook's own process: allowed are tensorflow"
    ):
        current().make_host(tinyarray, {"in_kernel": True})
    register(monkeypatch, dataclasses.replace(registry.engine(tinyarray), name="either", in_kernel_too=True))
    pids = []
    for options in ({}, {"in_kernel": True}):
        current().engine_options["either"] = options
        kernelk.set_backend("either")
        pids.append(current().host().pid == os.getpid())
        assert K.eval(K.constant([1.0, 2.0]) + 1.0).tolist() == [2.0, 3.0]
        if options:
            # A copy of its own kind, by what every backend inherits.
            assert K.native(K.constant([1.0, 2.0]) * 2.0).items == [2.0, 4.0]
        current().hosts.pop("either").stop()
        del current().engine_options["either"]
        current().active = "numpy"
    assert pids == [False, True]


@pytest.mark.parametrize("in_kernel", [False, True])
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"backend": "Tiny"}, "AttributeError: module 'kernelk_tinyarray.backend' has no attribute 'Tiny'"),
        ({"module": "kernelk_tinyarray.back"}, "No module named 'kernelk_tinyarray.back'"),
    ],
)
def test_a_wrong_description_is_one_line(
    tinyarray: str, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str], reason: str, in_kernel: bool
) -> None:
    register(monkeypatch, dataclasses.replace(registry.engine(tinyarray), name="bad", in_kernel=in_kernel, **wrong))
    with pytest.raises((EngineError, BackendNotInstalledError)) as caught:
        kernelk.set_backend("bad")
    current().hosts.pop("bad").stop()
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert K.backend() == tinyarray


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_module:ENGINE", "can't be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        ("json:ENGINE", "can't be loaded: AttributeError: module 'json' has no attribute 'ENGINE'"),
        ("json:dumps", "is function, not a kernelk.engines.Engine"),
        ("kernelk.engines:NUMPY", "describes 'numpy', not 'broken'"),
    ],
)
def test_a_wrong_entry_point_is_one_line_and_stops_nothing_else(installed: Path, value: str, reason: str) -> None:
    install(installed, "kernelk-broken", "1.0", {"broken": value})
    with pytest.raises(BackendNotInstalledError) as caught:
        kernelk.set_backend("broken")
    message = str(caught.value)
    assert message == (
        f"backend 'broken' of kernelk-broken: entry point '{value}' {reason}; "
        f"next: pip install --upgrade kernelk-broken, or pip uninstall kernelk-broken"
    )
    (status,) = [status for status in kernelk.list_backends().engines if status.name == "broken"]
    assert (status.state, status.note) == ("not installed", message)
    assert not registry.installed("broken")
    assert json.dumps(K.eval(K.constant([1, 2])).tolist()) == "[1.0, 2.0]"


def test_nobody_takes_the_name_of_an_engine_of_the_box(installed: Path) -> None:
    install(installed, "kernelk-other", "1.0", {"numpy": "json:dumps"})
    assert registry.engine("numpy").module == "numpy"


def test_the_pages_code_is_the_examples() -> None:
    text = (PROJECT / "docs" / "write_a_backend.md").read_text(encoding="utf-8")
    sources = [file.read_text(encoding="utf-8") for file in EXAMPLE.rglob("*") if file.suffix in (".py", ".toml")]
    blocks = re.findall(r"^```(?:py|toml)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        assert any(block in source for source in sources), block
