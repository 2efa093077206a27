"""The version, where everything can read it without importing the faces."""

__version__ = "0.1.0"
