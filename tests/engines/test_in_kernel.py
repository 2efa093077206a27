"""TensorFlow, JAX and PyTorch in the notebook's own process: the guarantees of a worker, and tensors without copies.

The cases are in in_kernel_cases.py: each engine's run in a process of their own, since a library is imported once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
from helpers.engines import absent
from helpers.processes import PATIENCE, TESTS, environment

from kernelk.engines import registry
from kernelk.engines.descriptors import Engine
from kernelk.errors import BackendNotInstalledError

ENGINES = ("torch", "jax", "tensorflow")
MAIN = "swaps functions feeds handed_out failure interrupted kept traced differences stopped refused parity"


@cache
def _run(engine: str, cases: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TESTS / "engines" / "in_kernel_cases.py"), engine, *cases.split()],
        # What pytest notes there changes from test to test.
        env=environment(PYTEST_CURRENT_TEST=None),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def case(engine: str, name: str) -> dict[str, Any]:
    """Returns a case's result on an engine."""
    try:
        registry.interpreter(registry.engine(engine))
    except BackendNotInstalledError as error:
        absent(engine, error)
    done = _run(engine, MAIN if name in MAIN.split() else name)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])[name]
    assert "error" not in found, found["error"]
    return found


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """An engine that may run in the kernel."""
    return str(request.param)


def test_a_swap_from_a_worker_into_the_kernel_and_back_keeps_every_bit(engine: str) -> None:
    found = case(engine, "swaps")
    assert found["here"] == [False, True, False]
    assert found["kept"] == [True, True, True]
    # Nine steps, three of them in the kernel, are nine steps of a worker.
    assert found["same"] == [True] * 5


def test_gradients_loops_draws_and_the_phase_are_the_workers(engine: str) -> None:
    found = case(engine, "functions")
    assert found["gap"] == 0.0
    assert found["phases differ"]
    assert found["draws differ"]


def test_the_engines_own_tensors_are_fed_without_a_copy(engine: str) -> None:
    found = case(engine, "feeds")
    assert found.pop("kinds") == [True, True, True]
    assert found.pop("bfloat16 constant") == "float32"
    found.pop("seconds")
    assert all(found.values()), found
    assert {"view", "handed over", "numpy", "theano", "kept"} <= set(found)


@pytest.mark.parametrize("engine", ["torch", "jax"], indirect=True)
def test_a_tensor_on_a_device_is_fed_where_it_lies(engine: str) -> None:
    found = case(engine, "on_a_device")
    found.pop("seconds")
    assert len(found) == 19
    assert all(found.values()), found


@pytest.mark.parametrize("engine", ["torch", "jax"], indirect=True)
def test_on_a_gpu_new_values_stay_there_and_a_call_changes_all_or_nothing(engine: str) -> None:
    found = case(engine, "as_on_a_gpu")
    assert found["waits"]
    assert found["swaps"]["kept"] == [True] * 3
    assert found["swaps"]["same"] == [True] * 5
    assert all(value == [[2.0] * 3, [2.0] * 3] for value in found["failure"]["after"])
    kept = found["kept"]
    assert (kept["held"], kept["read"], kept["held after"], kept["torn"], kept["feed"]) == (5, [1], 4, [], True)


def test_native_hands_out_the_engines_tensor_and_nothing_that_kernelk_keeps(engine: str) -> None:
    found = case(engine, "handed_out")
    kinds = {"torch": "torch.Tensor", "jax": "jaxlib.ArrayImpl", "tensorflow": "tensorflow.EagerTensor"}
    assert found["type"] == kinds[engine]
    assert found["value"]
    assert found["no copy"]
    # A variable's value, a constant, a feed
    assert found["copies"] == [True, True, True]
    assert found["state"]
    assert found["engine's state"]
    assert found["a constant"] == [0.0, 1.0, 2.0, 3.0]
    assert found["update"][:2] == [5, 5]
    assert found["result stays"]
    assert found["fed again"]
    assert engine != "torch" or found["takes part in gradients"]


