#!/usr/bin/env bash
# Theano 1.0.5: the optimizer takes out a guard against NaN, and NaN itself.
#
# One would expect optimizations to keep the result that optimizer=None gives. Theano's rewrite algebra as if every
# number were finite: x != x, the portable test for NaN, becomes 0 (x == x becomes 1), so switch(x != x, 7, x) lets
# NaN through; and x - x and x * 0 are 0 and x / x is 1 for NaN, infinity and 0 alike. T.isnan survives.
# Other engines answer as IEEE 754 does when they run eagerly. So a loss that is NaN elsewhere may be finite in
# Theano, and a guard may never run; optimizer=None shows what was written.
set -euo pipefail
old=$(command -v python3.6 || true) # pyenv's shim is there even where 3.6 isn't chosen, so it has to run
if ! { [ -n "$old" ] && "$old" -c "import venv"; } 2>/dev/null; then
    old=$(ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.6.*/bin/python3.6 2>/dev/null | tail -n 1 || true)
fi
[ -n "$old" ] || { echo "needs Python 3.6, as python3.6 or by pyenv" >&2; exit 3; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"$old" -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check numpy==1.19.5 scipy==1.5.4 six==1.16.0 Theano==1.0.5
export THEANO_FLAGS="cxx=,optimizer_excluding=AbstractConvCheck,device=cpu,floatX=float32,base_compiledir=$dir/compiled"
"$dir/venv/bin/python" -W ignore - <<'PY' 2>"$dir/noise" || { tail -n 3 "$dir/noise" >&2; exit 1; }
import numpy as np
import theano
import theano.tensor as T
from theano.compile.mode import Mode

print("theano", theano.__version__, "numpy", np.__version__)
x = T.fvector("x")
values = np.array([np.nan, np.inf, 0, 2], "float32")
nan = np.nan
cases = [  # name, expression, as written, as optimized
    ("x != x", T.neq(x, x), [1, 0, 0, 0], [0, 0, 0, 0]),
    ("x == x", T.eq(x, x), [0, 1, 1, 1], [1, 1, 1, 1]),
    ("switch(x != x, 7, x)", T.switch(T.neq(x, x), np.float32(7), x), [7, np.inf, 0, 2], [nan, np.inf, 0, 2]),
    ("x - x", x - x, [nan, nan, 0, 0], [0, 0, 0, 0]),
    ("x * 0", x * 0, [nan, nan, 0, 0], [0, 0, 0, 0]),
    ("x / x", x / x, [nan, nan, nan, 1], [1, 1, 1, 1]),
    ("isnan(x)", T.isnan(x), [1, 0, 0, 0], [1, 0, 0, 0]),
]
for name, y, written, optimized in cases:
    plain = theano.function([x], y, mode=Mode(linker="py", optimizer=None))(values)
    fast = theano.function([x], y, mode=Mode(linker="py", optimizer="fast_run"))(values)
    print("%-22s of %s: as written %s, optimized %s"
          % (name, values.tolist(), plain.astype("float32").tolist(), fast.astype("float32").tolist()))
    np.testing.assert_array_equal(plain, np.asarray(written, "float32"), name)
    np.testing.assert_array_equal(fast, np.asarray(optimized, "float32"), name)
print("as described: optimizing removes NaN and the test for it")
PY
