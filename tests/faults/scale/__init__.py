"""`make faults`: random programs of a session with a fault injected into their steps, checked against a model."""
