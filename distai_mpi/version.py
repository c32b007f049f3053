"""The version of the package, for its own parts too."""

__version__ = "0.1.0"
