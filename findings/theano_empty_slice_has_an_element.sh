#!/usr/bin/env bash
# Theano 1.0.5: an empty slice of a computed vector of one element has that element.
#
# (a + b)[:0] is empty for vectors of any length, but for those that Theano knows to have the length 1: the rewrite
# local_subtensor_lift, which slices the operands instead of the sum, takes such operands for scalars and leaves their
# slice out. So a sum over it isn't 0, and what is joined to it is one element longer. It is right with
# optimizer_excluding=local_subtensor_lift, and where the slice is of an input itself.
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
export THEANO_FLAGS="cxx=,device=cpu,floatX=float32,base_compiledir=$dir/compiled"
"$dir/venv/bin/python" -W ignore - <<'PY' 2>"$dir/noise" || { tail -n 3 "$dir/noise" >&2; exit 1; }
import numpy as np
import theano
import theano.tensor as T

print("theano", theano.__version__, "numpy", np.__version__)
one, any_length = T.TensorType("float32", [True]), T.fvector
value = np.float32([5])
for title, kind in (("known to have one element", one), ("of any length", any_length)):
    a, b = kind(), kind()
    results = [(a + b)[:0], T.sum((a + b)[:0]), T.join(0, (a + b)[:0], b * 2), a[:0]]
    for mode in ("FAST_RUN", theano.compile.mode.get_mode("FAST_RUN").excluding("local_subtensor_lift")):
        piece, total, joined, plain = theano.function([a, b], results, mode=mode)(value, value)
        how = "by default" if mode == "FAST_RUN" else "without local_subtensor_lift"
        print("%s, %s: (a + b)[:0] is %s, its sum %s, joined to [10.] %s; a[:0] is %s"
              % (title, how, piece.tolist(), total, joined.tolist(), plain.tolist()))
        wrong = kind is one and mode == "FAST_RUN"
        assert piece.tolist() == ([10] if wrong else [])
        assert total == (10 if wrong else 0)
        assert len(joined) == (2 if wrong else 1)
        assert plain.tolist() == []
PY
