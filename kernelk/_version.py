"""The version, where everything can read it without importing `kernelk` itself."""

__version__ = "0.1.0"
