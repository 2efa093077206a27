"""What engines in the notebook's own process must do, run in processes of their own by test_in_kernel.py.

Each function is a case and returns what the test looks at; `main` runs those that are named, in one process.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
import warnings
import weakref
from typing import Any

import numpy as np
from helpers.arrays import same_bits

import kernelk
from kernelk import backend as K
from kernelk.errors import KernelKError
from kernelk.graph.state import current_state
from kernelk.session.current import current
from kernelk.session.feeds import as_feed

BATCH = np.linspace(-1, 1, 15).reshape(5, 3).astype(np.float32)


def use(name: str, **options: Any) -> Any:
    """Makes the engine active with these options: unless it has them, its host is made anew."""
    session = current()
    if session.engine_options.get(name) != options:
        session.engine_options[name] = options
        host = session.hosts.pop(name, None)
        if host is not None:
            host.stop()
    return kernelk.set_backend(name)


def foreign(name: str, values: Any, kind: str = "float32") -> Any:
    """A tensor of the engine's own."""
    array = np.asarray(values, np.float32)
    if name == "torch":
        import torch

        return torch.from_numpy(array).to(getattr(torch, kind))
    if name == "jax":
        import jax.numpy as jnp

        return jnp.asarray(array, getattr(jnp, kind))
    import tensorflow as tf

    return tf.cast(tf.constant(array), getattr(tf, kind))


def address(value: Any) -> int:
    """The address of a tensor's or an array's data."""
    if hasattr(value, "data_ptr"):
        return int(value.data_ptr())
    array = value if isinstance(value, np.ndarray) else np.asarray(value)
    return int(array.__array_interface__["data"][0])


