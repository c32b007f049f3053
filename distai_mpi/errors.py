"""Errors that a user can cause and mend.

Everything that can be foreseen (a bad file, flag or value) is raised as a
`DistaiError`: its message names the thing at fault and the way out, and the
command line prints that message alone, once.  Any other exception is a bug of
the package or of the user's own model, and is shown with its traceback.
"""


class DistaiError(Exception):
    """A foreseeable error; the message is complete and is meant for the user."""


class DataError(DistaiError):
    """A data file that is missing, damaged, of another kind, or does not fit the model."""


class ConfigError(DistaiError):
    """A flag, argument or combination of them that cannot work."""
