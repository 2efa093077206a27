"""Turns tensors into a program, whose lengths may need values that are computed first."""

from __future__ import annotations

from collections.abc import Sequence

from ..arrays import Array
from ..errors import FeedError
from ..graph.nodes import Draw, Placeholder, Tensor, Variable
from ..program.inference import outputs_from_shapes
from ..program.program import Print, Program
from ..program.resolve import NeedsValuesError
from .session import Session


def linearised(
    session: Session,
    inputs: Sequence[Placeholder],
    outputs: Sequence[Tensor],
    updates: Sequence[tuple[Variable, Tensor]],
    phase: int,
    ops: frozenset[str],
    feeds: list[Array] | None,
) -> tuple[Program, str]:
    """The program, and what it depends on besides its key: "nothing", the feeds' "shapes" or their "values".

    Lengths that depend on values are small integer graphs, evaluated in the kernel, which may need others first.
    Raises FeedError where there are such and no feeds.
    """
    values: dict[int, Array] = {}
    printed: list[tuple[Print, Array]] = []
    drawn: list[Draw] = []
    needs = "nothing"
    while True:
        try:
            made = Program(inputs, outputs, updates, phase, ops, values)
            made.printed = printed
            made.drawn_before = [node for node in dict.fromkeys(drawn) if node not in made.draws]
            return made, needs
        except NeedsValuesError as needed:
            if feeds is None:
                raise FeedError(
                    "the shapes of these tensors depend on fed values",
                    next_step="use a K.function of the placeholders, or tensor.eval({placeholder: value})",
                ) from None
            host = session.host("numpy")
            host.start()
            program, inner = linearised(session, inputs, needed.tensors, (), phase, host.ops, feeds)
            lengths = outputs_from_shapes(program, [feed.shape for feed in feeds])
            needs = "values" if lengths is None or program.prints or "values" in (needs, inner) else "shapes"
            if lengths is None:
                # The call itself has the same draws, and uses them up.
                with session.state.seeds.kept():
                    lengths = session.calls.execute(host, program, feeds)
            drawn += [*program.draws, *program.drawn_before]
            values.update({id(tensor): value for tensor, value in zip(needed.tensors, lengths)})
            # Printed values follow the requested outputs.
            printed += [*program.printed, *zip(program.prints, lengths[len(needed.tensors) :])]
