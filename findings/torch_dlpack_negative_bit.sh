#!/usr/bin/env bash
# PyTorch 2.13: a tensor handed over by DLPack can change its sign.
#
# One would expect DLPack to carry a tensor's values or to refuse. PyTorch negates lazily: the imaginary part of a
# conjugate is a view with a "negative bit", whose memory holds the values with the other sign. Tensor.numpy() refuses
# such a view, and DLPack refuses the "conjugate bit" of the same kind, but not this one: numpy.from_dlpack, JAX (if
# the view has no gaps) and even torch.from_dlpack of a tensor of PyTorch's own take the memory as it is, with every
# sign wrong and no error.
# Who hands tensors from engine to engine without copies (spectra, for instance) should call resolve_neg() first.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    torch==2.13.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$dir/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import numpy as np
import torch

print("torch", torch.__version__, "numpy", np.__version__, "jax", jax.__version__)


def refused(f):
    try:
        f()
    except (RuntimeError, BufferError) as e:
        return str(e)[:70]
    return None


z = torch.tensor([1 + 2j, 3 - 4j])
im = z.conj().imag  # -2 and 4
one = torch.tensor([1 + 2j]).conj().imag  # one value has no gaps, which JAX asks for
assert im.is_neg() and one.is_neg()
by_numpy = np.from_dlpack(im).tolist()
by_torch = torch.from_dlpack(im).tolist()
by_jax = jnp.from_dlpack(one).tolist()
no_numpy, no_conj = refused(im.numpy), refused(lambda: np.from_dlpack(z.conj()))
print("the tensor:             ", im.tolist())
print("numpy.from_dlpack:      ", by_numpy)
print("torch.from_dlpack:      ", by_torch)
print("jax.numpy.from_dlpack:  ", by_jax, "of", one.tolist())
print("after resolve_neg():    ", np.from_dlpack(im.resolve_neg()).tolist())
print(".numpy():               ", no_numpy)
print("the conjugate by DLPack:", no_conj)

assert im.tolist() == [-2.0, 4.0]
assert by_numpy == by_torch == [2.0, -4.0], "the sign is right now"
assert one.tolist() == [-2.0] and by_jax == [2.0], "JAX's sign is right now"
assert no_numpy and no_conj, "the neighbours no longer refuse"
assert np.from_dlpack(im.resolve_neg()).tolist() == [-2.0, 4.0]
print("as described: the sign is lost on the way")
PY
