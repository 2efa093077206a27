"""One command for a machine with a GPU: steps, swaps and copies beside the engine's own, profiles, precisions, draws.

Writes GPU_RESULTS.md. `--device cpu` does the same on the processor, to see that it runs.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import time
from datetime import date
from typing import Any

os.environ.setdefault("KERNELK_QUIET", "1")
# In this process too, an engine takes the memory that it needs and leaves the others some.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

import numpy as np
from measure import HERE, Native, compare, interval, native_environment, repeated
from models import model

import kernelk
from kernelk import backend as K
from kernelk.errors import KernelKError
from kernelk.ops import foreign
from kernelk.session.current import current

ENGINES = ["torch", "jax", "tensorflow"]
# Those that are compared with what is written by hand.
NATIVES = {"torch", "jax"}
STEP_TABLE = "| step | by hand | kernelk | ratio | target | met |\n|---|---|---|---|---|---|"
SWAP_TABLE = "| swap | the engines' own copies | kernelk | ratio | at most | met |\n|---|---|---|---|---|---|"

# Between which bounds the relative error of a product of float32 lies in each precision. The lower one shows that a
# matrix product was made in fewer bits at all; a convolution may be made in more.
ERRORS = {"float32": (0.0, 1e-5), "tf32": (1e-5, 2e-3), "bfloat16": (3e-4, 2e-2)}


def processors() -> dict[str, str]:
    """The processor, as each engine with a baseline calls it."""
    return {engine: "cpu:0" for engine in ENGINES if engine in NATIVES}


def gpus() -> dict[str, str]:
    """The first GPU of each engine that lists one; a line says what the others list."""
    found = {}
    for engine in ENGINES:
        try:
            kernelk.set_backend(engine)
        except KernelKError as error:
            print(f"{engine}: {error}")
            continue
        devices = current().hosts[engine].facts["devices"]
        print(f"{engine} lists {', '.join(devices)}")
        other = [device for device in devices if not device.startswith("cpu")]
        if other:
            found[engine] = other[0]
    return found


class Products:
    """A matrix product and a convolution of float32, and what they are in float64."""

    def __init__(self) -> None:
        draws = np.random.default_rng(0)
        operands = {
            "matrix product": [draws.standard_normal((512, 512)) for _ in range(2)],
            "convolution": [draws.standard_normal((8, 32, 32, 16)), draws.standard_normal((3, 3, 16, 32))],
        }
        kernelk.set_backend("numpy")
        self.tensors, self.truths = {}, {}
        for name, pair in operands.items():
            made = {}
            for dtype in ("float32", "float64"):
                x, y = (K.constant(array.astype("float32"), dtype=dtype) for array in pair)
                made[dtype] = K.dot(x, y) if name == "matrix product" else K.conv2d(x, y, data_format="channels_last")
            self.tensors[name], self.truths[name] = made["float32"], K.eval(made["float64"])

    def check(self, engine: str, device: str) -> tuple[list[str], bool]:
        """The rows of a table, and whether every error lies between its bounds: in a worker, and in this process."""
        rows, passed = [], True
        for in_kernel in (False, True):
            kernelk.set_backend(engine, device=device, in_kernel=in_kernel, precision="float32")
            for precision in current().hosts[engine].facts["precisions"]:
                kernelk.set_backend(engine, precision=precision)
                low, high = ERRORS[precision]
                for name, tensor in self.tensors.items():
                    truth = self.truths[name]
                    error = float(np.linalg.norm(K.eval(tensor) - truth) / np.linalg.norm(truth))
                    fits = error <= high and (error >= low or name == "convolution")
                    passed = passed and fits
                    where = "this process" if in_kernel else "a worker"
                    rows.append(f"| {where} | {precision} | {name} | {error:.1e} | {'yes' if fits else 'NO'} |")
        kernelk.set_backend(engine, in_kernel=False, precision="float32")
        return rows, passed


# The shape of a dropout mask that numpy takes a third of a second for.
DRAWN = (64, 32, 112, 112)


def draws(engine: str, device: str) -> tuple[str, bool]:
    """A line about uniform draws made on the device: the time of one run, and whether they are numpy's bit for bit."""
    noise = K.random_uniform(DRAWN)
    seeds = current().state.seeds
    places = seeds.places()
    kernelk.set_backend("numpy")
    wanted = K.eval(noise)
    times = [kernelk.time(K.max(noise), budget=1)]
    seeds.rewind(places)
    kernelk.set_backend(engine, device=device)
    equal = K.eval(noise).tobytes() == wanted.tobytes()
    times.append(kernelk.time(K.max(noise), budget=1))
    host, there = (statistics.median(result.calls[0].samples) for result in times)
    same = "numpy's bit for bit" if equal else "NOT numpy's"
    return (
        f"{noise.shape} uniform draws and their maximum: {there:.4f} s, on numpy {host:.4f} s; they are {same}\n",
        equal,
    )


