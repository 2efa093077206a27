"""What Keras 2.3.1 imports and finds changed since 2019: collections, numpy, h5py, PyYAML, marshal, TensorFlow.

Each is a stand-in for Keras's modules alone; nobody else's is touched. A stand-in has what its module has, and beside
that:

- `collections`: the abstract classes that Python 3.10 has moved to `collections.abc`;
- `numpy`: names that have gone since (`Inf`, `NaN`, `alltrue`, `sometrue`, `product`, `string_`, `unicode_`, `float_`,
  `in1d`, `int`, `float`, `bool` and `object`), products of ints that print as ints (`prod`), arrays of lists of
  different lengths, and a `median` that is quick for a few times, which Keras takes twice a batch;
- `h5py`: attributes that were written as bytes are bytes, files are opened for reading and writing by default, and have
  a `fid`;
- `multiprocessing`: a `Pool` whose processes find Keras 2, too, where they are spawned (`pools` enters it);
- `yaml`: `load` without a loader reads plain data;
- `marshal`: a line for another Python's bytecode, which `Lambda` layers in files are;
- `tensorflow`: the few names that Keras's code asks for, on K; it is never imported.

What no stand-in can give, `mend` changes in a module of Keras's itself: files and groups that the user has opened are
read as those that Keras opens; equal names of weights are numbered as the bytes that they are; a weight that is listed
twice, such as one that two layers share, is updated once; and the wrappers for scikit-learn tell it what they are.
"""

from __future__ import annotations

import collections
import collections.abc
import functools
import importlib
import marshal
import statistics
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import backend as K
from ..errors import AbsentError, ArgumentError
from . import cudnn_rnn


