"""PyTorch's settings for its products of float32: set once in a worker, around kernelk's programs in the kernel.

They are the process's, and nothing that can be said in a call: what they were is put back.
"""

# Set by `hand_over` when the first backend starts.
torch = None


class Setting(object):
    """One setting: what it is to be, and whether it is as good as that already."""

    def __init__(self, wanted, equal, read, write, own=None):
        self.wanted = wanted
        self._equal = frozenset((wanted,) + equal)
        self._read = read
        self._write = write
        self._own = own or read

    def holds(self):
        return self._read() in self._equal

    def own(self):
        """The user's value, to be put back by `set`."""
        return self._own()

    def set(self, value):
        self._write(value)


def settings(on_cpu, narrow):
    """The settings by which float32 is multiplied as it is, or in TensorFloat-32 where that is `narrow` enough."""
    if not hasattr(torch._C, "_get_fp32_precision_getter"):
        # Before PyTorch 2.9
        matmul = Setting(
            "high" if narrow else "highest",
            (),
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        )
        if on_cpu:
            return [matmul]
        return [matmul, Setting(narrow, (), torch._C._get_cudnn_allow_tf32, torch._C._set_cudnn_allow_tf32)]
    library = "mkldnn" if on_cpu else "cuda"
    return [_of_one_op(library, op, narrow) for op in ("matmul", "conv")]


def _of_one_op(library, op, narrow):
    get, put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
    return Setting(
        "tf32" if narrow else "ieee",
        () if narrow else ("none",),
        lambda: get(library, op),
        lambda value: put(library, op, value),
        lambda: _own(library, op),
    )


def _own(library, op):
    """What was set for this op itself: PyTorch shows what it takes from the library's setting, or from that of all."""
    get, put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
    shown = get(library, op)
    above = ("generic", "all") if op == "all" else (library, "all")
    if library == "generic" or shown != get(*above):
        return shown
    before, other = _own(*above), "ieee" if shown != "ieee" else "tf32"
    try:
        put(above[0], above[1], other)
        return "none" if get(library, op) == other else shown
    finally:
        put(above[0], above[1], before)
