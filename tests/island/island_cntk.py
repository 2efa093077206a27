"""Programs of many ops on CNTK, compared with the numpy backend: `python island_cntk.py ISLAND_FOLDER` (Python 3.6).

Each check runs one program on both backends, several times where it has state, and compares every output and every
new value. Prints one line for each check and `N passed, N failed`.
"""

import importlib
import os
import sys
import traceback

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from island_conformance import island  # noqa: E402

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


class Graph(object):
    """A program written by hand: shapes and dtypes come from computing each op on examples, by numpy."""

    def __init__(self):
        self.leaves = {"inputs": [], "slots": [], "draws": [], "constants": []}
        self.order = []
        self.instructions = []
        self.outputs = []
        self.updates = []

    def _leaf(self, kind, example):
        example = np.asarray(example)
        node = (kind, len(self.leaves[kind]), example)
        self.leaves[kind].append(example)
        return node

    def feed(self, example):
        return self._leaf("inputs", example)

    def slot(self, example):
        return self._leaf("slots", example)

    def draw(self, example):
        return self._leaf("draws", example)

    def constant(self, example):
        return self._leaf("constants", example)

    def op(self, name, *operands, **attrs):
        dtype = attrs.pop("result", None)
        instruction = type("I", (), {"dtype": dtype or attrs.get("dtype") or str(operands[0][2].dtype)})
        with np.errstate(all="ignore"):
            value = np.asarray(OPS[name](instruction, *[o[2] for o in operands], **attrs))
        node = ("op", len(self.instructions), value)
        self.instructions.append((name, operands, attrs, str(value.dtype), list(value.shape)))
        return node

    def encoded(self):
        starts, total = {}, 0
        for kind in ("inputs", "slots", "draws", "constants"):
            starts[kind] = total
            total += len(self.leaves[kind])
        starts["op"] = total

        def number(node):
            return starts[node[0]] + node[1]

        program = {kind: [[str(a.dtype), list(a.shape)] for a in arrays] for kind, arrays in self.leaves.items()}
        program["instructions"] = [
            [name, [number(o) for o in operands], attrs, dtype, shape]
            for name, operands, attrs, dtype, shape in self.instructions
        ]
        program["outputs"] = [number(node) for node in self.outputs]
        program["updates"] = [[slot[1], number(node)] for slot, node in self.updates]
        return program


class Side(object):
    """One backend with its committed slots, two arrays for each variable as the kernel has them."""

    def __init__(self, backend, values):
        self.backend = backend
        self.slots = [[np.array(v), np.zeros_like(v)] for v in values]
        self.current = [0] * len(values)
        self.held = [backend.load(pair[0]) for pair in self.slots]

    def call(self, run, feeds, draws, updates, commit=True):
        outputs, new = run(feeds, list(self.held), draws)
        outputs = [np.array(self.backend.to_numpy(value)) for value in outputs]
        for (slot, _), value in zip(updates, new):
            if commit:
                self.current[slot] = 1 - self.current[slot]
                value = self.backend.commit(value, self.slots[slot][self.current[slot]])
            self.held[slot] = value
        return outputs, [np.array(self.backend.to_numpy(value)) for value in self.held]


def raised(kinds, function, *arguments):
    """The error of one of these kinds that a call must end with."""
    try:
        function(*arguments)
    except kinds as error:
        return error
    raise AssertionError("no error from %r" % (arguments,))


def same(expected, got, tolerance, smallest=None):
    for one, other in zip(expected, got):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        if one.dtype.kind == "f":
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance if smallest is None else smallest)
        else:
            np.testing.assert_array_equal(one, other)


def fresh(random, example):
    if example.dtype.kind == "f":
        return random.standard_normal(example.shape).astype(example.dtype)
    if example.dtype.kind == "b":
        return random.randint(0, 2, example.shape).astype(bool)
    return random.randint(0, 5, example.shape).astype(example.dtype)


def compare(graph, calls=3, tolerance=2e-5, commit=True, feeds=None, smallest=None):
    """Runs a graph on both sides with new feeds for each call; returns CNTK's compiled program."""
    program = lowering.Program(graph.encoded())
    constants = graph.leaves["constants"]
    runs = [backend.compile(program, constants) for backend in (NUMPY, CNTK)]
    sides = [Side(backend, graph.leaves["slots"]) for backend in (NUMPY, CNTK)]
    random = np.random.RandomState(1)
    for turn in range(calls):
        given = feeds or [fresh(random, example) if turn else example for example in graph.leaves["inputs"]]
        draws = [fresh(random, example) for example in graph.leaves["draws"]]
        results = []
        for run, side in zip(runs, sides):
            mine = [np.array(array) for array in given]
            # numpy's values from before a commit may still be the feeds themselves.
            results.append(side.call(run, mine, draws, program.updates, commit or side.backend is NUMPY))
            for array in mine:
                array[...] = 3  # feeds are overwritten after a call
        same(results[0][0], results[1][0], tolerance, smallest)
        same(results[0][1], results[1][1], tolerance, smallest)
        same(results[0][1], [np.asarray(CNTK.to_numpy(value)) for value in sides[1].held], tolerance, smallest)
    return runs[1]


def kinds(run):
    return [stage["kind"] for stage in run.stages]


