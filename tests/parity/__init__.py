"""The parity suite: every function of K, on every engine, against its definition written in plain numpy.

`case` says what a case is, the families (`elementwise`, `reductions`, ...) hold the tables, `suite` collects them,
`check` runs a batch of them in one `K.function`, `gaps` knows what an engine can't do, and `__main__` runs all.
"""
