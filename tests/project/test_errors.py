"""Errors as data: their parts, which none goes without, how these become one line, and that it stays whole."""

import ast
import copy
import inspect
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kernelk
from kernelk import backend as K
from kernelk import errors, source
from kernelk.backends.errors import OptionError
from kernelk.engines.host import refused_option
from kernelk.errors import (
    ArgumentError,
    BackendNotInstalledError,
    EngineError,
    FileError,
    KernelKError,
    LoadRefusedError,
    SwapRefusedError,
    did_you_mean,
    joined,
    one_line,
)

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, KernelKError)]


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        (("no 'c'",), "no 'c'"),
        (("no 'c'", "allowed are a, b"), "no 'c': allowed are a, b"),
        (("dot: no 'c'", "allowed are a, b"), "dot: no 'c'; allowed are a, b"),
        (("no 'c'", "", "%kbackend a"), "no 'c'; next: %kbackend a"),
        (("no 'c'", "allowed are a, b", "%kbackend a"), "no 'c': allowed are a, b; next: %kbackend a"),
        (("", "", "%kbackend a"), "next: %kbackend a"),
    ],
)
def test_an_errors_parts_are_joined_into_one_line(parts, line):
    problem, allowed, next_step = (*parts, "", "")[:3]
    error = ArgumentError(problem, allowed=allowed, next_step=next_step)
    assert joined(*parts) == str(error) == line
    assert (error.problem, error.allowed, error.next_step) == (problem, allowed, next_step)


def test_what_later_stages_know_is_added_to_the_line_and_leaves_the_parts_alone():
    error = EngineError("JAX failed", next_step="%kbackend numpy")
    error.remark("op dot")
    error.remark("cell 3, line 1")
    error.location = "model.py, line 7"
    assert str(error) == "model.py, line 7: JAX failed; next: %kbackend numpy (op dot) (cell 3, line 1)"
    assert (error.problem, error.next_step) == ("JAX failed", "%kbackend numpy")


def test_a_refusal_gives_its_reasons_one_by_one_and_in_the_line():
    for kind in (SwapRefusedError, LoadRefusedError):
        error = kind("nothing was loaded", ["a is missing", "b: too"])
        assert error.reasons == ["a is missing", "b: too"]
        assert str(error) == "nothing was loaded: a is missing; b: too"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        *(lambda e, n=n: pickle.loads(pickle.dumps(e, n)) for n in (2, pickle.HIGHEST_PROTOCOL)),
    ],
)
def test_errors_keep_everything_in_copies_and_pickles(kind, copied):
    refusal = hasattr(kind("x"), "reasons")
    error = kind("what", ["a", "b"], next_step="c") if refusal else kind("what", allowed="a or b", next_step="c")
    error.remark("op dot")
    error.location = "model.py, line 7"
    if isinstance(error, EngineError):
        error.details = {"instruction": 3}
    again = copied(error)
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert again.args == error.args == ("what",)


def test_errors_are_also_pythons_own_kinds_and_print_as_kernelks():
    missing, unread = BackendNotInstalledError("no JAX", next_step="pip install jax"), FileError("no x.npz")
    assert isinstance(missing, ImportError)
    assert str(missing) == "no JAX; next: pip install jax"
    assert isinstance(unread, OSError)
    assert (str(unread), unread.errno, unread.filename) == ("no x.npz", None, None)


def test_a_backends_refusal_of_an_option_keeps_its_parts():
    error = refused_option(OptionError("no device 'b'", allowed="allowed are a", next_step="--device a"))
    assert str(error) == "no device 'b': allowed are a; next: --device a"


@pytest.mark.parametrize(
    ("module", "file"), [("decorator", "/lib/decorator/__init__.py"), ("IPython.core.magic", "<decorator-gen-7>")]
)
def test_a_magics_error_is_told_by_the_users_line_where_a_library_calls_the_magic(monkeypatch, module, file):
    # As IPython 7 does.
    names = {"__name__": module}
    exec(compile("def fun(magic):\n    return magic()\n", file, "exec"), names)
    cell = compile("get_ipython().run_line_magic('kbackend', 'x')\n", "mine.py", "exec")

    def fail():
        raise ArgumentError("no 'x'", allowed="allowed are a")

    monkeypatch.setattr(source, "PACKAGE", __file__)
    shell = type("Shell", (), {"run_line_magic": lambda *_: names["fun"](fail)})
    with pytest.raises(ArgumentError) as caught:
        exec(cell, {"get_ipython": shell})
    assert caught.value._render_traceback_() == ["ArgumentError: no 'x': allowed are a (mine.py, line 1)"]


