"""The magics that measure: `%ktime`, `%kprofile`, `%%kcompare` and `%kdiff`; each has a Python twin for the work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from IPython.core.magic import (
    Magics,
    cell_magic,
    line_cell_magic,
    line_magic,
    magics_class,
    needs_local_scope,
    no_var_expand,
)

from ..errors import ArgumentError
from .arguments import Code, Expression, argument, feed_argument, magic_arguments, parse
from .cell_body import body
from .expressions import engine_hint, feeds_of, value_of

_OPTIONS_ALONE = "only options; the code is the cell"


@magics_class
class MeasuringMagics(Magics):
    """Magics that time the user's own code: it runs once as it stands, and its calls to the engine are repeated."""

    # An expression's braces and dollars are the expression's own.
    @no_var_expand
    @magic_arguments(_OPTIONS_ALONE, "%ktime K.softmax(K.ones((500, 500)))")
    @argument("code", nargs="?", type=Code(), help="the code, unless it is a cell")
    @argument("--budget", metavar="S", help="seconds to run for, not counting compilation (2)")
    @needs_local_scope
    @line_cell_magic
    def ktime(self, line: str, cell: str | None = None, local_ns: Mapping[str, Any] | None = None) -> Any:
        """Times an expression or a cell on the active engine: compile, first run, steady state, transfer.

        Examples::

          %ktime K.dot(a, b)               a tensor: it is evaluated
          %ktime f([x])                    a call of a K.function
          %ktime --budget 10 f([x])        for 10 seconds
          %%ktime                          everything that the cell evaluates, each kind of call separately

        The result has .to_frame(), .to_json() and .plot(). Python twin: kernelk.time(lambda: f([x])).
        """
        __tracebackhide__ = True  # in an error of the user's own code
        from ..measure.timing import time

        return self._measured(time, self.ktime, line, cell, local_ns)

    @no_var_expand
    @magic_arguments(_OPTIONS_ALONE, "%kprofile K.softmax(K.ones((500, 500)))")
    @argument("code", nargs="?", type=Code(), help="the code, unless it is a cell")
    @argument("--budget", metavar="S", help="seconds to run for, not counting compilation (5)")
    @argument("--engine", action="store_true", help="also run the engine's own profiler on the call")
    @needs_local_scope
    @line_cell_magic
    def kprofile(self, line: str, cell: str | None = None, local_ns: Mapping[str, Any] | None = None) -> Any:
        """Times each op of a call separately, on its real inputs, next to the call as the engine compiles it.

        Examples::

          %kprofile f([x])                 each op of a call of a K.function, with its source line
          %kprofile K.softmax(y)           a tensor: it is evaluated
          %kprofile model                  a Keras model, op by op and layer by layer
          %%kprofile --budget 20           the slowest call in the cell
          %kprofile --engine f([x])        also with the engine's own profiler, which sees fused ops

        The result has .ops, .engine_profile, .to_frame(), .to_json() and .plot(). Python twin:
        kernelk.profile(lambda: f([x]), engine=True).
        """
        __tracebackhide__ = True
        from ..measure.profiling import profile

        return self._measured(profile, self.kprofile, line, cell, local_ns)

    def _measured(self, twin: Any, magic: Any, line: str, cell: str | None, local: Mapping[str, Any] | None) -> Any:
        """Calls the twin on the line's code or the cell, with the line's options."""
        __tracebackhide__ = True
        given = parse(magic, line, cell)
        name = f"%{magic.__name__}" if cell is None else f"%%{magic.__name__}"
        run = body(self.shell, given.code, name, magic.parser.example, local)  # type: ignore[arg-type]
        return twin(run, **{option: value for option, value in vars(given).items() if value and option != "code"})

    @no_var_expand
    @magic_arguments("engines' names", "%%kcompare tensorflow theano")
    @argument("engines", nargs="*", help="engine names (default: all installed)")
    @argument("--budget", metavar="S", default="10", help="seconds to run for in total, not counting compilation (10)")
    @argument("--device", metavar="D", help="the same device for all: cpu:0 ...")
    @argument("--threads", metavar="N", help="the same number of threads for all")
    @argument("--precision", metavar="P", help="how all multiply float32: float32, tf32 or bfloat16")
    @argument("--on", metavar="CLUSTER", help="run all named engines on the machine of this ipyparallel cluster")
    @argument("--per-op", action="store_true", help="also time each op separately on every engine, for as long again")
    @argument("--sweep", metavar="NAME=A,B,C", help="run the cell for each of these values of a name")
    @cell_magic
    def kcompare(self, line: str, cell: str) -> Any:
        """Times a cell's calls on several engines side by side, and compares the results.

        Examples::

          %%kcompare tensorflow theano cntk jax torch
          %%kcompare numpy torch --threads 1 --budget 30
          %%kcompare jax torch --device cuda:0 --precision tf32
          %%kcompare tensorflow jax --sweep n=128,256,512
          %%kcompare theano torch --per-op
          %%kcompare torch@gpu-box jax@gpu-box torch      machines compared; --on gpu-box puts all of them there
          %%kcompare torch jax --on hpc --sweep n=1,2,3   each n on one of the cluster's machines, several at once

        The cell runs once, on the active engine, which stays active. The result has .to_frame(), .to_json() and
        .plot(). Python twins: kernelk.compare(lambda: f([x]), "tensorflow", "theano"), which also takes an executor as
        on=; kernelk.compare(f, g) for two bodies on one engine.
        """
        __tracebackhide__ = True
        from ..measure.comparison import compare

        given = parse(self.kcompare, line)
        if given.on is not None and not given.engines:
            raise ArgumentError(
                "%%kcompare: --on needs engines' names, since which are installed there isn't known here",
                next_step=f"%%kcompare torch jax --on {given.on}",
            )
        example = f"{self.kcompare.parser.example} and a cell with K.eval(...)"
        run = body(self.shell, cell, "%%kcompare", example)  # type: ignore[arg-type]
        sweep = None if given.sweep is None else _swept(given.sweep)
        return compare(
            run,
            # Names may be separated by commas.
            *[name for word in given.engines for name in word.split(",") if name],
            budget=given.budget,
            device=given.device,
            threads=given.threads,
            precision=given.precision,
            sweep=sweep,
            per_op=given.per_op,
            on=given.on,
        )

    @no_var_expand
    @magic_arguments("an expression and two engines' names", "%kdiff y tensorflow cntk --feed x=array --tolerance 1e-3")
    @argument(
        "target", type=Expression("compare"), help="an expression: one tensor or a list, a K.function, a Keras model"
    )
    @argument("engines", nargs=2, metavar="ENGINE", help="the two engines' names")
    @feed_argument
    @argument("--tolerance", metavar="T", help="how much values may differ, relative to their size")
    @needs_local_scope
    @line_magic
    def kdiff(self, line: str, local_ns: Mapping[str, Any] | None = None) -> Any:
        """Names the first op whose values differ on two engines, or where the first NaN or infinity appears.

        Examples::

          %kdiff y tensorflow cntk                         y: a tensor, a K.function, or an expression for one
          %kdiff y tensorflow cntk --feed x=np.ones((2, 3)) --feed t=labels --tolerance 1e-3

        A placeholder without --feed gets what it was last fed. Nothing is committed, and the active engine stays.
        Python twin: kernelk.diff(y, "tensorflow", "cntk", feeds={x: array}, tolerance=1e-3).
        """
        from ..measure.divergence import diff

        given = parse(self.kdiff, line)
        shell: Any = self.shell
        feeds = feeds_of(shell, given.feed, "%kdiff", local_ns)
        one, other = given.engines
        target = value_of(shell, given.target, "%kdiff", engine_hint(given.target), local_ns)
        return diff(target, one, other, feeds, given.tolerance)


def _swept(text: str) -> dict[str, list[float]]:
    """The name and values of `--sweep`. Raises ArgumentError."""
    name, equals, listed = text.partition("=")
    try:
        values = [_number(value) for value in listed.split(",")]
    except ValueError:
        values = []
    if not equals or not name.strip().isidentifier() or not values:
        raise ArgumentError(
            f"%%kcompare: --sweep {text} isn't allowed", allowed="it takes a name and numbers, e.g. --sweep n=128,256"
        )
    return {name.strip(): values}


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)