def aligned(values: np.ndarray) -> np.ndarray:
    """A copy that every engine can compute with where it lies."""
    memory = np.zeros(values.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    array = memory[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    array[...] = values
    return array


class Model:
    """A small network with momentum: a call updates five variables at once."""

    def __init__(self) -> None:
        self.x = K.placeholder((None, 3), name="x")
        self.w = K.variable(np.arange(6.0).reshape(3, 2) / 7, name="w")
        self.b = K.zeros((2,), name="b")
        self.count = K.variable(0, dtype="int64", name="count")
        self.y = K.tanh(K.dot(self.x, self.w) + self.b)
        loss = K.mean(K.square(self.y - 0.3))
        updates: list[Any] = [K.update_add(self.count, 1)]
        self.variables = [self.count, self.w, self.b]
        for variable, slope in zip([self.w, self.b], K.gradients(loss, [self.w, self.b])):
            speed = K.zeros(K.int_shape(variable))
            self.variables.append(speed)
            updates += [(speed, 0.9 * speed - 0.1 * slope), (variable, variable + 0.9 * speed - 0.1 * slope)]
        self.loss = loss
        self.step = K.function([self.x], [loss], updates)

    def state(self) -> list[np.ndarray]:
        return K.batch_get_value(self.variables)


def swaps(name: str) -> Any:
    """Worker, kernel, worker in mid-training, and the same steps in one worker alone."""
    model = Model()
    kept, pids = [], []
    for options in ({}, {"in_kernel": True}, {}):
        before = model.state()
        use(name, **options)
        kept.append(all(same_bits(a, b) for a, b in zip(before, model.state())))
        for _ in range(3):
            model.step([BATCH])
        pids.append(current().host().pid == os.getpid())
    moved = model.state()
    alone = Model()
    early = alone.state()
    for step in range(9):
        alone.step([BATCH])
        if step == 2:
            early = alone.state()
    return {
        "kept": kept,
        "here": pids,
        "same": [same_bits(a, b) for a, b in zip(moved, alone.state())],
        "three steps": [array.tobytes().hex() for array in early],
    }


def functions(name: str) -> Any:
    """Gradients, loops, random draws and the learning phase: this kernel's engine against its worker's."""
    K.set_random_seed(3)
    x = K.placeholder((None, 4))
    w = K.variable(np.linspace(-1, 1, 16).reshape(4, 4))
    hidden = K.relu(K.dot(x, w))
    total = K.sum(K.square(hidden))
    slope = K.gradients(total, w)[0]
    twice = K.gradients(K.sum(K.square(slope)), w)[0]
    dropped = K.in_train_phase(K.dropout(hidden, 0.5, seed=5), hidden)
    looped, _, _ = K.rnn(lambda i, s: (K.tanh(K.dot(i, w) + s[0]),) * 2, K.expand_dims(x, 1), [K.zeros_like(x)])
    drawn = K.random_normal((3, 2)), K.random_uniform((2,)), K.random_binomial((4,), 0.5)
    call = K.function([x, K.learning_phase()], [total, slope, twice, dropped, looped, *drawn])
    data = np.linspace(-1, 1, 8).reshape(2, 4)
    found = []
    places = current_state().seeds.places()
    for options in ({}, {"in_kernel": True}):
        use(name, **options)
        current_state().seeds.rewind(places)
        found.append([call([data, phase]) for phase in (0, 1, 1)])
    there, here = found
    gaps = [float(np.max(np.abs(a - b))) for p, q in zip(here, there) for a, b in zip(p, q)]
    masks = [(here[i][3] == 0).tolist() for i in range(3)]
    return {"gap": max(gaps), "phases differ": masks[0] != masks[1], "draws differ": masks[1] != masks[2]}


def feeds(name: str) -> Any:
    """The engine's tensors as feeds and values: accepted everywhere, on a CPU without a copy."""
    result: dict[str, Any] = {}
    use(name, in_kernel=True)
    tensor = foreign(name, BATCH)
    x = K.placeholder((None, 3))
    result["view"] = address(as_feed(x, tensor)) == address(tensor)
    seen: list[int] = []
    executor = current().host()._executor  # type: ignore[attr-defined]
    handle = executor.handle

    def watch(message: dict[str, Any]) -> Any:
        if message["do"] == "run":
            seen.extend(address(feed) for feed in message["feeds"])
        return handle(message)

    executor.handle = watch
    backend = executor.backend
    result["engine's"] = address(backend.to_numpy(backend.load(as_feed(x, tensor)))) == address(tensor)
    out = K.function([x], [x * 2.0])([tensor])[0]
    result["handed over"] = seen == [address(tensor)]
    result["right"] = np.array_equal(out, BATCH * 2)
    result["kinds"] = [
        float(np.abs(K.eval(x * 1.0, {x: foreign(name, BATCH, kind)}) - BATCH).max()) < 0.01
        for kind in ("float32", "float16", "bfloat16")
    ]
    v = K.variable(tensor)
    K.set_value(v, foreign(name, BATCH + 1))
    result["variable"] = np.array_equal(K.get_value(v), BATCH + 1)
    result["bfloat16 constant"] = K.constant(foreign(name, [1, 2], "bfloat16")).dtype
    result["operand"] = K.eval(K.dot(x, foreign(name, np.eye(3))), {x: tensor}).tolist() == BATCH.tolist()
    # On every engine, wherever it runs.
    for other in ("numpy", "theano"):
        use(other, **({"compiler": ""} if other == "theano" else {}))
        result[other] = np.array_equal(K.eval(x * 2.0, {x: tensor}), BATCH * 2)
    # What is updated with a feed has memory of its own.
    use(name, in_kernel=True)
    u = K.zeros((5, 3))
    keep = aligned(BATCH)
    K.function([x], [], [(u, x)])([keep])
    keep[...] = 7
    result["kept"] = np.array_equal(K.get_value(u), BATCH) and np.array_equal(K.eval(u * 1.0), BATCH)
    return result


def on_a_device(name: str) -> Any:
    """Tensors of PyTorch's and JAX's that don't lie in the host's memory, as far as K can tell: fed as they are."""
    import jax.numpy as jnp
    import torch

    from kernelk.ops import foreign as interchange
    from kernelk.session import feeds as fed_values

    interchange.HOSTS = ()
    result: dict[str, Any] = {}
    read: list[str] = []
    to_array = interchange.as_numpy

    def watched(value: Any, *rest: Any) -> Any:
        if interchange.is_foreign(value):
            read.append(type(value).__name__)
        return to_array(value, *rest)

    interchange.as_numpy = fed_values.as_numpy = watched
    use(name, in_kernel=True)
    executor = current().host()._executor  # type: ignore[attr-defined]
    handle, seen = executor.handle, []

    def watch(message: dict[str, Any]) -> Any:
        if message["do"] == "run":
            seen.extend(message["feeds"])
        return handle(message)

    executor.handle = watch

    def fed(call: Any, *tensors: Any) -> tuple[list[Any], list[Any], int]:
        """What a call of these tensors returns, what the engine was fed, and how many of them came by the host."""
        seen.clear()
        read.clear()
        found = call(list(tensors))
        return found, list(seen), len(read)

    x = K.placeholder((None, 3))
    u, v = K.zeros((5, 3)), K.zeros((3, 5))
    step = K.function([x], [x * 2.0, x], [(u, x), (v, K.transpose(x))])
    for kind, tensor in (("torch", torch.from_numpy(aligned(BATCH))), ("jax", jnp.asarray(BATCH.copy()))):
        (double, same), given, by_host = fed(step, tensor)
        result[kind] = by_host == 0 and [address(value) for value in given] == [address(tensor)]
        result[f"{kind} right"] = np.array_equal(double, BATCH * 2) and np.array_equal(same, BATCH)
        if kind == "torch":
            # It may be changed as soon as the call returns.
            tensor.fill_(7)
        result[f"{kind} kept"] = (
            np.array_equal(same, BATCH)
            and np.array_equal(K.get_value(u), BATCH)
            and np.array_equal(K.eval(v * 1.0), BATCH.T)
        )
    tensor = torch.from_numpy(aligned(BATCH))
    # Of other orders and kinds.
    transposed = torch.from_numpy(aligned(BATCH.T)).T
    found, _, by_host = fed(step, transposed)
    result["transposed"] = by_host == 0 and np.array_equal(found[0], BATCH * 2)
    found, _, by_host = fed(step, tensor.clone().requires_grad_())
    result["with gradients"] = by_host == 0 and np.array_equal(found[0], BATCH * 2)
    found, _, by_host = fed(step, tensor.double())
    result["another dtype"] = by_host == 1 and np.array_equal(found[0], BATCH * 2)
    for dtype in ("bool", "int64", "uint8", "float64", "float16"):
        y = K.placeholder((2,), dtype=dtype)
        large = torch.tensor([1, 2**40 if dtype == "int64" else 0]).to(getattr(torch, dtype))
        found, _, by_host = fed(K.function([y], [K.identity(y)]), large)
        result[dtype] = by_host == 0 and found[0].dtype == dtype and found[0].tolist() == large.tolist()
    messages = []
    for wrong in (torch.zeros(2, 2), torch.zeros(5, 3).to_sparse(), torch.zeros(5, 3, device="meta")):
        try:
            step([wrong])
        except KernelKError as error:
            messages.append(str(error))
    result["messages"] = len(messages) == 3 and "has shape (None, 3), but was fed (2, 2)" in messages[0]
    result["last feed"] = np.array_equal(kernelk.time(step, budget=0.1).calls[0].inputs, ["float32[5, 3]"])
    # A search that numpy does for every engine.
    logs, steps = K.placeholder((1, 2, 3)), K.placeholder((1, 1), dtype="int32")
    search = K.ctc_decode(logs, K.reshape(steps, (1,)), greedy=False, top_paths=1)[0]
    find = K.function([logs, steps], search)
    given = torch.rand(1, 2, 3), torch.full((1, 1), 2, dtype=torch.int32)
    result["in numpy"] = np.array_equal(find(list(given))[0], find([one.numpy() for one in given])[0])
    # Where an engine can't take it
    use("numpy")
    result["numpy"] = np.array_equal(step([tensor])[0], BATCH * 2)
    use(name)
    result["worker"] = np.array_equal(step([tensor])[0], BATCH * 2)
    return result


def as_on_a_gpu(name: str) -> Any:
    """The other cases where values lie on a device, which is the processor's memory here."""
    import importlib

    from helpers.far_devices import FAR, Counted

    counted = Counted()
    kind = FAR[name](counted)
    kind.facts = lambda self: {**super(kind, self).facts(), "device": "cuda:0"}
    module = importlib.import_module(f"kernelk.backends.{name}.backend")
    setattr(module, kind.__mro__[1].__name__, kind)
    found = {case.__name__: case(name) for case in (swaps, failure, kept)}
    use(name, in_kernel=True)
    found["waits"] = counted.waits
    return found


def handed_out(name: str) -> Any:
    """K.native: whose memory it is, and that writing into it changes nothing."""
    use(name, in_kernel=True)
    result: dict[str, Any] = {}
    model = Model()
    y = K.native(model.y, feeds={model.x: foreign(name, BATCH)})
    result["type"] = f"{type(y).__module__.partition('.')[0]}.{type(y).__name__}"
    result["value"] = np.array_equal(np.asarray(y), K.eval(model.y, {model.x: BATCH}))
    # What was computed is handed out, not a copy of it.
    backend = current().host()._executor.backend  # type: ignore[attr-defined]
    made: list[int] = []
    native = backend.native

    def watch(value: Any, fresh: bool) -> Any:
        made.append(address(backend.to_numpy(value)))
        return native(value, fresh)

    backend.native = watch
    result["no copy"] = address(K.native(model.y * 2.0, {model.x: BATCH})) == made.pop()
    result["copies"] = [
        address(K.native(value, fed)) != made.pop()
        for value, fed in (
            (model.w, None),
            (K.constant(BATCH), None),
            (model.x, {model.x: BATCH}),
        )
    ]
    backend.native = native
    before = model.state()
    for value in (model.w, K.reshape(model.w, (6,)), K.transpose(model.w), K.identity(model.w)):
        tensor = K.native(value)
        if name == "torch":
            tensor += 100
        elif name == "jax":
            import jax

            jax.jit(lambda a: a + 100, donate_argnums=0)(tensor)
        else:
            # TensorFlow's can't be written to.
            assert not np.asarray(tensor).flags.writeable
    constant = K.constant(np.arange(4.0))
    if name == "torch":
        K.native(constant).add_(1)
    result["a constant"] = K.eval(constant * 1.0).tolist()
    result["state"] = all(same_bits(a, b) for a, b in zip(before, model.state()))
    result["engine's state"] = np.array_equal(K.eval(model.w * 1.0), before[1])
    # An update is performed once.
    count = K.native(K.update_add(model.count, 5))
    result["update"] = [int(count), int(K.get_value(model.count)), str(count.dtype)]
    # A result may be kept while the session goes on, and be fed again without a copy.
    kept = np.array(np.asarray(y))
    for _ in range(3):
        model.step([BATCH])
    result["result stays"] = np.array_equal(np.asarray(y), kept)
    z = K.placeholder((None, 2))
    result["fed again"] = address(as_feed(z, y)) == address(y)
    if name == "torch":
        result["takes part in gradients"] = (y.requires_grad_() * 2).sum().backward() is None and y.grad is not None
    return result


def failure(name: str) -> Any:
    """A call that fails in the middle, and one that fails when the new values have been computed, wherever they are."""
    use(name, in_kernel=True)
    x = K.placeholder((None, 1), dtype="float64", name="x")
    v = K.variable(np.ones(3))
    square = K.dot(x, K.transpose(x))
    call = K.function([x], [K.sum(square)], [K.update_add(v, K.ones_like(v))])
    call([np.ones((4, 1))])
    messages, after = [], []

    def attempt(rows: int) -> None:
        try:
            call([np.ones((rows, 1))])
        except KernelKError as error:
            messages.append(f"{type(error).__name__}: {error}")
        after.append([K.get_value(v).tolist(), K.eval(v * 1.0).tolist()])

    executor = current().host()._executor  # type: ignore[attr-defined]
    kept = {number: plan.run for number, plan in executor.plans.items()}

    def failing(run: Any) -> Any:
        def fail(*arguments: Any) -> Any:
            run(*arguments)
            raise RuntimeError("the engine broke down")

        return fail

    for plan in executor.plans.values():
        plan.run = failing(plan.run)
    attempt(4)
    for number, run in kept.items():
        executor.plans[number].run = run
    if name != "tensorflow":
        # There is no memory for the product. (TensorFlow would try for 10 seconds.)
        attempt(1 << 23)
    total = float(call([np.ones((4, 1))])[0])
    return {"messages": messages, "after": after, "next": [total, *K.get_value(v).tolist()]}


def interrupted(name: str) -> Any:
    """Ctrl-C at many moments: between two calls all variables belong to one and the same number of steps."""
    use(name, in_kernel=True)
    wanted = Model()
    states = [wanted.state()]
    for _ in range(400):
        wanted.step([BATCH])
        states.append(wanted.state())
    model = Model()
    model.step([BATCH])
    torn, hits, done = [], 0, 1
    rng = np.random.default_rng(0)
    while hits < 25 and done < 380:
        timer = threading.Timer(float(rng.uniform(0, 0.0015)), os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            for _ in range(12):
                model.step([BATCH])
            # On a busy machine the signal may be late: it has come before this block ends.
            timer.join()
            time.sleep(0.01)
        except KeyboardInterrupt:
            hits += 1
        timer.join()
        state = model.state()
        done = int(state[0])
        if not all(same_bits(a, b) for a, b in zip(state, states[done])):
            torn.append(done)
        model.step([BATCH])
        done += 1
        if not all(same_bits(a, b) for a, b in zip(model.state(), states[done])):
            torn.append(-done)
    result = {"torn": torn, "hits": hits}
    # In the middle of a compilation, too.
    for delay in (0.0, 0.01, 0.05):
        deep = model.y
        for i in range(60):
            deep = K.sin(deep + i + delay)
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            K.eval(deep, {model.x: BATCH})
            timer.join()
            time.sleep(0.2)
        except KeyboardInterrupt:
            pass
        timer.join()
        result[f"compiled {delay}"] = K.eval(deep, {model.x: BATCH}).shape == (5, 2)
    result["quiet"] = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return result


def kept(name: str) -> Any:
    """Updates that stay with the engine: what is fetched when, and steps with every kind of look in between."""
    use(name, in_kernel=True)
    host = current().host()
    asked: list[Any] = []
    request = host.request

    def watch(message: dict[str, Any]) -> Any:
        asked.append(len(message["variables"]) if message["do"] == "fetch" else message["do"])
        return request(message)

    def held(model: Model) -> int:
        return sum(variable.slots.holder is not None for variable in model.variables)

    wanted = Model()
    states = [wanted.state()]
    for _ in range(60):
        wanted.step([BATCH])
        states.append(wanted.state())
    model = Model()
    model.step([BATCH])
    host.request = watch
    model.step([BATCH])
    result: dict[str, Any] = {"held": held(model), "step": asked[:]}
    asked.clear()
    K.get_value(model.w)
    K.get_value(model.w)
    result["read"] = asked[:]
    result["held after"] = held(model)
    host.request = request
    torn, done = [], 2

    def compare(what: str) -> None:
        if not all(same_bits(a, b) for a, b in zip(model.state(), states[done])):
            torn.append(f"{what} at {done}")

    def forked() -> None:
        pid = os.fork()
        if not pid:
            equal = all(same_bits(a, b) for a, b in zip(model.state(), states[done]))
            os._exit(0 if equal else 1)
        if os.waitpid(pid, 0)[1]:
            torn.append(f"in a child at {done}")

    looks = {
        "nothing": lambda: None,
        "timed": lambda: kernelk.time(model.loss, {model.x: BATCH}, budget=0.1),
        "evaluated": lambda: K.eval(model.loss, {model.x: BATCH}),
        "another engine": lambda: (use("numpy"), use(name, in_kernel=True)),
        "stopped": lambda: kernelk.stop_backend(name),
        "set": lambda: K.set_value(model.w, K.get_value(model.w)),
        "set and swapped": lambda: (K.set_value(model.b, states[done][2]), use("numpy"), use(name, in_kernel=True)),
        "compiled": lambda: K.eval(K.sin(model.w * float(done)) + 1.0),
        "dropped": lambda: (K.eval(K.update(K.variable(1.0), 2.0)), gc.collect()),
        "forked": forked,
    }
    for what, look in looks.items():
        for _ in range(2):
            model.step([BATCH])
            done += 1
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                look()
            model.step([BATCH])
            done += 1
            compare(what)
    result["torn"] = torn
    # A feed that becomes a variable's value, and is changed afterwards.
    given = aligned(BATCH)
    x, w = K.placeholder(BATCH.shape), K.variable(np.zeros_like(BATCH))
    K.function([x], [], [(w, x)])([given])
    given[...] = 99
    result["feed"] = same_bits(K.get_value(w), BATCH)
    return result


def differences(name: str) -> Any:
    """%kdiff between this engine in the kernel and another in its worker."""
    other = "jax" if name != "jax" else "torch"
    use(other)
    use(name, in_kernel=True)
    model = Model()
    report = kernelk.diff(model.y, name, other, feeds={model.x: BATCH})
    clip = K.placeholder((3,), name="clip")
    apart = kernelk.diff(K.sqrt(clip), name, other, feeds={clip: [1.0, 2.0, 3.0]}, tolerance=0.0)
    return {"agrees": report.agrees, "sqrt": apart.agrees, "active": K.backend()}


def stopped(name: str) -> Any:
    """What is gone once the engine has stopped, and that it starts again."""
    use(name, in_kernel=True)
    model = Model()
    model.step([BATCH])
    host = current().host()
    backend = weakref.ref(host._executor.backend)  # type: ignore[attr-defined]
    scratch = host._executor.backend.options["scratch"]  # type: ignore[attr-defined]
    there = os.path.isdir(scratch)
    before = model.state()
    host.stop()
    result = {
        "backend": backend() is None,
        "scratch": there and not os.path.exists(scratch),
        "stopped": not host.started,
    }
    model.step([BATCH])
    result["again"] = host.started and int(model.state()[0]) == int(before[0]) + 1
    result["pid"] = host.pid == os.getpid()
    return result


def refused(name: str) -> Any:
    """Requests that are refused in the kernel, each in one line, with the active engine untouched."""
    found, active = [], []
    use("numpy")
    for engine, options in (
        ("theano", {"in_kernel": True}),
        ("cntk", {"in_kernel": True}),
        (name, {"in_kernel": True, "device": "cuda:7"}),
        (name, {"in_kernel": True, "threads": 0}),
    ):
        try:
            use(engine, **options)
            found.append("")
        except KernelKError as error:
            found.append(f"{type(error).__name__}: {error}")
        active.append(K.backend())
    current().engine_options[name] = {}
    del current().hosts[name]
    current().active = name
    try:
        K.native(K.constant(1.0))
    except KernelKError as error:
        found.append(str(error))
    return {"lines": found, "active": active, "started": current().host().started}


def traced(name: str) -> Any:
    """K inside what the library itself traces: with values it works, without it is refused."""
    use(name, in_kernel=True)
    model = Model()
    data = foreign(name, BATCH)

    def inside(a: Any) -> Any:
        return a + foreign(name, K.eval(model.y, {model.x: BATCH}))

    def without(a: Any) -> Any:
        return K.eval(model.y, {model.x: a})

    if name == "torch":
        import torch

        got = torch.func.vmap(inside)(torch.zeros(2, 5, 2))[1].tolist()
        return {"inside": got, "refused": "FeedError", "eager": K.eval(model.y, {model.x: BATCH}).tolist()}
    if name == "jax":
        import jax

        wrap = jax.jit
    else:
        import tensorflow as tf

        wrap = tf.autograph.experimental.do_not_convert
        inside, without = tf.function(inside, autograph=False), tf.function(without, autograph=False)
    got = np.asarray(wrap(inside)(foreign(name, np.zeros((5, 2))))).tolist()
    try:
        wrap(without)(data)
        refused = ""
    except KernelKError as error:
        refused = type(error).__name__
    return {"inside": got, "refused": refused, "eager": K.eval(model.y, {model.x: BATCH}).tolist()}


def _process() -> dict[str, Any]:
    """What belongs to the process and its user."""
    return {
        "environment": dict(os.environ),
        "numpy": {k: v for k, v in np.geterr().items()},
        "filters": repr(warnings.filters),
        "signal": repr(signal.getsignal(signal.SIGINT)),
        "hooks": repr((sys.displayhook, sys.excepthook, sys.stdout)),
    }


def _products() -> list[tuple[Any, str]]:
    """Where PyTorch keeps by what products of float32 are made."""
    from torch.backends import cuda, cudnn, mkldnn

    return [(cuda, "matmul"), (cudnn, "conv"), (mkldnn, "matmul"), (mkldnn, "conv")]


def _library(name: str) -> dict[str, Any]:
    """The library's settings, and how it rounds the smallest numbers."""
    if name == "torch":
        import torch

        return {
            "threads": torch.get_num_threads(),
            "interop": torch.get_num_interop_threads(),
            "dtype": str(torch.get_default_dtype()),
            "grad": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "precision": torch.get_float32_matmul_precision(),
            "products": [getattr(library, op).fp32_precision for library, op in _products()],
            "denormal": float(torch.tensor([1e-40]) * torch.tensor([0.5])) > 0,
            "new": str(torch.ones(2).dtype),
        }
    if name == "jax":
        import jax
        import jax.numpy as jnp

        return {
            "config": {k: repr(v) for k, v in jax.config.values.items()},
            "x64": jax.config.jax_enable_x64,
            "new": str(jnp.ones(2).dtype),
            "denormal": float(jax.jit(lambda a: a * 0.5)(np.full(3, 1e-40, np.float32))[0]) > 0,
            "device": str(jax.config.jax_default_device),
        }
    import tensorflow as tf

    return {
        "threads": tf.config.threading.get_intra_op_parallelism_threads(),
        "eager": tf.executing_eagerly(),
        "jit": tf.config.optimizer.get_jit(),
        "options": tf.config.optimizer.get_experimental_options(),
        "functions eagerly": tf.config.functions_run_eagerly(),
        "devices": [str(device) for device in tf.config.get_visible_devices()],
        "denormal": float((tf.constant([1e-40]) * tf.constant([0.5]))[0]) > 0,
        "placement": tf.config.get_soft_device_placement(),
        "tf32": tf.config.experimental.tensor_float_32_execution_enabled(),
    }


def imported_before(name: str) -> Any:
    """The user's library runs already, with settings of their own: kernelk changes none, and none changes a result."""
    alone = {"library": _library(name), "environment": dict(os.environ)}
    # Settings that would change results, or make calls fail, if they reached kernelk's own programs.
    if name == "torch":
        import torch

        # Which warns that it is the older way to say it.
        torch.set_float32_matmul_precision("medium")
    np.seterr(all="raise")
    warnings.simplefilter("error")
    context: Any = None
    if name == "torch":
        import torch

        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(1)
        torch.manual_seed(5)
        drawn = torch.get_rng_state()
        context = torch.autocast("cpu", dtype=torch.bfloat16)
        context.__enter__()
    elif name == "jax":
        import jax

        jax.config.update("jax_debug_nans", True)
        jax.config.update("jax_numpy_dtype_promotion", "strict")
        jax.config.update("jax_transfer_guard", "disallow")
        jax.config.update("jax_disable_jit", True)
        jax.config.update("jax_default_matmul_precision", "BF16_BF16_F32")
    else:
        import tensorflow as tf

        tf.config.run_functions_eagerly(True)
        tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": True})
        tf.debugging.enable_check_numerics()
        tf.config.set_soft_device_placement(False)
    before = [_settings(name), _process()]
    use(name, in_kernel=True, **({"threads": 2} if name == "torch" else {}))
    model = Model()
    for _ in range(3):
        model.step([BATCH])
    lost = K.eval(K.log(K.constant([-1.0, 1.0])))
    fed = K.eval(model.y, {model.x: BATCH})
    if name == "torch":
        import torch

        torch.set_default_device("meta")
        modes = K.eval(model.y * 1.0, {model.x: BATCH})
        torch.set_default_device(None)
        assert np.array_equal(modes, fed)
        assert bool((drawn == torch.get_rng_state()).all())
    handed = K.native(model.y, {model.x: BATCH})
    after = [_settings(name), _process()]
    if context is not None:
        context.__exit__(None, None, None)
    state = model.state()
    changed = [key for a, b in zip(before, after) for key in a if a[key] != b[key]]
    return {
        "alone": alone,
        "changed": changed,
        "nan": [bool(np.isnan(lost[0])), float(lost[1])],
        "state": [array.tobytes().hex() for array in state],
        "handed": np.array_equal(np.asarray(handed), fed),
        "threads": current().host().facts["threads"],
    }


def _settings(name: str) -> dict[str, Any]:
    """`_library` without what can't be asked for under the settings of `imported_before`."""
    if name == "jax":
        import jax

        return {"config": {k: repr(v) for k, v in jax.config.values.items()}}
    if name == "tensorflow":
        import tensorflow as tf

        return {
            "eagerly": tf.config.functions_run_eagerly(),
            "placement": tf.config.get_soft_device_placement(),
            "tf32": tf.config.experimental.tensor_float_32_execution_enabled(),
            "threads": tf.config.threading.get_intra_op_parallelism_threads(),
        }
    return _library(name)


def imported_after(name: str) -> Any:
    """kernelk imports the library first: to its user it is as in a process without kernelk."""
    # Torch has them for kernelk alone, JAX can have them before its start, and a line says so; TensorFlow alike.
    use(name, in_kernel=True, **({"threads": 3} if name != "tensorflow" else {}))
    model = Model()
    model.step([BATCH])
    K.native(model.y, {model.x: BATCH})
    environment = dict(os.environ)
    facts = current().host().facts
    return {"library": _library(name), "environment": environment, "facts": facts}


def together(name: str) -> Any:
    """All three in one process at once, each with its own compiled functions, sharing the variables."""
    found: dict[str, Any] = {}
    # Two devices, as a machine with two GPUs has them.
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    model = Model()
    steps = 0
    for _ in range(2):
        for engine in ("torch", "jax", "tensorflow"):
            if engine not in current().hosts:
                use(engine, in_kernel=True, **({"device": "cpu:1"} if engine == "jax" else {}))
            kernelk.set_backend(engine)
            model.step([BATCH])
            steps += 1
            found[engine] = current().host().pid == os.getpid()
    # One engine's tensor is another's feed, without a copy.
    kernelk.set_backend("torch")
    tensor = K.native(model.y, {model.x: BATCH})
    z = K.placeholder((None, 2))
    for engine in ("jax", "tensorflow"):
        kernelk.set_backend(engine)
        found[f"{engine} takes"] = np.array_equal(K.eval(z * 2.0, {z: tensor}), tensor.numpy() * 2)
    kernelk.set_backend("jax")
    found["device"] = [device.id for device in K.native(model.y, {model.x: BATCH}).devices()] == [1]
    wanted = Model()
    kernelk.set_backend("numpy")
    for _ in range(steps):
        wanted.step([BATCH])
    found["steps"] = int(model.state()[0]) == steps
    found["close"] = max(float(np.abs(a - b).max()) for a, b in zip(model.state(), wanted.state())) < 1e-5
    return found


def parity(name: str) -> Any:
    """A few cases of each family of the parity suite; its own tests run it in workers."""
    from parity import check, suite

    use(name, in_kernel=True)
    lines: list[str] = []
    count = 0
    for family in suite.FAMILIES:
        # Of edge values some are denormal, which JAX and TensorFlow flush to zero there.
        plain = [case for case in suite.cases(family) if all(x.values != "edges" for x in case.operands)]
        cases = list(check.sampled(plain, 1))
        # Others compile for seconds.
        cases = cases[:: 4 if name == "torch" else 20]
        lines += check.failures(name, cases)
        count += len(cases)
    return {"failures": lines, "cases": count}


def main() -> None:
    """Arguments: the engine, then the cases to run; prints what each returned, as JSON."""
    name, *cases = sys.argv[1:]
    results = {}
    for case in cases:
        begin = time.perf_counter()
        try:
            results[case] = globals()[case](name)
        except Exception:
            results[case] = {"error": traceback.format_exc()}
        results[case]["seconds"] = time.perf_counter() - begin
        K.clear_session()
        gc.collect()
    sys.stdout.flush()
    print("\n" + json.dumps(results, default=str))


if __name__ == "__main__":
    main()
