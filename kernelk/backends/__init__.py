"""The island: all code that touches an engine, in Python 3.6 syntax, on the standard library, numpy and that engine.

Import rules: relative imports only, never the rest of kernelk, so that the same files run in the
notebook's kernel and in a worker under another interpreter.
"""