def perceptron(sizes, batch, train=True, dtype="float32"):
    """A two-layer classifier with softmax and crossentropy by clip and log; its VJPs and momentum updates."""
    random = np.random.RandomState(0)
    inputs, hidden, classes = sizes
    g = Graph()

    def scalar(value):
        return g.constant(np.asarray(value, dtype))

    x = g.feed(random.standard_normal((batch, inputs)).astype(dtype))
    y = g.feed(np.eye(classes, dtype=dtype)[random.randint(0, classes, batch)])
    shapes = [(inputs, hidden), (hidden,), (hidden, classes), (classes,)]
    weights = [g.slot((random.standard_normal(s) * 0.05).astype(dtype)) for s in shapes]
    moments = [g.slot(np.zeros(s, dtype)) for s in shapes]
    flat = {"transpose_a": False, "transpose_b": False}
    z1 = g.op("add", g.op("matmul", x, weights[0], **flat), weights[1])
    a1 = g.op("maximum", z1, scalar(0))
    z2 = g.op("add", g.op("matmul", a1, weights[2], **flat), weights[3])
    powers = g.op("exp", g.op("subtract", z2, g.op("max", z2, axes=[1], keepdims=True)))
    p = g.op("divide", powers, g.op("sum", powers, axes=[1], keepdims=True))
    clipped = g.op("minimum", g.op("maximum", p, scalar(1e-7)), scalar(1 - 1e-7))
    losses = g.op("negative", g.op("sum", g.op("multiply", y, g.op("log", clipped)), axes=[1], keepdims=False))
    count = g.op("size", losses, axes=[0], result=dtype)
    loss = g.op("divide", g.op("sum", losses, axes=[0], keepdims=False), count)
    hits = g.op("cast", g.op("equal", g.op("argmax", p, axis=1), g.op("argmax", y, axis=1)), dtype=dtype)
    g.outputs = [loss, g.op("divide", g.op("sum", hits, axes=[0], keepdims=False), count)]
    if not train:
        return g
    rows = g.op("broadcast_to", g.op("divide", scalar(1), count), dims=[batch])
    each = g.op("broadcast_to", g.op("reshape", g.op("negative", rows), dims=[batch, 1]), dims=[batch, classes])
    d_clipped = g.op("divide", g.op("multiply", each, y), clipped)
    inside = g.op("logical_and", g.op("less_equal", scalar(1e-7), p), g.op("less_equal", p, scalar(1 - 1e-7)))
    d_p = g.op("select", inside, d_clipped, scalar(0))
    dot = g.op("sum", g.op("multiply", d_p, p), axes=[1], keepdims=True)
    d_z2 = g.op("multiply", p, g.op("subtract", d_p, dot))
    d_a1 = g.op("matmul", d_z2, weights[2], transpose_a=False, transpose_b=True)
    d_z1 = g.op("multiply", d_a1, g.op("cast", g.op("less", scalar(0), z1), dtype=dtype))
    gradients = [
        g.op("matmul", x, d_z1, transpose_a=True, transpose_b=False),
        g.op("sum", d_z1, axes=[0], keepdims=False),
        g.op("matmul", a1, d_z2, transpose_a=True, transpose_b=False),
        g.op("sum", d_z2, axes=[0], keepdims=False),
    ]
    for w, m, gradient in zip(weights, moments, gradients):
        new = g.op("subtract", g.op("multiply", scalar(0.9), m), g.op("multiply", scalar(0.1), gradient))
        g.updates += [(m, new), (w, g.op("add", w, new))]
    return g


def host_runs(run):
    """How often numpy has computed a native stage, for each of them."""
    return [stage["host_runs"] for stage in run.stages if stage["kind"] == "native"]


@check
def training_is_one_native_stage_and_new_values():
    run = compare(perceptron((20, 16, 5), 8), calls=6)
    assert (kinds(run), host_runs(run)) == (["native", "updates"], [0]), run.stages
    assert run.stages[1]["ops"] == 16


@check
def training_without_commits():
    compare(perceptron((20, 16, 5), 8), calls=6, commit=False)


@check
def training_in_float64():
    run = compare(perceptron((20, 16, 5), 8, dtype="float64"), calls=4, tolerance=1e-10)
    assert kinds(run) == ["native", "updates"]


@check
def train_and_evaluate_in_turn_on_one_state():
    graphs = [perceptron((20, 16, 5), 8), perceptron((20, 16, 5), 8, train=False)]
    programs = [lowering.Program(g.encoded()) for g in graphs]
    sides = [Side(backend, graphs[0].leaves["slots"]) for backend in (NUMPY, CNTK)]
    runs = [[backend.compile(p, g.leaves["constants"]) for p, g in zip(programs, graphs)] for backend in (NUMPY, CNTK)]
    for which in (0, 1, 0, 0, 1, 1, 0):
        feeds = graphs[0].leaves["inputs"]
        results = [side.call(pair[which], feeds, [], programs[which].updates) for side, pair in zip(sides, runs)]
        same(results[0][0], results[1][0], 2e-5)
        same(results[0][1], results[1][1], 2e-5)


