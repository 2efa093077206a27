"""Shows things to the user: tables, progress, messages, exported files, and the commands that messages name."""
