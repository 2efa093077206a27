"""Writes docs/reference.md from K's signatures and docstrings and the examples, which it runs: see `--help`."""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

import kernelk
from kernelk import backend as K
from kernelk import config
from kernelk.source import CELL

sys.path.insert(0, str(Path(__file__).parent))
from reference_examples import EXAMPLES

PAGE = Path(__file__).parent / "reference.md"

# Names of K that neither Keras nor `K.__all__` has; not every engine has them, so that no example is run here.
BESIDE = {"native": "in_kernel.md"}

# The page's order: modules by the part of their name after `kernelk.`.
FAMILIES = {
    "session.function": "Calls",
    "graph.nodes": "Tensors",
    "ops.creation": "Placeholders, constants, kinds of tensors",
    "session.variables": "Variables",
    "ops.updates": "Updates",
    "ops.gradients": "Gradients",
    "ops.elementwise": "Elementwise functions",
    "ops.reductions": "Reductions",
    "ops.shaping": "Shapes",
    "ops.arranging": "Arrangement",
    "ops.linear": "Products",
    "ops.nn": "Activations, dropout, the learning phase",
    "ops.losses": "Losses and metrics",
    "ops.ctc": "Connectionist temporal classification (CTC)",
    "ops.normalization": "Normalisation and biases",
    "ops.convolution": "Convolutions",
    "ops.pooling": "Pooling",
    "ops.loops": "Loops",
    "ops.random": "Random tensors",
    "ops.names": "Names and kinds",
    "config": "Settings",
    "backend": "The session",
}

HEAD = """# Function reference

Every name of `from kernelk import backend as K`, written by `docs/make_reference.py` from the functions themselves. The
examples run as tests, on numpy and on PyTorch; what they show holds on every engine.

- A tensor's `shape` is a tuple with None for lengths that only a call knows; its `dtype` is a name such as "float32".
- Wherever a tensor is expected, you can also pass a number, list or array; it takes the other operand's dtype if its
  values fit ([dtypes](semantics.md#dtypes)). A result has its operands' common dtype unless the text says otherwise;
  `floatx` is `K.floatx()`.
- All errors are `kernelk.errors.KernelKError`, raised at the line that creates the op: `ShapeError` where shapes don't
  fit (both are named), `DTypeError` for a dtype that a function doesn't take, `ArgumentError` for any other value
  that isn't allowed ([examples](errors.md)).
- Which function runs where, and in which dtypes, is in [functions and engines](engines_by_function.md).
"""


def module_of(name: str) -> str:
    """The module that defines the name, without `kernelk.`."""
    return str(getattr(getattr(K, name), "__module__", "")).removeprefix("kernelk.")


def title_of(module: str) -> str:
    """The heading of a module's functions."""
    known = FAMILIES.get(module)
    return known or str(sys.modules[f"kernelk.{module}"].__doc__).partition("\n")[0].rstrip(".")


def signature_of(name: str) -> str:
    """The function's signature, without annotations."""
    value = getattr(K, name)
    if inspect.isclass(value):
        return f"K.{name}"
    signature = inspect.signature(value)
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return f"K.{name}{signature.replace(parameters=plain, return_annotation=inspect.Signature.empty)}"


def reset() -> None:
    """Settings, names and tensors as a new session has them."""
    K.clear_session()
    K.reset_uids()
    K.set_random_seed(0)
    config.reload()
    CELL.number = 0


def shown(code: str) -> str:
    """The example as typed into a Python prompt, with what it prints, on the active engine."""
    lines: list[str] = []
    scope: dict[str, Any] = {"K": K, "np": np}
    reset()
    before = sys.displayhook
    sys.displayhook = lambda value: lines.append(repr(value)) if value is not None else None
    try:
        for statement in ast.parse(code.strip()).body:
            first, *rest = ast.get_source_segment(code.strip(), statement, padded=True).splitlines()
            lines += [f">>> {first}", *(f"... {line}" for line in rest)]
            exec(compile(ast.Interactive([statement]), "<example>", "single"), scope)
    finally:
        sys.displayhook = before
    return "\n".join(lines)


def page(examples: dict[str, str]) -> str:
    """The whole page; `examples` are shown ones."""
    families = defaultdict(list)
    for name in sorted(K.__all__, key=str.lower):
        families[module_of(name)].append(name)
    order = sorted(families, key=lambda module: (list(FAMILIES).index(module) if module in FAMILIES else 99, module))
    parts = [HEAD]
    for module in order:
        parts.append(f"## {title_of(module)}\n")
        for name in families[module]:
            docstring = inspect.cleandoc(getattr(K, name).__doc__)
            parts.append(f"### {name}\n\n```\n{signature_of(name)}\n```\n\n{docstring}\n")
            parts.append(f"```pycon\n{examples[name]}\n```\n")
    parts.append("## Beyond Keras\n")
    for name, guide in BESIDE.items():
        docstring = inspect.cleandoc(getattr(K, name).__doc__)
        parts.append(f"### {name}\n\n```\n{signature_of(name)}\n```\n\n{docstring}\n\nExamples: [{guide}]({guide}).\n")
    return "\n".join(parts)


def run_examples() -> dict[str, str]:
    """The examples of all names that K has, run on the active engine."""
    try:
        return {name: shown(code) for name, code in EXAMPLES.items() if hasattr(K, name)}
    finally:
        reset()


def main() -> None:
    """The command line."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as nobodys:
        # The examples show the defaults, whatever the user's own settings are.
        os.environ["KERAS_HOME"], os.environ["KERNELK_QUIET"] = nobodys, "1"
        kernelk.set_backend("numpy")
        PAGE.write_text(page(run_examples()), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
