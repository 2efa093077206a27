"""Everything that writes graph: the functions of K, the rules of their ops, gradients and shape helpers."""

# Most modules apply primitives, and few need anything else of the module that enters their rules.
from . import primitives as primitives