class StandIn(types.ModuleType):
    """A module with some names of its own; all others are those of `module`."""

    def __init__(self, name: str, module: Any, **own: Any) -> None:
        super().__init__(name)
        vars(self).update(own, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_module"], name)


def _collections() -> StandIn:
    moved = {name: getattr(collections.abc, name) for name in collections.abc.__all__}
    return StandIn("collections", collections, **moved)


def _prod(*args: Any, **options: Any) -> Any:
    result = np.prod(*args, **options)
    # Keras makes shapes of it, which it shows: numpy 2 would print np.int64(512).
    return int(result) if isinstance(result, np.integer) else result


def _median(values: Any, *args: Any, **options: Any) -> Any:
    # The times of a model's last batches: numpy takes as long for them as an engine for a small step.
    return statistics.median(values) if isinstance(values, collections.deque) else np.median(values, *args, **options)


def _numpy() -> StandIn:
    dropped = {"Inf": np.inf, "NaN": np.nan, "alltrue": np.all, "sometrue": np.any, "prod": _prod, "product": _prod}
    dropped |= {"median": _median}
    dropped |= {"string_": np.bytes_, "unicode_": np.str_, "float_": np.float64, "in1d": np.isin}
    dropped |= {"int": int, "float": float, "bool": bool, "object": object}
    dropped |= {"array": _of_lists(np.array), "asarray": _of_lists(np.asarray)}
    return StandIn("numpy", np, **dropped)


def _of_lists(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def call(value: Any, *args: Any, **options: Any) -> Any:
        try:
            return make(value, *args, **options)
        except ValueError:
            if args or options or not isinstance(value, (list, tuple)):
                raise
            # Lists of different lengths, such as the sentences of a data set.
            return make(value, dtype=object)

    return call


def _h5py() -> StandIn:
    h5py: Any = importlib.import_module("h5py")

    class Attributes(h5py.AttributeManager):  # type: ignore[misc]
        def __getitem__(self, name: Any) -> Any:
            value = super().__getitem__(name)
            if isinstance(value, str) and self.get_id(name).get_type().get_cset() == h5py.h5t.CSET_UTF8:
                return _Text(value)
            return _as_bytes(value)

    class Old:
        """A group whose attributes, and those of the groups in it, are read as bytes."""

        attrs = property(lambda self: Attributes(self))

        def __getitem__(self, name: Any) -> Any:
            return _old(super().__getitem__(name))  # type: ignore[misc]

        def create_group(self, name: Any, *args: Any, **options: Any) -> Any:
            return _old(super().create_group(name, *args, **options))  # type: ignore[misc]

    class Group(Old, h5py.Group):  # type: ignore[misc]
        """A group in a file."""

    def _old(found: Any) -> Any:
        if not isinstance(found, h5py.Group) or isinstance(found, Old):
            return found
        return Group(found["/"].id if isinstance(found, h5py.File) else found.id)

    class File(Old, h5py.File):  # type: ignore[misc]
        """A file, open for reading and writing unless `mode` says otherwise."""

        def __init__(self, name: Any, mode: str = "a", **options: Any) -> None:
            super().__init__(name, mode, **options)

        @property
        def fid(self) -> Any:
            return self.id

    return StandIn("h5py", h5py, File=File, old=_old)


class _Text(str):
    """An attribute that was written as text, and is decoded where Keras expects what it writes itself, bytes."""

    def decode(self, encoding: str = "utf-8") -> str:
        return str(self)


def _as_bytes(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8")
    if isinstance(value, np.ndarray) and value.dtype == object:
        return np.array([_as_bytes(part) for part in value.ravel()]).reshape(value.shape)
    return value


def _yaml() -> StandIn:
    yaml: Any = importlib.import_module("yaml")

    def load(stream: Any, Loader: Any = yaml.SafeLoader) -> Any:
        return yaml.load(stream, Loader=Loader)

    return StandIn("yaml", yaml, load=load)


def _marshal() -> StandIn:
    def loads(data: bytes) -> types.CodeType:
        try:
            code = marshal.loads(data)
        except (EOFError, TypeError, ValueError):
            code = None
        if isinstance(code, types.CodeType):
            return code
        raise ArgumentError(
            "the function of a Lambda layer in this file is bytecode of another Python, which this one can't run",
            next_step="keras.models.load_model(path, custom_objects={'Lambda': lambda name, **rest: "
            "keras.layers.Lambda(f, name=name)}) with the function written again as f",
        )

    return StandIn("marshal", marshal, loads=loads)


class _Never:
    """A class of TensorFlow's of which there is no instance here."""


def _top_k(x: Any, k: int = 1, sorted: bool = True) -> tuple[Any, Any]:
    """The k greatest values along the last axis, greatest first, and their indices; of equals the first ones."""
    count = x.shape[-1]
    # With -inf only for what has been taken, no index comes twice.
    left = K.maximum(x, float(np.finfo(K.dtype(x)).min))
    values, indices = [], []
    for _ in range(k):
        indices.append(K.argmax(left, axis=-1))
        here = K.equal(K.one_hot(indices[-1], count), 1.0)
        values.append(K.sum(K.switch(here, x, K.zeros_like(x)), axis=-1))
        left = K.switch(here, K.ones_like(x) * -np.inf, left)
    return K.stack(values, axis=-1), K.stack(indices, axis=-1)


class _TensorFlow(types.ModuleType):
    """TensorFlow as far as Keras's own code uses it, on K."""

    __version__ = "1.15.5"
    Tensor = IndexedSlices = _Never
    bool = "bool"
    cast = staticmethod(lambda x, dtype: K.cast(x, dtype))
    cond = staticmethod(lambda condition, yes, no: K.switch(condition, yes, no))
    scalar_mul = staticmethod(lambda scalar, x: scalar * x)
    zeros = staticmethod(lambda shape: K.constant(0.0, shape=shape))
    reshape = staticmethod(lambda x, shape: K.reshape(x, shape))
    transpose = staticmethod(lambda x, perm: K.permute_dimensions(x, perm))
    expand_dims = staticmethod(lambda x, axis: K.expand_dims(x, axis))
    concat = staticmethod(lambda values, axis: K.concatenate(values, axis))

    class nn:
        top_k = staticmethod(_top_k)

    class train:
        Optimizer = _Never

    class compat:
        class v1:
            class train:
                Optimizer = _Never

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AbsentError(
            f"Keras 2.3.1 uses TensorFlow's own '{name}' here, which K hasn't",
            next_step="use a layer, metric or callback that any backend can run",
        )


class _CuDNN:
    """What Keras's CuDNN layers import."""

    cudnn_rnn_ops = cudnn_rnn


def _io_utils(module: Any) -> None:
    module.H5Dict.__init__ = _taking_open_files(module.H5Dict.__init__)


def _saving(module: Any) -> None:
    module._uniquify = _uniquify
    for name in _LOADERS:
        setattr(module, name, _taking_open_files(getattr(module, name)))


# Packages give these a file that they have opened.
_LOADERS = (
    "load_attributes_from_hdf5_group",
    "load_weights_from_hdf5_group",
    "load_weights_from_hdf5_group_by_name",
)


def _taking_open_files(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        old = stand_in("h5py").old
        return function(*map(old, args), **{name: old(value) for name, value in options.items()})

    return call


def _uniquify(names: Sequence[bytes]) -> list[bytes]:
    found: list[bytes] = []
    for name in names:
        number, unique = 2, name
        while unique in found:
            unique = b"%s_%d" % (name, number)
            number += 1
        found.append(unique)
    return found


def _training(module: Any) -> None:
    module.Model._make_train_function = _training_each_once(module.Model._make_train_function)


def _training_each_once(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(model: Any) -> Any:
        optimizer = getattr(model, "optimizer", None)
        listed = getattr(model, "_collected_trainable_weights", [])
        if optimizer is None or len(set(listed)) == len(listed):
            return function(model)
        get_updates, own = optimizer.get_updates, "get_updates" in vars(optimizer)
        optimizer.get_updates = lambda loss, params: get_updates(loss=loss, params=list(dict.fromkeys(params)))
        try:
            return function(model)
        finally:
            if own:
                optimizer.get_updates = get_updates
            else:
                del optimizer.get_updates

    return call


def _scikit_learn(module: Any) -> None:
    def tags(self: Any) -> Any:
        base: Any = importlib.import_module("sklearn.base")
        kind = base.ClassifierMixin if isinstance(self, module.KerasClassifier) else base.RegressorMixin
        return type("Estimator", (kind, base.BaseEstimator), {})().__sklearn_tags__()

    module.BaseWrapper.__sklearn_tags__ = tags
    module.BaseWrapper.__sklearn_is_fitted__ = lambda self: hasattr(self, "model")


_MENDED = {
    "keras.utils.io_utils": _io_utils,
    "keras.engine.saving": _saving,
    "keras.engine.training": _training,
    "keras.wrappers.scikit_learn": _scikit_learn,
}


def mend(module: types.ModuleType) -> None:
    """Changes what a module of Keras's has that no stand-in can: called once it has been run."""
    change = _MENDED.get(module.__name__)
    if change is not None:
        change(module)


STAND_INS: dict[str, Callable[[], Any]] = {
    "collections": _collections,
    "numpy": _numpy,
    "h5py": _h5py,
    "yaml": _yaml,
    "marshal": _marshal,
    "tensorflow": lambda: _TensorFlow("tensorflow"),
}
_MADE: dict[str, Any] = {}


def stand_in(name: str, fromlist: Sequence[str] = ()) -> Any:
    """The stand-in for a module, as an import statement gets it. Raises ImportError where that can't be imported.

    `from numpy.testing import ...` gets the module below as it is; `import numpy.testing` gets the stand-in above it.
    """
    top = name.partition(".")[0]
    if top not in _MADE:
        _MADE[top] = STAND_INS[top]()
    if name == "tensorflow.contrib.cudnn_rnn.python.ops":
        return _CuDNN
    if name.startswith("tensorflow.contrib.tensorboard"):
        raise AbsentError(
            "TensorBoard is TensorFlow 1's own and not here",
            next_step="leave the callback out; %kpanel draws the loss, and CSVLogger('log.csv') keeps it",
        )
    if top == "tensorflow" and name != top:
        raise ImportError(f"Keras 2.3.1 runs on kernelk, without {name}", name=name)
    if name != top:
        below = importlib.import_module(name)
        if fromlist:
            return below
    return _MADE[top]
