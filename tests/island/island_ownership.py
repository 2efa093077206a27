"""Whose memory is whose: what `kernelk.backends.base` promises of every engine, written once.

Run in the tests' own process on the engines that live there (test_ownership.py), and under the interpreter that the
others' workers have: `python island_ownership.py ISLAND_FOLDER MODULE CLASS OPTIONS` (Python 3.6 syntax, numpy only)
prints a JSON object that has for each check "" or the traceback of its failure.
"""

import importlib
import json
import os
import sys
import traceback
import warnings

import numpy as np

DTYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
DTYPES += ["float16", "float32", "float64"]
SHAPES = [(), (1,), (0,), (2, 3), (600, 300)]

# name -> function(engine); each is a promise
CHECKS = {}


def check(*cases):
    """Enters a check, once for each case if there are any: `function(engine, case)`."""

    def enter(function):
        for case in cases:
            CHECKS[f"{function.__name__}[{case}]"] = lambda engine, case=case: function(engine, case)
        if not cases:
            CHECKS[function.__name__] = function
        return function

    return enter


class Engine:
    """A backend as the checks drive it: the way in which the executor does."""

    def __init__(self, backend, lowering):
        self.backend = backend
        self.lowering = lowering

    def length(self, n):
        """The length n in a program: engines that don't specialise on shapes are given programs that don't tell it."""
        return n if self.backend.specialises == "all" else None

    def program(self, **parts):
        keys = ["inputs", "slots", "draws", "constants", "instructions", "outputs", "updates"]
        return self.lowering.Program(json.loads(json.dumps({key: parts.get(key, []) for key in keys})))

    def compile(self, constants=(), **parts):
        program = self.program(constants=[[str(a.dtype), list(a.shape)] for a in constants], **parts)
        return self.backend.compile(program, list(constants))

    def call(self, run, feeds, state, draws=(), into=()):
        """(outputs, updates) of one call, native values; `into` are the arrays in which new values belong."""
        if self.backend.writes_in_place:
            return run(list(feeds), list(state), list(draws), list(into))
        return run(list(feeds), list(state), list(draws))

    def commit(self, updates, into):
        """The native values to keep of these updates, which are in `into` afterwards."""
        return [v if v is d else self.backend.commit(v, d) for v, d in zip(updates, into)]

    def array(self, value):
        return self.backend.to_numpy(value)


