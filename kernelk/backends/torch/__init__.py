"""PyTorch: a program becomes one Python function that calls PyTorch's kernels eagerly."""
