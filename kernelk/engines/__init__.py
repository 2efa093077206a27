"""Engines as the kernel sees them: descriptors, the registry, options, hosts, storage, the workers' log."""

from .descriptors import CNTK as CNTK
from .descriptors import JAX as JAX
from .descriptors import NUMPY as NUMPY
from .descriptors import TENSORFLOW as TENSORFLOW
from .descriptors import THEANO as THEANO
from .descriptors import TORCH as TORCH
from .descriptors import Engine as Engine
