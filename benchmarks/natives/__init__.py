"""The baselines, an engine a file: each case of `native.MODELS` written by hand, as that engine's users write it.

Each module has `empty()`, and `mlp`, `lenet` and `lstm` of (weights, x, t), which return a call that ends with its
result in numpy, and `holder(array)`, which returns (put, get) of a variable. Python 3.6 syntax: they run beside
Theano and CNTK.
"""
