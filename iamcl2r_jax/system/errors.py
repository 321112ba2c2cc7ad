"""The errors that a user can cause; the programs print them as one line and end with status 2."""


class InputError(ValueError):
    """Bad input; the message is one line: the field, its value and what would be right."""


class LockedError(InputError):
    """Another process writes to the same directory."""


class DamagedError(InputError):
    """Something on disk was read and is not as it was written."""
