"""The current session: variables, calls, functions, feeds, swaps and saving. Importing it imports no engine."""

from .current import current as current
from .current import entered as entered
from .current import existing as existing
