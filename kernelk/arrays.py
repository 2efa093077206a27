"""The type of an array, for annotations in all rooms."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
