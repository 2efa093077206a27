"""What `release.py` tries of an installed kernelk: a user's first minutes in IPython's own shell, with numpy."""

from pathlib import Path

from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

import kernelk

# The installed one.
assert "site-packages" in Path(kernelk.__file__).parts, kernelk.__file__
shell = InteractiveShell.instance()
CELLS = [
    "%load_ext kernelk",
    "import numpy as np\nfrom kernelk import backend as K",
    "%kbackend numpy",
    "x, y = K.placeholder((None, 3)), K.placeholder((None, 1))\n"
    "w = K.variable(np.zeros((3, 1)), name='w')\n"
    "loss = K.mean(K.square(K.dot(x, w) - y))\n"
    "train = K.function([x, y], [loss], [K.update_sub(w, 0.1 * K.gradients(loss, [w])[0])])",
    "data = np.random.default_rng(0).normal(size=(64, 3)).astype('float32')\n"
    "losses = [float(train([data, data @ [[1.0], [-2.0], [0.5]]])[0]) for _ in range(100)]",
    "assert losses[-1] < 1e-3 * losses[0]\nassert np.allclose(K.get_value(w), [[1.0], [-2.0], [0.5]], atol=0.01)",
    "%kbackend",
    "%ktime train",
    "%ktensors",
]
for cell in CELLS:
    with capture_output() as shown:
        result = shell.run_cell(cell)
    result.raise_error()
    assert "Traceback" not in shown.stdout, shown.stdout
with capture_output() as shown:
    shell.run_cell("%kbackend theano")
assert "is not installed; next: `kernelk install theano`" in shown.stdout + shown.stderr, shown.stdout + shown.stderr
losses = shell.user_ns["losses"]
print(f"kernelk {kernelk.__version__}: a model was trained with numpy; {losses[0]:.3f} -> {losses[-1]:.1e}")
