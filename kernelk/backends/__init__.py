"""The island: all code that touches an engine, in Python 3.6 syntax, on the standard library, numpy and that engine.

Imports are relative and never leave the island, so that the same files run in the notebook's kernel and in a worker
under another interpreter. An engine is imported when its backend starts, not when a module is. The `__init__` of an
engine's folder imports nothing: `numpy.ops`, the definitions, is read without the numpy backend.

Where a line belongs:
- what every engine has in common lies here: `base` (the contract, with all primitives), `lowering` (a program as
  backends see it), `choosing` (options), `products` (how factors are rounded), `errors`; `staged` and `segments` cut a
  program that no engine takes whole; `figures` puts an array into figures, for the panel;
- one engine's code lies in the folder of its name, under the same file names in each: `backend` (the class), `ops` (its
  table of ops), `elementwise` and `windows` (convolution and pooling; parts of that table), `profiler`. What else a
  folder has is that engine's own;
- what drives a backend, in a worker or in the kernel, lies in `serving`.
"""