def adam(shapes, dtype="float32"):
    """Adam's new values of variables, whose gradients are exponentials: numpy's and CNTK's differ by a few ulps."""
    g = Graph()
    random = np.random.RandomState(3)

    def scalar(value):
        return g.constant(np.asarray(value, dtype))

    rate, steps = g.feed(np.asarray(0.01, dtype)), g.slot(np.asarray(1, dtype))
    g.updates.append((steps, g.op("add", steps, scalar(1))))
    rate = g.op("divide", rate, g.op("sqrt", steps))
    for shape in shapes:
        w, m, v = (g.slot(np.abs(random.standard_normal(shape)).astype(dtype)) for _ in range(3))
        gradient = g.op("exp", g.feed(random.standard_normal(shape).astype(dtype)))
        mean = g.op("add", g.op("multiply", scalar(0.9), m), g.op("multiply", scalar(0.1), gradient))
        square = g.op("multiply", gradient, gradient)
        spread = g.op("add", g.op("multiply", scalar(0.99), v), g.op("multiply", scalar(0.01), square))
        step = g.op("divide", g.op("multiply", rate, mean), g.op("add", g.op("sqrt", spread), scalar(1e-7)))
        g.updates += [(m, mean), (v, spread), (w, g.op("subtract", w, step))]
    return g


@check
def new_values_of_any_size():
    # One number, a few, one piece and some more of the elements, and enough of them for several threads.
    shapes = [(), (1,), (3, 4), (1, 12), (32768,), (32769,), (5, 70001)]
    for dtype in ("float32", "float64"):
        run = compare(adam(shapes, dtype), calls=4, tolerance=2e-6 if dtype == "float32" else 1e-14)
        assert kinds(run) == ["native", "updates"], run.stages
        assert run.stages[0]["ops"] == len(shapes)


@check
def new_values_are_numpys_own():
    # No divisor, root or NaN asks for numpy's definition of a stage of CNTK's, and no bit differs.
    g = Graph()
    x = np.array([0.0, -0.0, 1.5, -3, np.inf, -np.inf, np.nan, 1e-42], "float32")
    a, b = g.slot(x), g.slot(x[::-1].copy())
    feed = g.feed(np.arange(8, dtype="float32").reshape(1, 8) - 3)
    negative = g.op("less", g.op("divide", a, b), g.constant(np.float32(0)))
    chosen = g.op("select", g.op("logical_not", negative), g.op("sqrt", a), g.op("sign", b))
    g.updates = [
        (a, g.op("maximum", chosen, g.op("minimum", a, g.constant(np.float32(1))))),
        (b, g.op("abs", g.op("negative", g.op("subtract", b, g.op("reshape", feed, dims=[8]))))),
    ]
    run = compare(g, calls=3, tolerance=0)
    assert (kinds(run), host_runs(run)) == (["native", "updates"], [0]), run.stages


@check
def what_else_needs_a_new_value_has_it_of_cntk():
    g = Graph()
    a, b = [g.slot(np.arange(6, dtype="float32") + i) for i in range(2)]
    double = g.op("multiply", a, g.constant(np.float32(2)))
    root = g.op("sqrt", g.op("add", double, b))
    g.outputs = [double, g.op("exp", g.op("negative", root))]
    g.updates = [(a, double), (b, g.op("subtract", root, b))]
    run = compare(g, calls=3)
    assert (kinds(run), run.stages[1]["ops"]) == (["native", "updates"], 1), run.stages


@check
def an_old_state_stays_usable():
    graph = perceptron((20, 16, 5), 8)
    program = lowering.Program(graph.encoded())
    run = CNTK.compile(program, graph.leaves["constants"])
    state = [CNTK.load(a) for a in graph.leaves["slots"]]
    feeds = graph.leaves["inputs"]
    first, new = run(feeds, state, [])
    kept = [np.array(CNTK.to_numpy(v)) for v in new]
    second, _ = run(feeds, state, [])
    ordered = [None] * len(state)
    for (slot, _), value in zip(program.updates, new):
        ordered[slot] = value
    run(feeds, ordered, [])
    third, _ = run(feeds, state, [])
    for outputs in (second, third):
        same([CNTK.to_numpy(v) for v in first], [CNTK.to_numpy(v) for v in outputs], 0)
    same(kept, [CNTK.to_numpy(v) for v in new], 0)


@check
def large_values_stay_in_memory_of_cntk():
    # 300 KB each: what isn't committed is moved before CNTK overwrites it, and only then.
    for commit in (True, False):
        g = Graph()
        random = np.random.RandomState(4)
        a, b, c = [g.slot(random.standard_normal((250, 300)).astype("float32")) for _ in range(3)]
        x = g.feed(random.standard_normal((250, 300)).astype("float32"))
        total = g.op("add", g.op("multiply", a, g.constant(np.float32(0.5))), x)
        g.outputs = [total, a, g.op("negative", b)]
        g.updates = [(a, total), (b, a), (c, b)]
        compare(g, calls=7, commit=commit)
    program = lowering.Program(g.encoded())
    run, other = [CNTK.compile(program, g.leaves["constants"]) for _ in range(2)]
    state, history = [CNTK.load(v) for v in g.leaves["slots"]], []
    expected = [g.leaves["slots"]]
    feed = g.leaves["inputs"][0]
    for turn in range(8):
        history.append(state)
        (run if turn % 3 else other)([feed], history[max(0, turn - 2)], [])
        _, state = (other if turn % 4 == 3 else run)([feed], state, [])
        before = expected[-1]
        expected.append([before[0] * np.float32(0.5) + feed, before[0], before[1]])
    for held, values in zip(history, expected):
        same(values, [CNTK.to_numpy(v) for v in held], 1e-6)