# case: (label, calls in a turn, what may be added in seconds, and as a share).
STEPS = {
    "small_step": ("MLP step, 77 kB of state", 20, 150e-6, 0.0),
    "large_step": ("MLP step, 9.7 MB of state", 20, 150e-6, 0.0),
    "lenet32": ("LeNet step, batch 32", 20, 0.0, 0.1),
    "lenet128": ("LeNet step, batch 128", 20, 0.0, 0.1),
    "half_gigabyte": ("MLP step, 535 MB of state", 5, 0.0, 0.05),
}
ROUNDS = 9
# A swap between two GPU engines moves so many MB; it may take so many times what their own copies take.
SWAPPED, SWAP_SHARE = 1024, 2.0
# Copies in and out move so many MB, in so many variables.
MOVED, COUNTS = 1024, (1, 100, 1000)
MOVE_TABLE = "| copies | by hand | kernelk | ratio |\n|---|---|---|---|"
# A feed that lies on the device has so many MB.
FED = 256


def by_hand(engine: str, device: str, case: str) -> Native:
    """The same by hand on the engine's device, in a process of its own."""
    return Native(sys.executable, engine, case, {**native_environment(engine), "KERNELK_DEVICE": device})


def steps(engine: str, device: str) -> list[str]:
    """The rows of a table of training steps, beside the same by hand."""
    rows = []
    for case, (label, calls, seconds, share) in STEPS.items():
        kernelk.set_backend(engine, device=device)
        call, native = model(case), by_hand(engine, device, case)
        try:
            result = compare(repeated(call), native, ROUNDS, calls, 4 * ROUNDS)
        finally:
            native.close()
        times = f"{result.baseline * 1e6:.0f} us | {result.ours * 1e6:.0f} us"
        ratio, low, high = result.ratio
        met = "yes" if result.added[1] <= seconds + share * result.baseline else "**no**"
        target = f"{share:.0%} more" if share else f"{seconds * 1e6:.0f} us more"
        rows.append(f"| {label} | {times} | {ratio:.2f} [{low:.2f}, {high:.2f}] | {target} | {met} |")
        print(rows[-1], flush=True)
    return rows


def moves(engine: str, device: str) -> list[str]:
    """The rows of a table of copies in and out in a worker, beside the same by hand."""
    kernelk.set_backend(engine, device=device)
    rows = []
    for count in COUNTS:
        size = MOVED * 262144 // count
        variables = [K.variable(np.full(size, i, "float32")) for i in range(count)]
        slots = [variable.slots for variable in variables]
        native, host = by_hand(engine, device, f"move{MOVED}x{count}"), current().hosts[engine]
        ours: list[list[float]] = []
        theirs: list[list[float]] = []
        # The first round has all memory mapped, and its pages locked where they can be.
        for _ in range(ROUNDS + 1):
            host.forget(slots)
            start = time.perf_counter()
            host.request({"do": "load", "variables": host.loads(slots), "verify": False})
            there = time.perf_counter()
            host.request({"do": "fetch", "variables": [[one.number, one.reference()] for one in slots]})
            ours.append([there - start, time.perf_counter() - there])
            theirs.append(native(1))
        native.close()
        if not all((one.view() == i).all() for i, one in enumerate(slots)):
            raise RuntimeError(f"{engine} gave other values back")
        for way, name in enumerate(("in", "out")):
            pairs = [(a[way], b[way]) for a, b in zip(ours[1:], theirs[1:])]
            ratio, low, high = interval([a / b for a, b in pairs])
            times = [statistics.median(column) for column in zip(*pairs)]
            rows.append(
                f"| {MOVED} MB in {count} variable{'s' * (count > 1)}, {name} | {times[1]:.3f} s | {times[0]:.3f} s | "
                f"{ratio:.2f} [{low:.2f}, {high:.2f}] |"
            )
            print(rows[-1], flush=True)
        # Before the next ones take as much.
        del variables, slots
    return rows


def on_the_device(engine: str, device: str) -> Any:
    """A tensor of the engine's own on its device."""
    values = np.random.default_rng(0).standard_normal((FED, 262144), dtype="float32")
    if engine == "torch":
        import torch

        return torch.from_numpy(values).to("cpu" if device.startswith("cpu") else device)
    import jax

    kind, _, number = device.partition(":")
    return jax.device_put(values, jax.devices(kind)[int(number or 0)])


def feeds(engine: str, device: str) -> tuple[str, bool]:
    """A line about a feed that lies on the device: how long a call takes with it, and whether it went by the host."""
    kernelk.set_backend(engine, device=device, in_kernel=True)
    x = K.placeholder((None, 262144))
    call = K.function([x], [K.sum(x)])
    tensor = on_the_device(engine, device)
    array = np.asarray(tensor.cpu() if engine == "torch" else tensor)
    times, sums = [], []
    for fed in (tensor, array):
        call([fed])
        samples = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            sums.append(float(call([fed])[0]))
            samples.append(time.perf_counter() - start)
        times.append(statistics.median(samples))
    read: list[Any] = []
    wanted, foreign.as_numpy = foreign.as_numpy, lambda *what: read.append(what) or wanted(*what)
    try:
        call([tensor])
    finally:
        foreign.as_numpy = wanted
    stays = not read and len(set(sums)) == 1
    kernelk.set_backend(engine, device=device, in_kernel=False)
    words = "was fed where it lies" if stays else "was NOT fed where it lies"
    return f"A tensor of {FED} MB on {device} {words}: {times[0]:.4f} s, from numpy {times[1]:.4f} s\n", stays


