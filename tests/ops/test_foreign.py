"""Other libraries' tensors where a value enters K: each arrives as its own library reads it."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.engines import absent

from kernelk import backend as K

pytestmark = pytest.mark.worker  # PyTorch takes seconds to import


def test_a_negated_view_of_pytorchs_keeps_its_sign() -> None:
    """The imaginary part of a conjugate has its sign in a bit beside the memory, which DLPack doesn't carry."""
    try:
        import torch
    except ImportError as error:
        absent("torch", error)
    values = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64).conj().imag
    assert values.is_neg(), "no such view any more"
    expected = np.array([-2.0, 4.0], "float32")
    assert np.array_equal(K.get_value(K.variable(values)), expected)
    assert np.array_equal(K.eval(K.constant(values)), expected)
    x = K.placeholder((2,))
    assert np.array_equal((x + 0.0).eval({x: values}), expected)
