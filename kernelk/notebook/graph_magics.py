"""The magics that show graphs: `%kgraph` and `%kshow`; each has a Python twin that does the work."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from IPython.core.magic import Magics, line_magic, magics_class, needs_local_scope, no_var_expand

from ..errors import ArgumentError
from .arguments import Expression, argument, feed_argument, magic_arguments, parse
from .expressions import engine_hint, feeds_of, names_in, value_of


def _depth(text: str) -> int:
    """The type of `--depth`."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} isn't 0 or more")
    return int(text)


@magics_class
class GraphMagics(Magics):
    """Magics that show an expression's value: a tensor, several, or a K.function."""

    # An expression's braces and dollars are the expression's own.
    @no_var_expand
    @magic_arguments("an expression", "%kgraph loss --depth 1")
    @argument(
        "target", type=Expression("draw"), help="an expression: one tensor or a list, a K.function, a Keras model"
    )
    @argument("--times", action="store_true", help="show the time of each op on its own on the active engine")
    @argument("--depth", metavar="N", type=_depth, help="how many levels of name scopes are opened")
    @argument("--all", action="store_true", help="nothing collapsed, up to 1,000 nodes")
    @feed_argument
    @needs_local_scope
    @line_magic
    def kgraph(self, line: str, local_ns: Mapping[str, Any] | None = None) -> Any:
        """Draws the graph of a tensor, several, or a K.function: nodes with op, name, shape, dtype, cell and line.

        Examples::

          %kgraph loss                      as a picture in a notebook, as text in a terminal
          %kgraph train --times             with the time of each op on its own on the active engine
          %kgraph loss --depth 1            one level of name scopes opened; 0: each scope is one box
          %kgraph model                     a Keras model, with a box for each layer
          %kgraph loss --all                nothing collapsed, up to 1,000 nodes
          %kgraph loss --times --feed x=batch

        More than 200 nodes are collapsed by name scope, then by rows of ops. The result has .save("graph.svg").
        Python twin: kernelk.draw(loss, depth=1, times=True, feeds={x: batch}).
        """
        given = parse(self.kgraph, line)
        if given.all and given.depth is not None:
            raise ArgumentError("%kgraph: --depth and --all exclude each other", next_step="%kgraph loss --depth 1")
        if given.feed and not given.times:
            written = " ".join(f"--feed {name}={value}" for name, value in given.feed)
            raise ArgumentError(
                "%kgraph: --feed only works together with --times",
                next_step=f"%kgraph {given.target} --times {written}",
            )
        from ..drawing.drawing import draw

        shell: Any = self.shell
        feeds = feeds_of(shell, given.feed, "%kgraph", local_ns)
        target = value_of(shell, given.target, "%kgraph", local=local_ns)
        depth: Any = "all" if given.all else given.depth
        return draw(target, depth=depth, times=given.times or None, feeds=feeds, names=names_in(shell, local_ns))

    @no_var_expand
    @magic_arguments("an expression and engines' names", "%kshow y tensorflow theano --feed x=array")
    @argument(
        "target", type=Expression("show"), help="an expression: one tensor or a list, a K.function, a Keras model"
    )
    @argument("engines", nargs="*", help="the engines' names; none: those that run, and the active one")
    @feed_argument
    @needs_local_scope
    @line_magic
    def kshow(self, line: str, local_ns: Mapping[str, Any] | None = None) -> Any:
        """Shows each engine's compiled form of the same graph, after its own optimisation and in its own format.

        Examples::

          %kshow y                                 on the engines that run, and on the active one
          %kshow y tensorflow theano cntk          on these; those that don't run are started
          %kshow train theano --feed x=batch       of a K.function, for feeds of these shapes

        TensorFlow: the concrete function. Theano: the optimised graph. CNTK: its Functions. JAX: the jaxpr and what XLA
        makes of it. PyTorch: the function that calls its kernels. numpy: the program, op by op. Nothing is run. The
        result has .text("theano"), which returns a long listing in full.
        Python twin: kernelk.show(y, "tensorflow", "theano", feeds={x: array}).
        """
        given = parse(self.kshow, line)
        from ..drawing.engine_graphs import show

        shell: Any = self.shell
        feeds = feeds_of(shell, given.feed, "%kshow", local_ns)
        target = value_of(shell, given.target, "%kshow", engine_hint(given.target), local_ns)
        return show(target, *given.engines, feeds=feeds, names=names_in(shell, local_ns))
