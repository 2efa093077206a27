"""The nodes that a call needs, resolved for an engine and linearised, with a structural key."""
