"""Makes the documentation site of the pages and notebooks as they are in the repository, for `make docs`."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from docutils import nodes

import kernelk
from kernelk import backend

# The reference shows, links and finds each function under the name that users type.
sys.modules["K"] = backend

project = "kernelk"
version = release = kernelk.__version__
html_title = f"kernelk {release}"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]

# The source folder is the repository, so that links between pages are the same there and here.
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "benchmarks/*.md", "notebooks/**.ipynb"]
exclude_patterns = [".*", "**/.*", "build", "dist"]
myst_heading_anchors = 4
nitpicky = True

# The notebooks are shown with the outputs that they were committed with.
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"
# No kernel answers a widget here, and its scripts would come from elsewhere: its table or text stands for it.
nb_ipywidgets_js = {}
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]

# Docstrings are Markdown's subset that is reStructuredText too, with this.
default_role = "code"
autodoc_typehints = "none"
toc_object_entries = False

html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_use_index = False
html_show_sourcelink = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "logo": {"text": "kernelk"},
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "article_footer_items": [],
    "footer_start": [],
    "footer_center": [],
    "footer_end": [],
}

CONTENTS = "docs/index"
LINK = re.compile(r"\]\(([^)#]+)\.(?:md|ipynb)\)")
# In the reference: a signature, its docstring, and an example if there is one.
ENTRY = re.compile(r"^```\nK\.(\w+)(.*)\n```\n(?:(?!```|Examples:).*\n)*(?:```pycon\n((?:(?!```).*\n)*)```\n)?", re.M)


def toctree(pages: list[str], *options: str) -> str:
    """The directive that puts these pages into the site's navigation."""
    return "\n".join(["\n```{toctree}", ":hidden:", *options, "", *pages, "```\n"])


def titled(page: str) -> str:
    """A page's entry there: a student's unit has the title of the solved one, and is told from it."""
    if "/student/" not in page:
        return page
    notebook = json.loads((Path(__file__).parent / f"{page}.ipynb").read_text(encoding="utf-8"))
    title = "".join(notebook["cells"][0]["source"]).partition("\n")[0].lstrip("# ")
    return f"{title} (student) <{page}>"


def navigation(text: str) -> str:
    """The page of contents, with each of its sections as a part of the navigation."""
    seen: set[str] = set()
    for section in text.split("\n## ")[1:]:
        pages = [page for page in dict.fromkeys(LINK.findall(section)) if page not in seen]
        seen.update(pages)
        text += toctree([titled(page) for page in pages], f":caption: {section.partition(chr(10))[0]}")
    return text


def autodoc_entry(found: re.Match[str]) -> str:
    """An entry of the function reference: autodoc's, of the function itself, with the example that the page has."""
    name, arguments, example = found.groups()
    lines = ["```{eval-rst}", f".. auto{'function' if arguments else 'class'}:: K.{name}"]
    if example:
        lines += ["", "   .. code-block:: pycon", "", *(f"      {line}" for line in example.splitlines())]
    return "\n".join([*lines, "```\n"])


def shown(text: str) -> str:
    """The notebook without what widgets and progress left, its pictures' descriptions where MyST-NB looks for them."""
    notebook = json.loads(text)
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        if alt := cell["metadata"].get("alt"):
            cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
        if "outputs" in cell:
            cell["outputs"] = [o for o in cell["outputs"] if "data" not in o or any(map("".join, o["data"].values()))]
    return json.dumps(notebook)


def read(app: Any, name: str, source: list[str]) -> None:
    """Adds to a source what GitHub's page of it can't have."""
    if name == root_doc:
        source[0] += toctree([CONTENTS, "CHANGELOG"])
    elif name == CONTENTS:
        source[0] = navigation(source[0])
    elif name == "docs/reference":
        source[0] = ENTRY.sub(autodoc_entry, source[0])
    elif name.startswith("notebooks/"):
        source[0] = shown(source[0])


def signature(app: Any, kind: str, *_: Any) -> tuple[str, str] | None:
    """None for a class: users get its instances from functions."""
    return ("", "") if kind == "class" else None


def wrap(app: Any, tree: nodes.document) -> None:
    """Marks output of one or two lines: these are messages, which are wrapped, where tables scroll."""
    for block in tree.findall(nodes.literal_block):
        if block.get("language") == "text" and len(block.astext().splitlines()) < 3:
            block["classes"].append("message")


def add_index(app: Any, error: Exception | None) -> None:
    """The first page under the name that servers look for."""
    if error is None:
        shutil.copy(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", read)
    app.connect("autodoc-process-signature", signature)
    app.connect("doctree-read", wrap)
    app.connect("build-finished", add_index)
