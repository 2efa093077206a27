"""Numbers the variables of one name that a layer makes, as TensorFlow did: a file of its weights needs their names."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from .. import backend as K
from ..graph.nodes import Variable


class _Outermost(threading.local):
    """The names in the outermost scope that a thread has opened, which is a layer's. A layer made anew begins anew."""

    names: set[str] | None = None


_OUTERMOST = _Outermost()


@contextlib.contextmanager
@functools.wraps(K.name_scope)
def name_scope(name: str | None) -> Iterator[str]:
    outermost = _OUTERMOST.names is None
    if outermost:
        _OUTERMOST.names = set()
    try:
        with K.name_scope(name) as prefix:
            yield prefix
    finally:
        if outermost:
            _OUTERMOST.names = None


def numbered(make: Callable[..., Any]) -> Callable[..., Any]:
    """A function that makes variables, which numbers them."""

    @functools.wraps(make)
    def call(*args: Any, **options: Any) -> Any:
        made = make(*args, **options)
        names = _OUTERMOST.names
        if names is not None and isinstance(made, Variable):
            name, number = made.name, 0
            while made.name in names:
                number += 1
                made.name = f"{name}_{number}"
            names.add(made.name)
        return made

    return call
