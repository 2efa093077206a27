"""Shows things to the user: tables, progress, messages, exported files, and the commands that messages name.

Nothing is imported here: describing an engine takes `commands` alone.
"""
