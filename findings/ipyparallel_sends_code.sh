#!/usr/bin/env bash
# ipyparallel 9.2: apply() runs the caller's code, where pickle would call the engine's own function.
#
# One would expect a function of an installed module to travel as Python's pickle sends it, as the name of something to
# import, so that each machine runs what it has installed. ipyparallel sends its bytecode, which runs there with the
# globals of the engine's module of that name. Where the two machines have different versions of a package, one call
# mixes both: the function is the client's, and the helpers and constants that it looks up are the engine's. No error
# says so. It also costs: each call carries the code of the function, some kilobytes, packed and unpacked.
# An object whose __reduce__ names the function travels as a name.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check ipyparallel==9.2.0
mkdir "$dir/client" "$dir/engine"
for side in client engine; do
    cat > "$dir/$side/tool.py" <<PY
SCALE = "the $side's scale"


def scaled():
    return "the $side's code with " + SCALE
PY
done
export IPYTHONDIR="$dir/ipython"
cat > "$dir/run.py" <<'PY'
import copy
import logging
import os
import pickle
import sys

import ipyparallel

folder = sys.argv[1]
sys.path.insert(0, os.path.join(folder, "client"))
import tool


class Named:
    def __init__(self, function):
        self.function = function

    def __reduce__(self):
        return as_it_is, (self.function,)

    def __call__(self):
        raise NotImplementedError


as_it_is = copy.copy  # of a function, that is the function itself

os.environ["PYTHONPATH"] = os.path.join(folder, "engine")
with ipyparallel.Cluster(n=1, log_level=logging.ERROR) as client:
    view = client[0]
    applied = view.apply_sync(tool.scaled)
    named = view.apply_sync(Named(tool.scaled))
print("ipyparallel", ipyparallel.__version__)
print("called here:          ", tool.scaled())
print("apply_sync:           ", applied)
print("sent as a name:       ", named)
print("pickle sends the name:", b"scaled" in pickle.dumps(tool.scaled) and len(pickle.dumps(tool.scaled)) < 60)
assert applied == "the client's code with the engine's scale", "the code is the engine's now"
assert named == "the engine's code with the engine's scale"
print("as described: the client's code ran with the engine's globals")
PY
"$dir/venv/bin/python" "$dir/run.py" "$dir"
