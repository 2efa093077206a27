"""Tables, progress, messages, and the commands that messages name."""
