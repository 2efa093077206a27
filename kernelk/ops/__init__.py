"""K functions by family: each checks its arguments, infers shape and dtype and records nodes; no engine is involved."""

# Most modules apply primitives, and few need anything else of the module that enters their rules.
from . import primitives as primitives
