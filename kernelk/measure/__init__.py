"""Measures calls: records what a body of code runs, times, profiles and compares it, and finds where engines diverge.

Nothing is imported here: a magic imports its twin when it is called.
"""
