"""Inspects what a session holds, without side effects: inventory, summaries, the list of tensors, rich reprs.

Nothing is imported here: completion reads `columns` alone.
"""
