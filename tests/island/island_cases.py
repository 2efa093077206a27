"""One-op programs with edge values for every primitive, run by `island_conformance.py` (Python 3.6, numpy only)."""

import numpy as np

FLOATS = ["float16", "float32", "float64"]
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
UNSIGNED = [dtype for dtype in INTEGERS if dtype.startswith("u")]
UNARY = ["negative", "abs", "sign", "sqrt", "exp", "log", "tanh"]
BINARY = ["add", "subtract", "multiply", "divide", "floor_divide", "mod", "power", "maximum", "minimum"]
COMPARISONS = ["equal", "not_equal", "less", "less_equal"]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0, 1e-3, -7.25, float("inf"), float("-inf"), float("nan")]


def floats(random, shape, dtype, special=True):
    values = np.asarray(random.standard_normal(shape) * 3)
    if special and values.size:
        flat = values.reshape(-1)
        for i in range(0, flat.size, 2):
            flat[i] = SPECIAL[random.randint(len(SPECIAL))]
    return values.astype(dtype)


def integers(random, shape, dtype, low=None, high=None):
    info = np.iinfo(dtype)
    low = max(info.min, -20) if low is None else low
    high = 20 if high is None else high
    return np.asarray(random.randint(low, high, size=shape)).astype(dtype)


def values(random, shape, dtype):
    if dtype == "bool":
        return np.asarray(random.randint(0, 2, size=shape)).astype(bool)
    return floats(random, shape, dtype) if dtype in FLOATS else integers(random, shape, dtype)


