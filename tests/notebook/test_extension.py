"""What the extension leaves behind, its settings, and how errors are shown: in a real shell and a real kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.engines import activate
from helpers.notebooks import Notebook, run_cells
from helpers.processes import PATIENCE, environment

from kernelk.display.tables import MONOSPACE
from kernelk.source import place

QUIET: dict[str, Any] = {"KERNELK_BACKEND": "numpy"}

# All that IPython, the process and Python keep for an extension, by name.
_STATE = """
def state():
    import gc, os, signal, sys, threading, warnings
    ip = get_ipython()
    ip.magics_manager.load_all_lazy_magics() if hasattr(ip.magics_manager, "load_all_lazy_magics") else None
    children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
    manager = getattr(getattr(ip, "kernel", None), "comm_manager", None)
    from kernelk.session import current
    return {
        "magics": sorted(n for names in ip.magics_manager.magics.values() for n in names),
        "registry": sorted(ip.magics_manager.registry),
        "configurables": sorted(type(c).__name__ for c in ip.configurables),
        "config": sorted(ip.config),
        "events": {name: len(calls) for name, calls in ip.events.callbacks.items()},
        "matchers": [len(ip.Completer.matchers), len(ip.Completer.custom_matchers)],
        "transformers": [len(ip.ast_transformers), len(ip.input_transformers_cleanup), len(ip.input_transformers_post)],
        "formatters": {k: len(f.type_printers) + len(f.deferred_printers) for k, f in
                       ip.display_formatter.formatters.items()},
        "exceptions": ip.custom_exceptions,
        "targets": sorted(getattr(manager, "targets", ())),
        "comms": len(getattr(manager, "comms", ())),
        "observers": len(current()._trait_notifiers.get("active", {}).get("change", [])),
        "hooks": [sys.excepthook.__name__, threading.excepthook.__name__, warnings.showwarning.__module__,
                  str(signal.getsignal(signal.SIGINT))],
        "threads": sorted(t.name for t in threading.enumerate() if t.name.startswith("kernelk")),
        "children": len(children),
    }
