"""What the Theano backend promises beyond single ops: `python island_theano.py ISLAND_FOLDER SCRATCH [compiled]`.

Runs under Theano's interpreter (Python 3.6 syntax, numpy and Theano only). Prints one line for each failure and
`N passed, N failed`. Without `compiled` nothing is compiled by C; with it, a sample of the same programs is.
"""

import importlib
import json
import os
import sys
import time
import traceback

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from island_conformance import island  # noqa: E402

F = "float32"
INF, NAN = float("inf"), float("nan")


class Builder(object):
    """Records a program op by op; a value is (kind, index)."""

    kinds = ["inputs", "slots", "draws", "constants"]

    def __init__(self):
        self.leaves = {kind: [] for kind in self.kinds}
        self.instructions = []
        self.arrays = []

    def leaf(self, kind, shape, dtype=F):
        self.leaves[kind].append([dtype, list(shape)])
        return kind, len(self.leaves[kind]) - 1

    def constant(self, value, dtype=F):
        self.arrays.append(np.asarray(value, dtype))
        return self.leaf("constants", self.arrays[-1].shape, dtype)

    def op(self, name, *values, **attrs):
        dtype, shape = attrs.pop("dtype", F), attrs.pop("shape", [None])
        self.instructions.append((name, values, attrs, dtype, shape))
        return "instructions", len(self.instructions) - 1

    def number(self, value):
        kind, index = value
        before = self.kinds if kind == "instructions" else self.kinds[: self.kinds.index(kind)]
        return sum(len(self.leaves[k]) for k in before) + index

    def program(self, outputs, updates=()):
        encoded = dict(self.leaves)
        encoded["instructions"] = [
            [name, [self.number(v) for v in values], attrs, dtype, shape]
            for name, values, attrs, dtype, shape in self.instructions
        ]
        encoded["outputs"] = [self.number(v) for v in outputs]
        encoded["updates"] = [[slot, self.number(v)] for slot, v in updates]
        return importlib.import_module("island.lowering").Program(json.loads(json.dumps(encoded)))


def same(expected, got):
    expected, got = np.asarray(expected), np.asarray(got)
    if expected.dtype != got.dtype or expected.shape != got.shape:
        return False
    if expected.dtype.kind != "f":
        return np.array_equal(expected, got)
    zero = (expected == 0) & (got == 0)
    return np.allclose(expected, got, rtol=1e-5, atol=0, equal_nan=True) and np.array_equal(
        np.signbit(expected[zero]), np.signbit(got[zero])
    )


EDGES = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 200.0, -200.0, 3e38, 1e-40, INF, -INF, NAN], F)


