#!/usr/bin/env bash
# ipyparallel 9.2: with CurveZMQ a client gets through ssh to the controller, and then no engine ever answers it.
#
# A controller may encrypt (enable_curve), and a connection file may name an ssh server to tunnel through. With both, the
# client's first socket has CURVE's keys: it connects, and knows the engines that were there. The others, which go
# through tunnels of their own, have none: the controller drops what they send, so that tasks never end and no news of
# engines comes. Nothing says so on either side. Without CURVE the same tunnels work; ssh encrypts them.
# The ssh server here is AsyncSSH, the client OpenSSH, whose connection is shared (ControlMaster): tunnels open at once.
set -euo pipefail
dir=$(mktemp -d)
trap 'ssh -F "$dir/config" -O exit box 2>/dev/null || true; rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check ipyparallel==9.2.0 pyzmq==27.3.0 pexpect==4.9.0 \
    asyncssh==2.24.0
export IPYTHONDIR="$dir/ipython"
cat > "$dir/run.py" <<'PY'
import asyncio
import json
import logging
import os
import subprocess
import sys
import threading

import asyncssh
import ipyparallel

folder = sys.argv[1]
started = threading.Event()


class Server(asyncssh.SSHServer):
    def begin_auth(self, username):
        return False  # nothing is asked for

    def connection_requested(self, *_):
        return True  # tunnels


async def serve():
    server = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=Server, server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        process_factory=lambda process: process.exit(0),
    )  # fmt: skip
    with open(os.path.join(folder, "config"), "w") as file:
        file.write(
            f"Host box\nHostName 127.0.0.1\nPort {server.get_port()}\nUser anybody\nStrictHostKeyChecking no\n"
            f"UserKnownHostsFile /dev/null\nLogLevel ERROR\nControlMaster auto\nControlPath {folder}/%C\n"
            "ControlPersist yes\n"
        )
    started.set()
    await asyncio.Event().wait()


threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
assert started.wait(30)
ssh = subprocess.run(["sh", "-c", "command -v ssh"], check=True, capture_output=True, text=True).stdout.strip()
os.makedirs(os.path.join(folder, "bin"))
with open(os.path.join(folder, "bin", "ssh"), "w") as file:
    file.write(f'#!/bin/sh\nexec {ssh} -F {folder}/config "$@"\n')
os.chmod(os.path.join(folder, "bin", "ssh"), 0o755)
os.environ["PATH"] = os.path.join(folder, "bin") + ":" + os.environ["PATH"]
subprocess.run(["ssh", "box", "true"], check=True)


def trial(curve, tunnel):
    """Whether an engine, known to the client, answers it."""
    cluster = ipyparallel.Cluster(
        n=1, log_level=logging.CRITICAL, cluster_id=f"{curve}{tunnel}",
        controller_args=[f"--IPController.enable_curve={curve}"],
    )  # fmt: skip
    with cluster as near:
        near.wait_for_engines(1, interactive=False)
        file = f"{folder}/ipython/profile_default/security/ipcontroller-{cluster.cluster_id}-client.json"
        with open(file) as opened:
            found = json.load(opened)
        client = ipyparallel.Client(found, timeout=20, **({"sshserver": "box"} if tunnel else {}))
        answered = client[0].apply_async(os.getpid).wait(10)
        known = len(client.ids)
        client.close(linger=0)
    way = "through ssh" if tunnel else "without ssh"
    print(f"  CURVE {'on, ' if curve else 'off,'} {way}: {known} engine known; its answer came: {answered}")
    return known, answered


print("ipyparallel", ipyparallel.__version__)
results = {(curve, tunnel): trial(curve, tunnel) for curve in (False, True) for tunnel in (False, True)}
assert results[False, False] == results[True, False] == results[False, True] == (1, True), "these used to work"
assert results[True, True] == (1, False), "an engine answers now"
print("as described: with both, the client connects, and no answer ever comes")
PY
"$dir/venv/bin/python" "$dir/run.py" "$dir" 2>/dev/null
