"""Calls whose new values stay with a worker, over the old ones or beside them: outputs and updates are of old values.

Any graph of updates is computed as by numpy, and a call that is cut short has changed nothing.
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pytest
from helpers.engines import require_installed
from helpers.processes import run_script
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kernelk
from kernelk import backend as K
from kernelk import config
from kernelk.engines.worker_host import WorkerHost
from kernelk.errors import KernelKError
from kernelk.session.current import current

KEEPING = ("tensorflow", "torch", "theano", "cntk", "jax")
OVERWRITING = ("tensorflow", "torch", "theano", "jax")


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call's new values stay with its worker, and nothing is fetched before it is needed."""
    monkeypatch.setattr(config.LIMITS, "commit_bytes", 0)
    monkeypatch.setattr(config.LIMITS, "repeat_seconds", 1e6)


def activate_worker(engine: str) -> WorkerHost:
    require_installed(engine)
    kernelk.set_backend(engine)
    host = current().host()
    assert isinstance(host, WorkerHost)
    return host


# Functions of matrices of 3 x 3, exact on every engine; many hand on a view of an operand.
ONE = {
    "itself": lambda x: x,
    "negative": lambda x: -x,
    "half": lambda x: x * 0.5,
    "transposed": lambda x: K.transpose(x),
    "turned": lambda x: K.reverse(x, 0),
    "reshaped": lambda x: K.reshape(K.reshape(x, (9,)), (3, 3)),
    "first row": lambda x: K.repeat_elements(x[:1], 3, 0),
    "total": lambda x: x + K.max(x, axis=0, keepdims=True),
    "in a loop": lambda x: K.rnn(lambda piece, states: (states[0], [states[0]]), K.reshape(x, (3, 1, 3)), [x])[0],
}
TWO = {
    "sum": lambda x, y: x + y,
    "difference": lambda x, y: x - y,
    "larger": lambda x, y: K.maximum(x, y),
    "chosen": lambda x, y: K.switch(K.less(x, y), x, y),
    "rows": lambda x, y: K.concatenate([x[:1], y[1:]], axis=0),
}
LEAVES = ("a", "b", "c", "fed")


def trees() -> st.SearchStrategy[Any]:
    leaves = st.sampled_from(LEAVES)
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.tuples(st.sampled_from(sorted(ONE)), inner),
            st.tuples(st.sampled_from(sorted(TWO)), inner, inner),
        ),
        max_leaves=5,
    )


def built(tree: Any, leaves: dict[str, Any], made: dict[Any, Any]) -> Any:
    """The tensor of a tree; equal trees are one tensor."""
    if isinstance(tree, str):
        return leaves[tree]
    if tree not in made:
        operands = [built(part, leaves, made) for part in tree[1:]]
        made[tree] = (ONE if len(operands) == 1 else TWO)[tree[0]](*operands)
    return made[tree]


@pytest.mark.parametrize("engine", KEEPING)
def test_any_updates_are_those_of_numpy(engine: str) -> None:
    host = activate_worker(engine)
    rng = np.random.RandomState(0)
    starts = {name: rng.randint(-8, 8, (3, 3)).astype(np.float32) for name in "abc"}
    feeds = [rng.randint(-8, 8, (3, 3)).astype(np.float32) for _ in range(3)]

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        updates=st.dictionaries(st.sampled_from("abc"), trees(), min_size=1),
        outputs=st.lists(trees(), max_size=3),
        apart=st.booleans(),
    )
    def check(updates: dict[str, Any], outputs: list[Any], apart: bool) -> None:
        found = {}
        for name in (engine, "numpy"):
            kernelk.set_backend(name)
            leaves: dict[str, Any] = {key: K.variable(start) for key, start in starts.items()}
            fed = leaves["fed"] = K.placeholder((3, 3))
            made: dict[Any, Any] = {}
            step = K.function(
                [fed],
                [built(tree, leaves, made) for tree in outputs],
                [K.update(leaves[key], built(tree, leaves, made)) for key, tree in updates.items()],
            )
            seen: list[Any] = []
            for feed in feeds:
                seen += step([feed])
                if apart and name == engine:
                    session = current()
                    with session.lock:
                        program = step.program_for(session, host.ops, 0, [feed])
                        session.calls.execute(host, program, [feeds[0]], commit=False)
            found[name] = seen + K.batch_get_value([leaves[key] for key in "abc"])
        # Of 0.0 and -0.0 either may be the larger one.
        assert all(np.array_equal(x, y) for x, y in zip(found[engine], found["numpy"])), (updates, outputs)
        assert len(found[engine]) == len(found["numpy"])

    check()


@pytest.mark.parametrize("earlier", [0, 2])
@pytest.mark.parametrize("engine", KEEPING)
def test_a_call_that_is_cut_short_changes_nothing(engine: str, earlier: int, said: list[str]) -> None:
    host = activate_worker(engine)
    said.clear()  # which engine is in use
    w, count = K.variable(np.ones((3, 3))), K.variable(np.full(3, 2), dtype="int64")
    # This one is only read.
    rate = K.variable(2.0)
    power = K.placeholder((3,), dtype="int64")
    step = K.function([power], [K.sum(w)], [K.update(w, w * rate), K.update(count, count**power)])
    for _ in range(earlier):
        step([np.ones(3, "int64")])
    pid = host.pid
    with pytest.raises(KernelKError):
        # No integer is 2 ** -1.
        step([np.full(3, -1, "int64")])
    assert step([np.full(3, 2, "int64")]) == [9.0 * 2**earlier]
    assert K.get_value(count).tolist() == [4, 4, 4]
    assert K.get_value(w).tolist() == np.full((3, 3), 2.0 ** (earlier + 1)).tolist()
    assert host.pid == pid
    if engine == "torch":
        # There the first update comes first.
        repeated = "a call was cut short that overwrites variables in PyTorch's worker; 2 calls since the last"
        assert [line[: len(repeated)] for line in said] == [repeated] * (earlier > 0)


