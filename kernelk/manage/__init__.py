"""Manages engines: lists, installs, removes and examines them, and shows their logs.

Nothing is imported here: `kernelk list` needs no numpy, and `doctor` all of K.
"""
