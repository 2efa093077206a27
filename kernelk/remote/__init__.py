"""Engines on other machines, by ipyparallel: `host` is the kernel's side, `serving` runs in an ipyparallel engine.

Neither listens anywhere, nor finds or starts machines: that is ipyparallel's, whose calls carry all that is said
between them. `serving` starts kernelk's own worker there, which maps memory of that machine. Its segments have the
numbers and the sizes of the kernel's, so that requests go there as they are; with each go the bytes that it reads, and
back come those that it has written. What the kernel knows of a worker (plans, commits, repetitions) is as on this one.
"""
