"""JAX: a program is compiled by XLA ahead of time, for the shapes at hand."""
