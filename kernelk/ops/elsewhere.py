"""What users of numpy, TensorFlow 1 and Keras look for on tensors and on K, and what there is instead.

Entered into Tensor here: numpy's functions of two operands, `a @ b`'s among them, and errors for all else.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

from ..errors import AbsentError, ArgumentError
from ..graph.nodes import Tensor
from ..source import FRAMEWORKS
from .linear import matrix_product
from .operators import binary, divide

# numpy's functions that are operators of tensors, too: `array + tensor` calls the first of them.
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    **{
        name: partial(binary, op)
        for name, op in {
            "add": "add",
            "subtract": "subtract",
            "multiply": "multiply",
            "floor_divide": "floor_divide",
            "remainder": "mod",
            "power": "power",
            "bitwise_and": "logical_and",
            "bitwise_or": "logical_or",
            "less": "less",
            "less_equal": "less_equal",
        }.items()
    },
    "greater": lambda a, b: binary("less", b, a),
    "greater_equal": lambda a, b: binary("less_equal", b, a),
    "divide": divide,
    "matmul": matrix_product,
    # As `==` and `!=` are: by identity.
    "equal": lambda a, b: a is b,
    "not_equal": lambda a, b: a is not b,
}

# numpy's functions by the names that they have in K; reductions are methods of functions of two operands.
_IN_K = {
    **{name: name for name in ("exp", "log", "sqrt", "square", "sin", "cos", "tanh", "sign", "maximum", "minimum")},
    "absolute": "abs",
    "rint": "round",
    "equal": "equal",
    "not_equal": "not_equal",
}
_REDUCTIONS = {"add": "sum", "multiply": "prod", "maximum": "max", "minimum": "min", "logical_and": "all"}
_REDUCTIONS["logical_or"] = "any"


def _of_numpy(self: Tensor, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
    """Called by numpy for its functions of arrays where an operand is a tensor. Raises ArgumentError."""
    name = ufunc.__name__
    if options.get("out") is not None:
        raise ArgumentError(
            f"np.{name}: an array can't be changed in place by the tensor '{self.name}'", next_step="a = a + x"
        )
    if method == "__call__" and not options and name in _OPERATORS and len(inputs) == 2:
        return _OPERATORS[name](*inputs)
    found = _REDUCTIONS.get(name) if method == "reduce" else _IN_K.get(name) if method == "__call__" else None
    shown = f"np.{found if method == 'reduce' and found else name}"
    raise ArgumentError(
        f"{shown} takes arrays, and '{self.name}' is a tensor",
        next_step=f"K.{found}(x)" if found else "K.eval(x), for its value",
    )


_WRAPPER = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
# TensorFlow's names of functions that have others in K.
_IN_TENSORFLOW = {"concat": "concatenate", "matmul": "dot", "transpose": "permute_dimensions", "where": "switch"}


def _as_array(self: Tensor, dtype: Any = None, copy: bool | None = None) -> NoReturn:
    """Called where an array is needed, also by functions of numpy and other libraries. Raises ArgumentError."""
    frame, library, called = sys._getframe(1), "", ""
    while frame is not None:
        root = str(frame.f_globals.get("__name__")).partition(".")[0]
        if root not in FRAMEWORKS or root != (library or root):
            break
        library = root
        # What takes any arguments wraps what was called.
        if frame.f_code.co_flags & _WRAPPER != _WRAPPER:
            called = frame.f_code.co_name
        frame = frame.f_back  # type: ignore[assignment]
    if not called:
        raise self._no_value("the array")
    # TensorFlow 2 has put its number behind the names of functions that it has changed.
    called = re.sub(r"_v\d$", "", called)
    found = _IN_TENSORFLOW.get(called, called.removeprefix("reduce_"))
    known = not found.startswith("_") and hasattr(import_module("kernelk.backend"), found)
    raise ArgumentError(
        f"{library}'s {called} can't compute with the symbolic tensor '{self.name}'",
        next_step=f"use K.{found}" if known else "use functions of K, or K.eval(tensor) for its value",
    )


# Attributes of arrays, and of other libraries' tensors and variables -> what to write instead.
_ON_TENSORS = {
    "T": "K.transpose(x)",
    "all": "K.all(x)",
    "any": "K.any(x)",
    "argmax": "K.argmax(x)",
    "argmin": "K.argmin(x)",
    "assign": "K.set_value(w, array), or K.update(w, tensor)",
    "assign_add": "K.update_add(w, increment)",
    "assign_sub": "K.update_sub(w, decrement)",
    "astype": "K.cast(x, 'float32')",
    "backward": "K.gradients(loss, [w])",
    "copy": "K.identity(x)",
    "cumsum": "K.cumsum(x)",
    "detach": "K.stop_gradient(x)",
    "dot": "K.dot(x, y)",
    "flatten": "K.flatten(x)",
    "get_value": "K.get_value(w)",
    "grad": "K.gradients(loss, [w])",
    "item": "K.eval(x).item()",
    "load": "K.set_value(w, array)",
    "max": "K.max(x)",
    "mean": "K.mean(x)",
    "min": "K.min(x)",
    "numpy": "K.eval(x)",
    "prod": "K.prod(x)",
    "read_value": "the variable itself",
    "reshape": "K.reshape(x, shape)",
    "run": "K.function([x], [y])",
    "set_shape": "K.reshape(x, shape)",
    "set_value": "K.set_value(w, array)",
    "size": "K.size(x), or K.count_params(w)",
    "squeeze": "K.squeeze(x, axis)",
    "std": "K.std(x)",
    "sum": "K.sum(x)",
    "tolist": "K.eval(x).tolist()",
    "transpose": "K.transpose(x)",
    "var": "K.var(x)",
}


def _absent(self: Tensor, name: str) -> NoReturn:
    kind = type(self).__name__
    if name in _ON_TENSORS:
        raise AbsentError(f"a {kind} has no attribute '{name}'", next_step=_ON_TENSORS[name])
    raise AttributeError(f"'{kind}' object has no attribute '{name}'")


def _formatted(self: Tensor, spec: str) -> str:
    if not spec:
        return repr(self)
    raise ArgumentError(
        f"the tensor '{self.name}' has no value to be written as '{spec}'", next_step=f"f'{{K.eval(x):{spec}}}'"
    )


def _set_item(self: Tensor, key: Any, value: Any) -> NoReturn:
    raise ArgumentError(
        f"an element of '{self.name}' can't be set",
        next_step="K.set_value(w, array) sets all of a variable, K.update(w, tensor) in a call",
    )


# Names that only one engine's backend had, or that Keras had before 2.3 -> what they are, and what to write instead.
_ON_K = {
    "get_session": (
        "there are no TensorFlow sessions",
        "K.get_value(w), K.eval(y) or K.function([x], [y])",
    ),
    "set_session": (
        "there are no TensorFlow sessions",
        "kernelk.set_backend('tensorflow', threads=2), for its settings",
    ),
    "tf": ("it is TensorFlow's own module, and this code runs on any engine", "K's functions, or import tensorflow"),
    "tf_ops": ("it is TensorFlow's own module, and this code runs on any engine", "K's functions"),
    "theano": ("it is Theano's own module, and this code runs on any engine", "K's functions"),
    "T": ("it is Theano's own module, and this code runs on any engine", "K's functions"),
    "C": ("it is CNTK's own module, and this code runs on any engine", "K's functions"),
    "image_dim_ordering": ("Keras 2 has another name for it", "K.image_data_format()"),
    "set_image_dim_ordering": ("Keras 2 has another name for it", "K.set_image_data_format('channels_first')"),
}


def absent_from_k(name: str) -> AttributeError:
    """The error for a name that K doesn't have."""
    if name in _ON_K:
        reason, next_step = _ON_K[name]
        return AbsentError(f"K has no '{name}': {reason}", next_step=next_step)
    return AttributeError(f"module 'kernelk.backend' has no attribute '{name}'")


for _name, _method in {
    "__array__": _as_array,
    "__array_ufunc__": _of_numpy,
    "__getattr__": _absent,
    "__format__": _formatted,
    "__setitem__": _set_item,
}.items():
    setattr(Tensor, _name, _method)
