"""Magics in a real IPython shell and a real Jupyter kernel; errors there: one line, with the user's cell and line."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.engines import activate
from helpers.notebooks import Notebook, run_cells
from helpers.processes import PATIENCE, alive, environment, wait_until

import kernelk
from kernelk import backend as K
from kernelk.errors import KernelKError, ShapeError

QUIET = {"KERNELK_BACKEND": "numpy"}


def one_line(cell: dict[str, Any]) -> str:
    """The single line that an error was shown as."""
    text = str(cell["out"]).strip()
    assert cell["error"], cell
    assert "Traceback" not in text
    assert len(text.splitlines()) == 1, text
    return text


def test_the_table_of_engines() -> None:
    cells = run_cells(["%load_ext kernelk", "%kbackend"], **QUIET)
    assert [cell["error"] for cell in cells] == [None] * 2
    table = cells[1]["value"]
    for words in ("tensorflow", "theano", "cntk", "numpy", "active: numpy", "environment variable KERNELK_BACKEND"):
        assert words in table


def test_the_table_in_html_is_escaped_and_whole() -> None:
    html = kernelk.list_backends()._repr_html_()
    assert html.count("<table") == html.count("</table>") == 1
    assert html.count("<tr>") == html.count("</tr>") >= 5
    assert "<b>numpy</b>" in html


def test_a_swap_by_magic(worker: str) -> None:
    cells = run_cells(
        [
            "%load_ext kernelk",
            "from kernelk import backend as K\nv = K.variable([1.0, 2.0])\n"
            "step = K.function([], [v], [K.update_add(v, 1.0)])",
            "step([])",
            f"report = %kbackend {worker}\nprint(report.target, report.chosen_by, report.variables)",
            f"%kbackend {worker}",
            "print(step([])[0].tolist(), K.backend())",
            "%kbackend",
            "%kbackend numpy",
            "print(step([])[0].tolist(), K.backend())",
        ],
        **QUIET,
    )
    assert [cell["error"] for cell in cells] == [None] * 9, cells
    assert cells[3]["out"] == f"{worker} %kbackend 1\n"
    assert "already active" in cells[4]["value"]
    assert cells[5]["out"] == f"[2.0, 3.0] {worker}\n"
    assert f"active: {worker}, chosen by %kbackend" in cells[6]["value"]
    assert f"{worker} -> numpy" in cells[7]["value"]
    assert cells[8]["out"] == "[3.0, 4.0] numpy\n"


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        ("teano", "UnknownBackendError", "unknown backend 'teano': did you mean 'theano'"),
        ("numpy theano", "ArgumentError", "takes one engine's name"),
        ("--sav", "ArgumentError", "has no option --sav: did you mean --save?"),
        ("'numpy", "ArgumentError", "'numpy"),
        ("$nothing", "UnknownBackendError", "unknown backend"),
    ],
)
def test_what_the_magic_refuses(line: str, error: str, words: str) -> None:
    cells = run_cells(
        [
            "%load_ext kernelk",
            "from kernelk import backend as K\nv = K.variable([1.0])",
            f"%kbackend {line}",
            "print(K.backend(), (v + 1.0).eval().tolist())",
        ],
        **QUIET,
    )
    assert cells[2]["error"] == error, cells[2]
    assert words in one_line(cells[2])
    assert cells[3]["out"] == "numpy [2.0]\n"


def test_errors_are_one_line_with_the_cell_and_the_line() -> None:
    cells = run_cells(
        [
            "%load_ext kernelk",
            "import numpy as np\nfrom kernelk import backend as K\nw = K.variable(np.ones((3, 2)), name='w')",
            "x = K.placeholder((None, 4), name='x')\n\ny = K.dot(x, w)",
            "x = K.placeholder((None, 3), name='x')\ny = K.dot(x, w)\nf = K.function([x], [y], [K.update_add(w, 1.0)])",
            "print(1)\nf([np.ones((2, 5))])",
            "f([])",
            "def deep(z):\n    return K.reshape(z, (5, 5))\ndeep(w)",
            "a, b = K.placeholder((None,)), K.placeholder((None,))\nc = a + b\ng = K.function([a, b], [c])",
            "g([[1, 2], [1, 2, 3]])",
            "bool(w)",
            "K.clear_session()",
            "f([np.ones((2, 3))])",
            "w = K.variable([1.0])\nprint(K.eval(w * 2.0).tolist())",
        ],
        **QUIET,
    )
    assert one_line(cells[2]) == (
        "ShapeError: dot: shapes (None, 4) and (3, 2) don't fit: inner dimensions 4 and 3 differ; "
        "they must be equal (cell 3, line 3: y = K.dot(x, w))"
    )
    fed = one_line(cells[4].copy() | {"out": cells[4]["out"].removeprefix("1\n")})
    assert "placeholder 'x' (cell 4, line 1: x = K.placeholder((None, 3), name='x')) has shape (None, 3)" in fed
    assert "but was fed (2, 5); its number of axes and its known lengths must be equal" in fed
    assert fed.endswith(" (cell 5, line 2: f([np.ones((2, 5))]))")
    assert one_line(cells[5]).startswith(
        "FeedError: function takes 1 input ('x'), but 0 were given; next: call it with a list of them, f([x]) "
        "(cell 6, line 1"
    )
    assert one_line(cells[6]).endswith("(cell 7, line 2: return K.reshape(z, (5, 5)))")
    late = one_line(cells[8])
    assert "(2,) and (3,) don't broadcast" in late
    assert "(cell 8, line 2: c = a + b)" in late
    assert one_line(cells[9]).startswith("ArgumentError: the truth value of the symbolic tensor 'w' isn't known")
    stale = one_line(cells[11])
    assert "K.clear_session()" in stale
    assert "cell 12, line 1" in stale
    assert cells[12]["out"] == "[2.0]\n"
    assert [cell["error"] is None for cell in cells] == [i not in (2, 4, 5, 6, 8, 9, 11) for i in range(13)]


def test_load_twice_and_unload(worker: str) -> None:
    cells = run_cells(
        [
            "%load_ext kernelk",
            "%load_ext kernelk",
            "%reload_ext kernelk",
            f"%kbackend {worker}",
            "from kernelk import backend as K\nfrom kernelk.session import current\nv = K.variable([1.0])\n"
            "K.eval(K.update_add(v, 1.0))\npid = current().host().pid",
            "%unload_ext kernelk",
            "import os\nprint(os.path.exists(f'/proc/{pid}'), K.get_value(v).tolist())",
            "get_ipython().find_line_magic('kbackend')",
            "%load_ext kernelk",
            "%kbackend numpy",
            "print(K.eval(v + 1.0).tolist())",
        ],
        **QUIET,
    )
    assert [cell["error"] for cell in cells] == [None] * 11, cells
    assert cells[6]["out"] == "False [2.0]\n"
    assert cells[7]["value"] == "None"
    assert cells[10]["out"] == "[3.0]\n"


def test_kernelk_without_the_extension() -> None:
    cells = run_cells(
        [
            "from kernelk import backend as K\nimport kernelk",
            "kernelk.set_backend('numpy').target",
            "K.dot(K.ones((2, 3)), K.ones((2, 3)))",
        ]
    )
    assert cells[1]["value"] == "'numpy'"
    assert "inner dimensions 3 and 2 differ" in one_line(cells[2])


def test_an_error_outside_a_notebook_is_an_ordinary_exception() -> None:
    with pytest.raises(ShapeError) as caught:
        K.dot(K.ones((2, 3)), K.ones((2, 3)))
    assert isinstance(caught.value, (KernelKError, ValueError))
    lines = caught.value._render_traceback_()
    assert len(lines) == 1
    assert re.search(r"\(test_magics\.py, line \d+: K\.dot\(K\.ones\(\(2, 3\)\), K\.ones\(\(2, 3\)\)\)\)$", lines[0])


def test_a_file_beside_the_package_is_the_users() -> None:
    """Its path begins with the package's, and yet it isn't kernelk's own."""
    file = os.path.dirname(kernelk.__file__) + "_notes.py"
    scope: dict[str, Any] = {"K": K}
    exec(compile("\n\nx = K.placeholder((2,))\n", file, "exec"), scope)
    assert str(scope["x"].source).startswith("kernelk_notes.py, line 3")


