"""Keras 2.3.1, unedited, with kernelk as its backend: `import keras` gives it after `enable_keras2()`.

`environments.keras2` fetches its files into a folder of kernelk's own, and `importing` finds them there. They, and who
uses them, get `backend_module` as `keras.backend`; they alone get `old_modules` for modules that have changed since.
"""

from __future__ import annotations

import importlib.util
import os
import sys

from ..display import messages
from ..environments.keras2 import VERSION, install
from ..errors import ArgumentError, BackendNotInstalledError
from ..session.targets import register
from ..source import LIBRARIES
from ..twins import as_typed
from . import (
    models,
    pools,  # noqa: F401  (enters its stand-in)
)
from .importing import PACKAGES, Finder


def enable_keras2() -> None:
    """Makes `import keras` give Keras 2.3.1 on kernelk, in this process; installs it first where it isn't yet.

    `from keras import backend as K` is kernelk's K. An installed Keras 3 stays as it is, and comes back with
    `disable_keras2`. Raises ArgumentError if another Keras is imported already, BackendNotInstalledError if a package
    that Keras 2 needs is missing, and InstallError if Keras itself can't be fetched; nothing has changed then.
    """
    if _finder() is not None:
        return
    there = next((name for name in PACKAGES if name in sys.modules), None)
    if there is not None:
        version = getattr(sys.modules[there], "__version__", "")
        raise ArgumentError(
            f"{there} {version}".strip() + " is imported already, and Keras 2.3.1 can't take its place",
            next_step=as_typed("restart the kernel, and run %kbackend --keras2")
            + " before anything imports Keras or tf.keras",
        )
    missing = [name for name in ("six", "scipy", "h5py", "yaml") if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendNotInstalledError(
            f"Keras {VERSION} needs {', '.join(missing)}", next_step="%pip install 'kernelk[keras2]'"
        )
    folder = install()
    sys.meta_path.insert(0, Finder(folder))
    register(models)
    inside = os.path.join(folder, "")
    if inside not in LIBRARIES:
        LIBRARIES.append(inside)
    back = as_typed("--keras3-back", "kernelk.disable_keras2()")
    messages.say(f"import keras gives Keras {VERSION} on kernelk (an installed Keras comes back with {back})")


def disable_keras2() -> None:
    """Undoes `enable_keras2`: `import keras` gives whatever is installed.

    Models made with Keras 2 go on working as far as Keras 2 imports nothing more: save them before.
    """
    finder = _finder()
    if finder is None:
        return
    sys.meta_path.remove(finder)
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]


def _finder() -> Finder | None:
    return next((finder for finder in sys.meta_path if isinstance(finder, Finder)), None)
