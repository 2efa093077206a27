#!/usr/bin/env bash
# numpy 2.4.6 and 1.26.4: np.random.Philox(key=[a, b]) with one number of the list above 2**63 and one below it loses
# the last eleven bits of the larger one: keys that differ there alone are one stream, and nothing says so.
#
# Key and counter may be lists of integers. numpy makes an array of the list first, and of integers on both sides of 2**63
# that is one of float64, which holds 53 bits; the array is then cast to uint64. So 2**63 + 1 and 2**63 + 500 give the same
# numbers beside a small second word, while beside a second word above 2**63 they don't, nor as an array of uint64. Counters
# lose the same bits, and streams that were meant to lie apart are one. Half of all 64-bit keys (hashes, os.urandom) are
# above 2**63. At the very top the value is rounded to 2**64, which no uint64 holds: numpy warns of an invalid value in a
# cast, unless such warnings are off.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/keys.py" <<'PY'
import numpy as np


def first(**how):
    return np.random.Philox(**how).random_raw(4).tolist()


def alike(one, other):
    return "the same" if one == other else "different"


high, higher = 2**63 + 1, 2**63 + 500
key = alike(first(key=[high, 7]), first(key=[higher, 7]))
both = alike(first(key=[high, 2**63]), first(key=[higher, 2**63]))
low = alike(first(key=[high - 2**62, 7]), first(key=[higher - 2**62, 7]))
array = alike(first(key=np.array([high, 7], np.uint64)), first(key=np.array([higher, 7], np.uint64)))
counter = alike(first(key=1, counter=[high, 0, 0, 0]), first(key=1, counter=[higher, 0, 0, 0]))
print(f"numpy {np.__version__}, two keys that differ in their last bits draw")
print(f"  {key} as a list with a small second word, {both} with one above 2**63")
print(f"  {low} as a list of numbers below 2**63, {array} as an array of uint64")
print(f"  two counters: {counter} as a list")
assert (key, both, low, array, counter) == ("the same", "different", "different", "different", "the same")
PY
for version in 2.4.6 1.26.4; do
    python3 -m venv --clear "$dir/venv"
    "$dir/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check "numpy==$version"
    "$dir/venv/bin/python" "$dir/keys.py"
done
