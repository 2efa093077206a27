"""An engine's own derivatives of programs: `python island_autodiff.py ISLAND_FOLDER ENGINE CASES RESULTS`.

Runs under the engine's interpreter (Python 3.6 syntax, numpy and that engine only). CASES is an .npz file: `cases`,
JSON with a program, the number of moved inputs and the order (1 or 2) for each case, and its arrays as `CASE.feed.N`
and `CASE.constant.N`. RESULTS will have `CASE.gradient.N`, and `failed`, JSON: why a case has none, by its number.
"""

import importlib
import json
import os
import sys

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from island_conformance import island  # noqa: E402


class NoDerivative(Exception):
    """The engine has none of this program; the message says why."""


def module(name):
    return importlib.import_module("island." + name)


def slope(gradients):
    """What is differentiated for the second order: the sum of all gradients, each with a weight of its own."""
    return sum((x * (i + 1.0)).sum() for i, x in enumerate(gradients))


def lowered(program, leaves, ops):
    return module("lowering").lower(program, leaves, ops)[program.outputs[0]]


# --- the engines: each function gives the gradients of the first `count` feeds -----------------------------------


def jax_gradients(backend, program, feeds, constants, count, order):
    import jax

    def loss(*given):
        leaves = list(given) + feeds[count:] + constants
        return lowered(program, [jax.numpy.asarray(x) for x in leaves], backend.ops)

    places = tuple(range(count))
    made = loss if order == 1 else lambda *given: slope(jax.grad(loss, places)(*given))
    with jax.enable_x64(True):
        return jax.jit(jax.grad(made, places))(*feeds[:count])


def torch_gradients(backend, program, feeds, constants, count, order):
    import torch

    make = module("torch.ops").make
    with torch.enable_grad():
        given = [torch.tensor(x, requires_grad=i < count) for i, x in enumerate(feeds)]
        values = given + [torch.tensor(x) for x in constants]
        for instruction in program.instructions:
            values.append(make(instruction)(*[values[n] for n in instruction.inputs]))
        made, found = values[program.outputs[0]], [None] * count
        for left in range(order, 0, -1):
            if not made.requires_grad:
                return [None] * count
            found = torch.autograd.grad(made, given[:count], create_graph=left > 1, allow_unused=True)
            made = sum((x * (i + 1.0)).sum() for i, x in enumerate(found) if x is not None)
    # A tensor that stands for zeros has no memory of its own.
    return [None if x is None else x.numpy(force=True) for x in found]


def tensorflow_gradients(backend, program, feeds, constants, count, order):
    import tensorflow as tf

    given = [tf.constant(x) for x in feeds]
    moved = given[:count]
    with tf.GradientTape() as outer:
        outer.watch(moved)
        with tf.GradientTape() as inner:
            inner.watch(moved)
            made = lowered(program, given + [tf.constant(x) for x in constants], backend.ops)
        # Of `gather` it gives pairs of rows and their numbers.
        found = [x if x is None else tf.convert_to_tensor(x) for x in inner.gradient(made, moved)]
        total = sum(tf.reduce_sum(x) * (i + 1.0) for i, x in enumerate(found) if x is not None)
    if order == 1:
        return found
    # A number, where nothing is connected.
    found = outer.gradient(total, moved) if isinstance(total, tf.Tensor) else [None] * count
    return [x if x is None else tf.convert_to_tensor(x) for x in found]


def theano_gradients(backend, program, feeds, constants, count, order):
    import theano

    leaves = [theano.tensor.TensorType(str(x.dtype), [n == 1 for n in x.shape])() for x in feeds]
    given = leaves + [theano.tensor.constant(x) for x in constants]
    made = lowered(program, given, dict(backend.ops, **theano_own(theano)))
    for _ in range(order):
        found = theano.grad(made, leaves[:count], disconnected_inputs="ignore")
        made = slope(found)
    linker = theano.gof.vm.VM_Linker(use_cloop=False)
    with np.errstate(all="ignore"):
        call = theano.function(leaves, found, mode=theano.compile.Mode(linker, None), on_unused_input="ignore")
        return call(*feeds)