def rewrites(b):
    """Yields (name, program): each is something that Theano's own optimizer would compute otherwise."""
    vector = [None]

    def one(name, function, dtype=F):
        p = Builder()
        x = p.leaf("inputs", vector, dtype)
        y = function(p, x)
        return name, p, y

    def constant(value):
        return lambda p: p.constant(value)

    zero, unit, half = constant(0.0), constant(1.0), constant(0.5)
    yield one("x - x", lambda p, x: p.op("subtract", x, x))
    yield one("x * 0", lambda p, x: p.op("multiply", x, zero(p)))
    yield one("0 / x", lambda p, x: p.op("divide", zero(p), x))
    yield one("x / x", lambda p, x: p.op("divide", x, x))
    yield one("x + 0", lambda p, x: p.op("divide", unit(p), p.op("add", x, zero(p))))
    yield one("x + x - x", lambda p, x: p.op("subtract", p.op("add", x, x), x))
    yield one("x * x / x", lambda p, x: p.op("divide", p.op("multiply", x, x), x))
    yield one("(x + 1) * x", lambda p, x: p.op("multiply", p.op("subtract", x, unit(p)), x))
    yield one("exp(log(x))", lambda p, x: p.op("exp", p.op("log", x)))
    yield one("log(exp(x))", lambda p, x: p.op("log", p.op("exp", x)))
    yield one("x == x", lambda p, x: p.op("equal", x, x, dtype="bool"))
    yield one("x != x", lambda p, x: p.op("not_equal", x, x, dtype="bool"))
    yield one("x <= x", lambda p, x: p.op("less_equal", x, x, dtype="bool"))
    yield one("x < x", lambda p, x: p.op("less", x, x, dtype="bool"))
    yield one("maximum(x, x)", lambda p, x: p.op("maximum", x, x))
    yield one("x ** 0.5", lambda p, x: p.op("power", x, half(p)))
    yield one("x ** -0.5", lambda p, x: p.op("power", x, p.constant(-0.5)))
    yield one("x ** -2", lambda p, x: p.op("power", x, p.constant(-2.0)))
    yield one("x ** 0", lambda p, x: p.op("power", x, zero(p)))
    yield one("1 / (1 / x)", lambda p, x: p.op("divide", unit(p), p.op("divide", unit(p), x)))
    yield one("floor(x)", lambda p, x: p.op("floor", x))
    yield one("round(x)", lambda p, x: p.op("round", x))
    yield one("round(x / 400)", lambda p, x: p.op("round", p.op("divide", x, p.constant(400.0))))
    yield one("sin(-x)", lambda p, x: p.op("sin", p.op("negative", x)))
    yield one("cos(-x)", lambda p, x: p.op("cos", p.op("negative", x)))
    yield one("prod(-x)", lambda p, x: p.op("prod", p.op("negative", x), shape=[], axes=[0], keepdims=False))
    yield one("cumsum(x)", lambda p, x: p.op("cumsum", x, axis=0))
    yield one("cumprod(0 * x)", lambda p, x: p.op("cumprod", p.op("multiply", zero(p), x), axis=0))
    yield one("pad(x) + 0", lambda p, x: p.op("add", p.op("pad", x, pads=[[1, 2]]), zero(p)))
    yield one("pad(x)[1:]", lambda p, x: p.op("slice", p.op("pad", x, pads=[[2, 0]]), slices=[[1, None, None]]))
    yield one("- - x", lambda p, x: p.op("negative", p.op("negative", x)))

    def logistic(p, x):
        e = p.op("exp", x)
        return p.op("divide", e, p.op("add", unit(p), e))

    yield one("exp(x) / (1 + exp(x))", logistic)
    yield one("log(1 + exp(x))", lambda p, x: p.op("log", p.op("add", unit(p), p.op("exp", x))))
    yield one(
        "log(1 / (1 + exp(-x)))",
        lambda p, x: p.op("log", p.op("divide", unit(p), p.op("add", unit(p), p.op("exp", p.op("negative", x))))),
    )
    yield one("log(exp(x) + exp(x))", lambda p, x: p.op("log", p.op("add", p.op("exp", x), p.op("exp", x))))
    yield one(
        "log(sum(exp(x)))",
        lambda p, x: p.op("log", p.op("sum", p.op("exp", x), shape=[], axes=[0], keepdims=False), shape=[]),
    )

    def masked(p, x):
        condition = p.op("less", zero(p), x, dtype="bool")
        return p.op("multiply", p.op("divide", unit(p), zero(p), shape=[]), p.op("select", condition, x, zero(p)))

    yield one("inf * select(c, x, 0)", masked)
    yield one(
        "|x| + (|x| - 3e38)", lambda p, x: p.op("add", p.op("abs", x), p.op("add", p.op("abs", x), p.constant(-3e38)))
    )

    def constant_condition(p, x):
        condition = p.op("less", zero(p), unit(p), dtype="bool", shape=[])
        return p.op("select", condition, x, zero(p))

    yield one("select(0 < 1, x, 0)", constant_condition)
    for name, factor in [("0.1", 0.1), ("0", 0.0), ("inf", INF)]:
        p = Builder()
        x = p.leaf("inputs", vector)
        y = p.op("sum", p.op("multiply", p.constant(factor), x), shape=[], axes=[0], keepdims=False)
        yield "sum(%s * x)" % name, p, y
    p = Builder()
    x = p.leaf("inputs", vector)
    row = p.op("reshape", x, dims=[1, -1], shape=[1, None])
    zeros = p.constant(np.zeros((2, 1)))
    yield "dot(0, x)", p, p.op("matmul", zeros, row, shape=[2, None], transpose_a=False, transpose_b=False)
    p = Builder()
    x = p.leaf("inputs", vector)
    column = p.op("reshape", x, dims=[-1, 1], shape=[None, 1])
    row = p.op("reshape", x, dims=[1, -1], shape=[1, None])
    square = [None, None]
    outer = p.op("matmul", column, row, shape=square, transpose_a=False, transpose_b=False)
    ones = p.constant(np.ones((len(EDGES), len(EDGES))))
    yield (
        "1 - 0 * dot(x, x)",
        p,
        p.op("subtract", ones, p.op("multiply", p.constant(0.0), outer, shape=square), shape=square),
    )
    p = Builder()
    x = p.leaf("inputs", vector)
    plus, minus = p.constant(0.0), p.constant(-0.0)
    quotients = [p.op("divide", x, plus), p.op("divide", x, minus)]
    yield "constants 0.0 and -0.0", p, p.op("concatenate", *quotients, axis=0)
    for dtype in ["int8", "uint8", "int32", "int64"]:
        low = np.iinfo(dtype).min
        yield one(
            dtype + " -max(-x)",
            lambda p, x, d=dtype: p.op(
                "negative",
                p.op("max", p.op("negative", x, dtype=d), dtype=d, shape=[], axes=[0], keepdims=False),
                dtype=d,
                shape=[],
            ),
            dtype,
        )
        yield one(
            dtype + " abs(x * x)",
            lambda p, x, d=dtype: p.op("abs", p.op("multiply", x, p.op("add", x, x, dtype=d), dtype=d), dtype=d),
            dtype,
        )
        if low:
            for op in ["floor_divide", "mod"]:
                yield one(
                    "%s %s by -1" % (dtype, op),
                    lambda p, x, d=dtype, o=op: p.op(o, x, p.constant(-1, d), dtype=d),
                    dtype,
                )


