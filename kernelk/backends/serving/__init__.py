"""The worker's side: the wire, shared memory, and the loop that serves requests."""
