#!/usr/bin/env bash
# PyTorch 2.13.0 on a CPU: a float32 sum over axes 0 and 2 is 1 % off; over one of them after the other it is right.
#
# torch.sum adds pairwise, in a cascade of partial sums, and holds a million float32 to the last digit along the first
# axis or the last. That holds for one run of neighbouring axes. Where an axis that stays lies between those that are
# summed, only the innermost run gets its cascade: its sums are added to the result one after the other. A million rows
# around 10,000 lose 1.3 %, and torch.mean over the same axes with it, on one thread or two.
# x.sum(2).sum(0) keeps all digits, as does dtype=torch.float64.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$dir/sums.py" <<'PY'
import numpy as np
import torch

x = (1e4 + np.random.RandomState(0).randn(1_000_000, 2, 2)).astype("float32")
right, tensor = x.sum((0, 2), dtype="float64"), torch.from_numpy(x)
count = x.shape[0] * x.shape[2]


def error(found, wanted):
    return float(np.abs(found.double().numpy() / wanted - 1).max())


at_once, in_turn = error(tensor.sum((0, 2)), right), error(tensor.sum(2).sum(0), right)
mean, wide = error(tensor.mean((0, 2)), right / count), error(tensor.sum((0, 2), dtype=torch.float64), right)
print(f"PyTorch {torch.__version__}: x.sum((0, 2)) is {at_once:.1e} off, x.mean((0, 2)) {mean:.1e}, "
      f"x.sum(2).sum(0) {in_turn:.1e}, in float64 {wide:.1e}")
assert at_once > 0.005 and mean > 0.005
assert in_turn < 1e-6 and wide < 1e-12
print("as found: axes with another one between them are added one by one")
PY
"$dir/venv/bin/python" "$dir/sums.py"