def aligned(values):
    """A copy in memory as slots and feeds have it: an engine that can may share it."""
    values = np.asarray(values)
    memory = np.zeros(values.nbytes + 64, "uint8")
    start = -memory.ctypes.data % 64
    copy = memory[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def bits(array):
    return np.ascontiguousarray(array).tobytes()


def overwrite(*arrays):
    """Gives these arrays other values, as feeds and slots get them once a call is over."""
    for array in arrays:
        array[...] = np.logical_not(array) if array.dtype == bool else 77


def handed_on(engine, dtype):
    """A program whose updates are its feed and its slots, handed on in all ways; its arrays; and the new values."""
    first, second = np.ones(6, dtype), np.array([0, 1, 0, 1, 0, 1], dtype)
    n = engine.length(6)
    # Each is a way in which some engine hands on the memory of its operand.
    views = [
        ["reshape", [0], {"dims": [6]}, dtype, [6]],
        ["slice", [0], {"slices": [[None, None, None]]}, dtype, [n]],
        ["transpose", [0], {"permutation": [0]}, dtype, [n]],
        ["concatenate", [0], {"axis": 0}, dtype, [n]],
        ["broadcast_to", [0], {"dims": [6]}, dtype, [6]],
        ["cast", [0], {"dtype": dtype}, dtype, [n]],
        ["reshape", [0], {"dims": [6, 1]}, dtype, [6, 1]],
        ["max", [9], {"axes": [1], "keepdims": False}, dtype, [6]],
        ["prod", [9], {"axes": [1], "keepdims": False}, dtype, [6]],
        ["pad", [0], {"pads": [[0, 0]]}, dtype, [n]],
        ["round", [0], {}, dtype, [n]],
    ]
    numbers = [0, *range(3, 9), *range(10, 14)]
    # The second slot gives its value to the first one's namesakes, and to itself.
    updates = [[0, number] for number in numbers] + [[0, 2], [1, 1], [1, 2]]
    run = engine.compile(inputs=[[dtype, [n]]], slots=[[dtype, [6]]] * 2, instructions=views, updates=updates)
    return run, aligned(first), [aligned(second), aligned(second)], [first] * len(numbers) + [second] * 3


@check(*DTYPES)
def what_is_kept_is_no_view_of_what_is_overwritten(engine, dtype):
    run, feed, slots, wanted = handed_on(engine, dtype)
    into = [aligned(np.zeros(6, dtype)) for _ in wanted]
    _, new = engine.call(run, [feed], [engine.backend.load(slot) for slot in slots], into=into)
    kept = engine.commit(new, into)
    overwrite(feed, *slots)
    for value, destination, expected in zip(kept, into, wanted):
        assert bits(engine.array(value)) == bits(destination) == bits(expected)
    # What is kept may share memory with its own destination, and with no other.
    for number, destination in enumerate(into):
        others = [bits(engine.array(value)) for value in kept[number + 1 :]]
        overwrite(destination)
        assert [bits(engine.array(value)) for value in kept[number + 1 :]] == others


@check(*DTYPES)
def what_stays_with_the_engine_is_in_memory_of_its_own(engine, dtype):
    backend = engine.backend
    if not backend.keeps_updates:
        return
    run, feed, slots, wanted = handed_on(engine, dtype)
    if hasattr(run, "overwrite"):
        _, kept = run.overwrite([feed], [backend.own(backend.load(slot)) for slot in slots], [], lambda: None)
    else:
        _, kept = run([feed], [backend.load(slot) for slot in slots], [])
        if backend.writes_in_place:
            kept = [backend.own(value) for value in kept]
    overwrite(feed, *slots)
    arrays = [engine.array(value) for value in kept]
    assert [bits(array) for array in arrays] == [bits(expected) for expected in wanted]
    if hasattr(run, "overwrite"):
        # The next call may write to each of them.
        assert not any(np.shares_memory(x, y) for i, x in enumerate(arrays) for y in arrays[:i])


@check(*SHAPES)
def feeds_and_draws_that_are_kept_are_copies(engine, shape):
    feed, draw = aligned(np.full(shape, 2, "float32")), aligned(np.full(shape, 3, "float32"))
    leaf = ["float32", list(shape)]
    run = engine.compile(inputs=[leaf], slots=[leaf] * 2, draws=[leaf], updates=[[0, 0], [1, 3]])
    into = [aligned(np.zeros(shape, "float32")) for _ in range(2)]
    state = [engine.backend.load(aligned(np.ones(shape, "float32"))) for _ in range(2)]
    kept = engine.commit(engine.call(run, [feed], state, [draw], into)[1], into)
    overwrite(feed, draw)
    for value, destination, expected in zip(kept, into, (2, 3)):
        assert engine.array(value).shape == shape
        assert bits(engine.array(value)) == bits(destination) == bits(np.full(shape, expected, "float32"))


@check()
def feeds_may_be_overwritten_as_soon_as_a_run_returns(engine):
    # Long enough to be still running if nobody waited.
    leaf, attrs = ["float32", [600, 600]], {"transpose_a": False, "transpose_b": False}
    products = [["matmul", [0, number], attrs, *leaf] for number in [0, *range(2, 6)]]
    run = engine.compile(inputs=[leaf], slots=[leaf], instructions=products, updates=[[0, 6]])
    feed, results = aligned(np.zeros((600, 600), "float32")), []
    state = engine.backend.load(aligned(feed))
    for _ in range(3):
        feed[...] = 1 / 600
        into = [aligned(np.zeros((600, 600), "float32"))]
        _, new = engine.call(run, [feed], [state], into=into)
        feed[...] = np.nan
        results.append(bits(engine.array(engine.commit(new, into)[0])))
        assert not np.isnan(into[0]).any()
    assert len(set(results)) == 1


@check()
def a_run_changes_neither_its_feeds_nor_its_state(engine):
    leaf = ["float32", [64, 64]]
    # The last use of each is an op that could work in place.
    run = engine.compile(
        inputs=[leaf],
        slots=[leaf],
        instructions=[["add", [1, 0], {}, *leaf], ["multiply", [2, 1], {}, *leaf], ["exp", [0], {}, *leaf]],
        outputs=[2, 4],
        updates=[[0, 3]],
    )
    feed, slot = aligned(np.full((64, 64), 2, "float32")), aligned(np.full((64, 64), 3, "float32"))
    state, kept = engine.backend.load(slot), []
    for _ in range(3):
        into = [aligned(np.zeros((64, 64), "float32"))]
        outputs, new = engine.call(run, [feed], [state], into=into)
        assert set(engine.array(outputs[0]).ravel()) == {5}
        kept += engine.commit(new, into)
        assert set(engine.array(kept[0]).ravel()) == set(into[0].ravel()) == {15}
    # Nor does a run on what an earlier one has left.
    engine.call(run, [feed], [kept[0]], into=[aligned(np.zeros((64, 64), "float32"))])
    assert set(feed.ravel()) == {2}
    assert set(slot.ravel()) == set(engine.array(state).ravel()) == {3}
    assert set(engine.array(kept[0]).ravel()) == {15}


@check()
def outputs_show_the_values_from_before_the_updates(engine):
    leaf = ["float32", [3]]
    constant = np.array([10, 20, 30], "float32")
    run = engine.compile(
        [constant],
        slots=[leaf] * 2,
        instructions=[["add", [0, 2], {}, *leaf], ["add", [1, 3], {}, *leaf]],
        outputs=[0, 1, 4],
        updates=[[0, 3], [1, 4]],
    )
    slots = [aligned(np.array(values, "float32")) for values in ([1, 2, 3], [4, 5, 6])]
    state = [engine.backend.load(slot) for slot in slots]
    for turn in range(3):
        before = [slot.tolist() for slot in slots]
        into = [aligned(np.zeros(3, "float32")) for _ in range(2)]
        outputs, new = engine.call(run, [], state, into=into)
        shown = [engine.array(value).tolist() for value in outputs]
        state, slots = engine.commit(new, into), into
        assert shown == [*before, into[1].tolist()], turn
    assert [slot.tolist() for slot in slots] == [[31, 62, 93], [67, 131, 195]]


@check()
def one_value_for_two_variables_and_several_outputs(engine):
    leaf = ["float32", [engine.length(2)]]
    instructions = [["negative", [0], {}, *leaf]]
    run = engine.compile(
        inputs=[leaf], slots=[leaf] * 2, instructions=instructions, outputs=[3, 3, 0, 1], updates=[[0, 3], [1, 3]]
    )
    into = [aligned(np.zeros(2, "float32")) for _ in range(2)]
    state = [engine.backend.load(aligned(np.full(2, 5, "float32"))) for _ in range(2)]
    outputs, new = engine.call(run, [aligned(np.ones(2, "float32"))], state, into=into)
    assert [engine.array(value).tolist() for value in outputs] == [[-1, -1], [-1, -1], [1, 1], [5, 5]]
    kept = engine.commit(new, into)
    overwrite(into[0])
    assert engine.array(kept[1]).tolist() == into[1].tolist() == [-1, -1]


@check()
def a_program_without_results_runs(engine):
    leaf = ["float32", [engine.length(2)]]
    assert engine.call(engine.compile(inputs=[leaf]), [np.ones(2, "float32")], []) == ([], [])


@check([], [1], [1, 1], [4, 4])
def fresh_outputs_are_memory_of_their_own(engine, shape):
    leaf = ["float32", shape]
    cases = [(op, [0], {}, shape) for op in ("negative", "abs", "sqrt", "exp", "floor", "round")]
    cases += [(op, [0, 1], {}, shape) for op in ("add", "multiply", "floor_divide", "mod", "power", "maximum")]
    cases += [("reshape", [0], {"dims": shape}, shape), ("cast", [0], {"dtype": "float32"}, shape)]
    axes = list(range(len(shape)))
    cases += [(op, [0], {"axes": axes, "keepdims": True}, [1] * len(shape)) for op in ("sum", "max", "min", "prod")]
    if shape:
        cases += [(op, [0], {"axis": 0}, shape) for op in ("cumsum", "cumprod")]
        cases += [("slice", [0], {"slices": [[None, None, None]] * len(shape)}, shape)]
        cases += [("concatenate", [0], {"axis": 0}, shape)]
    if len(shape) == 2:
        cases.append(("matmul", [0, 1], {"transpose_a": False, "transpose_b": True}, shape))
    if shape:
        cases.append(("softmax", [0], {"axis": 0}, shape))
    cases += [(op, [0], {}, shape) for op in ("relu", "sigmoid")]
    cases.append(("mean", [0], {"axes": axes, "keepdims": True}, [1] * len(shape)))
    cases = [case for case in cases if case[0] in engine.backend.ops]
    run = engine.compile(
        inputs=[leaf],
        slots=[leaf],
        instructions=[[op, operands, attrs, "float32", found] for op, operands, attrs, found in cases],
        outputs=[*range(2 + len(cases)), 2],
    )
    feed, slot = aligned(np.full(shape, 2, "float32")), aligned(np.full(shape, 3, "float32"))
    state = [engine.backend.load(slot)]
    outputs, _ = engine.call(run, [feed], state)
    fresh = list(getattr(run, "fresh", ()))
    # A feed, a variable, and what is two outputs at once are nobody's alone.
    assert not {0, 1, 2, 2 + len(cases)} & set(fresh)
    before = {i: bits(engine.array(outputs[i])) for i in fresh}
    for i in fresh:
        assert not np.shares_memory(engine.array(outputs[i]), feed), cases[i - 2]
        assert not np.shares_memory(engine.array(outputs[i]), slot), cases[i - 2]
    overwrite(feed)
    engine.call(run, [feed], state)
    assert {i: bits(engine.array(outputs[i])) for i in fresh} == before


@check()
def what_the_user_gets_is_the_users_own(engine):
    leaf = ["float32", [4]]
    run = engine.compile(
        inputs=[leaf], slots=[leaf], instructions=[["exp", [0], {}, *leaf]], outputs=[0, 1, 2, 2], updates=[[0, 2]]
    )
    feed, slot = aligned(np.zeros(4, "float32")), aligned(np.full(4, 3, "float32"))
    into = [aligned(np.zeros(4, "float32"))]
    outputs, new = engine.call(run, [feed], [engine.backend.load(slot)], into=into)
    fresh = getattr(run, "fresh", ())
    given = [engine.backend.native(value, i in fresh) for i, value in enumerate(outputs)]
    engine.commit(new, into)
    overwrite(feed, slot, *into)
    assert [engine.array(value).tolist() for value in given] == [[0] * 4, [3] * 4, [1] * 4, [1] * 4]


@check()
def a_slot_is_shared_also_where_it_is_read_only(engine):
    slot = aligned(np.arange(1000, dtype="float32"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.shares_memory(engine.array(engine.backend.load(slot)), slot)
        slot.flags.writeable = False
        assert np.shares_memory(engine.array(engine.backend.load(slot)), slot)


@check(0, 4, 8)
def bits_survive(engine, offset):
    patterns = np.array([0x7FC00001, 0x7F800001, 0xFFC12345, 0x80000000, 1, 0x007FFFFF], "uint32")
    source = aligned(np.zeros(64, "uint8"))[offset : offset + patterns.nbytes].view("float32")
    source.view("uint32")[...] = patterns
    value = engine.backend.load(source)
    assert bits(engine.array(value)) == bits(patterns)
    leaf = ["float32", [6]]
    run = engine.compile(
        inputs=[["float32", [engine.length(6)]]], slots=[leaf], outputs=[0, 1], updates=[[0, 0], [0, 1]]
    )
    into = [aligned(np.zeros(6, "float32")) for _ in range(2)]
    outputs, new = engine.call(run, [source], [value], into=into)
    assert [bits(engine.array(value)) for value in outputs] == [bits(patterns)] * 2
    for value, destination in zip(engine.commit(new, into), into):
        assert bits(engine.array(value)) == bits(destination) == bits(patterns)


@check("bool", "int16", "uint16", "uint64", "float16", "float32", "float64")
def arrays_of_any_strides(engine, dtype):
    values = np.arange(24).reshape(4, 6).astype(dtype)
    for view in (values.T, values[::2, ::-1], values[:, 1:3], values[:0], np.asfortranarray(values), values[0, 0]):
        view = np.asarray(view)
        loaded = engine.array(engine.backend.load(view))
        assert (loaded.dtype, loaded.shape, bits(loaded)) == (view.dtype, view.shape, bits(view))
        leaf = [dtype, [engine.length(n) for n in view.shape]]
        turned = [dtype, leaf[1][::-1]]
        run = engine.compile(
            inputs=[leaf],
            slots=[[dtype, list(view.shape[::-1])]],
            instructions=[["transpose", [0], {"permutation": list(range(view.ndim))[::-1]}, *turned]],
            outputs=[0, 2],
            updates=[[0, 2]],
        )
        into = [aligned(np.zeros(view.shape[::-1], dtype))]
        state = [engine.backend.load(aligned(into[0]))]
        outputs, new = engine.call(run, [view], state, into=into)
        assert [bits(engine.array(value)) for value in outputs] == [bits(view), bits(view.T)]
        (kept,) = engine.commit(new, into)
        assert bits(engine.array(kept)) == bits(into[0]) == bits(view.T)


def main(folder, module, name, options):
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from island_conformance import island

    island(folder)
    lowering = importlib.import_module("island.lowering")
    kind = getattr(importlib.import_module(f"island.{module}.backend"), name)
    engine = Engine(kind(json.loads(options)), lowering)
    found = {}
    for label, function in CHECKS.items():
        try:
            function(engine)
            found[label] = ""
        except Exception:
            found[label] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
