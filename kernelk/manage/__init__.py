"""What `%kbackend --list`, `--install`, `--doctor` and `--log` do."""
