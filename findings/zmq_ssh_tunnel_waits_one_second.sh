#!/usr/bin/env bash
# pyzmq 27.3: a tunnel through ssh is given up after one second, whatever its timeout says.
#
# zmq.ssh's tunnels, which ipyparallel's and Jupyter's clients open for kernels and engines behind ssh, take
# `timeout=60`. That is how long an unused tunnel stays open. To log in, ssh has ten looks of a tenth of a second each,
# in the first trial as well as for the tunnel: a server that takes longer, as over a long way or under load, ends in
# MaxRetryExceeded, which names neither ssh nor the time. A connection that ssh shares (ControlMaster with
# ControlPersist) has logged in already, and tunnels through it open at once.
# The server here is AsyncSSH, the client OpenSSH.
set -euo pipefail
dir=$(mktemp -d)
trap 'ssh -F "$dir/shared" -O exit box 2>/dev/null || true; rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check pyzmq==27.3.0 pexpect==4.9.0 asyncssh==2.24.0
cat > "$dir/run.py" <<'PY'
import asyncio
import importlib.metadata
import os
import subprocess
import sys
import threading
import time

import asyncssh
import zmq
from zmq.ssh import tunnel

folder = sys.argv[1]
logs_in_after = 0.0
started = threading.Event()


class Server(asyncssh.SSHServer):
    async def begin_auth(self, username):
        await asyncio.sleep(logs_in_after)
        return False  # nothing more is asked for

    def connection_requested(self, *_):
        return True  # tunnels


async def serve():
    server = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=Server, server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        process_factory=lambda process: process.exit(0),
    )  # fmt: skip
    for name, more in (("plain", ""), ("shared", f"ControlMaster auto\nControlPath {folder}/%C\nControlPersist 30\n")):
        with open(os.path.join(folder, name), "w") as file:
            file.write(
                f"Host box\nHostName 127.0.0.1\nPort {server.get_port()}\nUser anybody\nStrictHostKeyChecking no\n"
                f"UserKnownHostsFile /dev/null\nLogLevel ERROR\n{more}"
            )
    started.set()
    await asyncio.Event().wait()


threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
assert started.wait(30)
ssh = subprocess.run(["sh", "-c", "command -v ssh"], check=True, capture_output=True, text=True).stdout.strip()
path = os.environ["PATH"]


def trial(config):
    """What pyzmq finds, with ssh's settings in this file."""
    programs = os.path.join(folder, f"bin-{config}")
    os.makedirs(programs, exist_ok=True)
    with open(os.path.join(programs, "ssh"), "w") as file:
        file.write(f'#!/bin/sh\nexec {ssh} -F {folder}/{config} "$@"\n')
    os.chmod(os.path.join(programs, "ssh"), 0o755)
    os.environ["PATH"] = f"{programs}:{path}"
    begun = time.monotonic()
    try:
        found = f"logs in: {tunnel.try_passwordless_ssh('box', None)}"
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    print(f"  {found} (after {time.monotonic() - begun:.0f} s)")
    return found


print("pyzmq", zmq.__version__, "asyncssh", importlib.metadata.version("asyncssh"))
logs_in_after = 3.0
print("a server that takes three seconds to log in:")
slow = trial("plain")
print("the same, once ssh by itself is through and its connection is shared:")
subprocess.run([ssh, "-F", f"{folder}/shared", "box", "true"], check=True)
shared = trial("shared")
assert slow.startswith("MaxRetryExceeded: Failed after 10 attempts"), slow
assert shared == "logs in: True", shared
print("as described: slow servers are given up after ten tenths of a second")
PY
"$dir/venv/bin/python" "$dir/run.py" "$dir"
