"""Names the kinds and columns of the list of tensors, apart from the list so that completion needn't import it."""

from __future__ import annotations

# Here, and not with what does the work, since the Tab key offers them before anything else is imported.
KINDS = ("variable", "placeholder", "tensor", "function")


VALUE_COLUMNS = ("min", "max", "mean", "std", "nan", "inf")


COLUMNS = ("made", "name", "kind", "op", "dtype", "device", "bytes", "difference", *VALUE_COLUMNS)
