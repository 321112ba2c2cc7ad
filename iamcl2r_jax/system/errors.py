"""The errors that the programs print as one line."""


class InputError(ValueError):
    """Bad input, exit status 2; one line: the field, its value and what would be right."""


class LockedError(InputError):
    """Another process writes to the same directory."""


class DamagedError(InputError):
    """Something on disk was read and is not as it was written."""


class WriteError(RuntimeError):
    """Something cannot be written, exit status 1; the message is one line."""


def one_line(error: BaseException) -> str:
    """The message of an error as one line; the error's name if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