def test_near_words_and_line_breaks():
    assert did_you_mean("denze", ["dense", "conv"]) == "did you mean 'dense'? "
    assert did_you_mean("denze", ["dense", "conv"], "`K.{}`") == "did you mean `K.dense`? "
    assert did_you_mean("lstm", ["dense", "conv"]) == ""
    assert one_line(ValueError("a\n  b\tc")) == "a b c"


# ---------------------------------------------------------------------------- none says only what happened

# They are given all reasons, which say what would be accepted.
_WITH_REASONS = {"SwapRefusedError", "LoadRefusedError"}


def _may_be_empty(value):
    if isinstance(value, ast.IfExp):
        return _may_be_empty(value.body) or _may_be_empty(value.orelse)
    return isinstance(value, ast.Constant) and not value.value


def _say_no_more(tree):
    """The lines that make an error of kernelk's with neither what is allowed nor what to do now."""
    ours, found = {kind.__name__ for kind in KINDS}, []
    for n in ast.walk(tree):
        kind = getattr(n.func, "id", getattr(n.func, "attr", "")) if isinstance(n, ast.Call) else ""
        if kind not in ours or (kind in _WITH_REASONS and len(n.args) > 1):
            continue
        more = [one.value for one in n.keywords if one.arg in ("allowed", "next_step")]
        if all(_may_be_empty(one) for one in more):
            found.append(n.lineno)
    return found


def test_every_error_says_what_is_allowed_or_what_to_do_now():
    assert {name: lines for name, tree in _sources() if (lines := _say_no_more(tree))} == {}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("raise ShapeError('a')", True),
        ("raise errors.ShapeError(f'{a}: b', next_step='')", True),
        ("return ArgumentError('a', next_step='b' if c else '')", True),
        ("raise ArgumentError('a', allowed='d', next_step='b' if c else '')", False),
        ("raise ArgumentError('a', next_step='b' if c else 'd')", False),
        ("raise ArgumentError('a', next_step=example)", False),
        ("raise SwapRefusedError('a', reasons)", False),
        ("raise SwapRefusedError('a')", True),
        ("raise ValueError('a')", False),
    ],
)
def test_the_check_sees_an_error_that_says_no_more(code, found):
    assert bool(_say_no_more(ast.parse(code))) is found


# ---------------------------------------------------------------------------- nothing takes the line apart

_TAKES_APART = {"partition", "rpartition", "split", "rsplit", "splitlines", "startswith", "endswith", "find", "index"}
_TAKES_APART |= {"replace", "removeprefix", "removesuffix", "count"}


def _by_hand(tree):
    """The lines with a "; next" that `joined` didn't write."""
    return [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Constant) and "; next" in str(n.value)]


def _names(annotation):
    return {n.id for n in ast.walk(annotation) if isinstance(n, ast.Name)} if annotation is not None else set()


def _taken_apart(tree):
    """The lines where the text of an error that may be kernelk's own, or what was made of that text, is examined."""
    ours = {kind.__name__ for kind in KINDS} | {"Exception", "BaseException"}
    found = []
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Module))]
    for function in functions:
        caught = {
            n.name for n in ast.walk(function) if isinstance(n, ast.ExceptHandler) and n.name and _names(n.type) & ours
        }
        if not isinstance(function, ast.Module):
            caught |= {argument.arg for argument in function.args.args if _names(argument.annotation) & ours}
        # So are a message's parts called before it is one.
        texts = {"problem"}

        def is_text(node, caught=caught, texts=texts):
            for n in ast.walk(node):
                if isinstance(n, ast.Name) and n.id in texts:
                    return True
                inner = n.args if isinstance(n, ast.Call) and getattr(n.func, "id", "") in ("str", "one_line") else []
                inner = [n.value] if isinstance(n, ast.FormattedValue) else inner
                if any(isinstance(one, ast.Name) and one.id in caught for one in inner):
                    return True
            return False

        for n in ast.walk(function):
            if isinstance(n, ast.Assign) and is_text(n.value):
                texts |= {target.id for target in n.targets if isinstance(target, ast.Name)}
        for n in ast.walk(function):
            asked = isinstance(n, ast.Compare) and isinstance(n.ops[0], (ast.In, ast.NotIn))
            called = isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr in _TAKES_APART
            if (asked and is_text(n.comparators[0])) or (called and is_text(n.func.value)):
                found.append(n.lineno)
            if isinstance(n, ast.Attribute) and n.attr == "args" and isinstance(n.value, ast.Name):
                found += [n.lineno] if n.value.id in caught else []
    return sorted(set(found))


