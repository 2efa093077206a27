"""The command line: the program `kernelk`, and the measuring of scripts."""

from .main import main as main
