"""`kernelk.save` and `kernelk.load`: a file that numpy alone reads, restored after a kernel restart, all or nothing."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.arrays import same_bits
from helpers.engines import activate
from helpers.messages import one_line
from helpers.notebooks import run_cells

import kernelk
from kernelk import backend as K
from kernelk.errors import ArgumentError, FileError, KernelKError, LoadRefusedError
from kernelk.graph.state import current_state

DTYPES = ("float16", "float32", "float64", "int8", "int64", "uint64", "bool")


def names(path: Path) -> list[str]:
    with np.load(path, allow_pickle=False) as file:
        return sorted(set(file.files) - {"kernelk"})


@pytest.mark.parametrize("engine", ["theano", "torch"])
def test_a_restarted_kernel_goes_on_where_it_was(engine: str, tmp_path: Path) -> None:
    """The notebook's cells are run again, then `load`: values of every variable, and the very next draws."""
    activate(engine)
    setup = [
        "%load_ext kernelk",
        "from kernelk.session import current\ncurrent().engine_options['theano'] = {'compiler': ''}",
        "import kernelk\nimport numpy as np\nfrom kernelk import backend as K",
        "w = K.variable(np.ones((2, 3)), name='layer/w:0')\nsteps = K.variable(0, dtype='int64')\n"
        "others = [K.variable(np.zeros(2)) for _ in range(2)]",
        "noise = K.random_normal((2, 3))\n"
        "f = K.function([], [noise], [K.update_add(w, noise), K.update_add(steps, 1)])",
    ]
    file = str(tmp_path / "run.npz")
    show = "print([K.get_value(x).tolist() for x in (w, steps, *others)])"
    first = run_cells(
        [
            *setup,
            "for _ in range(3):\n    f([])\nK.set_value(others[1], [5.0, 6.0])",
            f"kernelk.save({file!r})",
            show,
            "print(f([])[0].tolist(), K.eval(K.random_uniform((2,))).tolist())",
            show,
        ],
        KERNELK_BACKEND=engine,
    )
    assert [cell["error"] for cell in first] == [None] * 10, first
    assert "saved to " in first[6]["value"]
    again = run_cells(
        [
            *setup,
            # Compiled and run before: the plans of the new session hold its own seeds.
            "f([])",
            f"kernelk.load({file!r})",
            show,
            "print(f([])[0].tolist(), K.eval(K.random_uniform((2,))).tolist())",
            show,
        ],
        KERNELK_BACKEND=engine,
    )
    assert [cell["error"] for cell in again] == [None] * 10, again
    assert "random state" in again[6]["value"]
    for i in (7, 8, 9):
        assert again[i]["out"] == first[i]["out"]
    assert json.loads(first[7]["out"])[1:] == [3, [0.0, 0.0], [5.0, 6.0]]
    assert first[7]["out"] != first[9]["out"]


def test_numpy_alone_reads_it_bit_for_bit(tmp_path: Path) -> None:
    values = {name: np.array([0, 1, 1]).astype(name) for name in DTYPES}
    values["nan"] = np.array([np.nan, -0.0, np.inf, 1e-45], "float32")
    values["empty"] = np.zeros((0, 3), "float32")
    values["scalar"] = np.float64(np.pi) * np.ones(())
    variables = [K.variable(value, value.dtype, name) for name, value in values.items()]
    saved = kernelk.save(tmp_path / "all")
    assert saved.path == tmp_path / "all.npz"
    assert saved.names == list(values)
    with np.load(saved.path, allow_pickle=False) as file:
        for name, value in values.items():
            assert same_bits(file[name], value)
        assert json.loads(str(file["kernelk"]))["random"] == current_state().seeds.state()
    for variable in variables:
        K.set_value(variable, np.zeros(variable.shape))
    loaded = kernelk.load(tmp_path / "all")
    assert loaded.restored == list(values)
    assert all(same_bits(K.get_value(variable), values[variable.name]) for variable in variables)
    assert not list(tmp_path.glob(".*"))


def test_the_next_draw_is_the_one_that_would_have_come(backend: str, tmp_path: Path) -> None:
    K.set_random_seed(7)
    dropped = K.dropout(K.ones((40,)), 0.5)
    K.eval(dropped)
    kernelk.save(tmp_path / "x")
    wanted = [K.eval(dropped), K.eval(K.random_normal((5,))), K.eval(K.random_uniform((3,), seed=4))]
    K.set_random_seed(8)
    K.eval(K.random_normal((5,)))
    assert kernelk.load(tmp_path / "x.npz").random
    # What was made with another seed in between is another node; the first one goes on.
    assert same_bits(K.eval(dropped), wanted[0])
    assert same_bits(K.eval(K.random_normal((5,))), wanted[1])
    assert same_bits(K.eval(K.random_uniform((3,), seed=4)), wanted[2])


