"""numpy, the definition of every op, in the notebook's own process."""