def cases(seed=0):
    """Yields (label, op, attrs, operands, result dtype): everything a one-op program needs."""
    random = np.random.RandomState(seed)
    shapes = [(3, 4), (), (5,), (0, 3), (1, 4), (2, 1, 3)]
    for dtype in FLOATS:
        for op in UNARY:
            for shape in shapes:
                yield op, op, {}, [floats(random, shape, dtype)], dtype
    for dtype in INTEGERS:
        for op in ["negative", "abs", "sign"]:
            yield op, op, {}, [integers(random, (3, 4), dtype)], dtype
    pairs = [((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 1), (1, 4)), ((), (3,)), ((0, 3), (1, 3)), ((), ())]
    for dtype in FLOATS + INTEGERS:
        for op in BINARY + COMPARISONS:
            if dtype in INTEGERS and op == "divide":
                continue
            for left, right in pairs:
                a, b = values(random, left, dtype), values(random, right, dtype)
                if op == "power" and dtype in INTEGERS:
                    b = integers(random, right, dtype, 0, 4)
                yield op, op, {}, [a, b], "bool" if op in COMPARISONS else dtype
    for op in ["equal", "not_equal", "logical_and", "logical_or"]:
        yield op, op, {}, [values(random, (4, 3), "bool"), values(random, (3,), "bool")], "bool"
    yield "logical_not", "logical_not", {}, [values(random, (4, 3), "bool")], "bool"
    tiny = np.array([1e-38, 1e-40, 3e-45, -1e-39, 1e-30, 1e38], dtype="float32")
    yield "divide tiny", "divide", {}, [np.ones(6, "float32"), tiny], "float32"
    yield "divide by tiny", "divide", {}, [tiny, tiny], "float32"
    yield "multiply tiny", "multiply", {}, [tiny, np.full(6, 0.5, "float32")], "float32"
    big = np.array([2**53 + 1, -(2**53) - 3, 2**62, 7], dtype="int64")
    for op in ["add", "multiply", "subtract", "maximum", "floor_divide", "mod"]:
        yield op + " int64", op, {}, [big, np.array([3, 2, 5, -4], dtype="int64")], "int64"
    for dtype in FLOATS + INTEGERS + ["bool"]:
        for shape in [(3, 4), (), (0,)]:
            operands = [values(random, shape, "bool"), values(random, shape, dtype), values(random, shape, dtype)]
            yield "select", "select", {}, operands, dtype
        yield (
            "select broadcast",
            "select",
            {},
            [values(random, (), "bool"), values(random, (3, 1), dtype), values(random, (4,), dtype)],
            dtype,
        )
    for source in FLOATS + INTEGERS + ["bool"]:
        for target in FLOATS + INTEGERS + ["bool"]:
            if source in FLOATS and target in INTEGERS:
                a = floats(random, (6,), source, special=False)
                a = abs(a) if target.startswith("u") else a
            else:
                a = values(random, (6,), source)
                if target.startswith("u") and source in INTEGERS:
                    a = integers(random, (6,), source, 0, 20)
            yield "cast " + source, "cast", {"dtype": target}, [a], target
    for source in FLOATS:
        edges = [np.nan, np.inf, -np.inf, -1.5, -0.0, 0.75, 127, 128, -129, 255.5, 256, 65504, -3e4, 3e9, -3e9, 1e19]
        with np.errstate(all="ignore"):
            a = np.resize(np.array(edges).astype(source), 133)
        for target in INTEGERS:
            for operand in (a, a[0]):
                yield "saturating_cast", "saturating_cast", {"dtype": target}, [operand], target
    for dtype in FLOATS + INTEGERS:
        for op in ["sum", "max", "min"]:
            for shape, axes in [
                ((3, 4), [0]),
                ((3, 4), [1]),
                ((3, 4), [0, 1]),
                ((2, 3, 4), [0, 2]),
                ((5,), [0]),
                ((), []),
            ]:
                for keepdims in [False, True]:
                    a = values(random, shape, dtype)
                    yield op, op, {"axes": axes, "keepdims": keepdims}, [a], dtype
        yield "sum empty", "sum", {"axes": [0], "keepdims": False}, [values(random, (0, 3), dtype)], dtype
        yield "argmax", "argmax", {"axis": 0}, [integers(random, (5, 3), "int8").astype(dtype)], "int64"
        yield "argmax last", "argmax", {"axis": 2}, [integers(random, (2, 3, 4), "int8").astype(dtype)], "int64"
    yield "sum float16 long", "sum", {"axes": [0], "keepdims": False}, [np.ones(5000, "float16")], "float16"
    yield "sum wraps", "sum", {"axes": [0], "keepdims": False}, [np.full(3, 100, "int8")], "int8"
    for dtype in FLOATS:
        for shape, axes in [((3, 4), [0]), ((3, 4), [0, 1]), ((2, 3, 4), [1])]:
            for keepdims in [False, True]:
                a = floats(random, shape, dtype, special=False)
                yield "mean", "mean", {"axes": axes, "keepdims": keepdims}, [a], dtype
        for op in ["softmax", "log_softmax"]:
            for axis in [0, 1]:
                yield op, op, {"axis": axis}, [floats(random, (3, 4), dtype, special=False)], dtype
        extreme = np.array([[1e4, 0, -1e4], [60000, 60000, -60000]], dtype=dtype)
        yield "softmax extreme", "softmax", {"axis": 1}, [extreme], dtype
        yield "sigmoid", "sigmoid", {}, [np.array([-1e4, -30, -1, 0, 1, 30, 1e4], dtype=dtype)], dtype
        yield "relu", "relu", {}, [floats(random, (3, 4), dtype)], dtype
    for dtype in ["float32", "float64", "int32", "int64"]:
        yield "size", "size", {"axes": [0, 2]}, [values(random, (2, 3, 4), "float32")], dtype
    yield "shape", "shape", {}, [values(random, (2, 0, 4), "float32")], "int32"
    yield "shape 0-d", "shape", {}, [values(random, (), "float32")], "int32"
    for dtype in ["float32", "float16", "float64", "int64", "int8", "bool"]:
        a = values(random, (2, 3, 4), dtype)
        b = values(random, (6, 4), dtype)
        yield "reshape", "reshape", {"dims": [6, -1]}, [a], dtype
        yield "reshape ref", "reshape", {"dims": [[1, 0], 4]}, [a, b], dtype
        yield "reshape own", "reshape", {"dims": [[0, 0], 1, -1]}, [a], dtype
        yield "reshape scalar", "reshape", {"dims": []}, [values(random, (1, 1), dtype)], dtype
        yield "reshape empty", "reshape", {"dims": [3, 0]}, [values(random, (0, 2), dtype)], dtype
        yield "broadcast_to", "broadcast_to", {"dims": [2, 3, 4]}, [values(random, (3, 1), dtype)], dtype
        yield "broadcast_to ref", "broadcast_to", {"dims": [[1, 0], 4]}, [values(random, (4,), dtype), b], dtype
        yield "broadcast_to scalar", "broadcast_to", {"dims": [2, 2]}, [values(random, (), dtype)], dtype
        yield "transpose", "transpose", {"permutation": [2, 0, 1]}, [a], dtype
        yield "transpose 0-d", "transpose", {"permutation": []}, [values(random, (), dtype)], dtype
        parts = [values(random, (2, n, 3), dtype) for n in (1, 4, 0, 2)]
        yield "concatenate", "concatenate", {"axis": 1}, parts, dtype
        yield "concatenate one", "concatenate", {"axis": 1}, parts[:1], dtype
        whole = values(random, (2, 7, 3), dtype)
        for part in range(4):
            yield "unconcatenate", "unconcatenate", {"axis": 1, "part": part}, [whole] + parts, dtype
        for slices, piece in [
            ([[None, None, None], [1, 3, None], [None, None, -1]], (2, 2, 4)),
            ([[0, 1, None], [-2, None, None], [None, None, 2]], (1, 2, 2)),
            ([[None, None, None], [5, None, None], [3, 0, -2]], (2, 0, 2)),
        ]:
            yield "slice", "slice", {"slices": slices}, [a], dtype
            yield "unslice", "unslice", {"slices": slices}, [values(random, piece, dtype), a], dtype
    for dtype in INTEGERS:
        a = integers(random, (2, 3), dtype, 0, 6)
        yield "one_hot", "one_hot", {"depth": 4}, [a], "float32"
        yield "one_hot 0-d", "one_hot", {"depth": 4}, [a[0, 0]], "float64"
    yield "one_hot outside", "one_hot", {"depth": 3}, [np.array([-1, 0, 2, 3, 9])], "float32"
    for dtype in FLOATS + ["int32", "int64"]:
        for ta in [False, True]:
            for tb in [False, True]:
                for m, k, n in [(2, 3, 4), (1, 3, 1), (0, 3, 2), (2, 0, 3)]:
                    a, b = values(random, (m, k), "int8"), values(random, (k, n), "int8")
                    a, b = a.T if ta else a, b.T if tb else b
                    attrs = {"transpose_a": ta, "transpose_b": tb}
                    yield "matmul", "matmul", attrs, [a.astype(dtype), b.astype(dtype)], dtype
    # In C the least integer divided by -1 may trap, and end the process.
    for dtype in ["int8", "int16", "int32", "int64"]:
        least = np.full(3, np.iinfo(dtype).min, dtype)
        yield "mod least", "mod", {}, [least, np.array([-1, 0, 1], dtype)], dtype
        yield "floor_divide least", "floor_divide", {}, [least, np.array([-1, 0, 1], dtype)], dtype
    for dtype in FLOATS:
        a = np.array([[1, np.nan, 3], [np.nan, np.nan, np.nan], [-np.inf, 5, np.inf], [np.inf, np.nan, 0]], dtype)
        for axis in [0, 1]:
            yield "argmax NaN", "argmax", {"axis": axis}, [a], "int64"
    for dtype in UNSIGNED:
        most = np.iinfo(dtype).max
        a, b = np.array([most, most // 2 + 1, 3], dtype), np.array([2, most, most // 2], dtype)
        for op in ["floor_divide", "mod", "multiply", "maximum", "less"]:
            yield op + " high", op, {}, [a, b], "bool" if op == "less" else dtype
    yield from more_cases(np.random.RandomState(seed + 1))
    yield from window_cases(np.random.RandomState(seed + 2))
    yield from shortcut_cases(np.random.RandomState(seed + 3))


def shortcut_cases(random):
    """What some backend does in another way than the rest of an op; see `cases`."""
    for dtype in FLOATS:
        far = np.array([-9, -0.5, 0, -0.0, 0.25, 9, -np.inf, np.inf, np.nan], dtype=dtype)
        near = np.array([-0.9, -1e-3, -1e-4, 0, -0.0, 1e-4, 1e-3, 0.5, 8, -8, np.inf, np.nan], dtype=dtype)
        for op in ["log1p", "expm1", "softplus", "elu", "softsign", "sigmoid"]:
            yield op + " near 0", op, {}, [near], dtype
        yield "tanh_slope", "tanh_slope", {}, [far], dtype
        yield "sigmoid_slope", "sigmoid_slope", {}, [far, (1 / (1 + np.exp(-far))).astype(dtype)], dtype
        past = np.array([0, -0.0, 1, np.inf, 3, 0.5], dtype=dtype)
        for name, y in (("relu_grad", past), ("relu_grad of NaN", np.append(past[1:], np.nan).astype(dtype))):
            yield name, "relu_grad", {}, [y, np.array([1, 2, np.nan, -4, np.inf, -0.0], dtype=dtype)], dtype
        condition, zero = values(random, (3, 4), "bool"), np.zeros((), dtype)
        yield "select or 0", "select", {}, [condition, floats(random, (3, 4), dtype), zero], dtype
        yield "select, spread, or 0", "select", {}, [condition[0], floats(random, (3, 4), dtype), zero], dtype
    for dtype in ["float32", "float64"]:
        # Of one sign, as sums that cancel would show the rounding; and long rows of few elements.
        long = abs(floats(random, (40, 30, 6), dtype, special=False))
        for axes in [[0], [0, 1], [0, 2]]:
            yield "sum long", "sum", {"axes": axes, "keepdims": True}, [long], dtype
        odd = np.array(long)
        odd[3, 4], odd[5, 6, :2] = np.inf, np.nan
        odd[7, 8, 1] = -np.inf
        yield "sum long, specials", "sum", {"axes": [0, 1], "keepdims": False}, [odd], dtype
        for row in [(6,), (1, 1, 6), (30, 6), (40, 30, 1), (1, 6)]:
            yield "add a short row", "add", {}, [floats(random, (40, 30, 6), dtype), floats(random, row, dtype)], dtype


def window_cases(random):
    """Convolutions and pooling; see `cases`. Whole numbers, so that nothing is rounded and many are equal."""

    def whole(shape, dtype):
        return random.randint(-3, 4, size=shape).astype(dtype)

    for dtype in FLOATS:
        for lengths, size, strides, pads, dilation in [
            ((5, 6), (3, 2), (1, 1), ((0, 0), (0, 0)), (1, 1)),
            ((5, 6), (3, 3), (2, 2), ((1, 1), (0, 1)), (1, 1)),
            ((6, 5), (2, 4), (3, 2), ((0, 1), (1, 2)), (1, 1)),
            ((1, 7), (1, 3), (1, 1), ((0, 0), (4, 0)), (1, 2)),
            ((7, 5), (2, 3), (1, 2), ((1, 0), (2, 2)), (3, 1)),
            ((3, 4, 5), (2, 2, 3), (2, 1, 2), ((0, 0), (0, 1), (1, 1)), (1, 1, 1)),
            # More windows than are laid out at once; and windows of one element.
            ((40, 31), (3, 2), (1, 1), ((1, 1), (0, 1)), (1, 1)),
            ((40, 31), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)),
        ]:
            made = [
                (n + sum(pad) - d * (k - 1) - 1) // s + 1
                for n, k, s, pad, d in zip(lengths, size, strides, pads, dilation)
            ]
            channels, filters = 2, 3
            image, kernel = (2,) + lengths + (channels,), size + (channels, filters)
            lie = {"strides": list(strides), "pads": [list(pad) for pad in pads], "dilation": list(dilation)}
            dilated = "dilated_" if max(dilation) > 1 else ""
            for kind, last in [("", filters), ("depthwise_", channels * filters)]:
                if kind and len(size) == 3:
                    continue
                y = (2,) + tuple(made) + (last,)
                name = dilated + kind
                yield name + "conv", name + "conv", lie, [whole(image, dtype), whole(kernel, dtype)], dtype
                attrs = dict(lie, dims=list(lengths))
                yield name + "conv_input", name + "conv_input", attrs, [whole(y, dtype), whole(kernel, dtype)], dtype
                attrs = dict(lie, dims=[[2, axis + 1] for axis in range(len(lengths))])
                operands = [whole(y, dtype), whole(kernel, dtype), whole(image, dtype)]
                yield name + "conv_input ref", name + "conv_input", attrs, operands, dtype
                attrs = dict(lie, size=list(size))
                yield name + "conv_kernel", name + "conv_kernel", attrs, [whole(image, dtype), whole(y, dtype)], dtype
            if dilated or len(size) == 3:
                continue
            attrs = {"window": list(size), "strides": lie["strides"], "pads": lie["pads"]}
            y = (2,) + tuple(made) + (channels,)
            x = whole(image, dtype)
            yield "max_pool", "max_pool", attrs, [x], dtype
            yield "max_pool_grad", "max_pool_grad", attrs, [x, whole(y, dtype)], dtype
            yield "max_pool_pick", "max_pool_pick", attrs, [x, whole(image, dtype)], dtype
            # Of one sign: sums that cancel would show the rounding.
            yield "avg_pool", "avg_pool", attrs, [abs(x)], dtype
            yield "avg_pool_grad", "avg_pool_grad", attrs, [abs(whole(y, dtype)), x], dtype
            yield "max_pool of specials", "max_pool", attrs, [floats(random, image, dtype)], dtype
            least = np.full(image, -np.inf, dtype)
            yield "max_pool of the least", "max_pool", attrs, [least], dtype
            yield "max_pool_grad of the least", "max_pool_grad", attrs, [least, whole(y, dtype)], dtype


def more_cases(random):
    """Cases of the ops that K functions beyond the first classifier need; see `cases`."""
    for dtype in FLOATS:
        for shape in [(3, 4), (), (0, 3)]:
            a = floats(random, shape, dtype)
            for op in ["sin", "cos", "floor"]:
                yield op, op, {}, [a], dtype
        halves = np.array([-2.5, -1.5, -0.5, -0.2, 0.0, 0.5, 1.5, 2.5, 1e3, np.inf, -np.inf, np.nan], dtype=dtype)
        yield "round", "round", {}, [halves], dtype
    for dtype in INTEGERS:
        for op in ["floor", "round"]:
            yield op, op, {}, [values(random, (3, 4), dtype)], dtype
    for dtype in FLOATS + INTEGERS:
        for shape, axes in [((3, 4), [0]), ((2, 3, 2), [0, 2]), ((), []), ((0, 3), [0])]:
            for keepdims in [False, True]:
                a = integers(random, shape, "int8", -3, 4).astype(dtype)
                yield "prod", "prod", {"axes": axes, "keepdims": keepdims}, [a], dtype
        for op in ["argmin"]:
            yield op, op, {"axis": 0}, [integers(random, (5, 3), "int8").astype(dtype)], "int64"
            yield op, op, {"axis": 1}, [integers(random, (2, 5, 3), "int8").astype(dtype)], "int64"
        for op in ["cumsum", "cumprod"]:
            for shape, axis in [((3, 4), 0), ((3, 4), 1), ((5,), 0), ((0, 3), 0), ((2, 3, 2), 1)]:
                yield op, op, {"axis": axis}, [integers(random, shape, "int8", -3, 4).astype(dtype)], dtype
    for dtype in FLOATS:
        holed = floats(random, (4, 3), dtype, special=False)
        holed[2, 1] = np.nan
        yield "argmin nan", "argmin", {"axis": 0}, [holed], "int64"
        yield "cumsum nan", "cumsum", {"axis": 0}, [holed], dtype
    yield "cumsum float16 long", "cumsum", {"axis": 0}, [np.ones(3000, "float16")], "float16"
    for dtype in ["float32", "float64", "float16", "int64", "int8", "uint8", "bool"]:
        a = values(random, (3, 4), dtype)
        yield "pad", "pad", {"pads": [[1, 2], [0, 1]]}, [a], dtype
        yield "pad nothing", "pad", {"pads": [[0, 0], [0, 0]]}, [a], dtype
        yield "pad empty", "pad", {"pads": [[1, 0], [2, 1]]}, [values(random, (0, 2), dtype)], dtype
        yield "pad 0-d", "pad", {"pads": []}, [values(random, (), dtype)], dtype
        yield (
            "pad 5-d",
            "pad",
            {"pads": [[0, 0], [1, 1], [0, 2], [1, 0], [0, 0]]},
            [values(random, (2, 2, 3, 2, 2), dtype)],
            dtype,
        )
        for index in ["int32", "int64", "uint8"]:
            rows = integers(random, (2, 3), index, 0, 4)
            table = values(random, (4, 2, 3), dtype)
            yield "gather", "gather", {}, [table, rows], dtype
            yield "gather vector", "gather", {}, [table[:, 0, 0], rows], dtype
            yield "gather one", "gather", {}, [table, rows[0, 0]], dtype
            yield "gather none", "gather", {}, [table, np.zeros((0, 2), index)], dtype
            if dtype != "bool":
                small = integers(random, (2, 3, 2, 3), "int8", 0, 5).astype(dtype)
                yield "scatter_add", "scatter_add", {}, [small, rows, table], dtype
                yield "scatter_add vector", "scatter_add", {}, [small[:, :, 0, 0], rows, table[:, 0, 0]], dtype
                yield "scatter_add none", "scatter_add", {}, [small[:0], rows[:0], table], dtype
        outside = np.array([-1, 0, 3, 4, 100, -100], "int32")
        yield "gather outside", "gather", {}, [values(random, (4, 2), dtype), outside], dtype
        yield "gather of none", "gather", {}, [values(random, (0, 2), dtype), outside], dtype
        if dtype != "bool":
            ones = np.ones((6, 2), dtype)
            yield "scatter_add outside", "scatter_add", {}, [ones, outside, values(random, (4, 2), dtype)], dtype
    for dtype in [*FLOATS, "int32", "int64"]:
        for ta in [False, True]:
            for tb in [False, True]:
                for lead, m, k, n in [((2,), 2, 3, 4), ((2, 3), 1, 2, 3), ((0,), 2, 3, 2), ((2,), 2, 0, 3)]:
                    a, b = values(random, lead + (m, k), "int8"), values(random, lead + (k, n), "int8")
                    a, b = np.swapaxes(a, -1, -2) if ta else a, np.swapaxes(b, -1, -2) if tb else b
                    attrs = {"transpose_a": ta, "transpose_b": tb}
                    yield "batch_matmul", "batch_matmul", attrs, [a.astype(dtype), b.astype(dtype)], dtype
