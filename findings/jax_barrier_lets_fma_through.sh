#!/usr/bin/env bash
# JAX 0.10.2 on a CPU with fused multiply-add: `jax.lax.optimization_barrier` prevents no fusion, and between a product
# and a sum it doesn't keep the product's rounding.
#
# JAX's documentation says of the barrier that operations before it may not be fused into the same kernel as those after
# it. On a CPU it is taken out before XLA fuses ops: exp and log around it come into one fusion, as without it. So do a
# product and a sum, and LLVM makes one instruction of them: in `jax.jit`, a * b + c then has one rounding, where the
# two ops one after the other have two, and the barrier changes not one result. Neither does `reduce_precision` to
# float32's own 8 and 23 bits. An exclusive or of the product's bits with an argument that is 0 does keep the rounding.
# Algebraic simplification, which comes before fusion, heeds the barrier.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$dir/rounded.py" <<'PY'
import jax
import numpy as np
from jax import lax

a, b, c = np.random.RandomState(0).randn(3, 100_000).astype("float32")
twice = a * b + c
once = (a.astype("float64") * b + c).astype("float32")
zero = np.int32(0)


def exclusive_or(x, zero):
    return lax.bitcast_convert_type(lax.bitcast_convert_type(x, np.int32) ^ zero, np.float32)


KEEP = {
    "nothing": lambda x, zero: x,
    "optimization_barrier": lambda x, zero: lax.optimization_barrier(x),
    "reduce_precision": lambda x, zero: lax.reduce_precision(x, 8, 23),
    "exclusive or": exclusive_or,
}
print("jax", jax.__version__)
differ = {}
for name, keep in KEEP.items():
    function = jax.jit(lambda a, b, c, zero: keep(a * b, zero) + c)
    result = np.asarray(function(a, b, c, zero))
    text = function.lower(a, b, c, zero).compile().as_text()
    differ[name] = int((result != twice).sum())
    print(
        f"{name} around the product: {differ[name]} of {a.size} sums aren't the twice rounded ones, "
        f"{int((result != once).sum())} not the once rounded ones; {text.count(' fusion(')} fusion"
    )
print("outside of jit:", int((np.asarray(jax.numpy.asarray(a) * b + c) != twice).sum()))
assert differ["nothing"] > a.size / 10, "this processor or JAX rounds twice"
assert differ["optimization_barrier"] == differ["nothing"], "the barrier keeps the rounding now"
assert differ["reduce_precision"] == differ["nothing"], "reduce_precision keeps the rounding now"
assert differ["exclusive or"] == 0, "the exclusive or doesn't keep the rounding"
apart = jax.jit(lambda x: jax.numpy.log(lax.optimization_barrier(jax.numpy.exp(x)) + 1)).lower(a).compile().as_text()
print("log(barrier(exp(x)) + 1):", apart.count(" fusion("), "fusion,", apart.count("opt-barrier"), "barriers left")
assert apart.count(" fusion(") == 1, "the barrier prevents the fusion now"
assert "opt-barrier" not in apart, "the barrier stays now"
print("as described")
PY
JAX_PLATFORMS=cpu "$dir/venv/bin/python" "$dir/rounded.py"
