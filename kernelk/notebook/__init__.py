"""The magics besides `%kbackend`, their parsing, completion and settings."""