def run_rewrites(check, backend, numpy_backend, keep):
    for name, p, y in rewrites(backend):
        if not keep(name):
            continue
        dtype = p.leaves["inputs"][0][0]
        feed = EDGES
        if dtype != F:
            info = np.iinfo(dtype)
            feed = np.array([info.min, info.max, 0, 1, 5, 100], dtype)
        program = p.program([y])
        if name.endswith("by -1"):
            # numpy 1.19 itself ends the process here.
            expected = [-feed if "floor" in name else np.zeros_like(feed)]
        else:
            expected, _ = numpy_backend.compile(program, p.arrays)([feed], [], [])
        got, _ = backend.compile(program, p.arrays)([feed], [], [])
        check(name, same(expected[0], got[0]), "expected %s got %s" % (expected[0], got[0]))


def step(backend, run, program, feeds, slots):
    """One call as the executor makes it: new values go to the inactive halves, which then become the active ones."""
    active, inactive = slots
    before = [a.copy() for a in active]
    into = [inactive[slot] for slot, _ in program.updates]
    outputs, new = run(feeds, list(active), [], into) if backend.writes_in_place else run(feeds, list(active), [])
    direct = sum(value is destination for value, destination in zip(new, into))
    # Outputs are copied out before anything else happens.
    outputs = [np.array(value) for value in outputs]
    for value, destination in zip(new, into):
        assert backend.commit(value, destination) is destination
    assert all(np.array_equal(a, b) for a, b in zip(before, active)), "the call changed a committed value"
    for slot, _ in program.updates:
        active[slot], inactive[slot] = inactive[slot], active[slot]
    return outputs, direct


