"""Jobs that run for long: what they check, and the command that runs those which haven't passed yet."""
