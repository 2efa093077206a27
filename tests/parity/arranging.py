"""Cases of arrangement: shapes and their reshaping, order of axes, copies, padding, lookups, what begins a graph."""

from __future__ import annotations

import numpy as np

from kernelk import backend as K

from .case import ALL, INTEGERS, MATRICES, NUMBERS, ONE, Case, Operand, always, flags, index, real


def same(x):
    return x


def _case(function, note, graph, expected, *operands, dtypes=ALL, **more):
    """A case that takes every dtype, as what only moves elements does."""
    return Case(function, note, graph, expected, operands, dtypes, **more)


def _sparse_ones(x, y, dense):
    """What the graph says of sparse tensors and of what is computed from them; with a value that is, to be run."""
    joined = K.concatenate([x, y])
    given = [x, joined, K.to_dense(x), dense, K.concatenate([x, dense]), x * 2, K.dot(x, K.transpose(dense))]
    return K.constant([K.is_sparse(one) for one in given], dtype="bool"), K.equal(joined, K.to_dense(joined))


def _which_are_sparse(x, y, dense):
    return np.arange(7) < 2, np.ones((x.shape[0], x.shape[1] + y.shape[1]), bool)


def _moving():
    yield _case("reshape", "flat", lambda x: K.reshape(x, (-1,)), lambda x: x.reshape(-1), real("abc"))
    yield _case("reshape", "to ints", lambda x: K.reshape(x, (3, 8)), lambda x: x.reshape(3, 8), real("432"))
    yield _case("reshape", "-1 first", lambda x: K.reshape(x, (-1, 2)), lambda x: x.reshape(-1, 2), real("a4b"))
    yield _case(
        "reshape", "-1 in the middle", lambda x: K.reshape(x, (2, -1, 3)), lambda x: x.reshape(2, -1, 3), real("a6b")
    )
    yield _case("reshape", "of nothing", lambda x: K.reshape(x, (2, 0)), lambda x: x.reshape(2, 0), real("0a"))
    yield _case("reshape", "of nothing by -1", lambda x: K.reshape(x, (-1, 3)), lambda x: x.reshape(-1, 3), real("A3"))
    yield _case("reshape", "to a scalar", lambda x: K.reshape(x, ()), lambda x: x.reshape(()), real("11"))
    yield _case("reshape", "of a scalar", lambda x: K.reshape(x, (1, 1)), lambda x: x.reshape(1, 1), real(""))
    yield _case(
        "reshape",
        "by K.shape",
        lambda x: K.reshape(x, (K.shape(x)[0], K.shape(x)[1], K.shape(x)[2] * K.shape(x)[3])),
        lambda x: x.reshape(x.shape[0], x.shape[1], -1) if x.size else x.reshape(*x.shape[:2], 0),
        real("abcd"),
    )
    yield _case(
        "reshape",
        "as another",
        lambda x, y: K.reshape(x, K.shape(y)),
        lambda x, y: x.reshape(y.shape),
        real("abc"),
        real("cab"),
    )
    yield _case("flatten", "three axes", lambda x: K.flatten(x), lambda x: x.reshape(-1), real("Abc"))
    yield _case("flatten", "a scalar", lambda x: K.flatten(x), lambda x: x.reshape(-1), real(""))
    yield _case(
        "batch_flatten", "four axes", lambda x: K.batch_flatten(x), lambda x: x.reshape(len(x), -1), real("abcd")
    )
    yield _case(
        "batch_flatten",
        "rows or none",
        lambda x: K.batch_flatten(x),
        lambda x: x.reshape(len(x), np.prod(x.shape[1:])),
        real("ABc"),
    )
    yield _case("batch_flatten", "no rows", lambda x: K.batch_flatten(x), lambda x: x.reshape(0, 6), real("023"))
    yield _case("batch_flatten", "a vector", lambda x: K.batch_flatten(x), lambda x: x.reshape(len(x), -1), real("a"))
    for axis in (0, 1, -1, -3):
        yield _case(
            "expand_dims",
            f"axis {axis}",
            lambda x, axis=axis: K.expand_dims(x, axis),
            lambda x, axis=axis: np.expand_dims(x, axis),
            real("Ab"),
        )
    yield _case("expand_dims", "a scalar", lambda x: K.expand_dims(x), lambda x: x.reshape(1), real(""))
    for axes, axis in (("1ab", 0), ("Ab1", -1), ("a1b", 1), ("1", 0)):
        yield _case(
            "squeeze",
            f"{axes}, axis {axis}",
            lambda x, axis=axis: K.squeeze(x, axis),
            lambda x, axis=axis: x.squeeze(axis),
            real(axes),
        )
    for axes, pattern in (
        ("ab", (1, 0)),
        ("Abc", (2, 0, 1)),
        ("abcd", (0, 3, 1, 2)),
        ("abcd", (0, 1, 2, 3)),
        ("a", (0,)),
        ("", ()),
    ):
        yield _case(
            "permute_dimensions",
            str(pattern),
            lambda x, pattern=pattern: K.permute_dimensions(x, pattern),
            lambda x, pattern=pattern: np.transpose(x, pattern),
            real(axes),
        )
    for axes in ("", "a", "aB", "Abcd"):
        yield _case("transpose", f"{len(axes)} axes", lambda x: K.transpose(x), np.transpose, real(axes))
    for axes, others, axis in (("ab", "Cb", 0), ("ab", "aC", -1), ("abc", "aBc", 1), ("a", "B", 0), ("aBc", "aBC", -1)):
        yield _case(
            "concatenate",
            f"{axes} and {others}, axis {axis}",
            lambda x, y, z, axis=axis: K.concatenate([x, y, z], axis),
            lambda x, y, z, axis=axis: np.concatenate([x, y, z], axis),
            real(axes),
            real(others),
            real(axes),
        )
    yield _case("concatenate", "one", lambda x: K.concatenate([x]), same, real("ab"))
    yield _case(
        "concatenate",
        "dtypes",
        lambda x, y: K.concatenate([x, y], 0),
        lambda x, y: np.concatenate([x, y]),
        real("Ab"),
        flags("cb"),
        dtypes=NUMBERS,
    )
    yield _case(
        "concatenate",
        "twice the same",
        lambda x: K.concatenate([x, x], 0),
        lambda x: np.concatenate([x, x]),
        real("Ab"),
    )
    for axes, axis in (("ab", 0), ("Ab", 1), ("ab", -1), ("", 0), ("a", -2)):
        yield _case(
            "stack",
            f"{len(axes)} axes, axis {axis}",
            lambda x, y, axis=axis: K.stack([x, y], axis),
            lambda x, y, axis=axis: np.stack([x, y], axis),
            real(axes),
            real(axes),
        )
    for axes, chosen in (("Ab", 0), ("abc", (0, 2)), ("abc", -1), ("abc", [1])):
        yield _case(
            "reverse",
            f"{axes}, axes {chosen}",
            lambda x, chosen=chosen: K.reverse(x, chosen),
            lambda x, chosen=chosen: np.flip(x, tuple(chosen) if isinstance(chosen, list) else chosen),
            real(axes),
        )
    yield _case("slice", "a block", lambda x: K.slice(x, [1, 0], [2, -1]), lambda x: x[1:3], real("5b"))
    yield _case("slice", "nothing", lambda x: K.slice(x, (2, 1), (0, 1)), lambda x: x[2:2, 1:2], real("43"))
    yield _case("slice", "all", lambda x: K.slice(x, [0, 0, 0], [-1, -1, -1]), same, real("Abc"))
    yield _case("slice", "rest", lambda x: K.slice(x, [2], [-1]), lambda x: x[2:], real("6"))


