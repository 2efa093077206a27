"""The accuracy suite: K's functions of floats on every engine, measured in ulps against mpmath.

`ulps` measures, `points` chooses the inputs, `formulas` and `arrays` say what is right of numbers and of arrays, `bars`
says how far off a result may be, `measure` runs a batch on the active engine, `natives` asks the engine's own
functions, `report` writes docs/accuracy.md, and `__main__` runs all of it.
"""