def _sources():
    """Every module of kernelk but the island's, whose errors reach it as type and message."""
    place = Path(kernelk.__file__).parent
    for path in sorted(place.rglob("*.py")):
        if "backends" not in path.relative_to(place).parts[:1]:
            yield path.relative_to(place).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def test_no_message_is_joined_by_hand():
    docstring = "errors.py"  # shows the pattern
    assert {name: lines for name, tree in _sources() if name != docstring and (lines := _by_hand(tree))} == {}


def test_no_message_is_taken_apart():
    joiner = "errors.py"  # looks where a colon stands already
    assert {name: lines for name, tree in _sources() if name != joiner and (lines := _taken_apart(tree))} == {}


@pytest.mark.parametrize(
    "code",
    [
        "try: f()\nexcept KernelKError as error:\n    if 'x' not in str(error): pass",
        "try: f()\nexcept (ValueError, Exception) as e:\n    e.args = (f'{e.args[0]} (x)',)",
        "def g(error: Exception):\n    return ' '.join(str(error).split()).partition('; ')",
        "def g(error: Exception):\n    text = str(error)\n    return text.partition(': ')[0]",
        "def g(error: KernelKError | None):\n    return f'{error}'.startswith('a')",
    ],
)
def test_the_check_sees_what_takes_a_message_apart(code):
    assert _taken_apart(ast.parse(code))
    assert not _taken_apart(ast.parse(code.replace("KernelKError", "OSError").replace("Exception", "KeyError")))


def test_the_check_sees_that_a_message_s_part_is_taken_apart():
    assert _taken_apart(ast.parse("def g(problem):\n    return problem.endswith(' is not installed')"))


def test_the_check_sees_a_message_that_is_joined_by_hand():
    assert _by_hand(ast.parse("say(f'{x} is gone; next: run it')"))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: K.zeros(("a",)),
        lambda x: K.ones(2.5),
        lambda x: K.eye("x"),
        lambda x: K.tile(x, "a"),
        lambda x: K.tile(x, 2.5),
        lambda x: K.tile(x, None),
        lambda x: K.repeat(x, "a"),
        lambda x: K.repeat_elements(x, "a", 0),
        lambda x: K.repeat_elements(x, 0, 0),
        lambda x: K.arange("a"),
        lambda x: K.one_hot(K.cast(x, "int32"), None),
        lambda x: K.concatenate(3),
        lambda x: K.stack(None),
        lambda x: K.permute_dimensions(x, 1),
        lambda x: K.permute_dimensions(x, "ab"),
        lambda x: K.sum(x, axis=0.5),
        lambda x: K.spatial_2d_padding(K.reshape(x, (1, 2, 3, 1)), 1),
        lambda x: K.resize_images(K.reshape(x, (1, 2, 3, 1)), "a", 1, "channels_last"),
        lambda x: K.resize_images(K.reshape(x, (1, 2, 3, 1)), 1.5, 1, "channels_last", "bilinear"),
        lambda x: K.constant(300, dtype="uint8"),
        lambda x: K.constant(10**12, dtype="int32"),
        lambda x: K.constant(2.5, dtype="int32"),
        lambda x: K.placeholder((2.9, 2)),
        lambda x: K.placeholder(ndim=2.9),
        lambda x: K.reshape(x, (6.9,)),
        lambda x: K.random_normal((2.9,)),
        lambda x: K.spatial_2d_padding(K.reshape(x, (1, 2, 3, 1)), ((1.5, 1), (1, 1))),
        lambda x: K.batch_set_value(3),
        lambda x: K.batch_set_value([x]),
        lambda x: K.set_random_seed("a"),
        lambda x: K.rnn(None, K.reshape(x, (1, 2, 3)), []),
        lambda x: K.foldl(3, x),
        lambda x: K.map_fn(None, x),
        lambda x: K.moving_average_update(x, x, "a"),
        lambda x: kernelk.save("w.npz", variables=3),
        lambda x: kernelk.save("w.npz", variables=[x * 1.0]),
        lambda x: kernelk.save(tempfile.gettempdir()),
    ],
)
def test_an_argument_of_another_kind_is_named_and_not_rounded(call: Callable[[Any], Any]) -> None:
    with pytest.raises(KernelKError) as caught:
        call(K.ones((2, 3)))
    assert caught.value.allowed or caught.value.next_step
