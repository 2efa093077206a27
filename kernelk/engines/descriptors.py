"""Describes the engines that come with kernelk, for the registry: where each runs and what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..backends.choosing import FLOAT32, PRECISIONS
from ..display.commands import in_shell_and_notebook, missing_package

# The value of a device or a number of threads that lets the engine decide again.
DEFAULT = "default"


@dataclass(frozen=True)
class Engine:
    """One backend: class `backend` of `module`, which is imported in the process that runs it, never to list it.

    `module`: a folder of `kernelk.backends`, whose `backend.py` it is, or a third party's by its full name
    ("package.module").
    `in_kernel`: it runs in the notebook's own process unless its user asks for a worker; `in_kernel_too`: it runs in a
    worker unless its user asks for the notebook's own process.
    `precisions`: those of `--precision` that it has on some device; "float32" is every engine's.
    `compiles_c`: it compiles programs to C where there is a compiler, and its user may turn that off.
    `imports`: the package to look for in the kernel's own environment. `lowest`: the version that it must have there,
    as in "2.20". `recipe`: the name of the environment that `kernelk install` builds for it.
    `on`: the ipyparallel cluster whose machine its worker runs on, "" for this one; its name then ends in @ and that.
    """

    name: str
    title: str
    module: str
    backend: str
    in_kernel: bool = False
    in_kernel_too: bool = False
    compiles_c: bool = False
    precisions: tuple[str, ...] = FLOAT32
    imports: str | None = None
    lowest: str = ""
    recipe: str | None = None
    install: str = ""
    on: str = ""

    @property
    def base(self) -> str:
        """Its name without the machine."""
        return self.name.partition("@")[0]

    @property
    def path(self) -> str:
        """The full name of the module."""
        return self.module if "." in self.module else f"kernelk.backends.{self.module}.backend"

    @property
    def get(self) -> str:
        """The command that installs it, in a shell and in a notebook, whose `!` may find another environment."""
        if self.recipe is not None:
            words = f"{self.recipe} --on {self.on}" if self.on else self.recipe
            return in_shell_and_notebook(f"kernelk install {words}", f"%kbackend --install {words}")
        return f"on {self.on}: `{self.install}`" if self.on else in_shell_and_notebook(self.install)

    def runs_in_kernel(self, options: Mapping[str, Any]) -> bool:
        """Whether it runs in the notebook's own process with these options of its user's."""
        return bool(options.get("in_kernel", self.in_kernel))

    def repair(self, words: str) -> str:
        """The command that repairs an installed engine after this error; `install` would find nothing to do."""
        package = missing_package(words)
        if package:
            return f"on {self.on}: {package}" if self.on else package
        if self.recipe is not None:
            return f"`kernelk install {self.recipe} --rebuild{f' --on {self.on}' if self.on else ''}`"
        command = f"`{self.install.replace('pip install', 'pip install --force-reinstall')}`"
        return f"on {self.on}: {command}" if self.on else command


NUMPY = Engine("numpy", "numpy", "numpy", "NumpyBackend", in_kernel=True, install="pip install numpy")
TENSORFLOW = Engine(
    "tensorflow",
    "TensorFlow",
    "tensorflow",
    "TensorFlowBackend",
    in_kernel_too=True,
    precisions=PRECISIONS,
    imports="tensorflow",
    lowest="2.20",
    install='pip install "kernelk[tensorflow]"',
)
TORCH = Engine(
    "torch",
    "PyTorch",
    "torch",
    "TorchBackend",
    in_kernel_too=True,
    precisions=PRECISIONS,
    imports="torch",
    lowest="2.4",
    install='pip install "kernelk[torch]"',
)
THEANO = Engine(
    "theano",
    "Theano",
    "theano",
    "TheanoBackend",
    compiles_c=True,
    recipe="theano",
    install="kernelk install theano",
)
CNTK = Engine("cntk", "CNTK", "cntk", "CNTKBackend", recipe="cntk", install="kernelk install cntk")
JAX = Engine(
    "jax",
    "JAX",
    "jax",
    "JaxBackend",
    in_kernel_too=True,
    precisions=PRECISIONS,
    imports="jax",
    lowest="0.10",
    install='pip install "kernelk[jax]"',
)