@check
def float_integer_float():
    g = Graph()
    x = g.feed(np.linspace(-40, 40, 12).reshape(3, 4).astype("float32"))
    scaled = g.op("multiply", x, g.constant(np.float32(3)))
    whole = g.op("floor_divide", g.op("cast", scaled, dtype="int32"), g.constant(np.int32(7)))
    back = g.op("exp", g.op("multiply", g.op("cast", whole, dtype="float32"), g.constant(np.float32(0.1))))
    g.outputs = [g.op("add", back, x), whole, scaled]
    run = compare(g)
    assert kinds(run) == ["native", "host", "native"], run.stages


@check
def integer_labels():
    g = Graph()
    for dtype in ("int64", "uint8"):
        labels = g.feed(np.array([0, 3, 2, 7], dtype))
        hot = g.op("one_hot", labels, depth=5, result="float32")
        scores = g.op("multiply", hot, g.draw(np.zeros((4, 5), "float32")))
        g.outputs += [hot, g.op("argmax", scores, axis=1)]
    huge = g.feed(np.array([2**53 + 1, -(2**62), 1], "int64"))
    g.outputs += [g.op("one_hot", huge, depth=3, result="float32"), g.op("add", huge, huge)]
    compare(g)


@check
def a_swap_and_the_values_from_before():
    g = Graph()
    a, b = g.slot(np.arange(6.0).reshape(2, 3).astype("float32")), g.slot(np.ones((2, 3), "float32"))
    total = g.op("add", a, b)
    g.outputs = [a, b, total]
    g.updates = [(a, b), (b, a)]
    compare(g, calls=4)
    compare(g, calls=4, commit=False)


@check
def updates_that_equal_a_feed_or_a_constant():
    g = Graph()
    a, b, c = (g.slot(np.zeros(4, "float32")) for _ in range(3))
    x = g.feed(np.arange(4).astype("float32"))
    g.updates = [(a, x), (b, g.constant(np.arange(4).astype("float32"))), (c, g.op("reshape", x, dims=[4]))]
    g.outputs = [x, g.op("add", a, b), a]
    compare(g, calls=4)
    compare(g, calls=4, commit=False)


@check
def one_value_for_several_variables_and_outputs():
    g = Graph()
    a, b = g.slot(np.zeros((2, 2), "float32")), g.slot(np.ones((2, 2), "float32"))
    x = g.feed(np.arange(4.0).reshape(2, 2).astype("float32"))
    y = g.op("add", g.op("multiply", a, x), b)
    g.outputs = [y, y, a, g.op("reshape", y, dims=[4])]
    g.updates = [(a, y), (b, y)]
    compare(g, calls=5)
    compare(g, calls=5, commit=False)


@check
def counters_beside_weights():
    g = Graph()
    n, w, flag = g.slot(np.int64(2**53)), g.slot(np.ones(3, "float32")), g.slot(np.array(True))
    one = g.constant(np.int64(1))
    later = g.op("add", n, one)
    rate = g.op("divide", g.constant(np.float32(1)), g.op("cast", later, dtype="float32"))
    moved = g.op("subtract", w, g.op("multiply", rate, w))
    g.updates = [(n, later), (w, moved), (flag, g.op("logical_not", flag))]
    g.outputs = [n, w, flag, g.op("select", flag, w, moved)]
    compare(g, calls=5)


@check
def only_part_of_the_feeds_changes():
    # CNTK doesn't compute again what hasn't changed; nothing stale may be seen.
    g = Graph()
    a, b = g.feed(np.ones((40, 30), "float32")), g.feed(np.ones((30, 20), "float32"))
    w = g.slot(np.ones((30, 20), "float32"))
    flat = {"transpose_a": False, "transpose_b": False}
    chain = g.op("exp", g.op("tanh", g.op("matmul", a, w, **flat)))
    other = g.op("exp", g.op("tanh", g.op("matmul", a, b, **flat)))
    fixed = g.op("tanh", g.op("exp", g.op("negative", g.op("abs", w))))
    g.outputs = [g.op("add", chain, other), g.op("multiply", fixed, b), g.op("sum", fixed, axes=[0, 1], keepdims=False)]
    program = lowering.Program(g.encoded())
    run, reference = CNTK.compile(program, []), NUMPY.compile(program, [])
    random = np.random.RandomState(3)
    feeds = [random.standard_normal(a[2].shape).astype("float32"), random.standard_normal(b[2].shape).astype("float32")]
    state = np.array(g.leaves["slots"][0])
    held = CNTK.load(state)
    for turn in range(12):
        feeds[turn % 2] = random.standard_normal(feeds[turn % 2].shape).astype("float32")
        if turn == 6:
            state = random.standard_normal(state.shape).astype("float32")
            held = CNTK.load(state)
        got, _ = run(feeds, [held], [])
        same(reference(feeds, [state], [])[0], [CNTK.to_numpy(v) for v in got], 2e-5)


@check
def the_sign_of_a_zero_divisor():
    g = Graph()
    x, y = g.feed(np.array([1, -1, 0, 2], "float32")), g.feed(np.array([0.0, -0.0, -0.0, 4], "float32"))
    g.outputs = [g.op("divide", x, y), g.op("reshape", x, dims=[2, 2])]
    run = compare(g, calls=1)
    assert run.stages[0]["host_runs"] == 1
    run = compare(g, calls=3, feeds=[np.ones(4, "float32"), np.full(4, 3, "float32")])
    assert run.stages[0]["host_runs"] == 0