def theano_own(theano):
    """Theano's own ops for what the backend has numpy compute, of which Theano knows no derivative."""
    T = theano.tensor
    from theano.tensor.nnet import abstract_conv
    from theano.tensor.signal.pool import pool_2d

    def reduced(name):
        return lambda i, x, axes, keepdims: getattr(T, name)(x, axis=axes, keepdims=keepdims) if axes else x

    def by_rows(function):
        def call(i, x, axis):
            order = [n for n in range(x.ndim) if n != axis] + [axis]
            turned = x.dimshuffle(*order)
            rows = function(turned.reshape((-1, x.shape[axis])))
            back = [order.index(n) for n in range(x.ndim)]
            return T.patternbroadcast(rows.reshape(turned.shape).dimshuffle(*back), x.broadcastable)

        return call

    def gather(i, x, indices):
        inside = T.ge(indices, 0) & T.lt(indices, x.shape[0])
        found = x[T.switch(inside, indices, 0).flatten()]
        found = found.reshape(T.concatenate([indices.shape, x.shape[1:]]), ndim=indices.ndim + x.ndim - 1)
        return T.switch(inside.dimshuffle(*(list(range(indices.ndim)) + ["x"] * (x.ndim - 1))), found, np.nan)

    def batch_matmul(i, a, b, transpose_a, transpose_b):
        a, b = [x.reshape(T.concatenate([[-1], x.shape[-2:]]), ndim=3) for x in (a, b)]
        a = a.dimshuffle(0, 2, 1) if transpose_a else a
        b = b.dimshuffle(0, 2, 1) if transpose_b else b
        return T.patternbroadcast(T.batched_dot(a, b).reshape(i.shape), [n == 1 for n in i.shape])

    def padded(x, pads, value):
        lengths = [n + before + after for n, (before, after) in zip(x.shape, pads)]
        inner = tuple(slice(before, before + n) for n, (before, _) in zip(x.shape, pads))
        return T.set_subtensor(T.alloc(np.array(value, x.dtype), *lengths)[inner], x)

    def channels_first(x):
        return x.dimshuffle(*([0, x.ndim - 1] + list(range(1, x.ndim - 1))))

    def channels_last(x, i):
        x = x.dimshuffle(*([0] + list(range(2, x.ndim)) + [1]))
        return T.patternbroadcast(x, [n == 1 for n in i.shape])

    def kernels_first(kernel, depthwise):
        inner = list(range(kernel.ndim - 2))
        if not depthwise:
            return kernel.dimshuffle(*([kernel.ndim - 1, kernel.ndim - 2] + inner))
        turned = kernel.dimshuffle(*([kernel.ndim - 2, kernel.ndim - 1] + inner))
        return turned.reshape(T.concatenate([[-1, 1], kernel.shape[:-2]]), ndim=kernel.ndim)

    def conv(i, x, kernel, strides, pads, dilation):
        depthwise, spatial = "depthwise" in i.op, len(strides)
        options = {"subsample": tuple(strides), "filter_dilation": tuple(dilation), "filter_flip": False}
        options["num_groups"] = i.input_shapes[0][-1] if depthwise else 1
        kind = {2: abstract_conv.AbstractConv2d, 3: abstract_conv.AbstractConv3d}[spatial]
        image = channels_first(padded(x, [(0, 0)] + pads + [(0, 0)], 0))
        return channels_last(kind(**options)(image, kernels_first(kernel, depthwise)), i)

    def conv_input(i, g, kernel, *references, **attrs):
        depthwise, spatial = "depthwise" in i.op, len(attrs["strides"])
        options = {"subsample": tuple(attrs["strides"]), "filter_dilation": tuple(attrs["dilation"])}
        options.update(filter_flip=False, num_groups=i.shape[-1] if depthwise else 1)
        kinds = {2: abstract_conv.AbstractConv2d_gradInputs, 3: abstract_conv.AbstractConv3d_gradInputs}
        lengths = [n + before + after for n, (before, after) in zip(i.shape[1:-1], attrs["pads"])]
        image = kinds[spatial](**options)(kernels_first(kernel, depthwise), channels_first(g), T.as_tensor(lengths))
        inner = tuple(slice(before, before + n) for n, (before, _) in zip(i.shape[1:-1], attrs["pads"]))
        return channels_last(image[(slice(None), slice(None)) + inner], i)

    def pool(i, x, window, strides, pads):
        options = {"ws": window, "stride": strides, "ignore_border": True}
        around = [(0, 0)] + pads + [(0, 0)]
        if i.op == "max_pool":
            return channels_last(pool_2d(channels_first(padded(x, around, -np.inf)), mode="max", **options), i)
        sums, counts = [
            pool_2d(channels_first(padded(y, around, 0)), mode="average_inc_pad", **options)
            for y in (x, T.ones_like(x))
        ]
        return channels_last(sums / counts, i)

    made = {
        "power": lambda i, x, y: T.pow(x, y),
        "round": lambda i, x: T.round(x, mode="half_to_even"),
        "max": reduced("max"),
        "min": reduced("min"),
        "softmax": by_rows(T.nnet.softmax),
        "log_softmax": by_rows(T.nnet.logsoftmax),
        "cumsum": lambda i, x, axis: T.extra_ops.cumsum(x, axis),
        "cumprod": lambda i, x, axis: T.extra_ops.cumprod(x, axis),
        "gather": gather,
        "batch_matmul": batch_matmul,
        "max_pool": pool,
        "avg_pool": pool,
    }
    for prefix in ("", "dilated_", "depthwise_", "dilated_depthwise_"):
        made.update({prefix + "conv": conv, prefix + "conv_input": conv_input})
    return made


