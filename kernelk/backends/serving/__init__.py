"""Drives a backend: `worker` is the process and its loop, `executor` carries out requests one at a time.

`watcher` is started by the worker before all else, and ends it with its kernel.

`wire` and `shared_memory` are the two ways from the kernel to a worker; `timed` and `watching` are an executor's means
of timing a program and of asking the engine's own profiler. In the kernel the executor is called directly.
"""
