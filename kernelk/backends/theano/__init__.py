"""Theano 1.0.5: a program is one theano.function, compiled by C where there is a compiler."""