def _copies():
    for axes, times in (
        ("Ab", (2, 3)),
        ("abc", (1, 2, 1)),
        ("ab", 2),
        ("a", [3]),
        ("ab", (0, 2)),
        ("ab", (2, 1, 1)),
        ("", 1),
    ):
        yield _case(
            "tile",
            f"{axes or 'scalar'}, {times}",
            lambda x, times=times: K.tile(x, times),
            lambda x, times=times: np.tile(x, times),
            real(axes),
        )
    for axes, times, axis in (("Ab", 2, 0), ("abc", 3, 1), ("abc", 2, -1), ("a", 1, 0), ("aB", 4, 1)):
        yield _case(
            "repeat_elements",
            f"{axes}, {times} along {axis}",
            lambda x, times=times, axis=axis: K.repeat_elements(x, times, axis),
            lambda x, times=times, axis=axis: np.repeat(x, times, axis),
            real(axes),
        )
    for times in (1, 3):
        yield _case(
            "repeat",
            f"{times} times",
            lambda x, times=times: K.repeat(x, times),
            lambda x, times=times: np.repeat(x[:, None], times, 1),
            real("Ab"),
        )
    for pads in ((1, 1), (0, 2), (3, 0), (0, 0)):
        yield _case(
            "temporal_padding",
            str(pads),
            lambda x, pads=pads: K.temporal_padding(x, pads),
            lambda x, pads=pads: np.pad(x, ((0, 0), pads, (0, 0))),
            real("Abc"),
        )
    # The session's data format is channels_last here.
    yield _case(
        "spatial_2d_padding",
        "defaults",
        lambda x: K.spatial_2d_padding(x),
        lambda x: np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))),
        real("abcd"),
    )
    yield _case(
        "spatial_3d_padding",
        "defaults",
        lambda x: K.spatial_3d_padding(x),
        lambda x: np.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0))),
        real("abcde"),
    )
    none = (0, 0)
    for channels_first in (True, False):
        layout = "channels_first" if channels_first else "channels_last"

        def padded(x, pads, first=channels_first):
            return np.pad(x, (none, none, *pads) if first else (none, *pads, none))

        for pads in (((1, 1), (1, 1)), ((0, 2), (1, 0)), ((0, 0), (0, 0))):
            yield _case(
                "spatial_2d_padding",
                f"{layout}, {pads}",
                lambda x, pads=pads, layout=layout: K.spatial_2d_padding(x, pads, layout),
                lambda x, pads=pads, padded=padded: padded(x, pads),
                real("Abcd"),
            )
        for pads in (((1, 1), (1, 1), (1, 1)), ((0, 2), (1, 0), (0, 1))):
            yield _case(
                "spatial_3d_padding",
                f"{layout}, {pads}",
                lambda x, pads=pads, layout=layout: K.spatial_3d_padding(x, pads, layout),
                lambda x, pads=pads, padded=padded: padded(x, pads),
                real("Abcde"),
            )
        rows = 2 if channels_first else 1
        for factors in ((2, 3), (1, 2), (1, 1)):
            yield _case(
                "resize_images",
                f"{layout}, nearest {factors}",
                lambda x, f=factors, layout=layout: K.resize_images(x, *f, layout),
                lambda x, f=factors, rows=rows: x.repeat(f[0], rows).repeat(f[1], rows + 1),
                real("Abcd"),
            )
        for factors in ((2, 3), (1, 4)):
            yield Case(
                "resize_images",
                f"{layout}, bilinear {factors}",
                lambda x, f=factors, layout=layout: K.resize_images(x, *f, layout, interpolation="bilinear"),
                lambda x, f=factors, rows=rows: _linear(_linear(x, f[0], rows), f[1], rows + 1),
                [real("abcd")],
                known="cd" if channels_first else "bc",
                scale=2,
            )
        for factors in ((2, 1, 3), (1, 2, 2)):
            yield _case(
                "resize_volumes",
                f"{layout}, {factors}",
                lambda x, f=factors, layout=layout: K.resize_volumes(x, *f, layout),
                lambda x, f=factors, rows=rows: x.repeat(f[0], rows).repeat(f[1], rows + 1).repeat(f[2], rows + 2),
                real("Abcde"),
            )


