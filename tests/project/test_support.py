"""Systems that lack what Linux has, simulated by taking it away: the fallbacks work, the rest is refused in a line."""

from __future__ import annotations

import signal
import subprocess
import sys

from helpers.engines import activate
from helpers.processes import alive, environment, run_script, wait_until

_WITHOUT = """
import os, select, signal, socket, sys
for module, names in (
    (os, "memfd_create killpg setsid sched_yield sched_getaffinity getppid fork"),
    (select, "poll epoll"),
    (socket, "AF_UNIX CMSG_SPACE SCM_RIGHTS MSG_DONTWAIT"),
    (signal, "SIGKILL"),
):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
sys.modules["fcntl"] = sys.modules["resource"] = None
"""


def test_with_nothing_that_windows_lacks_the_kernel_and_engines_in_it_work() -> None:
    activate("torch")
    code = _WITHOUT + (
        "import tempfile, kernelk\nfrom kernelk import backend as K\nfrom kernelk.errors import KernelKError\n"
        "from kernelk.session import current\nimport kernelk.environments, kernelk.manage.doctor_report, kernelk.cli\n"
        "kernelk.set_backend('numpy')\nv = K.variable([1.0, 2.0], name='v')\n"
        "step = K.function([], [v * 2], [K.update_add(v, 1.0)])\nresult = [step([])[0].tolist()]\n"
        "file = tempfile.mktemp(suffix='.npz')\nkernelk.save(file)\nstep([])\nkernelk.load(file)\n"
        "try:\n    kernelk.set_backend('torch')\nexcept KernelKError as error:\n    result.append(str(error))\n"
        "result.append(K.backend())\n"
        "current().hosts.pop('torch')\ncurrent().engine_options['torch'] = {'in_kernel': True}\n"
        "kernelk.set_backend('torch')\nresult += [step([])[0].tolist(), K.get_value(v).tolist(), K.backend()]"
    )
    first, refused, active, second, value, last = run_script(code, KERNELK_BACKEND="numpy")
    assert (first, active, second, value, last) == ([2.0, 4.0], "numpy", [4.0, 6.0], [3.0, 4.0], "torch")
    assert "needs a worker, which" in refused
    assert refused.endswith("next: kernelk.set_backend('numpy')")


# As on macOS: no memfd, and `poll` that doesn't tell of the other end's end.
_OTHER = """
import select
import numpy
sys.platform = "darwin"
class Deaf:
    def register(self, *_): pass
    def poll(self, every):
        import time
        time.sleep(every / 1000)
        return []
select.poll = Deaf
def slow(instruction, x):
    import time
    time.sleep(100000 if float(x.ravel()[0]) else 0)
    return compute(instruction, x)
said = importlib.import_module("kernelk.backends.numpy.backend")
compute = said.OPS["exp"]
said.OPS["exp"] = slow
"""

_KERNEL = """
import os, sys
del os.memfd_create
from importlib.metadata import EntryPoint
from kernelk import backend as K
from kernelk.engines import registry, worker_host as workers
from kernelk.engines import Engine
from kernelk.session import current
import kernelk
class Known(EntryPoint):
    def load(self): return Engine("spare", "Spare", "numpy", "NumpyBackend", imports="numpy")
registry._entries()["spare"] = Known("spare", "a:b", "kernelk.backends")
last = 'importlib.import_module("kernelk.backends.serving.worker").main('
workers._BOOT = workers._BOOT.replace(last, sys.argv[1] + last)
kernelk.set_backend("spare")
print(K.eval(K.exp(K.variable([0.0]))).tolist(), current().host().pid, flush=True)
K.eval(K.exp(K.variable([1.0])))
"""


def test_without_memfd_and_a_poll_that_tells_a_worker_works_and_ends_with_its_kernel() -> None:
    kernel = subprocess.Popen(
        [sys.executable, "-c", _KERNEL, _OTHER], env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert kernel.stdout is not None
        value, pid = kernel.stdout.readline().rsplit(maxsplit=1)
        assert value == "[1.0]"
        assert alive(int(pid))
        kernel.send_signal(signal.SIGKILL)
        kernel.wait()
        assert wait_until(lambda: not alive(int(pid)))
    finally:
        kernel.kill()
        kernel.wait()
        kernel.stdout.close()  # type: ignore[union-attr]
