"""The magics' one parser: words, an expression before options, code after them; and what it says of a wrong line."""

from __future__ import annotations

from typing import Any

import pytest

from kernelk.errors import ArgumentError
from kernelk.magics import KernelKMagics
from kernelk.notebook.arguments import parse
from kernelk.notebook.graph_magics import GraphMagics
from kernelk.notebook.inspection_magics import InspectionMagics
from kernelk.notebook.measuring_magics import MeasuringMagics

KBACKEND, KTENSORS, KPANEL = KernelKMagics.kbackend, InspectionMagics.ktensors, InspectionMagics.kpanel
KTIME, KPROFILE, KCOMPARE = MeasuringMagics.ktime, MeasuringMagics.kprofile, MeasuringMagics.kcompare
KDIFF, KGRAPH, KSHOW = MeasuringMagics.kdiff, GraphMagics.kgraph, GraphMagics.kshow


@pytest.mark.parametrize(
    ("magic", "line", "given"),
    [
        (KBACKEND, "torch --threads=2 --save", {"name": "torch", "threads": "2", "save": True}),
        (KBACKEND, "--doctor theano cntk", {"doctor": ["theano", "cntk"]}),
        (KTENSORS, "'my name' --values", {"filter": "my name", "values": True}),
        (KCOMPARE, "numpy torch --sweep n=1,2", {"engines": ["numpy", "torch"], "sweep": "n=1,2"}),
        (KDIFF, "y numpy  theano", {"target": "y", "engines": ["numpy", "theano"], "feed": []}),
        (KDIFF, "f(a, 'b c')[0] x y --tolerance 1e-3", {"target": "f(a, 'b c')[0]", "engines": ["x", "y"]}),
        (
            KDIFF,
            "y a b --feed x={'k': n == 1}['k'] * 2 --feed t=u",
            {"feed": [("x", "{'k': n == 1}['k'] * 2"), ("t", "u")]},
        ),
        (KDIFF, "y a b --feed=x=1 --tolerance=1", {"feed": [("x", "1")], "tolerance": "1"}),
        (KGRAPH, "-a --b", None),
        (KGRAPH, "-loss * 2 --depth 0 --times", {"target": "-loss * 2", "depth": 0, "times": True, "all": False}),
        (KSHOW, "y", {"target": "y", "engines": []}),
        (KSHOW, "[y, z]  numpy torch --feed x=1", {"target": "[y, z]", "engines": ["numpy", "torch"]}),
        (KSHOW, "y numpi torch", {"target": "y numpi", "engines": ["torch"]}),
        (KSHOW, "numpy", {"target": "numpy", "engines": []}),
        (KSHOW, "(y, z), numpy, torch", {"target": "(y, z)", "engines": ["numpy", "torch"]}),
        (KDIFF, "y, numpy, torch", {"target": "y", "engines": ["numpy", "torch"]}),
        (KTIME, "f([x], '--budget 3')", {"code": "f([x], '--budget 3')", "budget": None}),
        (KTIME, "--budget 3  -x + 1", {"code": "-x + 1", "budget": "3"}),
        (KPROFILE, "--budget=3 --engine a - b --c", {"code": "a - b --c", "budget": "3", "engine": True}),
        (KTIME, "f(x, --budget)", {"code": "f(x, --budget)"}),
        (KTIME, "", {"code": ""}),
    ],
)
def test_what_a_line_means(magic: Any, line: str, given: dict[str, Any] | None) -> None:
    if given is None:
        with pytest.raises(ArgumentError, match="has no option --b"):
            parse(magic, line)
        return
    found = vars(parse(magic, line))
    assert {name: found[name] for name in given} == given


def test_a_cluster_alone_is_no_engine() -> None:
    with pytest.raises(ArgumentError, match=r"--on needs engines' names.*; next: %%kcompare torch jax --on gpu-box$"):
        MeasuringMagics(None).kcompare("--on gpu-box", "f([x])")


def test_a_cells_code_is_the_cell() -> None:
    given = parse(KPROFILE, " --engine ", "-x\n--y")
    assert (given.code, given.engine, given.budget) == ("-x\n--y", True, None)
    with pytest.raises(ArgumentError, match=r"only options; the code is the cell, not 'f\(x\)'.*%%ktime"):
        parse(KTIME, "f(x)", "g(x)")
    with pytest.raises(ArgumentError, match="did you mean --budget"):
        parse(KTIME, "--bugdet 3", "g(x)")


