"""numpy: the definition of every op, and an engine in the notebook's own process."""
