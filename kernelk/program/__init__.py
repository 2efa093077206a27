"""Turns the nodes that a call needs into a program: resolved for an engine, linearised, with a structural key.

Nothing is imported here: programs are made and read within kernelk alone, which names the module of each stage.
"""