def test_a_modules_lines_are_its_own_in_a_notebook_too(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from kernelk import backend as K\n\ndef double(x):\n    return K.dot(x, x)\n")
    cells = run_cells(
        [
            "%load_ext kernelk",
            f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport mine\nfrom kernelk import backend as K",
            "y = mine.double(K.ones((2, 2)))\nz = K.exp(y)\nprint(y.source.location, '|', z.source.location)",
            "mine.double(K.ones((2, 3)))",
        ],
        **QUIET,
    )
    assert cells[2]["out"] == "mine.py, line 4 | cell 3, line 2\n"
    assert one_line(cells[3]).endswith("(mine.py, line 4: return K.dot(x, x))")


_SETUP = (
    "import numpy as np\nimport kernelk\nfrom kernelk import backend as K\nx = K.placeholder((None, 2), name='x')\n"
    "y = K.sum(K.exp(x))\nf = K.function([x], [y], name='sums')\nf([np.ones((2, 2))])"
)


def test_results_are_shown_in_loops_blocks_and_functions_and_once_at_the_end() -> None:
    cells = run_cells(
        [
            "%load_ext kernelk",
            _SETUP,
            "for n in (1, 2):\n    %ktime --budget 0.01 f([np.ones((n, 2))])",
            "with kernelk.using('numpy'):\n    %kprofile --budget 0.01 f([np.ones((1, 2))])\n    %kgraph y",
            "%ktime --budget 0.01 f([np.ones((3, 2))])\n%ktensors x\nprint('end')",
            "%ktime --budget 0.01 f([np.ones((4, 2))])",
            "display = None\nif True:\n    %ktime --budget 0.01 f([np.ones((5, 2))])",
            "def g():\n    kept = %ktime --budget 0.01 f([np.ones((6, 2))])\n    return kept.calls[0].inputs\ng()",
            "def g():\n    %ktime --budget 0.01 f([np.ones((7, 2))])\ng()",
            "%%time\n%ktime --budget 0.01 f([np.ones((8, 2))])",
            "try:\n    %ktime f([np.ones((8, 3))])\nfinally:\n    print('left')",
            "%unload_ext kernelk\nprint([type(one).__name__ for one in get_ipython().ast_transformers])",
        ],
        **QUIET,
    )
    assert [cell["error"] for cell in cells] == [*[None] * 10, "FeedError", None], cells
    shown = [cell["shown"] for cell in cells]
    assert ["float32[1, 2]" in shown[2][0], "float32[2, 2]" in shown[2][1], len(shown[2])] == [True, True, 2]
    assert "its ops one by one" in shown[3][0]
    assert shown[3][1].startswith("graph of y")
    assert len(shown[3]) == 2
    assert "float32[3, 2]" in shown[4][0]
    assert "placeholder" in shown[4][1]
    assert cells[4]["out"] == "end\n"
    assert (shown[5], "float32[4, 2]" in cells[5]["value"]) == ([], True)
    # What the shell itself shows of a cell's last expression.
    assert cells[5]["out"].count("float32[4, 2]") == 1
    assert "float32[5, 2]" in shown[6][0]
    assert (shown[7], cells[7]["value"]) == ([], "['float32[6, 2]']")
    assert "float32[7, 2]" in shown[8][0]
    assert cells[9]["out"].count("float32[8, 2]") + len(shown[9]) == 1
    assert cells[10]["out"].startswith("left\nFeedError")
    assert cells[11]["out"] == "[]\n"


def test_magics_see_a_functions_locals() -> None:
    cells = run_cells(
        [
            "%load_ext kernelk",
            _SETUP,
            "batch = np.ones((9, 2))\nseen = []\ndef outside():\n    seen.append(batch.shape)\n    return f([batch])",
            "def g(batch, z):\n    call = lambda: f([batch])\n"
            "    %ktime --budget 0.01 [call() for _ in range(2) if batch is not None]\n"
            "    %ktime --budget 0.01 outside()\n    %ktime --budget 0.01 f([batch]) and call()\n"
            "    %kprofile --budget 0.01 K.eval(z, {x: batch})\n    %kgraph z\n    %kshow z numpy --feed x=batch\n"
            "    %ktensors z\n    %kdiff z numpy torch --feed x=batch\n    return 1\n"
            "g(np.ones((5, 2)), K.exp(x) + 1)",
            "print(seen, batch.shape, 'z' in globals(), 'call' in globals())",
            "def g(batch):\n    %ktime --budget 0.01 f([btch])\ng(batch)",
            "def g(batch):\n    %ktime f([batch)\ng(batch)",
            "def g(batch):\n    %kgraph btch\ng(batch)",
            "class Net:\n    def run(self):\n        %ktime --budget 0.01 f([self.batch])\n"
            "net = Net()\nnet.batch = np.ones((6, 2))\nnet.run()",
        ],
        **QUIET,
    )
    assert [cell["error"] for cell in cells] == [
        *[None] * 5, "NameError", "ArgumentError", "ArgumentError", None,
    ], cells  # fmt: skip
    times, outside, both, profile, graph, compiled, listed, diff = cells[3]["shown"]
    assert "float32[5, 2]" in times
    assert "2 times" in times
    # A function's own global names stay its own.
    assert "float32[9, 2]" in outside
    assert "float32[5, 2]" in both
    assert "add" in profile
    assert graph.startswith("graph of z")
    assert "exp" in compiled
    assert "z" in listed.split()
    assert diff.startswith("numpy and torch agree")
    assert cells[4]["out"] == "[(9, 2)] (9, 2) False False\n"
    assert "name 'btch' is not defined" in cells[5]["out"]
    assert one_line(cells[7]).startswith("ArgumentError: %kgraph: btch can't be evaluated: NameError: name 'btch'")
    assert "float32[6, 2]" in cells[8]["shown"][0]


# --- a real kernel --------------------------------------------------------------------------------------------


@pytest.fixture
def notebook() -> Iterator[Notebook]:
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(env=environment(**QUIET, JUPYTER_PREFER_ENV_PATH="1"))
    try:
        yield Notebook(client, manager)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_session_in_a_notebook(notebook: Notebook) -> None:
    activate("theano")
    assert notebook.run("%load_ext kernelk") == []
    notebook.run("import numpy as np\nfrom kernelk import backend as K\nv = K.variable([1.0, 2.0])")
    (table,) = notebook.run("%kbackend")
    assert table["type"] == "execute_result"
    assert "<table" in table["data"]["text/html"]
    assert "active: numpy" in table["data"]["text/plain"]
    (report,) = notebook.run("%kbackend theano")
    assert "numpy -&gt; theano" in report["data"]["text/html"]
    assert notebook.text("print(K.eval(v * 2.0).tolist(), K.backend())") == "[2.0, 4.0] theano\n"
    (error,) = notebook.run("x = K.placeholder((None, 3))\ny = K.dot(x, K.ones((2, 2)))")
    assert error["ename"] == "ShapeError"
    assert error["traceback"] == [
        "ShapeError: dot: shapes (None, 3) and (2, 2) don't fit: inner dimensions 3 and 2 differ; they must be equal "
        "(cell 6, line 2: y = K.dot(x, K.ones((2, 2))))"
    ]
    (error,) = notebook.run("%kbackend teano")
    assert len(error["traceback"]) == 1
    assert "did you mean 'theano'" in error["traceback"][0]
    assert notebook.text("print(K.backend(), K.get_value(v).tolist())") == "theano [1.0, 2.0]\n"


def test_the_notebooks_interrupt_and_end(notebook: Notebook) -> None:
    """The stop button, a worker that is killed, and the kernel's own end, on a real engine."""
    activate("tensorflow")
    notebook.run(
        "%load_ext kernelk\nimport numpy as np\nfrom kernelk import backend as K\nfrom kernelk.session import current\n"
        "v = K.variable([1.0])\nx = K.placeholder((None, None))\ny = x\n"
        "for i in range(200):\n    y = K.tanh(K.dot(y, x))\n"
        "slow = K.function([x], [K.sum(y)], [K.update_add(v, 1.0)])"
    )
    notebook.run("%kbackend tensorflow")
    pid = int(notebook.text("slow([np.eye(2)])\nprint(current().host().pid)"))
    request = notebook.start("print('begun', flush=True)\nwhile True:\n    slow([np.eye(1200)])")
    seen = ""
    while "begun" not in seen:
        message = notebook.client.get_iopub_msg(timeout=PATIENCE)
        seen += message["content"].get("text", "")
    notebook.manager.interrupt_kernel()
    found = notebook.outputs(request)
    assert [output["ename"] for output in found if output["type"] == "error"] == ["KeyboardInterrupt"]
    steps = float(notebook.text("print(float(K.get_value(v)[0]))"))
    assert steps >= 2
    assert float(notebook.text("slow([np.eye(2)])\nprint(float(K.get_value(v)[0]))").splitlines()[-1]) == steps + 1
    pid = int(notebook.text("print(current().host().pid)"))
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not alive(pid))
    told = notebook.run("slow([np.eye(2)])\nprint(float(K.get_value(v)[0]), current().host().pid)")
    (line,) = [output["text"] for output in told if output.get("name") == "stdout"]
    assert float(line.split()[0]) == steps + 2
    new = int(line.split()[1])
    assert new != pid
    assert alive(new)
    # The kernel is killed, as by a restart that can't wait: its worker goes with it.
    notebook.manager.shutdown_kernel(now=True)
    assert wait_until(lambda: not alive(new))