def alias_programs():
    """Yields (name, builder, outputs, updates): everything in which results share memory with something."""
    square = [3, 3]

    def two():
        p = Builder()
        return p, p.leaf("inputs", square), p.leaf("slots", square), p.leaf("slots", square)

    p, x, a, b = two()
    yield "outputs are leaves", p, [x, a, a], []
    p, x, a, b = two()
    yield "update equals feed", p, [x], [(0, x)]
    p, x, a, b = two()
    yield "both updates equal one feed", p, [], [(0, x), (1, x)]
    p, x, a, b = two()
    yield "swap", p, [a, b], [(0, b), (1, a)]
    p, x, a, b = two()
    y = p.op("add", a, x, shape=square)
    yield "one new value for two variables and an output", p, [y, y], [(0, y), (1, y)]
    p, x, a, b = two()
    t = p.op("transpose", b, shape=square, permutation=[1, 0])
    yield "update is a view of another variable", p, [t], [(0, t), (1, p.op("add", t, x, shape=square))]
    p, x, a, b = two()
    t = p.op("transpose", a, shape=square, permutation=[1, 0])
    yield "update is a view of itself", p, [a], [(0, t)]
    p, x, a, b = two()
    flat = p.op("reshape", p.op("multiply", a, x, shape=square), shape=[9], dims=[-1])
    back = p.op("reshape", flat, shape=square, dims=[3, 3])
    yield "update is a view of a temporary", p, [flat], [(0, back), (1, p.op("tanh", back, shape=square))]
    p, x, a, b = two()
    yield "updates are constants", p, [], [(0, p.constant(np.eye(3))), (1, p.constant(np.full((3, 3), -0.0)))]
    p, x, a, b = two()
    wide = p.constant(np.arange(900).reshape(30, 30) % 7)
    part = p.op("slice", wide, shape=square, slices=[[4, 7, None], [2, 8, 2]])
    yield "update is part of a large constant", p, [wide], [(0, part)]
    p, x, a, b = two()
    dot = p.op("matmul", a, x, shape=square, transpose_a=False, transpose_b=False)
    more = p.op("add", dot, p.op("matmul", b, x, shape=square, transpose_a=False, transpose_b=True), shape=square)
    last = p.op("tanh", more, shape=square)
    yield "results that later ops could overwrite", p, [dot, last], [(0, more), (1, dot)]
    p, x, a, b = two()
    around = p.op("pad", x, shape=square, pads=[[0, 0], [0, 0]])
    yield (
        "updates are padded by nothing",
        p,
        [around],
        [(0, around), (1, p.op("pad", a, shape=square, pads=[[0, 0]] * 2))],
    )
    p, x, a, b = two()
    places = p.constant([2, 0, 2], "int32")
    every = p.constant([0, 1, 2], "int64")
    rows = p.op("gather", a, places, shape=square)
    gradient = p.op("scatter_add", p.op("multiply", rows, x, shape=square), places, a, shape=square)
    new_a = p.op("subtract", a, p.op("multiply", p.constant(0.1), gradient, shape=square), shape=square)
    yield (
        "an embedding and all its rows",
        p,
        [rows, gradient],
        [(0, new_a), (1, p.op("gather", a, every, shape=square))],
    )
    p, x, a, b = two()
    outside = p.constant([3, -1, 1], "int64")
    rows = p.op("gather", a, outside, shape=square)
    yield "rows that are not there", p, [rows, x], [(0, p.op("scatter_add", x, outside, b, shape=square))]
    p, x, a, b = two()
    running = p.op("cumsum", a, shape=square, axis=1)
    stacked = [p.op("reshape", value, shape=[1, 3, 3], dims=[1, 3, 3]) for value in (running, x)]
    product = p.op("batch_matmul", *stacked, shape=[1, 3, 3], transpose_a=True, transpose_b=False)
    flat = p.op("reshape", product, shape=square, dims=[3, 3])
    yield "numpy's own results", p, [running, flat], [(0, running), (1, p.op("tanh", flat, shape=square))]
    p, x, a, b = two()
    new_b = p.op("subtract", p.op("multiply", p.constant(0.9), b, shape=square), x, shape=square)
    yield (
        "momentum",
        p,
        [p.op("sum", a, shape=[], axes=[0, 1], keepdims=False)],
        [(0, p.op("add", a, new_b, shape=square)), (1, new_b)],
    )


def run_aliases(check, backend, numpy_backend, keep):
    for name, p, outputs, updates in alias_programs():
        if not keep(name):
            continue
        program = p.program(outputs, updates)
        run = backend.compile(program, p.arrays)
        define = numpy_backend.compile(program, p.arrays)
        random = np.random.RandomState(3)
        start = [random.standard_normal((3, 3)).astype(F) for _ in range(2)]
        slots = [a.copy() for a in start], [np.full((3, 3), NAN, F) for _ in range(2)]
        expected_slots = [a.copy() for a in start]
        good, direct = True, 0
        for _ in range(4):
            feed = random.standard_normal((3, 3)).astype(F)
            expected, new = define([feed], expected_slots, [])
            expected, new = [np.array(e) for e in expected], [np.array(n) for n in new]
            got, direct = step(backend, run, program, [feed], slots)
            # The feed's memory is used again at once.
            feed[...] = NAN
            for (slot, _), value in zip(program.updates, new):
                expected_slots[slot] = value
            good = good and all(same(e, g) for e, g in zip(expected + expected_slots, got + list(slots[0])))
        check(name, good, "differs from numpy")
        check(name + ": nothing held", held(run) == 0, "%d arrays are held after the call" % held(run))
        if name == "momentum" and backend.facts()["mode"] != "no compiler":
            check("momentum is written in place", direct == 2, "%d of 2" % direct)


