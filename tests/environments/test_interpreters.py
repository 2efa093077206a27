"""The search for an interpreter, and what creates one: fake programs make each machine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from helpers.fake_programs import fake_python, program, this_python
from helpers.messages import one_line

from kernelk import errors
from kernelk.environments import interpreters, places
from kernelk.environments.recipes import RECIPES, Recipe
from kernelk.manage import install as manage_install

SERIES = f"{sys.version_info[0]}.{sys.version_info[1]}"
TINY = Recipe("tiny", "Tiny 1.0", (SERIES,), (), ("tiny==1.0",), "import tiny; print(tiny.VERSION)")
OLD = RECIPES["theano"]


def find(recipe: Recipe) -> interpreters.Interpreter:
    """The interpreter that `install` would build on. Raises what it would raise where there is none."""
    result = interpreters.search(recipe, places.roots())
    if result.interpreter is None:
        raise interpreters.nothing_found(recipe, result.broken)
    return result.interpreter


@pytest.mark.parametrize("place", ["PATH", "pyenv", "conda", "uv", "created by kernelk"])
def test_an_interpreter_is_found_in_each_place(bare: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    folder = {
        "PATH": "bin",
        "pyenv": ".pyenv/versions/x/bin",
        "conda": "somewhere/bin",
        "uv": ".local/share/uv/python/cpython-3.6.1-linux-x86_64-gnu/bin",
        "created by kernelk": "envs/python-3.6/bin",
    }[place]
    fake_python(bare / folder / "python3.6", "3.6.1")
    if place == "PATH":
        monkeypatch.setenv("PATH", str(bare / folder))
    if place == "conda":
        (bare / ".conda").mkdir()
        (bare / ".conda" / "environments.txt").write_text(f"/gone\n{(bare / folder).parent}\n")
    found = find(RECIPES["cntk"])
    assert (found.source, found.version) == (place, "3.6.1")


def test_the_kernels_own_interpreter_comes_before_any_other(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(bare / "bin"))
    this_python(bare / "bin" / f"python{SERIES}")
    assert find(TINY).source == "the kernel's own"
    assert find(TINY).version == ".".join(map(str, sys.version_info[:3]))


def test_uv_is_asked_for_the_pythons_that_it_manages(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = fake_python(bare / "kept" / "python3.8", "3.8.20")
    monkeypatch.setenv("PATH", str(bare / "bin"))
    asked = bare / "asked"
    answer = f'echo "$UV_PYTHON_PREFERENCE $UV_PYTHON_DOWNLOADS $*" >> {asked}; [ "$4" = 3.8 ] && echo {python}'
    program(bare / "bin" / "uv", answer)
    found = find(OLD)
    assert (found.source, found.version, found.path) == ("uv", "3.8.20", python)
    assert asked.read_text().splitlines()[-1] == "only-managed never python find --no-project 3.8"


def test_the_base_of_a_virtual_environment_is_taken(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELK_PYTHON_TINY", sys.executable)
    found = find(TINY)
    assert found.path.exists()
    assert sys.prefix == sys.base_prefix or not found.path.is_relative_to(sys.prefix)


def test_a_broken_interpreter_is_passed_over(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(bare / "bin" / "python3.6", "echo no such version >&2; exit 127")
    monkeypatch.setenv("PATH", str(bare / "bin"))
    fake_python(bare / ".pyenv/versions/x/bin/python3.6", "3.6.2")
    assert find(OLD).source == "pyenv"


def test_the_first_version_of_a_recipe_is_preferred_wherever_it_is(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(bare / "bin"))
    fake_python(bare / "bin/python3.8", "3.8.18")
    theano = RECIPES["theano"]
    assert find(theano).version == "3.8.18"
    for version in ("3.6.9", "3.6.15", "3.7.1"):
        name = f"python{version.rpartition('.')[0]}"
        fake_python(bare / ".pyenv/versions" / version / "bin" / name, version)
    assert find(theano).version == "3.6.15"


@pytest.mark.parametrize("variable", ["KERNELK_PYTHON_CNTK", "KERNELK_PYTHON36"])
def test_a_setting_comes_first(bare: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    fake_python(bare / ".pyenv/versions/3.6.15/bin/python3.6", "3.6.15")
    monkeypatch.setenv(variable, str(fake_python(bare / "mine", "3.6.1")))
    found = find(RECIPES["cntk"])
    assert (found.version, found.source) == ("3.6.1", variable)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo Python 3.5.2", "doesn't behave like a Python (Python 3.5.2)"),
        ("exit 3", "it printed nothing"),
        ("exec /bin/sleep 60", "didn't answer within"),
        (None, "no such program"),
    ],
)
def test_a_broken_setting_is_an_error_that_names_it(
    bare: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, said: str
) -> None:
    monkeypatch.setattr(interpreters, "_PROBE_SECONDS", 1)
    if script:
        program(bare / "mine", script)
    fake_python(bare / ".pyenv/versions/3.6.15/bin/python3.6", "3.6.15")
    monkeypatch.setenv("KERNELK_PYTHON36", str(bare / "mine"))
    with pytest.raises(errors.BackendNotInstalledError) as caught:
        find(RECIPES["cntk"])
    message = one_line(caught.value)
    assert said in message
    assert "KERNELK_PYTHON36" in message
    assert "must name a Python 3.6" in message


def test_a_setting_of_the_wrong_version_is_an_error(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELK_PYTHON_THEANO", str(fake_python(bare / "mine", "3.7.2")))
    with pytest.raises(errors.BackendNotInstalledError, match=r"is Python 3\.7\.2: .* a Python 3\.6 or 3\.8"):
        find(RECIPES["theano"])


def test_a_python_that_cannot_build_environments_is_refused(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fake_python(bare / "mine", "3.6.1")
    path.write_text(path.read_text().replace('"fit": true', '"fit": false'))
    monkeypatch.setenv("KERNELK_PYTHON36", str(path))
    with pytest.raises(errors.BackendNotInstalledError, match=r"3\.6\.1 without venv and ensurepip"):
        find(RECIPES["cntk"])


def test_no_interpreter_says_where_it_looked_and_what_to_do(bare: Path) -> None:
    broken = program(bare / ".pyenv/versions/3.6.15/bin/python3.6", "exit 1")
    with pytest.raises(errors.BackendNotInstalledError) as caught:
        find(RECIPES["cntk"])
    message = one_line(caught.value)
    for part in ("CNTK 2.7 needs Python 3.6", "PATH", str(bare / ".pyenv"), "conda", f"skipped {broken}"):
        assert part in message
    assert message.endswith("next: `pyenv install 3.6.15`, then `kernelk install cntk`")


# ---------------------------------------------------------------------------- creating one


@pytest.mark.parametrize("name", ["conda", "mamba", "micromamba"])
def test_conda_and_its_kin_create_the_best_version(bare: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    program(bare / "bin" / name, "exit 1")
    monkeypatch.setenv("PATH", str(bare / "bin"))
    maker = interpreters.makers(OLD)[0]
    command = maker.command(Path("/data/python-3.6"))
    assert command[0] == str(bare / "bin" / name)
    assert command[1:] == shlex.split(
        "create --yes --prefix /data/python-3.6 --override-channels --channel conda-forge python=3.6"
    )


def uv(place: Path, install: str) -> Path:
    """A uv that offers 3.8, as the real one lists it, and installs by this script."""
    offer = "cpython-3.8.20-linux-x86_64-gnu    <download available>"
    return program(place, f'case "$2 $3" in "list 3.8") echo "{offer}";; "install 3.8") {install};; *) exit 2;; esac')


def test_uv_creates_what_it_offers_and_nothing_else(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv(bare / "bin" / "uv", "exit 1")
    monkeypatch.setenv("PATH", str(bare / "bin"))
    assert interpreters.makers(RECIPES["cntk"]) == []
    (maker,) = interpreters.makers(OLD)
    assert maker.command(Path("/data/python-3.8")) == [str(bare / "bin" / "uv"), "python", "install", "3.8"]
    assert maker.environment(Path("/data/python-3.8")) == {"UV_PYTHON_INSTALL_DIR": "/data/python-3.8"}


@pytest.mark.parametrize("program_name", ["conda", "uv"])
def test_an_install_creates_the_python_that_is_missing(
    bare: Path, monkeypatch: pytest.MonkeyPatch, program_name: str
) -> None:
    # What is created is a Python that answers for its version and then fails as one: the install gets that far.
    monkeypatch.setenv("PATH", f"{bare / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(interpreters.shutil, "which", which_in(bare / "bin"))
    made = fake_python(bare / "template", "3.6.15" if program_name == "conda" else "3.8.20")
    copy = f'mkdir -p "$to" && cp {made} "$to/python'
    if program_name == "conda":
        program(bare / "bin" / "conda", f'echo solving; to="$4/bin"; {copy}3.6"')
        place = bare / "envs/python-3.6/bin/python3.6"
    else:
        uv(bare / "bin" / "uv", f'to="$UV_PYTHON_INSTALL_DIR/cpython-3.8.20-x/bin"; {copy}3.8"')
        place = bare / "envs/python-3.8/cpython-3.8.20-x/bin/python3.8"
    said: list[str] = []
    with pytest.raises(errors.InstallError):
        manage_install.install("theano", said.append)
    assert place.exists()
    series = "3.6" if program_name == "conda" else "3.8"
    assert any(f"creating a Python {series} with {program_name}" in x for x in said)
    assert find(OLD).source == "created by kernelk"
    # It goes with the last environment that needs it.
    manage_install.uninstall("theano", said.append)
    assert not place.exists()


def which_in(folder: Path) -> object:
    """`shutil.which` for a machine whose programs are all in this folder."""
    return lambda name: str(folder / name) if (folder / name).exists() else None


def test_a_python_that_cannot_be_created_is_one_line_and_leaves_nothing(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{bare / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(interpreters.shutil, "which", which_in(bare / "bin"))
    broken = 'mkdir -p "$4/half"; echo "CondaHTTPError: HTTP 000 CONNECTION FAILED for url <x>" >&2; exit 1'
    program(bare / "bin" / "conda", broken)
    with pytest.raises(
        errors.InstallError, match=r"the server of conda can't be reached .*next: check the network"
    ) as caught:
        manage_install.install("cntk", lambda text: None)
    one_line(caught.value)
    assert not (bare / "envs" / "python-3.6").exists()
    program(bare / "bin" / "conda", "echo done")
    with pytest.raises(errors.InstallError, match=r"conda reported success, but there is no python3\.6"):
        manage_install.install("cntk", lambda text: None)
