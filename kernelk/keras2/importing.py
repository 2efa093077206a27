"""Finds Keras 2's modules in their folder, without `sys.path`, and gives them what they expect of the year 2019."""

from __future__ import annotations

import builtins
import importlib.machinery
import importlib.util
import types
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any

from ..errors import joined
from ..twins import as_usable
from . import backend_module, old_modules

PACKAGES = ("keras", "keras_applications", "keras_preprocessing")
# Keras's modules that each had one engine in it, or chose between them. All are kernelk's K.
BACKENDS = frozenset(
    f"keras.backend{name}"
    for name in ("", ".common", ".load_backend", ".tensorflow_backend", ".theano_backend", ".cntk_backend")
)


class Finder(MetaPathFinder):
    """Finds Keras 2.3.1 in `folder`, before any other Keras."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's spec; None for what is no part of Keras 2. Raises ModuleNotFoundError for another Keras's."""
        if fullname == "tensorflow.keras":
            # It is the installed Keras 3, which can't be imported now.
            raise _absent(fullname)
        if fullname.partition(".")[0] not in PACKAGES:
            return None
        if fullname in BACKENDS:
            return ModuleSpec(fullname, _BackendLoader(self.folder), is_package=fullname == "keras.backend")
        place = self.folder.joinpath(*fullname.split("."))
        if (place / "__init__.py").is_file():
            file, inside = place / "__init__.py", [str(place)]
        elif place.with_suffix(".py").is_file():
            file, inside = place.with_suffix(".py"), None
        else:
            raise _absent(fullname)
        loader = _Loader(fullname, str(file))
        return importlib.util.spec_from_file_location(fullname, file, loader=loader, submodule_search_locations=inside)


def _absent(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        joined(
            f"Keras 2.3.1, which is enabled ({as_usable('%kbackend --keras2')}), has no module '{name}'",
            next_step=as_usable("restart the kernel for tf.keras or Keras 3, or give %kbackend --keras3-back")
            + " first",
        ),
        name=name,
    )


class _BackendLoader(Loader):
    """Makes `keras.backend` and its parts: modules with kernelk's K in them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return backend_module.KerasBackend(spec.name, str(self._folder))

    def exec_module(self, module: types.ModuleType) -> None:
        assert isinstance(module, backend_module.KerasBackend)
        module.fill()


class _Loader(SourceFileLoader):
    """Runs a module of Keras's whose own imports, at any time, give it old_modules' in place of some."""

    def get_code(self, fullname: str) -> types.CodeType | None:
        """The code, without the warnings that newer Pythons have about it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return super().get_code(fullname)

    def exec_module(self, module: types.ModuleType) -> None:
        # The functions of a module look for `__import__` here, too.
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _import}
        super().exec_module(module)
        old_modules.mend(module)


def _import(
    name: str,
    globals: dict[str, Any] | None = None,
    locals: dict[str, Any] | None = None,
    fromlist: Sequence[str] = (),
    level: int = 0,
) -> Any:
    if level == 0 and name.partition(".")[0] in old_modules.STAND_INS:
        return old_modules.stand_in(name, fromlist)
    return builtins.__import__(name, globals, locals, fromlist, level)