def embedding(dtype, indices, rows=6, width=4):
    """Rows of a table, their squares' sum and its gradient, and a step down the gradient."""
    g = Graph()
    table = g.slot(np.random.RandomState(0).standard_normal((rows, width)).astype(dtype))
    which = g.feed(indices)
    picked = g.op("gather", table, which)
    axes = list(range(indices.ndim + 1))
    loss = g.op("sum", g.op("multiply", picked, picked), axes=axes, keepdims=False)
    double = g.op("multiply", g.constant(np.asarray(2, dtype)), picked)
    gradient = g.op("scatter_add", double, which, table)
    g.outputs = [loss, gradient]
    g.updates = [(table, g.op("subtract", table, g.op("multiply", g.constant(np.asarray(0.1, dtype)), gradient)))]
    return g


@check
def an_embedding_is_trained():
    for dtype, tolerance in (("float32", 2e-5), ("float64", 1e-10)):
        for index in ("int32", "uint8", "int64"):
            run = compare(embedding(dtype, np.array([[1, 5, 5], [0, 1, 5]], index)), calls=4, tolerance=tolerance)
            assert (kinds(run), host_runs(run)) == (["native", "updates"], [0]), run.stages


@check
def an_embedding_of_rows_that_are_not_there():
    # Both ends of a type, and numbers that float32 would round into the table.
    for wrong in (
        np.array([6, -1], "int32"),
        np.array([2**63 - 1, -(2**63)], "int64"),
        np.array([2**64 - 1, 2**63], "uint64"),
        np.array([255, 6], "uint8"),
    ):
        g = embedding("float32", wrong)
        run = compare(g, calls=1)
        assert (kinds(run), host_runs(run)) == (["native", "updates"], [1]), run.stages


@check
def indices_that_were_computed():
    g = Graph()
    scores = g.feed(np.array([[1, 3, 2], [np.nan, 0, 5], [2, 2, 2]], "float32"))
    table = g.feed(np.arange(12).reshape(3, 4).astype("float64"))
    best, least = g.op("argmax", scores, axis=1), g.op("argmin", scores, axis=1)
    flags = g.op("less", table, g.constant(np.float64(5)))
    g.outputs = [
        g.op("gather", table, best),
        g.op("gather", flags, least),
        g.op("gather", g.op("argmin", table, axis=1), best),
        g.op("gather", table, g.constant(np.array([[2, 0]], "int64"))),
        g.op("gather", table, g.constant(np.array([2, 3], "int64"))),
        g.op("scatter_add", g.op("gather", table, best), least, table),
        least,
    ]
    run = compare(g, calls=2)
    assert [stage["kind"] for stage in run.stages] == ["native"], run.stages


@check
def products_of_different_batches():
    random = np.random.RandomState(6)
    for dtype, tolerance in (("float32", 2e-5), ("float64", 1e-10)):
        g = Graph()
        a, b = [g.feed(random.standard_normal(s).astype(dtype)) for s in ((2, 3, 4, 5), (7, 5, 4))]
        flat = {"transpose_a": False, "transpose_b": False}
        squares = g.op("batch_matmul", a, a, transpose_a=True, transpose_b=False)
        more = g.op("batch_matmul", squares, g.op("transpose", a, permutation=[0, 1, 3, 2]), **flat)
        others = g.op("batch_matmul", b, b, transpose_a=False, transpose_b=True)
        mean = g.op("sum", others, axes=[0, 1, 2], keepdims=False)
        wide = g.op("broadcast_to", g.op("reshape", mean, dims=[1, 1, 1]), dims=[7, 4, 2])
        g.outputs = [
            more,
            g.op("add", squares, mean),
            g.op("slice", others, slices=[[1, None, 2], [None, None, None], [None, None, -1]]),
            g.op("max", more, axes=[0, 2], keepdims=True),
            g.op("batch_matmul", b, wide, **flat),
            g.op("reshape", more, dims=[6, 20]),
        ]
        run = compare(g, tolerance=tolerance)
        assert kinds(run) == ["native"], run.stages


@check
def padding_of_any_rank():
    for rank in range(1, 9):
        g = Graph()
        x = g.feed(np.arange(2.0**rank).reshape((2,) * rank).astype("float32"))
        every = g.op("pad", x, pads=[[1, 2]] * rank if rank < 7 else [[1, 0]] * rank)
        ends = g.op("pad", x, pads=[[0, 1]] + [[0, 0]] * (rank - 1))
        g.outputs = [every, ends, g.op("pad", g.op("less", x, g.constant(np.float32(1))), pads=[[2, 0]] * rank)]
        run = compare(g, calls=2, tolerance=0)
        assert kinds(run) == ["native"], run.stages


@check
def zeros_beside_a_bound():
    # What is added around has bounds of its own: the logarithm needs its guard.
    for name in ("float32", "int32"):
        g = Graph()
        x = g.op("broadcast_to", g.constant(np.asarray(2, name)), dims=[20000])
        wide = g.op("pad", x, pads=[[1, 0]])
        g.outputs = [g.op("log", g.op("cast", wide, dtype="float32"))]
        compare(g, calls=1)