def test_a_call_that_fails_changes_nothing(engine: str) -> None:
    found = case(engine, "failure")
    assert "the engine broke down" in found["messages"][0]
    assert engine == "tensorflow" or len(found["messages"]) == 2
    assert all("\n" not in message and message.startswith("EngineError: ") for message in found["messages"])
    assert all(value == [[2.0] * 3, [2.0] * 3] for value in found["after"])
    assert found["next"] == [16.0, 3.0, 3.0, 3.0]


def test_ctrl_c_at_any_moment_leaves_a_committed_state_and_the_next_call_right(engine: str) -> None:
    found = case(engine, "interrupted")
    assert found["torn"] == []
    assert found["hits"] >= 20
    assert found["compiled 0.0"]
    assert found["compiled 0.01"]
    assert found["compiled 0.05"]
    assert found["quiet"]


def test_updates_stay_with_the_engine_until_somebody_looks(engine: str) -> None:
    found = case(engine, "kept")
    kept = 0 if engine == "torch" else 5
    assert found["held"] == kept
    assert found["step"] == ["run"]
    assert found["read"] == ([1] if kept else [])
    assert found["held after"] == max(0, kept - 1)
    assert found["torn"] == []
    assert found["feed"]


def test_k_works_inside_what_the_library_traces(engine: str) -> None:
    found = case(engine, "traced")
    assert found["inside"] == found["eager"]
    assert found["refused"] == "FeedError"


def test_kdiff_compares_the_kernels_engine_with_a_workers(engine: str) -> None:
    found = case(engine, "differences")
    assert found["agrees"]
    assert found["sqrt"]
    assert found["active"] == engine


def test_stop_lets_programs_values_and_folders_go_and_the_next_call_starts_again(engine: str) -> None:
    found = case(engine, "stopped")
    assert found["backend"]
    assert found["scratch"]
    assert found["stopped"]
    assert found["again"]
    assert found["pid"]


def test_what_cannot_be_is_one_line(engine: str) -> None:
    found = case(engine, "refused")
    theano, cntk, device, threads, native = found["lines"]
    for line, title, name in ((theano, "Theano", "theano"), (cntk, "CNTK", "cntk")):
        assert line == (
            f"ArgumentError: {title} can't run in the notebook's own process: allowed are tensorflow, jax, torch; "
            f"next: kernelk.set_backend('{name}'), which runs it in a worker"
        )
    assert "has no device 'cuda:7' here: allowed are " in device
    assert "threads=0 is unknown: allowed are 1 and more" in threads
    assert native.endswith(f"(tensorflow, jax, torch); next: kernelk.set_backend('{engine}', in_kernel=True)")
    assert found["active"] == ["numpy"] * 4
    # Nothing is started to be told that.
    assert not found["started"]


def test_the_parity_suite_holds_in_the_kernel(engine: str) -> None:
    found = case(engine, "parity")
    assert found["failures"] == []
    assert found["cases"] >= 30


def test_the_users_settings_are_untouched_and_change_no_result(engine: str) -> None:
    found = case(engine, "imported_before")
    assert found["changed"] == []
    assert found["nan"] == [True, 0.0]
    assert found["handed"]
    # Under all these settings, the very bits of a worker, which has none of them.
    assert found["state"] == case(engine, "swaps")["three steps"]
    assert engine != "torch" or found["threads"] == 2


def test_a_library_that_kernelk_imported_is_as_its_user_would_have_it(engine: str) -> None:
    found, wanted = case(engine, "imported_after"), case(engine, "imported_before")["alone"]
    assert found["library"] == wanted["library"]
    assert found["environment"] == wanted["environment"]
    assert engine == "tensorflow" or found["facts"]["threads"] == 3
    notes = "; ".join(found["facts"].get("notes", ()))
    assert ("flushes denormal numbers" in notes) == (engine != "torch")
    assert ("these 3 threads also serve your own JAX code" in notes) == (engine == "jax")


def test_three_engines_in_one_process() -> None:
    for name in ENGINES[1:]:
        case(name, "swaps")
    found = case("torch", "together")
    found.pop("seconds")
    assert all(found.values()), found


def test_the_engines_that_may_run_in_the_kernel_are_a_field_of_their_description() -> None:
    assert [name for name in registry.names() if registry.engine(name).in_kernel_too] == ["tensorflow", "jax", "torch"]
    assert not Engine("other", "Other", "other.backend", "Other").in_kernel_too
