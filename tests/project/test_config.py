"""keras.json and the environment: created, read, half-valid, broken, read-only; and which setting names the engine."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path

import pytest
from helpers.notebooks import run_cells
from helpers.processes import run_script
from hypothesis import given
from hypothesis import strategies as st

from kernelk import backend as K
from kernelk import config
from kernelk.errors import ArgumentError

DEFAULTS = {"image_data_format": "channels_last", "epsilon": 1e-07, "floatx": "float32", "backend": "tensorflow"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A KERAS_HOME with nothing in it, and no setting from outside."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    for name in ("KERAS_BACKEND", "KERNELK_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write(home: Path, content: object) -> Path:
    file = home / "keras.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_created_with_the_defaults(home: Path) -> None:
    folder = home / "deep" / ".keras"
    os.environ["KERAS_HOME"] = str(folder)
    settings = config.reload()
    assert json.loads((folder / "keras.json").read_text()) == DEFAULTS
    assert settings.values == DEFAULTS
    assert settings.problems == []
    assert config.chosen_backend() == ("tensorflow", "the default")


def test_the_home_folder_is_used_without_keras_home(tmp_path: Path) -> None:
    code = "from kernelk import config\nresult = [str(config.path()), config.settings().values['floatx']]"
    found = run_script(code, HOME=str(tmp_path), KERAS_HOME=None)
    assert found == [str(tmp_path / ".keras" / "keras.json"), "float32"]
    assert json.loads((tmp_path / ".keras" / "keras.json").read_text()) == DEFAULTS


def test_every_field_is_taken(home: Path) -> None:
    write(home, {"image_data_format": "channels_first", "epsilon": 1e-3, "floatx": "float64", "backend": "theano"})
    config.reload()
    assert (K.image_data_format(), K.epsilon(), K.floatx()) == ("channels_first", 1e-3, "float64")
    assert config.chosen_backend() == ("theano", f"keras.json ({home / 'keras.json'})")
    assert K.variable([1.0]).dtype == "float64"
    assert K.placeholder((2,)).dtype == "float64"


def test_a_partial_file_leaves_the_rest_at_the_defaults(home: Path) -> None:
    file = write(home, {"floatx": "float16", "something_else": [1, 2]})
    before = file.read_bytes()
    assert config.reload().values == {**DEFAULTS, "floatx": "float16"}
    assert config.settings().problems == []
    assert config.chosen_backend() == ("tensorflow", "the default")
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("floatx", "float128", "float16, float32, float64"),
        ("floatx", 32, "float16, float32, float64"),
        ("floatx", ["float32"], "float16, float32, float64"),
        ("image_data_format", "th", "channels_last, channels_first"),
        ("image_data_format", None, "channels_last, channels_first"),
        ("epsilon", "small", "a number between 0 and 1"),
        ("epsilon", -1e-7, "a number between 0 and 1"),
        ("epsilon", True, "a number between 0 and 1"),
        ("epsilon", 2, "a number between 0 and 1"),
        ("backend", "", "the name of a backend"),
        ("backend", 5, "the name of a backend"),
    ],
)
def test_a_bad_field_is_named_and_the_good_ones_are_taken(home: Path, field: str, value: object, allowed: str) -> None:
    good = {"image_data_format": "channels_first", "epsilon": 1e-5, "floatx": "float64", "backend": "theano"}
    file = write(home, {**good, field: value})
    before = file.read_bytes()
    settings = config.reload()
    assert settings.values == {**good, field: DEFAULTS[field]}
    assert len(settings.problems) == 1
    problem = settings.problems[0]
    assert f'"{field}" is {json.dumps(value)}' in problem
    assert allowed in problem
    assert str(file) in problem
    assert "\n" not in problem
    assert field in problem
    assert file.read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", '{"floatx": "float64",}', "[1, 2]", "null", "3", "\x00\x01", "not json"])
def test_broken_json_is_left_alone(home: Path, text: str) -> None:
    file = write(home, text)
    settings = config.reload()
    assert settings.values == DEFAULTS
    assert len(settings.problems) == 1
    assert "isn't valid JSON" in settings.problems[0]
    assert "\n" not in settings.problems[0]
    assert file.read_text() == text


def test_bytes_that_are_no_text(home: Path) -> None:
    (home / "keras.json").write_bytes(b"\xff\xfe\x00{")
    settings = config.reload()
    assert settings.values == DEFAULTS
    assert len(settings.problems) == 1
    assert (home / "keras.json").read_bytes() == b"\xff\xfe\x00{"


def test_a_folder_in_the_files_place(home: Path) -> None:
    (home / "keras.json").mkdir()
    settings = config.reload()
    assert settings.values == DEFAULTS
    assert "can't be read" in settings.problems[0]


def test_a_home_that_takes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file in the folder's place refuses everyone, root too.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file" / ".keras"))
    assert config.reload().values == DEFAULTS


@given(
    fields=st.dictionaries(
        st.sampled_from([*DEFAULTS, "other"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just("float64"),
            lambda x: st.lists(x, max_size=2) | st.dictionaries(st.text(max_size=3), x, max_size=2),
            max_leaves=4,
        ),
    )
)
def test_any_file_gives_allowed_values_and_a_line_for_each_bad_field(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, object]
) -> None:
    home = tmp_path_factory.mktemp("keras")
    file = write(home, fields)
    before = file.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(home))
        settings = config.reload()
    values = settings.values
    assert values["floatx"] in ("float16", "float32", "float64")
    assert values["image_data_format"] in ("channels_last", "channels_first")
    assert 0 < values["epsilon"] < 1
    assert isinstance(values["backend"], str)
    assert values["backend"]
    bad = [name for name in DEFAULTS if name in fields and values[name] != fields[name]]
    assert len(settings.problems) == len(bad)
    for name, problem in zip([n for n in fields if n in bad], settings.problems):
        assert f'"{name}"' in problem
        assert "\n" not in problem
    assert file.read_bytes() == before


def test_the_order_of_the_settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home, {"backend": "numpy"})
    config.reload()
    assert config.chosen_backend()[0] == "numpy"
    monkeypatch.setenv("KERAS_BACKEND", "theano")
    assert config.chosen_backend() == ("theano", "environment variable KERAS_BACKEND")
    monkeypatch.setenv("KERNELK_BACKEND", "cntk")
    assert config.chosen_backend() == ("cntk", "environment variable KERNELK_BACKEND")
    monkeypatch.setenv("KERNELK_BACKEND", "  ")
    assert config.chosen_backend() == ("theano", "environment variable KERAS_BACKEND")
    monkeypatch.setenv("KERAS_BACKEND", "kernelk.backend")
    assert config.chosen_backend()[0] == "numpy"
    monkeypatch.setenv("KERNELK_BACKEND", "kernelk.backend")
    assert config.chosen_backend()[0] == "numpy"
    write(home, {"backend": "kernelk.backend"})
    config.reload()
    assert config.chosen_backend() == ("tensorflow", "the default")


def test_the_session_follows_the_settings(home: Path) -> None:
    code = (
        "import kernelk\nfrom kernelk import backend as K\n"
        "result = [K.backend(), kernelk.list_backends().chosen_by, float(K.eval(K.constant(2.0) * 3.0))]"
    )
    write(home, {"backend": "theano"})
    chosen = run_script(code, KERAS_HOME=str(home), KERNELK_BACKEND="numpy")
    assert chosen == ["numpy", "environment variable KERNELK_BACKEND", 6.0]
    chosen = run_script(code, KERAS_HOME=str(home), KERAS_BACKEND="numpy")
    assert chosen == ["numpy", "environment variable KERAS_BACKEND", 6.0]
    write(home, {"backend": "numpy"})
    chosen = run_script(code, KERAS_HOME=str(home), KERAS_BACKEND="kernelk.backend")
    assert chosen == ["numpy", f"keras.json ({home / 'keras.json'})", 6.0]


def test_one_line_says_which_engine_and_can_be_silenced(home: Path) -> None:
    cells = [
        "from kernelk import backend as K",
        "print(K.eval(K.constant(2.0) + 1.0))",
        "K.eval(K.constant(1.0) * 5.0)",
    ]
    told = run_cells(cells, KERAS_HOME=str(home), KERNELK_BACKEND="numpy", KERNELK_QUIET=None)
    lines = [line for cell in told for line in cell["err"].splitlines()]
    assert len(lines) == 1
    assert lines[0].startswith("Using numpy ")
    assert lines[0].endswith("(chosen by environment variable KERNELK_BACKEND)")
    quiet = run_cells(cells, KERAS_HOME=str(home), KERNELK_BACKEND="numpy", KERNELK_QUIET="1")
    assert [cell["err"] for cell in quiet] == ["", "", ""]


def test_an_unknown_engine_in_a_setting_is_one_clear_line(home: Path) -> None:
    cells = [
        "%load_ext kernelk",
        "from kernelk import backend as K\nx = K.placeholder((2,))",
        "K.eval(K.constant(2.0) + 1.0)",
        "%kbackend numpy",
        "print(float(K.eval(K.constant(2.0) + 1.0)))",
    ]
    done = run_cells(cells, KERAS_HOME=str(home), KERAS_BACKEND="teano", KERNELK_QUIET=None)
    assert [cell["error"] for cell in done] == [None, None, "UnknownBackendError", None, None]
    assert "unknown backend 'teano': did you mean 'theano'?" in done[2]["out"]
    assert len(done[2]["out"].strip().splitlines()) == 1
    assert done[4]["out"] == "3.0\n"


def test_a_bad_file_stops_neither_load_ext_nor_the_session(home: Path) -> None:
    write(home, {"floatx": "float12", "backend": "numpy"})
    done = run_cells(
        ["%load_ext kernelk", "from kernelk import backend as K\nprint(K.floatx(), K.eval(K.constant(1.0) + 1.0))"],
        KERAS_HOME=str(home),
        KERNELK_QUIET=None,
    )
    assert [cell["error"] for cell in done] == [None, None]
    assert done[0]["err"].startswith("kernelk: ")
    assert done[0]["err"].count("\n") == 1
    assert '"floatx" is "float12", allowed are float16, float32, float64' in done[0]["err"]
    assert done[1]["out"] == "float32 2.0\n"


def test_setters(home: Path) -> None:
    config.reload()
    K.set_floatx("float64")
    K.set_epsilon(1e-3)
    K.set_image_data_format("channels_first")
    assert (K.floatx(), K.epsilon(), K.image_data_format()) == ("float64", 1e-3, "channels_first")
    for setter, wrong in (
        (K.set_floatx, "float99"),
        (K.set_floatx, "int32"),
        (K.set_epsilon, 0),
        (K.set_epsilon, float("nan")),
        (K.set_epsilon, "1e-7"),
        (K.set_image_data_format, "tf"),
    ):
        with pytest.raises(ArgumentError, match=setter.__name__):
            setter(wrong)
    assert (K.floatx(), K.epsilon(), K.image_data_format()) == ("float64", 1e-3, "channels_first")
    assert json.loads((home / "keras.json").read_text()) == DEFAULTS


def test_keras_on_kernelk_and_kernelk_share_their_settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kerases = {"floatx": "float64", "epsilon": 1e-3, "image_data_format": "channels_first"}
    common = types.ModuleType("keras.backend.common")
    for field in kerases:
        setattr(common, field, lambda field=field: kerases[field])
        setattr(common, f"set_{field}", lambda value, field=field: kerases.update({field: value}))
    loader = types.ModuleType("keras.backend.load_backend")
    loader._BACKEND = "tensorflow"
    monkeypatch.setitem(sys.modules, common.__name__, common)
    monkeypatch.setitem(sys.modules, loader.__name__, loader)
    config.reload()
    assert (K.floatx(), K.epsilon(), K.image_data_format()) == ("float32", 1e-7, "channels_last")
    K.set_floatx("float16")
    assert kerases["floatx"] == "float64"
    loader._BACKEND = "kernelk.backend"
    assert (K.floatx(), K.epsilon(), K.image_data_format()) == ("float64", 1e-3, "channels_first")
    assert K.variable([1.0]).dtype == "float64"
    K.set_floatx("float32")
    K.set_epsilon(1e-4)
    K.set_image_data_format("channels_last")
    assert kerases == {"floatx": "float32", "epsilon": 1e-4, "image_data_format": "channels_last"}
    with pytest.raises(ArgumentError):
        K.set_floatx("float99")


def test_floatx_is_what_new_tensors_have(backend: str) -> None:
    for dtype in ("float64", "float16", "float32"):
        K.set_floatx(dtype)
        v = K.variable([1.0, 2.0])
        tensors = [
            v,
            K.zeros((2,)),
            K.ones((2,)),
            K.eye(2),
            K.constant(1.0),
            K.placeholder((2,)),
            K.random_uniform((2,)),
        ]
        assert {x.dtype for x in tensors} == {dtype}
        assert K.eval(v * 2.0 + 1).dtype == dtype
        assert K.eval(K.mean(K.variable([1, 2], dtype="int32"))).dtype == dtype


def test_epsilon_keeps_a_crossentropy_finite(backend: str) -> None:
    K.set_epsilon(1e-2)
    target, output = K.constant([[1.0, 0.0]]), K.constant([[0.0, 1.0]])
    import numpy as np

    assert np.isclose(K.eval(K.categorical_crossentropy(target, output))[0], -np.log(1e-2), rtol=1e-4)


def test_a_file_that_begins_with_a_mark_of_its_byte_order_is_read(tmp_path: Path) -> None:
    (tmp_path / "keras.json").write_bytes(b'\xef\xbb\xbf{"backend": "numpy", "floatx": "float64"}')
    done = run_cells(["from kernelk import backend as K", "(K.backend(), K.floatx())"], KERAS_HOME=str(tmp_path))
    assert done[-1]["value"] == "('numpy', 'float64')"
