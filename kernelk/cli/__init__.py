"""The command line: the program `kernelk`, which also measures scripts."""

from .main import main as main
