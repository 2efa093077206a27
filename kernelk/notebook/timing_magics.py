"""The magics that measure: `%ktime`, `%kprofile` and `%%kcompare`; each has a Python twin that does the work."""

from __future__ import annotations

import re
from typing import Any

from IPython.core.magic import Magics, cell_magic, line_cell_magic, magics_class, no_var_expand

from ..errors import ArgumentError
from .arguments import argument, magic_arguments, parse
from .cell_body import body


@magics_class
class TimingMagics(Magics):
    """What is timed is the user's own code: it runs once as it stands, and what it asks of the engine is run again."""

    # An expression's braces and dollars are the expression's own.
    @no_var_expand
    @magic_arguments()
    @argument("--budget", metavar="S", help="seconds of running, beside compiling (2)")
    @line_cell_magic
    def ktime(self, line: str, cell: str | None = None) -> Any:
        """Times an expression, or a cell, on the active engine: to build, to run first, to run when warm, to hand over.

        Examples::

          %ktime K.dot(a, b)               a tensor: it is evaluated
          %ktime f([x])                    a call of a K.function
          %ktime --budget 10 f([x])        for 10 seconds
          %%ktime                          all that the cell evaluates, each kind of call by itself

        What it returns has .to_frame(), .to_json() and .plot(). Python twin: kernelk.time(lambda: f([x])).
        """
        from ..measure.timing import time

        return self._measured(time, self.ktime, line, cell)

    @no_var_expand
    @magic_arguments()
    @argument("--budget", metavar="S", help="seconds of running, beside compiling (5)")
    @argument("--engine", action="store_true", help="then what the engine's own profiler says of the call as it runs")
    @line_cell_magic
    def kprofile(self, line: str, cell: str | None = None) -> Any:
        """Times each op of a call by itself, on its real inputs, beside the call as the engine compiles it.

        Examples::

          %kprofile f([x])                 each op of a call of a K.function, with your lines
          %kprofile K.softmax(y)           a tensor: it is evaluated
          %%kprofile --budget 20           the call of the cell that takes longest
          %kprofile --engine f([x])        and what the engine's own profiler sees, with all that it has fused

        What it returns has .ops, .engine_profile, .to_frame(), .to_json() and .plot(). Python twin:
        kernelk.profile(lambda: f([x]), engine=True).
        """
        from ..measure.profiling import profile

        return self._measured(profile, self.kprofile, line, cell)

    def _measured(self, twin: Any, magic: Any, line: str, cell: str | None) -> Any:
        """What the twin makes of the line's expression or the cell, with the line's options."""
        name = f"%{magic.__name__}" if cell is None else f"%%{magic.__name__}"
        given, text = line, cell
        if cell is None:
            # What the options are followed by isn't words of a shell.
            found = re.match(r"\s*((?:--budget(?:\s+|=)\S+\s*|--engine(?:\s+|$))*)(.*)$", line, re.DOTALL)
            assert found is not None
            given, text = found[1], found[2]
        options = vars(parse(magic, given, "no arguments but options; the code is the cell", name))
        run = body(self.shell, text or "", name, f"%{magic.__name__} K.dot(a, b)")  # type: ignore[arg-type]
        return twin(run, **{option: value for option, value in options.items() if value})

    @no_var_expand
    @magic_arguments()
    @argument("engines", nargs="*", help="the engines' names; none: all that are installed")
    @argument("--budget", metavar="S", default="10", help="seconds of running in all, beside compiling (10)")
    @argument("--device", metavar="D", help="the same device for all: cpu:0 ...")
    @argument("--threads", metavar="N", help="the same number of threads for all")
    @argument("--per-op", action="store_true", help="then each op by itself on every engine, for as long again")
    @argument("--sweep", metavar="NAME=A,B,C", help="run the cell for each of these values of a name")
    @cell_magic
    def kcompare(self, line: str, cell: str) -> Any:
        """Times a cell's calls on several engines side by side, and compares the results.

        Examples::

          %%kcompare tensorflow theano cntk jax torch
          %%kcompare numpy torch --threads 1 --budget 30
          %%kcompare tensorflow jax --sweep n=128,256,512
          %%kcompare theano torch --per-op

        The cell runs once, on the active engine, which stays active. What it returns has .to_frame(), .to_json() and
        .plot(). Python twins: kernelk.compare(lambda: f([x]), "tensorflow", "theano"); kernelk.compare(f, g) for two
        bodies on one engine.
        """
        from ..measure.comparison import compare

        example = "%%kcompare tensorflow theano"
        given = parse(self.kcompare, line, "engines' names", example)
        run = body(self.shell, cell, "%%kcompare", f"{example} and a cell with K.eval(...)")  # type: ignore[arg-type]
        sweep = None if given.sweep is None else _swept(given.sweep)
        return compare(
            run,
            *given.engines,
            budget=given.budget,
            device=given.device,
            threads=given.threads,
            sweep=sweep,
            per_op=given.per_op,
        )


def _swept(text: str) -> dict[str, list[float]]:
    """The name and values of `--sweep`. Raises ArgumentError."""
    name, equals, listed = text.partition("=")
    try:
        values = [_number(value) for value in listed.split(",")]
    except ValueError:
        values = []
    if not equals or not name.strip().isidentifier() or not values:
        raise ArgumentError(
            f"%%kcompare: --sweep {text} isn't allowed: it takes a name and numbers, e.g. --sweep n=128,256"
        )
    return {name.strip(): values}


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)
