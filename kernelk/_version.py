"""The version, where everything can read it without importing `kernelk` itself."""

__version__ = "0.2.0"
