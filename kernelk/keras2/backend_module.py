"""`keras.backend`: kernelk's K, and what Keras 2.3.1 has there beside it."""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from .. import backend as K
from .. import config
from ..graph.nodes import Tensor
from ..ops.elsewhere import absent_from_k
from ..ops.gradients import gradients_or_none
from ..session.function import Function
from . import variable_names

# What Keras's own code is told, whichever engine is active: it asks in some 25 places, and would flip kernels in a file
# that is saved or loaded while Theano is active.
CONSTANT = "tensorflow"
_MAKE_VARIABLES = ("variable", "zeros", "ones", "eye", "random_uniform_variable", "random_normal_variable")
_INSTALLED = ("/site-packages/", "/dist-packages/")


def _absent(name: str) -> Any:
    """A function that says what there is instead, once it is called."""

    def call(*args: Any, **options: Any) -> NoReturn:
        raise absent_from_k(name)

    return call


def _scalar(value: Any) -> Any:
    return value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value


def _with_scalars(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose numbers are numpy's scalars as in TensorFlow: what is in a history can be rounded."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        found = function(*args, **options)
        return [_scalar(value) for value in found] if isinstance(found, list) else _scalar(found)

    return call


@functools.wraps(K.function)
def _function(inputs: Any, outputs: Any, updates: Any = None, **options: Any) -> Function:
    made = K.function(inputs, outputs, updates, **options)
    made.scalars = True
    return made


class KerasBackend(types.ModuleType):
    """The module `keras.backend`, or one of its parts that had a single engine."""

    def __init__(self, name: str, folder: str) -> None:
        super().__init__(name, K.__doc__)
        self.__dict__["_folder"] = folder

    def fill(self) -> None:
        """Enters K's functions."""
        own: dict[str, Any] = {name: getattr(K, name) for name in K.__all__}
        own.update({name: variable_names.numbered(own[name]) for name in _MAKE_VARIABLES})
        own.update(
            name_scope=variable_names.name_scope,
            function=_function,
            eval=_with_scalars(K.eval),
            get_value=_with_scalars(K.get_value),
            batch_get_value=_with_scalars(K.batch_get_value),
            __all__=[*K.__all__],
            backend=self._backend_name,
            gradients=self._gradients,
            _is_tf_1=lambda: True,
            _config_path=str(config.path()),
            _get_available_gpus=list,
            # `from keras.backend.tensorflow_backend import set_session` is the first line of many notebooks.
            get_session=_absent("get_session"),
            set_session=_absent("set_session"),
            py_all=all,
            py_any=any,
            py_sum=sum,
            py_slice=slice,
        )
        vars(self).update(own)

    def _backend_name(self) -> str:
        """Keras's and installed packages' code gets "tensorflow", all other code the active engine's name."""
        file = sys._getframe(1).f_code.co_filename
        if self._is_keras(file) or any(part in file for part in _INSTALLED):
            return CONSTANT
        return K.backend()

    @functools.wraps(K.gradients)
    def _gradients(self, loss: Any, variables: Any) -> Sequence[Tensor | None]:
        # Keras's optimizers ask for None, to refuse a weight that they couldn't train.
        if self._is_keras(sys._getframe(1).f_code.co_filename):
            return gradients_or_none(loss, variables)
        return K.gradients(loss, variables)

    def _is_keras(self, file: str) -> bool:
        return file.startswith(vars(self)["_folder"])

    def __getattr__(self, name: str) -> Any:
        if self.__name__ == "keras.backend" and name in ("tensorflow_backend", "theano_backend", "cntk_backend"):
            return importlib.import_module(f"keras.backend.{name}")
        # Names that K hasn't in its list, and the error for those that it hasn't at all.
        return getattr(K, name)
