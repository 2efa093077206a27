"""`K.native`: a value as the engine's own tensor, where the engine runs in the notebook's own process."""

from __future__ import annotations

from typing import Any

from ..engines import registry
from ..engines.local_host import LocalHost
from ..errors import ArgumentError
from ..graph.nodes import Tensor, Update
from ..ops.dtypes import as_tensor
from ..twins import as_usable
from .current import current
from .function import Function, evaluate


def native(x: Any, feeds: dict[Tensor, Any] | None = None) -> Any:
    """The value of a tensor or variable as the active engine's own: a `torch.Tensor`, `jax.Array` or `tf.Tensor`.

    Only where the engine runs in the notebook's own process (`%kbackend torch --in-kernel`); on numpy, an ndarray.
    `feeds` maps placeholders to arrays or tensors. An update is performed, and its variable's new value returned.
    The tensor is the caller's alone, to keep and to write to: a computed value is handed out without a copy, one
    that kernelk keeps using (a variable's value, a constant, a feed, or a view of one) is copied.
    Raises ArgumentError for an engine in a worker, and the errors of `K.eval`.
    """
    tensor = as_tensor(x)
    session = current()
    with session.lock:
        host = session.host()
        if not isinstance(host, LocalHost):
            allowed = registry.names_where(lambda engine: engine.in_kernel_too)
            name = host.engine.base if host.engine.base in allowed or host.engine.in_kernel else "torch"
            raise ArgumentError(
                f"K.native: {host.engine.title} runs in a worker, which its tensors can't leave",
                allowed=f"allowed are engines in the notebook's own process ({', '.join(allowed)})",
                next_step=as_usable(f"%kbackend {name} --in-kernel"),
            )
        if isinstance(tensor, Update):
            evaluate(tensor, feeds)
            tensor, feeds = tensor.inputs[0], None
        feeds = feeds or {}
        with host.handing_out():
            return Function(list(feeds), [tensor], live=False)(list(feeds.values()))[0]
