"""Measures calls: records those of a body of code, times, profiles and compares them, and finds where engines diverge.

Nothing is imported here: a magic imports its twin when it is called.
"""