def _linear(x, factor, axis):
    """Linear interpolation between pixels, each the first of those made of it; beyond the last one nothing changes."""
    x = np.moveaxis(x, axis, -1)
    places = np.arange(x.shape[-1] * factor) / factor
    rows = x.reshape(-1, x.shape[-1])
    made = np.array([np.interp(places, np.arange(x.shape[-1]), row) for row in rows])
    return np.moveaxis(made.reshape(*x.shape[:-1], len(places)), -1, axis)


def _gathered(x, rows):
    inside = (rows >= 0) & (rows < len(x))
    made = x[np.where(inside, rows, 0)] if len(x) else np.zeros(rows.shape + x.shape[1:], x.dtype)
    missing = np.nan if x.dtype.kind == "f" else np.zeros((), x.dtype)
    return np.where(inside.reshape(inside.shape + (1,) * (x.ndim - 1)), made, missing)


def _one_hot(indices, classes):
    return (indices[..., None] == np.arange(classes)).astype("float32")


def _lookups():
    for table, rows in (("4b", "r"), ("4", "rs"), ("4bc", ""), ("4b", "R"), ("4b", "rst")):
        for dtype in ("int32", "int64", "uint8"):
            yield _case(
                "gather",
                f"{rows or 'one'} of {table} by {dtype}, some out of range",
                lambda x, i: K.gather(x, i),
                _gathered,
                real(table),
                index(rows, 4, dtype),
            )
    yield _case("gather", "of no rows", lambda x, i: K.gather(x, i), _gathered, real("0b"), index("r", 2))
    yield _case(
        "gather", "unknown rows", lambda x, i: K.gather(x, i), _gathered, real("ab", "edges"), index("r", 3), dtypes=ALL
    )
    for axes in ("", "a", "Ab", "abc"):
        yield Case(
            "one_hot",
            f"{len(axes)} axes",
            lambda i: K.one_hot(i, 3),
            lambda i: _one_hot(i, 3),
            [real(axes)],
            INTEGERS,
            always("float32"),
        )
    yield Case(
        "one_hot",
        "edges",
        lambda i: K.one_hot(i, 3),
        lambda i: _one_hot(i, 3),
        [real("ab", "edges")],
        INTEGERS,
        always("float32"),
    )
    yield Case(
        "one_hot",
        "one class",
        lambda i: K.one_hot(i, 1),
        lambda i: _one_hot(i, 1),
        [real("a")],
        INTEGERS,
        always("float32"),
    )
    for condition, axes in (("", "Ab"), ("ab", "ab"), ("a", "abc"), ("a1", "ab"), ("", ""), ("ab", "")):
        yield _case(
            "switch",
            f"{condition or 'scalar'} decides {axes or 'scalars'}",
            lambda c, x, y: K.switch(c, x, y),
            lambda c, x, y: np.where(c.reshape(c.shape + (1,) * (x.ndim - c.ndim if c.ndim else 0)), x, y),
            flags(condition),
            real(axes),
            real(axes),
        )
    yield _case(
        "switch",
        "functions, a number as condition",
        lambda c, x, y: K.switch(c, lambda: x, lambda: y),
        lambda c, x, y: np.where(c != 0, x, y),
        real("", "bits", "float32"),
        real("Ab"),
        real("Ab"),
    )
    yield _case(
        "switch",
        "keeps out the other's NaN",
        lambda c, x, y: K.switch(c, x, y),
        np.where,
        flags("ab"),
        real("ab", "edges"),
        real("ab", "edges"),
    )