@pytest.mark.parametrize(
    ("magic", "line", "words"),
    [
        (KPANEL, "now", "%kpanel takes no arguments, not 'now' ... %kpanel"),
        (KBACKEND, "--thread 2", "%kbackend has no option --thread: did you mean --threads? allowed are --device, "),
        (KBACKEND, "--threads", "(--threads: expected one argument) ... %kbackend --threads N; %kbackend? shows"),
        (KTIME, "--budget", "(--budget: expected one argument) ... %ktime --budget S; %ktime? shows examples"),
        (KTIME, "--engine f(x)", "%ktime has no option --engine"),
        (KGRAPH, "", "%kgraph was given nothing to draw ... %kgraph loss --depth 1; %kgraph? shows examples"),
        (KGRAPH, "--all", "%kgraph was given nothing to draw"),
        (KGRAPH, "--depth 1", "%kgraph was given nothing to draw"),
        (KGRAPH, "--all loss", "%kgraph: options come after the expression ... next: %kgraph loss --all"),
        (
            KGRAPH,
            "--times --depth 1 a + b",
            "options come after the expression ... next: %kgraph a + b --times --depth 1",
        ),
        (KSHOW, "--feed x=1 y torch", "%kshow: options come after the expression ... %kshow y torch --feed x=1"),
        (KDIFF, "--tolerance 1 y a b", "%kdiff: options come after the expression ... %kdiff y a b --tolerance 1"),
        (KTIME, "f([x]) --budget 3", "%ktime: options come before the code ... next: %ktime --budget 3 f([x])"),
        (KPROFILE, "--budget 3 y --engine", "options come before the code ... %kprofile --budget 3 --engine y"),
        (KPANEL, "--foo", "%kpanel takes no options ... next: %kpanel"),
        (KGRAPH, "--help", "%kgraph has no option --help ... next: %kgraph? shows options and examples"),
        (KTIME, "-h", "%ktime has no option -h ... next: %ktime? shows options and examples"),
        (KBACKEND, "--help", "%kbackend has no option --help ... next: %kbackend? shows options and examples"),
        (KBACKEND, "--foo", "%kbackend has no option --foo: allowed are --device"),
        (KCOMPARE, "numpy --budget", "(--budget: expected one argument) ... %%kcompare --budget S; %%kcompare? shows"),
        (KCOMPARE, "numpy --bugdet 3", "%%kcompare has no option --bugdet: did you mean --budget? ... %%kcompare? "),
        (KGRAPH, "loss --all 3", "--all: ignored explicit argument '3'"),
        (KGRAPH, "loss --depth many", "--depth: 'many' isn't 0 or more"),
        (KGRAPH, "loss --depth -1", "--depth: '-1' isn't 0 or more) ... next: %kgraph loss --depth 1"),
        (KGRAPH, "loss --fed x=1", "%kgraph has no option --fed: did you mean --feed? allowed are --times, --depth, "),
        (KSHOW, "", "%kshow was given nothing to show"),
        (KSHOW, "y --feed =1", "--feed: '=1' isn't NAME=ARRAY"),
        (KDIFF, "", "%kdiff takes an expression and two engines' names, not '' ... %kdiff y tensorflow cntk"),
        (KDIFF, "y numpy", "%kdiff takes an expression and two engines' names, not 'y numpy'"),
        (KDIFF, "y a b --feed x", "--feed: 'x' isn't NAME=ARRAY) ... %kdiff y tensorflow cntk --feed x=array"),
        (KDIFF, "y a b --tolerance", "--tolerance: expected one argument) ... %kdiff y tensorflow cntk --feed"),
    ],
)
def test_what_is_wrong_with_a_line_is_one_line_with_an_example(magic: Any, line: str, words: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse(magic, line)
    problem, _, example = words.partition(" ... ")
    assert problem in str(caught.value)
    assert example in str(caught.value).partition(problem)[2]
    assert "\n" not in str(caught.value)


def test_help_names_every_option() -> None:
    for magic in (KBACKEND, KTENSORS, KPANEL, KTIME, KPROFILE, KCOMPARE, KDIFF, KGRAPH, KSHOW):
        shown = str(magic.__doc__)
        assert f"%{magic.__name__}" in shown
        # The usage line begins as the magic is written, and is the command that errors name.
        assert shown.split()[1] == magic.parser.example.split()[0]
        assert "Examples::" in shown
        for action in magic.parser._actions:
            assert action.help in " ".join(shown.split())
            assert all(option in shown for option in action.option_strings)


@pytest.mark.parametrize(
    ("magic", "line", "command"),
    [
        (KBACKEND, "torch numpy", "%kbackend torch"),
        (KBACKEND, "torch torch", "%kbackend torch"),
        (KBACKEND, "torch --threads 2 4", "%kbackend torch --threads 2"),
    ],
)
def test_a_word_too_many_is_left_out_of_the_next_command(magic: Any, line: str, command: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse(magic, line)
    assert caught.value.next_step == command