@check
def whole_numbers():
    for dtype in ("float32", "float64"):
        edge = [-2.5, -1.5, -0.5, -0.2, -0.0, 0.0, 0.2, 0.5, 1.5, 2.5, 1e3, 2.0**22 + 0.5, 2.0**23 - 0.5, 2.0**23 + 1]
        edge += [0.49999997, -0.49999997, 1e30, -1e30, np.inf, -np.inf, np.nan, 2.0**51 + 0.5, -(2.0**52) + 0.5, 1e-40]
        edge = np.array(edge, dtype)
        g = Graph()
        x = g.feed(edge)
        size = g.op("abs", x)
        g.outputs = [g.op(name, value) for name in ("floor", "round") for value in (x, size)]
        run = CNTK.compile(lowering.Program(g.encoded()), [])
        assert kinds(run) == ["native"], run.stages
        for got, expected in zip(
            run([edge], [], [])[0], NUMPY.compile(lowering.Program(g.encoded()), [])([edge], [], [])[0]
        ):
            got = CNTK.to_numpy(got)
            np.testing.assert_array_equal(got, expected)
            there = ~np.isnan(expected)
            np.testing.assert_array_equal(np.signbit(got[there]), np.signbit(expected[there]))


@check
def waves_and_products():
    for dtype, tolerance in (("float32", 3e-6), ("float64", 1e-12)):
        g = Graph()
        x = g.feed(np.array([0.0, -0.0, 1, -1, 3, 100, 1e5, 1e20, 1e-40, np.inf, -np.inf, np.nan], dtype))
        rows = g.op("reshape", x, dims=[3, 4])
        g.outputs = [g.op("sin", x), g.op("cos", x)]
        g.outputs += [g.op("prod", rows, axes=axes, keepdims=False) for axes in ([0], [1], [0, 1])]
        g.outputs += [g.op("argmin", rows, axis=0), g.op("argmin", rows, axis=1)]
        g.outputs += [g.op("log", g.op("add", g.op("sin", x), g.constant(np.asarray(1, dtype))))]
        run = compare(g, calls=1, tolerance=tolerance, smallest=1e-44)
        assert kinds(run) == ["native"], run.stages


@check
def running_sums_are_left_to_numpy():
    g = Graph()
    x = g.feed(np.arange(12).reshape(3, 4).astype("float32"))
    g.outputs = [g.op("tanh", g.op("cumsum", g.op("exp", g.op("negative", x)), axis=1))]
    run = compare(g)
    assert kinds(run) == ["native", "host", "native"], run.stages
    assert run.stages[1]["host"] == [["cumsum", "no exact counterpart"]]


@check
def edges_of_power_log_and_roots():
    for dtype, tolerance, smallest in (("float32", 3e-6, 5e-45), ("float64", 1e-12, 2e-323)):
        edge = [0.0, -0.0, 1, -1, 0.5, -0.5, 2, -2, 3, np.inf, -np.inf, np.nan, 1e-3, 7.25, -7.25, 1e20, 1e-39]
        edge = np.array(edge + ([1e-310, 5e-324, 1e300] if dtype == "float64" else [1e-45, 1e38]), dtype)
        rows, columns = [np.ascontiguousarray(a) for a in np.meshgrid(edge, edge, indexing="ij")]
        for ops in (["power"], ["divide"], ["maximum", "minimum", "less_equal", "not_equal", "less", "equal"]):
            g = Graph()
            a, b = g.feed(rows), g.feed(columns)
            g.outputs = [g.op(name, a, b) for name in ops]
            compare(g, calls=1, tolerance=tolerance, smallest=smallest)
        for exponent in (0, 1, 2, 3, -1, -2, 0.5, -0.5, 1.5, np.inf, np.nan, 2.0**30):
            g = Graph()
            g.outputs = [g.op("power", g.feed(edge), g.constant(np.asarray(exponent, dtype)))]
            compare(g, calls=1, tolerance=tolerance, smallest=smallest)
        for bound in (0, -0.5, 1e-7, np.inf, -np.inf, np.nan, [1.0], [[2.0]]):
            g = Graph()
            a, c = g.feed(edge), g.constant(np.asarray(bound, dtype))
            g.outputs = [g.op(name, *pair) for name in ("maximum", "minimum") for pair in ((a, c), (c, a))]
            run = compare(g, calls=1, tolerance=tolerance, smallest=smallest)
            assert kinds(run) == ["native"], run.stages
        g = Graph()
        a = g.feed(edge)
        g.outputs = [g.op(name, a) for name in ("log", "sqrt", "exp", "tanh", "sign", "abs", "negative")]
        g.outputs += [g.op("argmax", a, axis=0), g.op("argmax", g.op("abs", g.op("reshape", a, dims=[-1])), axis=0)]
        run = compare(g, calls=1, tolerance=tolerance, smallest=smallest)
        assert kinds(run) == ["native"], run.stages


@check
def a_root_of_minus_zero_keeps_its_sign():
    g = Graph()
    g.outputs = [g.op("sqrt", g.feed(np.array([-0.0, 4], "float32")))]
    run = CNTK.compile(lowering.Program(g.encoded()), [])
    got = CNTK.to_numpy(run(g.leaves["inputs"], [], [])[0][0])
    assert [str(v) for v in got] == ["-0.0", "2.0"]


