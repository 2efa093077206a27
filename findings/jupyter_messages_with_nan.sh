#!/usr/bin/env bash
# jupyter-client 8.10: what a NaN in a message becomes depends on its type, its neighbours, and on orjson being there.
#
# One would expect null, "NaN" or an error, and always the same. A kernel packs messages with orjson if that can be
# imported, otherwise with json, and has json_clean for what is refused. So a NaN is null with orjson, but the string
# "nan" if a dict in the message has an integer key, or an integer needs more than 64 bits. Without orjson it is
# "nan"; as a numpy scalar (numpy 2) it is "np.float64(nan)"; and an array, fine by itself, raises ValueError when a
# NaN stands anywhere else in the message. orjson is optional: any other package may bring it.
# A front end that plots a loss has to take all three, or the kernel turns NaN into None or text before it sends.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check jupyter-client==8.10.0 numpy==2.4.6
cat >"$dir/messages.py" <<'PY'
import json
import sys
import warnings

import jupyter_client
import numpy as np
from jupyter_client.session import Session

warnings.simplefilter("ignore")
with_orjson = sys.argv[1] == "orjson"
session = Session(key=b"key")
print("jupyter-client", jupyter_client.__version__, "numpy", np.__version__, "packs with", session.packer)
assert session.packer == ("orjson" if with_orjson else "json")


def arrives(content):
    try:
        return json.loads(session.serialize(session.msg("comm_msg", content=content))[-1])
    except ValueError as e:
        return f"ValueError: {str(e)[:20]}"


nan, array = float("nan"), np.array([1, 2])
cases = [  # content, what arrives with json, and with orjson
    ({"loss": nan}, {"loss": "nan"}, {"loss": None}),
    ({"loss": np.float64(nan)}, {"loss": "np.float64(nan)"}, {"loss": None}),
    ({"loss": np.float32("inf")}, {"loss": "np.float32(inf)"}, {"loss": None}),
    ({"loss": nan, "at": {7: 1}}, {"loss": "nan", "at": {"7": 1}}, {"loss": "nan", "at": {"7": 1}}),
    ({"loss": nan, "seed": 2**64}, {"loss": "nan", "seed": 2**64}, {"loss": "nan", "seed": 2**64}),
    ({"shape": array}, {"shape": [1, 2]}, {"shape": [1, 2]}),
    ({"shape": array, "loss": nan}, "ValueError: Can't clean for JSON", {"shape": [1, 2], "loss": None}),
]
for content, by_json, by_orjson in cases:
    found = arrives(content)
    print(f"  {content} arrives as {found}")
    assert found == (by_orjson if with_orjson else by_json), "that arrives differently now"
print("as described, with" if with_orjson else "as described, without", "orjson")
PY
"$dir/venv/bin/python" "$dir/messages.py" json
"$dir/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check orjson==3.13.0
"$dir/venv/bin/python" "$dir/messages.py" orjson