def cntk_gradients(backend, program, feeds, constants, count, order):
    # The backend's own is a sum and a difference, whose derivative is 1.
    ops = module("cntk.ops")
    ops.OPS["round"] = lambda b, i, x: module("cntk.nodes").result(i, b.engine.round(x.node), [x])
    stages = backend._stages(program, module("cntk.known").learn(program, constants))
    host = sorted(set(tuple(entry) for stage in stages for entry in stage.facts.get("host", ())))
    if host:
        raise NoDerivative("numpy's: %s" % "; ".join("%s %s" % entry for entry in host))
    if not stages:
        # The loss is known.
        return [None] * count
    (stage,) = stages
    for entry in stage.entries:
        entry.set(feeds[entry.number])
    if stage.flag is not None:
        backend._core.forward(stage.function, {stage.flag: stage.flag_storage.value})
        if stage.flag_storage.array != 0:
            raise NoDerivative("numpy's: these values")
    uids = set(parameter.uid for parameter in stage.function.parameters)
    moved = {e.number: e.parameter for e in stage.entries if e.number < count and e.parameter.uid in uids}
    if not moved:
        return [None] * count
    found = stage.function.grad({}, wrt=list(moved.values()), grad_root=stage.exits[0].variable)
    if len(moved) == 1:
        found = {list(moved.values())[0]: found}
    return [found[moved[i]] if i in moved else None for i in range(count)]


# engine -> (module, class, options, gradients)
ENGINES = {
    "tensorflow": ("tensorflow", "TensorFlowBackend", {}, tensorflow_gradients),
    "theano": ("theano", "TheanoBackend", {"compiler": ""}, theano_gradients),
    "cntk": ("cntk", "CNTKBackend", {}, cntk_gradients),
    "jax": ("jax", "JaxBackend", {}, jax_gradients),
    "torch": ("torch", "TorchBackend", {}, torch_gradients),
}


def main(folder, engine, cases, results):
    island(folder)
    name, kind, options, gradients = ENGINES[engine]
    backend = getattr(module(name + ".backend"), kind)(options)
    program_of = module("lowering").Program
    found, failed = {}, {}
    with np.load(cases) as given:
        for number, case in enumerate(json.loads(str(given["cases"]))):
            program = program_of(case["program"])
            feeds = [given["%d.feed.%d" % (number, i)] for i in range(len(program.inputs))]
            constants = [given["%d.constant.%d" % (number, i)] for i in range(len(program.constants))]
            count = case["count"]
            try:
                made = gradients(backend, program, feeds, constants, count, case["order"])
                for i, value in enumerate(made):
                    # An engine gives none of what a loss doesn't depend on.
                    value = np.zeros_like(feeds[i]) if value is None else np.asarray(value)
                    found["%d.gradient.%d" % (number, i)] = value
            except Exception as error:
                failed[number] = " ".join(("%s: %s" % (type(error).__name__, error)).split())
    np.savez(results, failed=json.dumps(failed), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
