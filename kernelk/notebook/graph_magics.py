"""The magics that show graphs: `%kgraph` and `%kshow`; each has a Python twin that does the work."""

from __future__ import annotations

from typing import Any

from IPython.core.magic import Magics, line_magic, magics_class, no_var_expand

from ..engines import registry
from ..errors import ArgumentError
from .expressions import feed_of, split_options, value_of


@magics_class
class GraphMagics(Magics):
    """What is shown is an expression's value: a tensor, several, or a K.function."""

    # An expression's braces and dollars are the expression's own.
    @no_var_expand
    @line_magic
    def kgraph(self, line: str) -> Any:
        """Draws the graph of a tensor, several, or a K.function: nodes with op, name, shape, dtype, cell and line.

        %kgraph loss                      as a picture in a notebook, as text in a terminal
        %kgraph train --times             with the time of each op by itself on the active engine
        %kgraph loss --depth 1            one level of name scopes opened; 0: each scope is one box
        %kgraph loss --all                nothing collapsed, up to 1,000 nodes
        %kgraph loss --times --feed x=batch

        More than 200 nodes are collapsed by name scope, then by rows of ops. What it returns has .save("graph.svg").
        Python twin: kernelk.draw(loss, depth=1, times=True, feeds={x: batch}).
        """
        usage = "e.g. %kgraph loss --depth 1; %kgraph? shows examples"
        head, options = split_options(line)
        if not head:
            raise ArgumentError(f"%kgraph was given nothing to draw; {usage}")
        depth: Any = None
        times: Any = None
        feeds: dict[Any, Any] = {}
        for option, text in options:
            if option == "depth" and text.isdecimal() and depth is None:
                depth = int(text)
            elif option == "all" and not text and depth is None:
                depth = "all"
            elif option == "times" and not text:
                times = True
            elif option == "feed" and (given := feed_of(self._shell, text, "%kgraph")) is not None:
                feeds[given[0]] = given[1]
            else:
                raise ArgumentError(
                    f"%kgraph: --{option} {text} isn't allowed: it takes --times, --depth N or --all, "
                    f"--feed NAME=ARRAY; {usage}".replace("  ", " ")
                )
        if feeds and not times:
            raise ArgumentError("%kgraph: --feed says what to time, and goes with --times; next: add --times")
        from ..drawing.drawing import draw

        target = value_of(self._shell, head, "%kgraph")
        return draw(target, depth=depth, times=times, feeds=feeds, names=self._shell.user_ns)

    @no_var_expand
    @line_magic
    def kshow(self, line: str) -> Any:
        """Shows what each engine made of the same graph, in its own words: its graph after its own optimisation.

        %kshow y                                 on the engines that run, and on the active one
        %kshow y tensorflow theano cntk          on these; those that don't run are started
        %kshow train theano --feed x=batch       of a K.function, for feeds of these shapes

        TensorFlow: the concrete function. Theano: the optimised graph. CNTK: its Functions. JAX: the jaxpr and what XLA
        makes of it. PyTorch: the function that calls its kernels. numpy: the program, op by op. Nothing is run. What it
        returns has .text("theano"), the whole of a long listing.
        Python twin: kernelk.show(y, "tensorflow", "theano", feeds={x: array}).
        """
        usage = "e.g. %kshow y tensorflow theano --feed x=array; %kshow? shows examples"
        head, options = split_options(line)
        words = head.split()
        engines: list[str] = []
        while len(words) > 1 and words[-1] in registry.names():
            engines.insert(0, words.pop())
            head = head.rstrip()[: -len(engines[0])].rstrip()
        if not head:
            raise ArgumentError(f"%kshow was given nothing to show; {usage}")
        feeds: dict[Any, Any] = {}
        for option, text in options:
            given = feed_of(self._shell, text, "%kshow") if option == "feed" else None
            if given is None:
                raise ArgumentError(f"%kshow: --{option} {text} isn't allowed: it takes --feed NAME=ARRAY; {usage}")
            feeds[given[0]] = given[1]
        from ..drawing.engine_graphs import show

        engines_known = f"engines are {', '.join(registry.names())}"
        target = value_of(self._shell, head, "%kshow", engines_known if len(words) > 1 else "")
        return show(target, *engines, feeds=feeds, names=self._shell.user_ns)

    @property
    def _shell(self) -> Any:
        return self.shell
