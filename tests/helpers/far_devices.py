"""PyTorch's and JAX's backends as on a GPU, with the processor's memory in its place. Needs no pytest."""

from __future__ import annotations

from typing import Any

import numpy as np


class Counted:
    """What a GPU was told: `waits`, and the addresses whose pages were locked and unlocked, in order."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.waits = 0
        self.pages: list[tuple[str, int]] = []
        self.refuses = False

    def lock(self, address: int, size: int) -> None:
        if self.refuses:
            raise RuntimeError("out of pages")
        self.pages.append(("lock", address))

    def unlock(self, address: int) -> bool:
        self.pages.append(("unlock", address))
        return not self.refuses


def far_torch(counted: Counted) -> Any:
    """The class of PyTorch's backend whose values lie on such a device."""
    from kernelk.backends.torch import gpu
    from kernelk.backends.torch.backend import TorchBackend, shared

    class Mark:
        def synchronize(self) -> None:
            counted.waits += 1

    class Gpu(gpu.Gpu):
        def wait(self) -> None:
            counted.waits += 1

        def locked(self, nbytes: int) -> Any:
            return gpu.torch.empty(nbytes, dtype=gpu.torch.uint8)

        def mark(self) -> Any:
            return Mark()

    class FarTorch(TorchBackend):
        def _use(self, _: Any) -> None:
            far = Gpu(self._native_device, shared)
            far.locks._lock, far.locks._unlock = counted.lock, counted.unlock
            super()._use(far)

    return FarTorch


def far_jax(counted: Counted) -> Any:
    """Likewise JAX's."""
    from kernelk.backends.jax import gpu
    from kernelk.backends.jax.backend import JaxBackend

    class FarJax(JaxBackend):
        def _use(self, _: Any) -> None:
            make, block = self._make, self._block

            def counted_block(values: Any) -> None:
                counted.waits += 1
                block(values)

            # XLA shares the memory of an array; a GPU can't.
            self._make = lambda array: make(np.array(array))
            far = gpu.Gpu(self._native_device, self._make, counted_block)
            far.locks._lock, far.locks._unlock = counted.lock, counted.unlock
            super()._use(far)

    return FarJax


FAR = {"torch": far_torch, "jax": far_jax}