def held(run):
    import theano

    constants = run.constants
    return sum(
        cell[0] is not None and not any(cell is constant for constant in constants)
        for variable, cell in run.compiled.fn.storage_map.items()
        if not isinstance(variable, theano.gof.Constant)
    )


def run_errors(check, backend):
    lowering = importlib.import_module("island.lowering")
    p = Builder()
    x, y = p.leaf("inputs", [None, None]), p.leaf("inputs", [None, None])
    z = p.op("tanh", x, shape=[None, None])
    w = p.op("matmul", z, y, shape=[None, None], transpose_a=False, transpose_b=False)
    run = backend.compile(p.program([w]), [])
    try:
        run([np.ones((2, 3), F), np.ones((2, 3), F)], [], [])
        check("shapes that can't work", False, "no error")
    except lowering.InstructionError as error:
        check("an error names its op", error.index == 1 and "\n" not in str(error), str(error))
        check("nothing held after an error", held(run) == 0, "%d" % held(run))
    good, _ = run([np.ones((2, 3), F), np.ones((3, 2), F)], [], [])
    check("a call after an error", good[0].shape == (2, 2), "")
    try:
        backend.compile(Builder().program([]), [])([], [], [])
        check("an empty program", True, "")
    except Exception as error:
        check("an empty program", False, repr(error))
    for options, words in [({"device": "cuda"}, "allowed are cpu"), ({"compiler": "no-such-compiler"}, "allowed")]:
        try:
            type(backend)(dict(backend.options, **options))
            check(str(options), False, "no error")
        except ValueError as error:
            check(str(options), words in error.allowed, repr((error, error.allowed)))


def run_rows(check, backend, numpy_backend):
    """Indices of all types, lengths that the graph doesn't know: tables of no row, long rows and short ones."""
    random = np.random.RandomState(5)
    for dtype in ["int8", "uint8", "int32", "int64", "uint64"]:
        info = np.iinfo(dtype)
        for rows, width in [(0, 3), (5, 0), (5, 3), (5, 40)]:
            p = Builder()
            table, indices = p.leaf("inputs", [None, None]), p.leaf("inputs", [None, None], dtype)
            picked = p.op("gather", table, indices, shape=[None, None, None])
            added = p.op("scatter_add", picked, indices, table, shape=[None, None])
            program = p.program([picked, added])
            places = np.array([[0, 4, 4, info.max], [info.min, 1, 0, 4]], dtype)
            feeds = [random.standard_normal((rows, width)).astype(F), places]
            expected, _ = numpy_backend.compile(program, [])(feeds, [], [])
            got, _ = backend.compile(program, [])(feeds, [], [])
            name = "rows %s of %d by %d" % (dtype, rows, width)
            check(name, all(same(e, g) for e, g in zip(expected, got)), "%s instead of %s" % (got, expected))


def run_outputs_stay(check, backend):
    p = Builder()
    x = p.leaf("inputs", [None])
    run = backend.compile(p.program([p.op("add", x, x)]), [])
    first = run([np.array([1, 2], F)], [], [])[0][0]
    second = run([np.array([3, 4], F)], [], [])[0][0]
    check("an output outlives the next call", list(first) == [2, 4] and list(second) == [6, 8], "%s" % first)