"""


@pytest.mark.parametrize("worker", ["cntk", "torch"])
def test_unload_leaves_everything_as_it_was(worker: str) -> None:
    activate(worker)
    cells = run_cells(
        [
            _STATE,
            "before = state()",
            "%load_ext kernelk",
            f"r = %kbackend {worker}",
            "from kernelk import backend as K\nv = K.variable([1.0])\nK.eval(K.exp(v))\nr = %kbackend --log",
            "%config KernelK.log_bytes = 5000",
            "print([name for name, now in state().items() if now != before[name]])",
            "%unload_ext kernelk",
            "import time\nfor _ in range(15_000):\n    if not state()['threads']: break\n    time.sleep(0.02)\n"
            "print([(name, before[name], now) for name, now in state().items() if now != before[name]])",
            "from kernelk import config\nprint(config.LIMITS == config.Limits(), K.eval(v + 1.0).tolist())",
        ],
        **QUIET,
    )
    assert [cell["error"] for cell in cells] == [None] * 10, cells
    for name in ("magics", "configurables", "events", "observers", "threads", "children"):
        assert f"'{name}'" in cells[6]["out"]
    assert cells[8]["out"] == "[]\n"
    assert cells[9]["out"] == "True [2.0]\n"


def test_reload_keeps_the_session() -> None:
    worker = "jax"
    activate(worker)
    cells = run_cells(
        [
            "%load_ext kernelk",
            f"r = %kbackend {worker}",
            "from kernelk import backend as K\nv = K.variable([1.0])\nx = K.placeholder((None,))\n"
            "f = K.function([x], [v * x], [K.update_add(v, 1.0)])\nf([[2.0]])",
            "%reload_ext kernelk",
            "print(f([[2.0]])[0].tolist(), K.backend())",
            "%reload_ext kernelk",
            "%reload_ext kernelk",
            "print(f([[2.0]])[0].tolist(), K.get_value(v).tolist())",
            "r = %kbackend\nprint(r.active, r.chosen_by)",
            "K.dot(v, K.ones((2, 2)))",
        ],
        **QUIET,
    )
    assert [cell["error"] for cell in cells] == [None] * 9 + ["ShapeError"], cells
    assert cells[4]["out"] == f"[4.0] {worker}\n"
    assert cells[7]["out"] == "[6.0] [4.0]\n"
    assert cells[8]["out"] == f"{worker} %kbackend\n"
    assert cells[9]["out"].count("ShapeError") == 1
    assert "(cell 10, line 1: K.dot(v, K.ones((2, 2))))" in cells[9]["out"]


def test_settings_by_config() -> None:
    activate("jax")
    cells = run_cells(
        [
            "%load_ext kernelk",
            "from kernelk import backend as K\nfrom kernelk.display import messages\n"
            "v = K.variable([1.0])\ny = v * 2\ny.eval()",
            "%config KernelK.backend",
            "%config KernelK.backend = 'jax'",
            "r = %kbackend\nprint(r.active, r.chosen_by, K.eval(v + 1).tolist())",
            "r = %kbackend numpy",
            "%config KernelK.quiet = True",
            "r = %config KernelK.backend\nprint(r, K.backend(), messages.quiet())",
            "%config KernelK.reevaluation_seconds = 0",
            "r = %kbackend jax\nprint(r.reevaluated, r.not_reevaluated)",
            "%config KernelK.compiled_bytes = 1",
            "from kernelk.session import current\nfor n in range(3):\n    K.eval(v * float(n) + K.exp(v * n))\n"
            "print(len(current().host().compiled))",
            "%config KernelK",
        ],
        KERNELK_BACKEND="numpy",
        KERNELK_QUIET=None,
    )
    assert [cell["error"] for cell in cells] == [None] * 13, cells
    assert cells[2]["value"] == "'numpy'"
    assert cells[4]["out"] == "jax %config KernelK.backend [2.0]\n"
    assert cells[5]["err"] != ""
    assert cells[7]["out"] == "numpy numpy True\n"
    assert cells[9]["out"] == "[] 1\n"
    assert cells[9]["err"] == ""
    assert cells[11]["out"] == "1\n"
    assert "reevaluation_seconds=<Float>" in cells[12]["out"]


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """IPython's configuration file of a new user."""
    folder = tmp_path / "profile_default"
    folder.mkdir()
    return folder / "ipython_config.py"


def start(notebook_settings: dict[str, Any]) -> tuple[Any, Any]:
    from jupyter_client.manager import start_new_kernel

    return start_new_kernel(env=environment(**notebook_settings, JUPYTER_PREFER_ENV_PATH="1"))


def test_settings_by_ipythons_configuration_and_what_is_stronger(profile: Path, tmp_path: Path) -> None:
    """A real kernel reads ipython_config.py: an environment variable is stronger, keras.json weaker."""
    keras = tmp_path / "keras.json"
    keras.write_text('{"backend": "theano"}')
    profile.write_text("c.KernelK.backend = 'numpy'\nc.KernelK.log_bytes = 77\n")
    settings = {"IPYTHONDIR": str(tmp_path), "KERAS_HOME": str(tmp_path), "KERNELK_QUIET": None}
    told = {}
    for name, more in (("file", {}), ("variable", {"KERNELK_BACKEND": "torch"})):
        manager, client = start({**settings, "KERNELK_BACKEND": None, **more})
        try:
            notebook = Notebook(client, manager)
            assert notebook.run("%load_ext kernelk") == []
            told[name] = notebook.text(
                "import kernelk\nfrom kernelk import config\nt = kernelk.list_backends()\n"
                "print(t.active, '|', t.chosen_by, '|', config.LIMITS.log_bytes)"
            )
            if name == "file":
                # A wrong value is one line, and what was before stays.
                for line, words in (
                    ("log_bytes = -1", "KernelK.log_bytes must be at least 0, not -1"),
                    ("commit_bytes = -1", "KernelK.commit_bytes must be at least 0, not -1"),
                    ("repeat_seconds = -0.5", "KernelK.repeat_seconds must be at least 0, not -0.5"),
                    ("log_bytes = 'x'", "expected an int, not the str 'x'"),
                    ("logbytes = 3", "KernelK has no setting 'logbytes': did you mean 'log_bytes'?"),
                    ("backend = 'teano'", "unknown backend 'teano': did you mean 'theano'?"),
                ):
                    (error,) = notebook.run(f"%config KernelK.{line}")
                    assert words in error["text"], error
                    assert len(error["text"].strip().splitlines()) == 1
                assert notebook.run("%reload_ext kernelk") == []
                assert notebook.text("print(config.LIMITS.log_bytes, kernelk.list_backends().active)") == "77 numpy\n"
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
    assert told["file"] == "numpy | c.KernelK.backend (IPython's configuration) | 77\n"
    assert told["variable"] == "torch | environment variable KERNELK_BACKEND | 77\n"