@check
def bounds_that_spare_guards():
    g = Graph()
    x = g.feed(np.array([-2, 0, 3, 1e4], "float32"))
    eps = g.constant(np.float32(1e-7))
    v = g.op("sqrt", g.op("multiply", x, x))
    g.outputs = [
        g.op("divide", x, g.op("add", v, eps)),
        g.op("log", g.op("maximum", x, eps)),
        g.op("log", g.op("add", g.op("exp", x), eps)),
        g.op("divide", x, g.constant(np.array([2, -4, 0.5, 3], "float32"))),
    ]
    run = compare(g)
    assert run.stages == [{"kind": "native", "ops": 10, "host_runs": 0}], run.stages


@check
def many_axes():
    random = np.random.RandomState(5)
    for shapes in (
        [(2, 1, 2, 1, 2), (1, 3, 1, 3, 1)],
        [(2, 1, 2, 1, 2, 1, 2), (2, 3, 1, 3, 2, 1, 2)],
        [(2, 3, 2, 3, 2, 3)] * 2,
    ):
        g = Graph()
        a, b = [g.feed(random.standard_normal(s).astype("float32")) for s in shapes]
        total = g.op("add", a, b)
        rank = total[2].ndim
        g.outputs = [
            total,
            g.op("select", g.op("less", a, b), a, b),
            g.op("sum", total, axes=list(range(0, rank, 2)), keepdims=False),
            g.op("max", total, axes=[1, 3], keepdims=True),
            g.op("transpose", total, permutation=list(reversed(range(rank)))),
            g.op("transpose", total, permutation=[rank - 1] + list(range(rank - 1))),
            g.op("argmax", total, axis=2),
            g.op("slice", total, slices=[[None, None, -1]] * rank),
        ]
        compare(g, calls=2)


@check
def pending_broadcasts():
    g = Graph()
    x = g.feed(np.arange(3).astype("float32"))
    wide = g.op("broadcast_to", g.op("reshape", x, dims=[3, 1]), dims=[2, 3, 4])
    twice = g.op("multiply", wide, wide)
    rows = g.op("broadcast_to", g.op("sum", x, axes=[0], keepdims=False), dims=[3, 2])
    g.outputs = [
        g.op("sum", twice, axes=[0, 2], keepdims=False),
        g.op("reshape", twice, dims=[6, 4]),
        g.op("transpose", wide, permutation=[2, 0, 1]),
        g.op("equal", wide, g.constant(np.float32(1))),
        g.op("concatenate", wide, twice, axis=1),
        g.op("max", rows, axes=[0], keepdims=False),
        wide,
    ]
    compare(g)


@check
def mixed_floats_and_booleans():
    g = Graph()
    x, y = g.feed(np.linspace(-2, 2, 5).astype("float32")), g.feed(np.linspace(-1, 3, 5))
    positive = g.op("less", g.constant(np.float32(0)), x)
    both = g.op("logical_and", positive, g.op("less", g.constant(np.float64(0)), y))
    g.outputs = [
        both,
        g.op("select", positive, y, g.op("cast", x, dtype="float64")),
        g.op("cast", y, dtype="float32"),
        g.op("cast", x, dtype="bool"),
        g.op("sum", g.op("cast", both, dtype="int32"), axes=[0], keepdims=False),
        g.op("cast", g.op("cast", x, dtype="float16"), dtype="float32"),
    ]
    compare(g, tolerance=1e-12)


@check
def far_apart_logits():
    g = Graph()
    x = g.feed(np.array([[1e4, 1e4 - 1, -1e4], [-3e4, -3e4 - 4.25, 1], [np.inf, 0, 1], [np.nan, 0, 1]], "float32"))
    for axis in (0, 1):
        g.instructions.append(("softmax", (x,), {"axis": axis}, "float32", [4, 3]))
        g.outputs.append(("op", len(g.instructions) - 1, None))
    run = CNTK.compile(lowering.Program(g.encoded()), [])
    assert kinds(run) == ["native"]
    got = [CNTK.to_numpy(v) for v in run([x[2]], [], [])[0]]
    with np.errstate(all="ignore"):
        for axis in (0, 1):
            wide = x[2].astype("float64") - x[2].astype("float64").max(axis, keepdims=True)
            right = np.exp(wide) / np.exp(wide).sum(axis, keepdims=True)
            same([right.astype("float32")], got[axis : axis + 1], 3e-6)


@check
def deep_chains():
    g = Graph()
    x = g.feed(np.linspace(-1, 1, 4).astype("float32"))
    y = x
    for _ in range(2300):
        y = g.op("tanh", y)
    g.outputs = [y]
    run = compare(g, calls=2)
    assert kinds(run) == ["native"] * 3, run.stages


@check
def values_survive_exactly():
    values = [
        np.array([2**63 - 1, -(2**63), 2**53 + 1], "int64"),
        np.array([2**64 - 1], "uint64"),
        np.array([0x7FC00123, 0x80000000, 1, 0x7F800000], "uint32").view("float32"),
        np.array([0x7FF8000000000123, 1 << 63, 1], "uint64").view("float64"),
        np.array([0x7E01, 0x8000, 1], "uint16").view("float16"),
        np.array(True),
        np.zeros((0, 3), "float32"),
        np.array(-0.0, "float32"),
    ]
    g = Graph()
    g.outputs = [g.slot(v) for v in values]
    g.updates = [(node, node) for node in g.outputs]
    run = CNTK.compile(lowering.Program(g.encoded()), [])
    outputs, new = run([], [CNTK.load(v) for v in values], [])
    for value, output, kept in zip(values, outputs, new):
        destination = np.zeros_like(value)
        kept = CNTK.commit(kept, destination)
        for got in (CNTK.to_numpy(output), destination, CNTK.to_numpy(kept)):
            assert (got.tobytes(), got.shape, got.dtype) == (value.tobytes(), value.shape, value.dtype)