def swaps(found: dict[str, str]) -> list[str]:
    """The rows of a table of swaps from device to device, beside the engines' own copies of as many bytes."""
    arrays = [np.random.default_rng(i).standard_normal(SWAPPED * 65536 // 4, dtype="float32") for i in range(16)]
    variables = [K.variable(array) for array in arrays]
    change = K.function([], [], [K.update(v, v * -1.0) for v in variables])
    rows = []
    for before, after in itertools.permutations(found, 2):
        seconds, copies = [], []
        natives = [by_hand(engine, found[engine], f"load{SWAPPED}") for engine in (before, after)]
        for _ in range(ROUNDS):
            kernelk.set_backend(before, device=found[before])
            change([])
            start = time.perf_counter()
            kernelk.set_backend(after, device=found[after])
            seconds.append(time.perf_counter() - start)
            # Each loads them and reads them back: one way of each is needed.
            copies.append(sum(native(1)[0] for native in natives) / 2)
        for native in natives:
            native.close()
        ratio, low, high = interval([a / b for a, b in zip(seconds, copies)])
        met = "yes" if low <= SWAP_SHARE else "**no**"
        times = f"{statistics.median(copies):.2f} s | {statistics.median(seconds):.2f} s"
        rows.append(f"| {before} to {after} | {times} | {ratio:.2f} [{low:.2f}, {high:.2f}] | {SWAP_SHARE} | {met} |")
        print(rows[-1], flush=True)
    return rows


def main() -> int:
    """Runs the check; 0 where it has passed, or where there is no GPU."""
    found = processors() if sys.argv[1:] == ["--device", "cpu"] else gpus()
    if not found:
        print("no GPU: nothing was checked, and GPU_RESULTS.md is as it was")
        return 0
    parts = ["# On a GPU\n", f"Made by `python benchmarks/gpu_check.py`, {date.today()}.\n"]
    kernelk.set_backend("numpy")
    step = model("lenet32")
    losses = [float(np.asarray(step()).reshape(-1)[0])]
    products, precise, drawn, stay, told = Products(), True, True, True, True
    for engine, device in found.items():
        report = kernelk.set_backend(engine, device=device)
        losses.append(float(np.asarray(step()).reshape(-1)[0]))
        profile = kernelk.profile(step, budget=10)
        parts += [f"## {engine} on {device}\n", f"```\n{report}\n```\n", f"```\n{profile}\n```\n"]
        rows, passed = products.check(engine, device)
        precise = precise and passed
        table = ["| in | precision | what | relative error | as it should be |", "|---|---|---|---|---|", *rows]
        parts.append("\n".join(table) + "\n")
        if engine in NATIVES:
            told = told and (profile.by_device or device.startswith("cpu"))
            parts.append("\n".join([STEP_TABLE, *steps(engine, device)]) + "\n")
        line, equal = draws(engine, device)
        drawn = drawn and equal
        parts.append(line)
        if engine in NATIVES:
            line, stays = feeds(engine, device)
            stay = stay and stays
            parts.append(line)
    both = {engine: device for engine, device in found.items() if engine in NATIVES}
    if len(both) > 1:
        parts += [f"## Swaps of {SWAPPED} MB\n", "\n".join([SWAP_TABLE, *swaps(both)]) + "\n"]
    if both:
        tables = [f"### {engine}\n\n{MOVE_TABLE}\n" + "\n".join(moves(engine, both[engine])) + "\n" for engine in both]
        parts += [f"## Copies of {MOVED} MB\n", *tables]
    square = K.variable(np.random.default_rng(0).standard_normal((2048, 2048)))
    result = kernelk.compare(K.dot(square, square), *found, "numpy", budget=20)
    parts += ["## A matrix product of 2048, with numpy on the processor\n", f"```\n{result}\n```\n"]
    (HERE / "GPU_RESULTS.md").write_text("\n".join(parts), encoding="utf-8")
    print("\n".join(parts))
    going_on = all(a > b for a, b in itertools.pairwise(losses))
    print(f"the loss goes on across the swaps: {losses}" if going_on else f"the loss does not go on: {losses}")
    print("every precision is what it says" if precise else "a precision is not what it says: see the tables above")
    print("feeds stay on the device" if stay else "a feed went by the host: see above")
    print("each op has its time on the device" if told else "a profiler didn't tell of the device: see the profiles")
    return 0 if going_on and precise and drawn and stay and told and result.equal and result.comparable else 1


if __name__ == "__main__":
    sys.exit(main())