def test_a_configuration_with_a_wrong_value_doesnt_stop_the_extension(profile: Path, tmp_path: Path) -> None:
    profile.write_text("c.KernelK.log_bytes = -5\nc.KernelK.backend = 'numpy'\n")
    manager, client = start({"IPYTHONDIR": str(tmp_path), "KERNELK_BACKEND": "numpy", "KERNELK_QUIET": None})
    try:
        notebook = Notebook(client, manager)
        said = notebook.text("%load_ext kernelk")
        assert "kernelk: c.KernelK in IPython's configuration: KernelK.log_bytes must be at least 0" in said
        assert len(said.splitlines()) == 1
        assert notebook.text("from kernelk import config\nprint(config.LIMITS == config.Limits())") == "True\n"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_one_line_everywhere_and_the_whole_where_it_is_asked_for() -> None:
    """In cells under other magics, in coroutines and threads' results too; `%tb` and `%debug` have the traceback."""
    wrong = "K.dot(K.ones((3, 3)), K.ones((2, 2)))"
    cells = run_cells(
        [
            "%load_ext kernelk",
            "from kernelk import backend as K\nimport asyncio, sys\nfrom concurrent.futures import ThreadPoolExecutor",
            f"%%time\n{wrong}",
            f"%timeit -n1 -r1 {wrong}",
            f"async def work():\n    await asyncio.sleep(0)\n    {wrong}\nawait work()",
            f"with ThreadPoolExecutor() as pool:\n    pool.submit(lambda: {wrong}).result()",
            f"def deep():\n    {wrong}\ndeep()",
            "%tb",
            "%tb Plain",
            "print(type(sys.last_value).__name__, sys.last_traceback.tb_next is not None)",
            f"try:\n    {wrong}\nexcept ValueError as error:\n    from kernelk.errors import ShapeError\n"
            "    print(isinstance(error, ShapeError), '\\n' in str(error))",
            f"try:\n    {wrong}\nexcept Exception as e:\n    raise RuntimeError('mine') from e",
        ],
        **QUIET,
    )
    assert [cell["error"] for cell in cells[2:7]] == ["ShapeError"] * 5, cells
    for cell in cells[2:7]:
        lines = [line for line in cell["out"].splitlines() if not line.startswith(("CPU times", "Wall time"))]
        assert len(lines) == 1
        assert lines[0].startswith("ShapeError: dot: shapes (3, 3) and (2, 2) don't fit")
    for cell in cells[7:9]:
        assert "Traceback (most recent call last)" in cell["out"]
        assert "deep()" in cell["out"]
        assert "linear.py" in cell["out"]
    assert cells[9]["out"] == "ShapeError True\n"
    assert cells[10]["out"] == "True False\n"
    # Another's error is shown as it always is.
    assert "RuntimeError: mine" in cells[11]["out"]


def test_errors_name_cells_also_without_the_extension() -> None:
    cells = [
        "from kernelk import backend as K\nx = K.placeholder((2,))",
        "1 + 1",
        "try:\n    K.eval(x)\nexcept Exception as error:\n    print(error)",
        "%load_ext kernelk",
        "try:\n    K.eval(x)\nexcept Exception as error:\n    print(error)",
    ]
    found = run_cells(cells, KERNELK_BACKEND="numpy", KERNELK_QUIET="1")
    for number in (3, 5):
        assert "(cell 1, line 2: x = K.placeholder((2,)))" in found[number - 1]["out"]