def run_overwriting(check, backend):
    p = Builder()
    gradient = p.leaf("inputs", [None])
    weight, velocity = p.leaf("slots", [3]), p.leaf("slots", [3])
    rate, decay = p.constant(2), p.constant(0.5)
    faster = p.op("subtract", p.op("multiply", decay, velocity), p.op("multiply", rate, gradient), shape=[3])
    new = p.op("add", weight, faster, shape=[3])
    backend.overwrites = True
    try:
        # Its weight is updated first, and its output is of the old velocity or of nothing that is overwritten.
        plain = backend.compile(p.program([new], [(0, new), (1, faster)]), p.arrays)
        seen = backend.compile(p.program([velocity], [(0, new), (1, faster), (1, faster)]), p.arrays)
    finally:
        backend.overwrites = False
    for run, name in ((plain, "plain"), (seen, "seen")):
        state = [backend.own(np.array(values, F)) for values in ([1, 2, 3], [4, 5, 6])]
        fed = np.array([7, 8, 9], F)
        outputs, new_state = run.overwrite([fed], list(state), [], lambda: None)
        want = [[1 - 12, 2 - 13.5, 3 - 15], [-12, -13.5, -15]]
        check("overwriting, " + name, [list(x) for x in new_state[:2]] == want, "%s" % new_state)
        want = want[0] if run is plain else [4, 5, 6]
        check("overwriting, output, " + name, list(outputs[0]) == want, "%s" % outputs)
        apart = [np.shares_memory(x, y) for i, x in enumerate(new_state) for y in new_state[:i]]
        check("overwriting, apart, " + name, not any(apart), "%s" % apart)
        fresh = [x for x in new_state if not any(np.shares_memory(x, y) for y in state)]
        # Without C, new values come in new memory.
        if backend.facts()["mode"].startswith("C") and run is plain:
            check("overwriting, in place", not fresh, "%d of %d" % (len(fresh), len(new_state)))
        before = [backend.own(np.array(values, F)) for values in ([1, 2, 3], [4, 5, 6])]
        run([fed], list(before), [])
        check("overwriting, copies, " + name, [list(x) for x in before] == [[1, 2, 3], [4, 5, 6]], "%s" % before)


def run_deep(check, backend, depth):
    p = Builder()
    x, y = p.leaf("inputs", [None]), p.leaf("inputs", [None])
    value = x
    for _ in range(depth):
        value = p.op("add", value, y)
    start = time.time()
    run = backend.compile(p.program([value]), [])
    got = run([np.zeros(2, F), np.ones(2, F)], [], [])[0][0]
    check("%d adds" % depth, list(got) == [depth] * 2, "%s" % got)
    print("%d chained adds: %.1f s" % (depth, time.time() - start))


def main(folder, scratch, compiled=""):
    island(folder)
    backends = [importlib.import_module("island.numpy.backend").NumpyBackend({})]
    options = {"scratch": os.path.join(scratch, "own"), "cache": os.path.join(scratch, "a, b"), "threads": 1}
    os.makedirs(options["scratch"], exist_ok=True)
    if not compiled:
        options["compiler"] = ""
    backend = importlib.import_module("island.theano.backend").TheanoBackend(options)
    numpy_backend = backends[0]
    before = set(os.listdir("."))
    counts = [0, 0]

    def check(name, good, message):
        counts[0 if good else 1] += 1
        if not good:
            print("FAIL %s: %s" % (name, message))

    def guarded(function, *arguments):
        try:
            function(check, *arguments)
        except Exception:
            check(function.__name__, False, traceback.format_exc())

    check("threads are read back", backend.facts()["threads"] in (1, None), str(backend.facts()))
    if compiled:
        names = ("momentum", "x != x", "|x| + (|x| - 3e38)", "1 - 0 * dot(x, x)", "round(x)")
        names += ("an embedding and all its rows", "numpy's own results")
        guarded(run_aliases, backend, numpy_backend, names.__contains__)
        guarded(run_rewrites, backend, numpy_backend, names.__contains__)
    else:
        guarded(run_rewrites, backend, numpy_backend, lambda name: True)
        guarded(run_aliases, backend, numpy_backend, lambda name: True)
    guarded(run_rows, backend, numpy_backend)
    guarded(run_errors, backend)
    guarded(run_outputs_stay, backend)
    guarded(run_overwriting, backend)
    guarded(run_deep, backend, 2000)
    new = set(os.listdir(".")) - before
    check("nothing is left in the current folder", not new, str(sorted(new)))
    print("%d passed, %d failed" % tuple(counts))
    return 1 if counts[1] else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