@check
def native_values_survive_exactly():
    values = np.array([0x7FC00123, 0x80000000, 1, 0x7F800000, 0x007FFFFF], "uint32").view("float32")
    g = Graph()
    s = g.slot(values)
    g.outputs = [g.op("concatenate", s, s, axis=0), g.op("broadcast_to", g.op("reshape", s, dims=[5, 1]), dims=[5, 2])]
    run = CNTK.compile(lowering.Program(g.encoded()), [])
    got = [CNTK.to_numpy(v) for v in run([], [CNTK.load(values)], [])[0]]
    assert kinds(run) == ["native"]
    assert got[0].tobytes() == np.concatenate([values, values]).tobytes()
    assert got[1].tobytes() == np.repeat(values, 2).tobytes()


@check
def results_outlive_later_calls():
    g = Graph()
    x = g.feed(np.ones((64, 64), "float32"))
    g.outputs = [g.op("multiply", x, x)]
    run = CNTK.compile(lowering.Program(g.encoded()), [])
    arrays = [CNTK.to_numpy(run([np.full((64, 64), float(i), "float32")], [], [])[0][0]) for i in range(5)]
    assert [float(a[3, 3]) for a in arrays] == [0.0, 1.0, 4.0, 9.0, 16.0]


@check
def large_feeds_in_any_layout():
    g = Graph()
    x = g.feed(np.ones((200, 300), "float32"))
    g.outputs = [g.op("add", x, x), g.op("slice", x, slices=[[None, None, 3], [None, None, -2]])]
    program = lowering.Program(g.encoded())
    run, reference = CNTK.compile(program, []), NUMPY.compile(program, [])
    base = np.random.RandomState(2).standard_normal((300, 200)).astype("float32")
    locked = np.array(base.T)
    locked.flags.writeable = False
    for feed in (base.T, np.array(base.T), locked, np.array(base.T)[::-1]):
        same(reference([feed], [], [])[0], [CNTK.to_numpy(v) for v in run([feed], [], [])[0]], 0)


@check
def programs_without_results_and_unknown_ops():
    g = Graph()
    x = g.feed(np.ones(2, "float32"))
    y = g.op("negative", x)
    assert CNTK.compile(lowering.Program(g.encoded()), [])([x[2]], [], []) == ([], [])
    half = np.full(3, 0.5, "float32")
    other = Graph()
    other.outputs = [other.op("add", other.feed(np.ones(3, "float32")), other.constant(half))]
    run = CNTK.compile(lowering.Program(other.encoded()), [half])
    half[...] = 7
    assert CNTK.to_numpy(run([np.ones(3, "float32")], [], [])[0][0]).tolist() == [1.5] * 3
    g.outputs = [y, y, x]
    compare(g)
    g.instructions.append(("teleport", (x,), {}, "float32", [2]))
    assert raised(lowering.InstructionError, CNTK.compile, lowering.Program(g.encoded()), []).index == 1


@check
def errors_of_numpy_and_of_cntk():
    g = Graph()
    g.outputs = [g.op("add", g.op("negative", g.feed(np.ones(3, "float32"))), g.feed(np.ones(3, "float32")))]
    run = CNTK.compile(lowering.Program(g.encoded()), [])
    for wrong in (np.ones(4, "float32"), np.ones((200, 200), "float32")):
        error = raised((ValueError, RuntimeError), run, [wrong, np.ones(3, "float32")], [], [])
        assert len(str(error).splitlines()) == 1, error
    assert CNTK.to_numpy(run(g.leaves["inputs"], [], [])[0][0]).tolist() == [0, 0, 0]
    g = Graph()
    empty = g.feed(np.ones((0, 3), "float32"))
    g.outputs = [g.op("sum", empty, axes=[0], keepdims=False)]
    g.instructions[0] = ("max",) + g.instructions[0][1:]
    run = CNTK.compile(lowering.Program(g.encoded()), [])
    assert raised(lowering.InstructionError, run, [empty[2]], [], []).index == 0


@check
def options_are_checked():
    for options in ({"device": "gpu:7"}, {"device": "tpu"}):
        assert "cpu" in raised(ValueError, type(CNTK), options).allowed
    facts = type(CNTK)({"threads": 1}).facts()
    assert (facts["threads"], facts["version"]) == (1, "2.7")
    assert type(CNTK)({"threads": 2, "device": "cpu"}).facts()["threads"] == 2


def main(folder):
    global CNTK, NUMPY, OPS, lowering
    island(folder)
    lowering = importlib.import_module("island.lowering")
    OPS = importlib.import_module("island.numpy.ops").OPS
    NUMPY = importlib.import_module("island.numpy.backend").NumpyBackend({})
    CNTK = importlib.import_module("island.cntk.backend").CNTKBackend({})
    failed = 0
    for function in CHECKS:
        try:
            function()
            print("ok", function.__name__)
        except Exception:
            failed += 1
            print("FAIL", function.__name__)
            traceback.print_exc(file=sys.stdout)
    print("%d passed, %d failed" % (len(CHECKS) - failed, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
