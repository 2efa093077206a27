#!/usr/bin/env bash
# CNTK 2.7: to cut columns out of a matrix product takes longer than to compute them by a product of their own.
#
# One would expect a slice to be a copy, at the speed of memory, along either axis: a row's piece lies together. CNTK's
# tensor kernels open an OpenMP region for each run of the innermost axis (CPUMatrixTensorImpl.h), here for each row's
# piece, and that costs with one thread as well: 16 columns of a (2048, 64) matrix take some 20 times as long as 16 rows
# of its transpose, which are as many numbers; splicing columns is as slow. With two threads it is slower still, and by
# far where another process keeps one of the processors, as all threads meet after each row's piece (100 times and more;
# that isn't checked here). So an LSTM whose gates are columns of one product is computed faster by four products, each
# with columns of the weights. (CNTK asks for a long gone Open MPI at import: the script builds a stand-in with gcc, as
# MPI itself isn't used.)
set -euo pipefail
old=$(command -v python3.6 || true) # pyenv's shim is there even where 3.6 isn't chosen, so it has to run
if ! { [ -n "$old" ] && "$old" -c "import venv"; } 2>/dev/null; then
    old=$(ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.6.*/bin/python3.6 2>/dev/null | tail -n 1 || true)
fi
[ -n "$old" ] || { echo "needs Python 3.6, as python3.6 or by pyenv" >&2; exit 3; }
for tool in gcc nm awk; do command -v $tool >/dev/null || { echo "needs $tool" >&2; exit 3; }; done
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"$old" -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check numpy==1.19.5 scipy==1.5.4 cntk==2.7
cntk=$(ls -d "$dir"/venv/lib/python3.6/site-packages/cntk)
nm -D --undefined-only "$cntk"/libs/*.so 2>/dev/null | awk '$2 ~ /^(MPI_|ompi_|_ZN3MPI)/ {print $2}' | sort -u |
    sed -E 's/^(ompi_mpi_.*)$/char \1[64];/; t; s/^(.*)$/int \1(void) { return 16; }/' >"$dir/stub.c"
gcc -shared -fPIC -w -Wl,-soname,libmpi.so.12 -o "$cntk/libs/libmpi.so.12" "$dir/stub.c"
for name in libmpi_cxx.so.1 libpython3.6m.so.1.0; do # the second for a Python without a shared library
    gcc -shared -fPIC -Wl,-soname,$name -o "$cntk/libs/$name" -x c /dev/null
done
cat >"$dir/columns.py" <<'PY'
import statistics
import time

import numpy as np
import cntk as C

print("cntk", C.__version__, "numpy", np.__version__)
C.cntk_py.set_max_num_cputhreads(1)
rows, columns, cut = 2048, 64, 16
random = np.random.RandomState(0)
matrix, transposed = C.input_variable((rows, columns)), C.input_variable((columns, rows))
values = random.rand(rows, columns).astype(np.float32)
narrow = C.input_variable((rows, cut))
weights = C.constant(random.rand(cut, cut).astype(np.float32))


def repeated(node, times=20):
    """A sum of one number of each of `times` nodes, so that what goes in and out of CNTK costs little."""
    return C.reduce_sum(C.splice(*[C.slice(C.slice(node(i), [0], [0], [1]), [1], [0], [1]) for i in range(times)], axis=0))


cases = {
    "16 of 64 columns": (matrix, values, lambda i: C.slice(matrix + float(i), [1], [i], [i + cut])),
    "16 of 64 rows, the same numbers": (
        transposed,
        np.ascontiguousarray(values.T),
        lambda i: C.slice(transposed + float(i), [0], [i], [i + cut]),
    ),
    "the sums beside these": (matrix, values, lambda i: matrix + float(i)),
    "a product that gives 16 columns": (
        narrow,
        np.ascontiguousarray(values[:, :cut]),
        lambda i: C.times(narrow + float(i), weights),
    ),
    "the sums beside it": (narrow, np.ascontiguousarray(values[:, :cut]), lambda i: narrow + float(i)),
}
functions = {name: (x, array[None], repeated(node)) for name, (x, array, node) in cases.items()}
seconds = {name: [] for name in functions}
for _ in range(15):  # in turns, so that whatever else the machine does meets all of them
    for name, (x, array, function) in functions.items():
        start = time.perf_counter()
        function.eval({x: array})
        seconds[name].append((time.perf_counter() - start) / 20)
medians = {name: statistics.median(times) for name, times in seconds.items()}
wide, thin = medians["the sums beside these"], medians["the sums beside it"]
cut_columns = medians["16 of 64 columns"] - wide
cut_rows = max(medians["16 of 64 rows, the same numbers"] - wide, 1e-7)
product = max(medians["a product that gives 16 columns"] - thin, 1e-7)
print("16 columns of 64: %.0f us, 16 rows of 64: %.0f us" % (cut_columns * 1e6, cut_rows * 1e6))
print("a product (2048, 16) by (16, 16): %.0f us" % (product * 1e6))
assert cut_columns > 4 * cut_rows, "columns are no longer slower than rows"
assert cut_columns > product, "columns are no longer slower than a product"
print("as described: columns cost many times what rows do, and more than their product")
PY
unset LD_LIBRARY_PATH # a foreign libmpi there would come first
"$dir/venv/bin/python" -W ignore "$dir/columns.py" 2>"$dir/noise" || { tail -n 3 "$dir/noise" >&2; exit 1; }