def test_namesakes_are_told_apart_by_age_and_the_newest_has_the_name(tmp_path: Path) -> None:
    old, taken, new = (K.variable([n], name=name) for n, name in ((1.0, "w"), (2.0, "w#2"), (3.0, "w")))
    loose = [K.variable([float(n)]) for n in (4, 5)]
    file = kernelk.save(tmp_path / "x").path
    assert names(file) == ["variable#1", "variable#2", "w", "w#2", "w#3"]
    with np.load(file) as found:
        assert {name: found[name].item() for name in names(file)} == {
            "w": 3.0, "w#2": 2.0, "w#3": 1.0, "variable#1": 5.0, "variable#2": 4.0,
        }  # fmt: skip
    for variable in (old, taken, new, *loose):
        K.set_value(variable, [0.0])
    kernelk.load(file)
    assert [K.get_value(x).item() for x in (old, taken, new, *loose)] == [1.0, 2.0, 3.0, 4.0, 5.0]
    del old
    K.set_value(new, [0.0])
    with pytest.raises(LoadRefusedError, match=r"variable 'w' matches 2 in the file \(w, w#3\) and 1 here") as caught:
        kernelk.load(file)
    one_line(caught.value)
    assert K.get_value(new).item() == 0.0
    assert kernelk.load(file, {new: "w"}).restored == ["w"]
    assert K.get_value(new).item() == 3.0
    assert kernelk.load(file, {"w#2": "w#3"}).restored == ["w#3"]
    assert K.get_value(taken).item() == 1.0


def test_unnamed_variables_are_found_by_their_line_in_whatever_order_the_cells_run(tmp_path: Path) -> None:
    make = ["import kernelk\nfrom kernelk import backend as K", "a = K.variable([1.0])", "b = K.variable([2.0])"]
    file = str(tmp_path / "x.npz")
    settings: dict[str, Any] = {"KERNELK_BACKEND": "numpy"}
    run_cells([*make, f"kernelk.save({file!r})"], **settings)
    show = "print(K.get_value(a), K.get_value(b), got.unused, got.missing == [c.name], K.get_value(c))"
    turned = ["K.placeholder((3,))", make[2], make[1], "c = K.variable([9.0])"]
    cells = run_cells([make[0], *turned, f"got = kernelk.load({file!r})", show], **settings)
    assert [cell["error"] for cell in cells] == [None] * 7, cells
    assert cells[-1]["out"] == "[1.] [2.] [] True [9.]\n"


def test_what_one_side_lacks_is_told_and_given_as_arrays(tmp_path: Path) -> None:
    a, b = K.variable([1.0], name="a"), K.variable([2.0], name="b")
    file = kernelk.save(tmp_path / "x").path
    del b
    c = K.variable([3.0], name="c")
    K.set_value(a, [9.0])
    loaded = kernelk.load(file)
    assert (loaded.restored, loaded.unused, loaded.missing) == (["a"], ["b"], ["c"])
    assert dict(loaded).keys() == {"a", "b"}
    assert loaded["b"].tolist() == [2.0]
    assert [K.get_value(x).item() for x in (a, c)] == [1.0, 3.0]
    assert "no variable here  1: b" in repr(loaded)
    assert "not in the file" in loaded._repr_html_()


def test_a_part_only(tmp_path: Path) -> None:
    a, b, c = (K.variable([n], name=name) for n, name in ((1.0, "a"), (2.0, "b"), (3.0, "c")))
    assert kernelk.save(tmp_path / "x", [a, "c"]).names == ["a", "c"]
    assert names(tmp_path / "x.npz") == ["a", "c"]
    K.eval(K.random_normal((1,)))
    drawn = current_state().seeds.state()
    for x in (a, b, c):
        K.set_value(x, [0.0])
    loaded = kernelk.load(tmp_path / "x", variables=[c])
    assert (loaded.restored, loaded.random, current_state().seeds.state()) == (["c"], False, drawn)
    assert [K.get_value(x).item() for x in (a, b, c)] == [0.0, 0.0, 3.0]
    with pytest.raises(ArgumentError, match="no live variable is named 'aa': did you mean 'a'"):
        kernelk.save(tmp_path / "x", ["aa"])
    with pytest.raises(LoadRefusedError, match="the file has no variable 'b'; it has a, c"):
        kernelk.load(tmp_path / "x", [b])
    with pytest.raises(ArgumentError, match="the file has no array 'z': it has a, c"):
        kernelk.load(tmp_path / "x", {a: "z"})


