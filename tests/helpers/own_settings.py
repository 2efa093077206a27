"""Imported before kernelk by whatever runs tests: its settings are the tests' own, never the user's."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile

from hypothesis import HealthCheck, Phase, settings

_HOME = tempfile.mkdtemp(prefix="kernelk-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ["KERAS_HOME"] = _HOME
os.environ["KERNELK_QUIET"] = "1"
for _name in ("KERAS_BACKEND", "KERNELK_BACKEND"):
    os.environ.pop(_name, None)
# A shell starts what runs in the background with Ctrl-C ignored, and this is inherited by all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A compilation in an engine takes as long as it takes; the fixture's engine is meant to be shared by all examples.
settings.register_profile(
    "kernelk",
    deadline=None,
    print_blob=True,
    # To explain a failure runs it hundreds of times: too many for an engine.
    phases=[phase for phase in Phase if phase is not Phase.explain],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
settings.load_profile("kernelk")