@pytest.mark.compiled_theano
def test_a_call_that_is_cut_short_in_theanos_own_code() -> None:
    """As users have it: in a session of its own, since this one's Theano runs without a compiler."""
    require_installed("theano")
    code = """
    import numpy as np, kernelk
    from kernelk import backend as K, config
    from kernelk.session.current import current
    config.LIMITS.build_beside, config.LIMITS.commit_bytes = False, 0
    kernelk.set_backend("theano")
    w, rate = K.variable(np.ones((3, 3))), K.variable(2.0)
    count, power = K.variable(np.full(3, 2), dtype="int64"), K.placeholder((3,), dtype="int64")
    step = K.function([power], [K.sum(w)], [K.update(w, w * rate), K.update(count, count**power)])
    found = step([np.ones(3, "int64")])
    try:
        step([np.full(3, -1, "int64")])
    except kernelk.errors.KernelKError as error:
        found.append(str(error))
    found += step([np.ones(3, "int64")])
    result = [*map(str, found), K.get_value(w).tolist(), current().host().facts["mode"]]
    """
    first, error, second, value, mode = run_script(textwrap.dedent(code))
    assert (first, second, value) == ("9.0", "18.0", [[4.0] * 3] * 3)
    assert "negative" in error or "power" in error
    assert mode.startswith("C")


@pytest.mark.parametrize("engine", KEEPING)
def test_pools_of_what_is_not_finite_and_of_nothing(engine: str) -> None:
    """TensorFlow's quickest way through a pool is for finite values: where it isn't right, it has changed nothing."""
    activate_worker(engine)
    x = K.placeholder((None, 4, 4, 1))
    kernel, total, steps = K.variable(np.ones((1, 1, 1, 2))), K.variable(np.zeros((2, 2, 2))), K.variable(0.0)
    pooled = K.sum(K.pool2d(K.conv2d(x, kernel), (2, 2), (2, 2)), 0)
    updates = [K.update_add(total, pooled), K.update(steps, steps * 2 + 1), K.update_add(kernel, K.ones_like(kernel))]
    call = K.function([x], [pooled], updates)
    ordinary = np.arange(16, dtype="float32").reshape(1, 4, 4, 1)
    odd = ordinary.copy()
    odd[0, 0, 0], odd[0, 2:, :2] = np.nan, -np.inf
    summed = np.zeros((2, 2, 2), "float32")
    for turn, fed in enumerate((ordinary, ordinary[:0], ordinary, odd, ordinary[:0], ordinary, odd), 1):
        wanted = turn * len(fed) * np.repeat([[[5], [7]], [[13], [15]]], 2, axis=2).astype("float32")
        if fed is odd:
            wanted[0, 0], wanted[1, 0] = np.nan, -np.inf
        np.testing.assert_array_equal(call([fed])[0], wanted)
        summed += wanted
        np.testing.assert_array_equal(K.get_value(total), summed)
        assert K.get_value(steps) == 2**turn - 1
        np.testing.assert_array_equal(K.get_value(kernel), np.full((1, 1, 1, 2), turn + 1))


@pytest.mark.parametrize("engine", OVERWRITING)
def test_a_call_whose_reply_is_lost_changes_nothing(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by an exception that a signal handler raises, between the reply and the commit."""
    host = activate_worker(engine)
    w = K.variable(np.ones((3, 3)))
    step = K.function([], [K.sum(w)], [K.update(w, w * 2.0)])
    step([])
    with monkeypatch.context() as patched:
        patched.setattr(host, "take", lambda _: (_ for _ in ()).throw(TimeoutError("by a handler")))
        with pytest.raises(TimeoutError):
            step([])
    assert K.get_value(w)[0, 0] == 2.0
    assert step([]) == [18.0]
    assert K.get_value(w)[0, 0] == 4.0


@pytest.mark.parametrize("engine", OVERWRITING)
def test_a_worker_that_cannot_repeat_is_replaced(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host = activate_worker(engine)
    w = K.variable(np.ones((3, 3)))
    power = K.placeholder((3,), dtype="int64")
    count = K.variable(np.full(3, 2), dtype="int64")
    step = K.function([power], [], [K.update(w, w * 2.0), K.update(count, count**power)])
    step([np.ones(3, "int64")])
    with pytest.raises(KernelKError):
        step([np.full(3, -1, "int64")])
    pid, repeat = host.pid, type(host.history).repeat

    def once(history: Any, *arguments: Any) -> Any:
        monkeypatch.setattr(type(host.history), "repeat", repeat)
        raise KernelKError("this device is unusable", next_step="")

    monkeypatch.setattr(type(host.history), "repeat", once)
    host._torn = host._lost = True
    assert K.get_value(w)[0, 0] == 2.0
    assert host.pid != pid