def test_all_or_nothing(tmp_path: Path) -> None:
    a, b = K.variable([1.0], name="a"), K.variable([[2.0]], name="b")
    file = kernelk.save(tmp_path / "x").path
    K.clear_session()
    a = K.variable([7.0], name="a")
    b = K.variable([8.0], name="b")
    c = K.variable([1], "int32", name="c")
    before = current_state().seeds.state()
    noise: Any = K.random_normal((1,))
    K.eval(noise)
    with pytest.raises(LoadRefusedError) as caught:
        kernelk.load(file)
    assert "'b' is float32(1, 1), but variable 'b' (test_save.py, line" in one_line(caught.value)
    assert len(caught.value.reasons) == 1
    assert [K.get_value(x).tolist() for x in (a, b, c)] == [[7.0], [8.0], [1]]
    assert current_state().seeds.state() == {
        **before,
        "counts": {str(noise.count.number): 1},
        "count": noise.count.number + 1,
    }
    with pytest.raises(LoadRefusedError, match=r"float32\(1,\), but variable 'c'"):
        kernelk.load(file, {c: "a"})


def _npz(path: Path, **members: Any) -> None:
    np.savez(path, **members)


def test_files_that_are_none(tmp_path: Path) -> None:
    v = K.variable(np.arange(5000.0), name="v")
    good = kernelk.save(tmp_path / "good").path.read_bytes()
    about = json.loads(str(np.load(tmp_path / "good.npz")["kernelk"]))
    K.set_value(v, np.ones(5000))
    bad: dict[str, bytes | dict[str, Any]] = {
        "truncated": good[: len(good) // 2],
        "flipped": good.replace(np.arange(5000.0, dtype="float32")[100:104].tobytes(), bytes(16)),
        "empty": b"",
        "text": b"hello, this is no archive",
        "objects": {"v": np.array([{}], dtype=object)},
        "not json": {"kernelk": np.array("{"), "v": np.ones(5000, "float32")},
        "no state": {"kernelk": np.array(json.dumps({**about, "random": {}})), "v": np.ones(5000, "float32")},
        "other arrays": {"kernelk": np.array(json.dumps(about)), "w": np.ones(5000, "float32")},
        "newer": {"kernelk": np.array(json.dumps({**about, "format": 99})), "v": np.ones(5000, "float32")},
    }
    for name, content in bad.items():
        path = tmp_path / f"{name}.npz"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            _npz(path, **content)
        with pytest.raises(FileError) as caught:
            kernelk.load(path)
        assert "next: " in one_line(caught.value), name
        assert isinstance(caught.value, (OSError, KernelKError))
        assert K.get_value(v).tolist() == [1.0] * 5000
    with pytest.raises(FileError, match="doesn't exist"):
        kernelk.load(tmp_path / "nothing")
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(FileError, match="contains a single array"):
        kernelk.load(tmp_path / "one.npy")
    with pytest.raises(ArgumentError, match="expected a path, not int"):
        kernelk.load(3)  # type: ignore[arg-type]


def test_an_npz_file_by_others_gives_values_by_name(tmp_path: Path) -> None:
    v = K.variable([1.0, 2.0], name="dense/kernel:0")
    drawn = current_state().seeds.state()
    _npz(tmp_path / "theirs.npz", **{"dense/kernel:0": np.array([3, 4], ">f4"), "bias": np.ones(2)})
    loaded = kernelk.load(tmp_path / "theirs.npz")
    assert (loaded.restored, loaded.unused, loaded.random) == (["dense/kernel:0"], ["bias"], False)
    assert K.get_value(v).tolist() == [3.0, 4.0]
    assert current_state().seeds.state() == drawn


@pytest.mark.parametrize("name", ["a/b:0", "../up", "/root", "a.npy", "kernelk", "ü x", "nul\0", "a\\b", "", "."])
def test_any_name_goes(name: str, tmp_path: Path) -> None:
    a, b = K.variable([1.0], name=name), K.variable([2.0], name="a")
    file = kernelk.save(tmp_path / "x").path
    for x in (a, b):
        K.set_value(x, [0.0])
    kernelk.load(file)
    assert [K.get_value(x).item() for x in (a, b)] == [1.0, 2.0]
    assert len(names(file)) == 2


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    v = K.variable([1.0], name="v")
    file = kernelk.save(tmp_path / "x").path
    os.chmod(file, 0o640)
    link = tmp_path / "link.npz"
    link.symlink_to(file)
    K.set_value(v, [2.0])
    kernelk.save(link)
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    before = file.read_bytes()
    assert np.load(file)["v"].tolist() == [2.0]

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    for place in ("write_array", "fsync", "interrupt"):
        with monkeypatch.context() as patch:
            wanted: type[BaseException] = FileError
            if place == "write_array":
                patch.setattr(np.lib.format, "write_array", full)
            elif place == "fsync":
                patch.setattr(os, "fsync", full)
            else:
                wanted = KeyboardInterrupt
                patch.setattr(os, "chmod", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(wanted) as caught:
                kernelk.save(file)
        if wanted is FileError:
            assert "No space left on device; nothing was saved" in one_line(caught.value)
        assert file.read_bytes() == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["link.npz", "x.npz"]
    with pytest.raises(FileError, match="No such file or directory"):
        kernelk.save(tmp_path / "no" / "folder" / "x")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(FileError, match="it is a folder"):
        kernelk.save(tmp_path / "folder.npz")


def test_what_nobody_holds_is_not_in_the_file(tmp_path: Path) -> None:
    kept = K.variable([1.0], name="kept")

    class Holder:
        pass

    holder: Any = Holder()
    holder.me, holder.w = holder, K.variable([2.0], name="lost")
    del holder
    assert kernelk.save(tmp_path / "x").names == [kept.name]


def test_an_update_that_was_only_just_made_is_in_the_file(worker: str, tmp_path: Path) -> None:
    v = K.variable(np.zeros(1000), name="v")
    step = K.function([], [], [K.update_add(v, 1.0)])
    for _ in range(5):
        step([])
    file = kernelk.save(tmp_path / "x").path
    assert np.load(file)["v"].tolist() == [5.0] * 1000
    step([])
    kernelk.load(file)
    step([])
    assert K.get_value(v).tolist() == [6.0] * 1000
    activate("numpy")
    kernelk.load(file)
    step([])
    assert K.get_value(v).tolist() == [6.0] * 1000


@pytest.mark.parametrize("name", ["w.h5", "w.keras", "w.pt", "w.npy"])
def test_a_file_that_would_be_taken_for_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    w = K.variable([1.0], name="w")
    with pytest.raises(FileError, match=r"kernelk saves npz files; next: kernelk\.save\('.*w\.npz'\)") as caught:
        kernelk.save(tmp_path / name)
    assert not list(tmp_path.iterdir())
    exec(caught.value.next_step, {"kernelk": kernelk})
    assert [path.name for path in tmp_path.iterdir()] == ["w.npz"]
    assert K.get_value(w).tolist() == [1.0]
    # A dot in a name is no suffix.
    assert kernelk.save(tmp_path / "w.v2").path.name == "w.v2.npz"


def test_what_a_killed_save_left_goes_with_the_next_one(tmp_path: Path) -> None:
    K.variable(np.ones(1000), name="w")
    path = tmp_path / "w.npz"
    kernelk.save(path)
    dead, held = (tmp_path / f".w.npz-{name}.kernelk-unfinished" for name in ("dead", "held"))
    for left in (dead, held):
        left.write_bytes(b"half a file")
    mine = tmp_path / ".w.npz-notes"
    mine.write_text("mine")
    # Another process is still writing this one.
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys, time\nfile = open(sys.argv[1], 'rb+')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
            "print(flush=True)\ntime.sleep(1000)",
            str(held),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        kernelk.save(path)
        assert sorted(entry.name for entry in tmp_path.iterdir()) == [held.name, mine.name, "w.npz"]
    finally:
        holder.kill()
        holder.communicate()
    kernelk.save(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [mine.name, "w.npz"]


@pytest.mark.parametrize(
    "about", [[1], {"format": 99}, {"format": 1}, {"format": 1, "random": {}, "variables": [3]}, 7]
)
def test_a_header_of_another_kind_is_named_in_plain_words(tmp_path: Path, about: object) -> None:
    from kernelk.session.archive import ABOUT

    path = tmp_path / "w.npz"
    np.savez(path, **{ABOUT: np.array(json.dumps(about)), "w": np.ones(3)})
    with pytest.raises(FileError) as caught:
        kernelk.load(path)
    words = str(caught.value)
    assert "list" in words or "written by kernelk" in words or "random state" in words
    assert not any(raw in words for raw in ("indices", "KeyError", "'kernelk'", "object at", "unpack"))


def test_a_variable_without_a_name_is_found_by_what_save_has_called_it(tmp_path: Path) -> None:
    w = K.variable([1.0, 2.0])
    (key,) = kernelk.save(tmp_path / "w").names
    K.set_value(w, [3.0, 4.0])
    kernelk.load(tmp_path / "w", variables=[key])
    assert K.get_value(w).tolist() == [1.0, 2.0]
