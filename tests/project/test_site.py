"""The documentation site, built as by `make docs`: its links lead somewhere, and a browser needs no network."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from helpers.jupyter_page import browsing, need_browser
from helpers.processes import PATIENCE, PROJECT, environment

from kernelk import backend as K

ELSEWHERE = ("http:", "https:", "//")
INSIDE = ("data:", "blob:")
VERBATIM = ("pre", "code", "script", "style", "title")
# The front page, long lines, wide tables, entries of functions, and results in cells.
SAMPLES = [
    "index.html",
    "docs/errors.html",
    "docs/accuracy.html",
    "docs/reference.html",
    "notebooks/02_which_is_faster.html",
]


class Read(HTMLParser):
    """What one page loads, where its links lead, where links can lead in it, and its text outside code."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.targets: set[str] = set()
        self.prose: list[str] = []
        self.verbatim = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.verbatim += tag in VERBATIM
        for name, value in attrs:
            if name == "id":
                self.targets.add(value or "")
            elif tag == "a" and name == "href":
                self.links.append(value or "")
            elif name in ("src", "href", "srcset", "data", "poster"):
                self.loaded.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        self.verbatim -= tag in VERBATIM

    def handle_data(self, data: str) -> None:
        if not self.verbatim:
            self.prose.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "-c", "docs"]
    command += [".", str(folder / "html")]
    done = subprocess.run(command, cwd=PROJECT, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Read]:
    # The theme has a template among its files.
    return {path: Read(path) for path in site.rglob("*.html") if "_static" not in path.parts}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    need_browser()
    with browsing() as found:
        yield found


def test_every_page_and_notebook_is_there(site: Path) -> None:
    sources = [*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md"), *(PROJECT / "notebooks").rglob("*.ipynb")]
    for source in sources:
        assert (site / source.relative_to(PROJECT)).with_suffix(".html").exists()


def test_links_within_the_site_lead_somewhere(site: Path, pages: dict[Path, Read]) -> None:
    broken = []
    for page, read in pages.items():
        for link in read.links + read.loaded:
            parts = urlsplit(link)
            if parts.scheme or link.startswith(ELSEWHERE):
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            known = pages[target].targets if target in pages else set()
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in known):
                broken.append(f"{page.relative_to(site)}: {link}")
    assert broken == []


def test_each_function_has_an_entry_with_its_example(site: Path, pages: dict[Path, Read]) -> None:
    reference = site / "docs" / "reference.html"
    assert {f"K.{name}" for name in K.__all__} <= pages[reference].targets
    text = reference.read_text(encoding="utf-8")
    entries = re.findall(r'<dl class="py (?:function|class)">.*?</dl>', text, re.DOTALL)
    assert len(entries) == len(K.__all__) + len(["native"])
    assert sum("highlight-pycon" in entry for entry in entries) == len(K.__all__)


def test_all_markup_is_understood(pages: dict[Path, Read]) -> None:
    left = [f"{page.name}: {words}" for page, read in pages.items() for words in read.prose if "`" in words]
    assert left == []


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Read]) -> None:
    assert [link for read in pages.values() for link in read.loaded if link.startswith(ELSEWHERE)] == []
    styles = [path.read_text(encoding="utf-8") for path in [*site.rglob("*.css"), *pages]]
    named = re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s]+)""", "\n".join(styles))
    assert [link for link in named if link.startswith(ELSEWHERE)] == []


def test_a_browser_asks_for_files_of_the_site_alone(site: Path, browser: Any) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for sample in SAMPLES:
        page.goto((site / sample).as_uri(), wait_until="networkidle")
    page.close()
    assert len(asked) > len(SAMPLES)
    assert [url for url in asked if not url.startswith((site.as_uri(), *INSIDE))] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_and_pictures_are_described(site: Path, browser: Any, scheme: str) -> None:
    from axe_core_python.sync_playwright import Axe

    page = browser.new_page(color_scheme=scheme)
    for sample in ("index.html", "notebooks/02_which_is_faster.html", "search.html?q=softmax"):
        page.goto(f"{site.as_uri()}/{sample}")
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]})
        assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found["violations"]] == [], sample
    page.close()


@pytest.mark.parametrize(("width", "height"), [(360, 640), (900, 720), (1440, 720)])
def test_the_first_screen_says_what_kernelk_is_and_how_to_install_it(
    site: Path, browser: Any, width: int, height: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto((site / "index.html").as_uri())
    for words in ("Keras backend API", 'pip install ".[panel]"'):
        place = page.locator("article").get_by_text(words).first.bounding_box()
        assert place is not None
        assert place["y"] + place["height"] <= height, words
    page.close()


def test_no_page_is_wider_than_a_phone(site: Path, pages: dict[Path, Read], browser: Any) -> None:
    """Code and tables scroll by themselves, within the page."""
    page = browser.new_page(viewport={"width": 360, "height": 800})
    for path in pages:
        if "_modules" not in path.parts:
            page.goto(path.as_uri())
            widths = "['html', 'article'].map((name) => document.querySelector(name)?.scrollWidth ?? 0)"
            assert max(page.evaluate(widths)) <= 360, path.relative_to(site)
    page.close()


def test_the_search_finds_a_function(site: Path, browser: Any) -> None:
    page = browser.new_page()
    page.goto((site / "search.html").as_uri() + "?q=softmax")
    page.locator("#search-results a[href*='docs/reference.html#K.softmax']").first.wait_for()
    page.close()
