"""The neutral graph: nodes, the table of op rules, loop closures. Knows no engine and no session."""

from .nodes import Placeholder as Placeholder
from .nodes import Tensor as Tensor
from .nodes import Update as Update
from .nodes import Variable as Variable
