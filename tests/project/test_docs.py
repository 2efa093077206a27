"""The pages tell the truth: their Python blocks run, print what is shown under them, and their links lead somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from helpers.engines import WORKERS, absent
from helpers.notebooks import run_cells
from helpers.processes import PROJECT

from kernelk.engines import registry

PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", PROJECT / "CHANGELOG.md"]
PAGES += sorted((PROJECT / "docs").glob("*.md"))
DESCRIBED = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
# Lines about engines' starts, and about C code that isn't in this machine's compile cache yet.
OF_A_MACHINE = ("Using ", "Theano computes by numpy code ", "Theano's C code is built ")
SHIPPED = DESCRIBED["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(page: Path) -> list[tuple[str, str | None]]:
    """Each Python block, with the text block that follows it, if one does."""
    found: list[tuple[str, str | None]] = []
    for kind, content in BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind == "python":
            found.append((content, None))
        else:
            found[-1] = (found[-1][0], content.strip())
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)], ids=lambda page: page.name)
def test_what_a_page_shows_is_what_is_printed(page: Path, tmp_path: Path) -> None:
    blocks = examples(page)
    for name in WORKERS:
        used = any(re.search(rf'kbackend {name}|"{name}"', code) for code, _ in blocks)
        if used and not registry.installed(name):
            absent(name, f"{page.name} uses it")
    results = run_cells([code for code, _ in blocks], KERAS_HOME=str(tmp_path), KERNELK_QUIET=None)
    for (code, shown), result in zip(blocks, results):
        lines = f"{result['err']}{result['out']}".splitlines()
        told = [line for line in lines if not line.startswith(OF_A_MACHINE)]
        printed = "\n".join(told).strip()
        assert printed == (shown or ""), code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_file_names_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link
            # In the source distribution, too.
            assert (page.parent / link).resolve().relative_to(PROJECT).parts[0] in SHIPPED, link
    for name in re.findall(r"`((?:kernelk|tests|docs|notebooks|benchmarks)/[\w/.]*)`", text):
        assert (PROJECT / name).exists(), name


def test_the_lowest_versions_of_engines_are_the_same_everywhere() -> None:
    extras = DESCRIBED["project"]["optional-dependencies"]
    page = (PROJECT / "README.md").read_text(encoding="utf-8")
    for name in ("tensorflow", "jax", "torch"):
        engine = registry.engine(name)
        assert extras[name] == [f"{name}>={engine.lowest}"]
        assert re.search(rf"^\| `{name}` \| (PyTorch )?{re.escape(engine.lowest)} or newer \|", page, re.MULTILINE)
    assert extras["tensorflow-cpu"] == [f"tensorflow-cpu>={registry.engine('tensorflow').lowest}"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_word_stands_twice(page: Path) -> None:
    prose = re.sub(r"```.*?^```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"\b([A-Za-z]{2,}) \1\b", prose)


def test_the_modules_that_comments_name_exist() -> None:
    for file in (PROJECT / "kernelk").rglob("*.py"):
        for name in re.findall(r"\bsee `?([a-z_]+(?:\.(?!py\b)[a-z_]+)+)\b", file.read_text(encoding="utf-8")):
            path = PROJECT / "kernelk" / name.replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").exists(), f"{file}: {name}"