@pytest.mark.parametrize(
    ("file", "cell", "wanted"),
    [
        ("/tmp/ipykernel_9/1848886435.py", 3, "cell 3"),
        ("/tmp/xpython_9/1848886435.py", 0, "a cell"),
        ("/tmp/marimo_9/__marimo__cell_Hbol_.py", 0, "cell Hbol"),
        ("/home/me/1.py", 0, "a cell"),
        ("/home/me/train.py", 0, "train.py"),
        (__file__, 0, "test_extension.py"),
    ],
)
def test_where_a_line_is(file: str, cell: int, wanted: str) -> None:
    assert place(file, cell) == wanted


def test_in_a_real_notebook_prints_come_in_order_and_debug_finds_the_frame() -> None:
    activate("theano")
    manager, client = start({"KERNELK_BACKEND": "numpy", "KERNELK_QUIET": None})
    try:
        notebook = Notebook(client, manager)
        notebook.run(
            "%load_ext kernelk\nfrom kernelk.engines import worker_host as w\nfrom kernelk.session import current\n"
            "current().engine_options['theano'] = {'compiler': ''}\n"
            "last = 'importlib.import_module(\"kernelk.backends.serving.worker\").main('\n"
            "w._BOOT = w._BOOT.replace(last, '''\nimport warnings\n"
            "m = importlib.import_module('kernelk.backends.serving.executor')\n"
            "def run(self, request, old=m.Executor.do_run):\n    print('engine speaks')\n"
            "    warnings.warn('lossy', RuntimeWarning)\n    return old(self, request)\n"
            "m.Executor.do_run = run\n''' + last)"
        )
        notebook.run("r = %kbackend theano\nfrom kernelk import backend as K\nv = K.variable([0.0])")
        found = notebook.run("y = K.print_tensor(v + 1, 'value')\nprint('before')\nr = y.eval()\nprint('after')")
        out = "".join(one["text"] for one in found if one.get("name") == "stdout")
        assert out == "before\nengine speaks\nvalue [1.]\nafter\n"
        (warned,) = [one["text"] for one in found if one.get("name") == "stderr"]
        assert "RuntimeWarning: lossy (Theano, -c, line" in warned
        assert "r = y.eval()" in warned
        log = notebook.run("%kbackend --log theano")[0]["data"]
        assert "engine speaks" in log["text/plain"]
        assert f'<pre style="{MONOSPACE}">' in log["text/html"]
        (error,) = notebook.run("%kbackend --log teano")
        assert len(error["traceback"]) == 1
        notebook.run("K.dot(K.ones((3, 3)), K.ones((2, 2)))")
        (whole,) = notebook.run("%tb")
        assert len("\n".join(whole["traceback"]).splitlines()) > 5
        client.allow_stdin = True
        request = client.execute("%debug", allow_stdin=True)
        for command in ("p k, meets", "q"):
            client.get_stdin_msg(timeout=PATIENCE)
            client.input(command)
        text = "".join(one.get("text", "") for one in notebook.outputs(request))
        assert "linear.py" in text
        assert "3, 2" in text.replace("(", "").replace(")", "")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_an_unknown_engine_in_the_environment_is_told_of_at_its_first_use_and_config_mends_it() -> None:
    cells = run_cells(
        [
            "%load_ext kernelk",
            "from kernelk import backend as K\nv = K.variable([1.0])",
            "K.eval(v + 1.0)",
            "%config KernelK.backend",
            "%config KernelK.backend = 'numpy'",
            "print(K.eval(v + 1.0).tolist())",
        ],
        KERNELK_BACKEND="teano",
    )
    assert [cell["error"] for cell in cells] == [None, None, "UnknownBackendError", None, None, None], cells
    assert cells[3]["value"] == "'teano'"
    assert cells[5]["out"] == "[2.0]\n"