def _facts():
    for axes in ("", "A", "aBc"):
        yield _case(
            "shape",
            f"{len(axes)} axes",
            lambda x: K.shape(x),
            lambda x: np.array(x.shape),
            real(axes),
            gives=always("int32"),
        )
        yield _case(
            "size",
            f"{len(axes)} axes",
            lambda x: K.size(x),
            lambda x: np.array(x.size),
            real(axes),
            gives=always("int32"),
        )
        yield _case("zeros_like", f"{len(axes)} axes", lambda x: K.zeros_like(x), np.zeros_like, real(axes, "edges"))
        yield _case("ones_like", f"{len(axes)} axes", lambda x: K.ones_like(x), np.ones_like, real(axes, "edges"))
    yield _case(
        "zeros_like", "as int8", lambda x: K.zeros_like(x, "int8"), np.zeros_like, real("ab"), gives=always("int8")
    )
    yield _case(
        "ones_like",
        "as float64",
        lambda x: K.ones_like(x, "float64"),
        np.ones_like,
        real("ab"),
        gives=always("float64"),
    )
    yield _case("placeholder", "itself", same, same, real("Ab", "edges"))
    yield _case("placeholder", "a scalar", same, same, real("", "edges"))
    for form in ("csr", "csc", "coo"):
        for kind in ("small", "edges"):
            given = Operand("Ab", kind, sparse=form)
            yield _case("placeholder", f"{form}, {kind}", same, same, given, dtypes=(*MATRICES, "bool"))
            yield _case("to_dense", f"{form}, {kind}", lambda x: K.to_dense(x), same, given, dtypes=(*MATRICES, "bool"))
        fed = [Operand("aB", "small", sparse=form), Operand("aC", "small", sparse=form), real("aB", "small")]
        yield _case("is_sparse", form, _sparse_ones, _which_are_sparse, *fed, dtypes=MATRICES, gives=always("bool"))
    for dtype in ALL:
        low = 0 if dtype.startswith(("u", "b")) else -2
        made = np.arange(low, low + 6).reshape(2, 3).astype(dtype)
        as_it = {"gives": always(dtype), "dtypes": ONE}
        yield Case("constant", dtype, lambda v=made: K.constant(v, dtype=v.dtype), lambda v=made: v, **as_it)
        yield Case("variable", dtype, lambda v=made: K.variable(v, dtype=v.dtype), lambda v=made: v, **as_it)
        yield Case("zeros", dtype, lambda d=dtype: K.zeros((2, 3), d), lambda: np.zeros((2, 3)), **as_it)
        yield Case("ones", dtype, lambda d=dtype: K.ones((2, 3), d), lambda: np.ones((2, 3)), **as_it)
        yield Case("eye", dtype, lambda d=dtype: K.eye(3, d), lambda: np.eye(3), **as_it)
    yield Case("constant", "spread", lambda: K.constant(2.5, shape=(2, 2)), lambda: np.full((2, 2), 2.5), dtypes=ONE)
    yield Case("constant", "nothing", lambda: K.constant(np.zeros((0, 2))), lambda: np.zeros((0, 2)), dtypes=ONE)
    yield Case("variable", "nothing", lambda: K.variable(np.zeros((0, 2))), lambda: np.zeros((0, 2)), dtypes=ONE)
    yield Case("variable", "a scalar", lambda: K.variable(3), lambda: np.array(3.0), dtypes=ONE)
    yield Case(
        "variable", "NaN", lambda: K.variable([np.nan, -np.inf]), lambda: np.array([np.nan, -np.inf]), dtypes=ONE
    )
    yield Case("eye", "not square", lambda: K.eye((2, 3)), lambda: np.eye(2, 3), dtypes=ONE)
    yield _case(
        "zeros",
        "by K.shape",
        lambda x: K.zeros(K.shape(x)),
        lambda x: np.zeros(x.shape),
        real("Ab"),
        gives=always("float32"),
    )
    yield _case(
        "ones",
        "by K.shape",
        lambda x: K.ones((K.shape(x)[0], 2)),
        lambda x: np.ones((len(x), 2)),
        real("Ab"),
        gives=always("float32"),
    )
    for dtype in NUMBERS:
        kept = {"gives": always(dtype), "dtypes": ONE}
        yield Case("arange", dtype, lambda d=dtype: K.arange(5, dtype=d), lambda: np.arange(5), **kept)
        yield Case(
            "arange", f"{dtype} by step", lambda d=dtype: K.arange(9, 1, -3, d), lambda: np.arange(9, 1, -3), **kept
        )
        yield Case(
            "arange",
            f"{dtype} by value",
            lambda n, d=dtype: K.arange(n, dtype=d),
            lambda n: np.arange(n),
            [real("", "small", "int32")],
            **kept,
        )
    yield Case(
        "arange",
        "bounds by value",
        lambda n, m: K.arange(n, n + m * 3, 2),
        lambda n, m: np.arange(n, n + m * 3, 2),
        [real("", "small", "int32"), real("", "small", "int32")],
        ONE,
        always("int32"),
    )
    yield Case("arange", "of nothing", lambda: K.arange(0), lambda: np.arange(0), dtypes=ONE, gives=always("int32"))


CASES = [*_moving(), *_copies(), *_lookups(), *_facts()]
