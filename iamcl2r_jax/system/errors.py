"""The errors that the programs print as one line."""


class InputError(ValueError):
    """Bad input; one line: the field, its value and what would be right."""

    exit_status = 2


class LockedError(InputError):
    """Another process writes to the same directory."""


class DamagedError(InputError):
    """Something on disk was read and is not as it was written."""


class WriteError(RuntimeError):
    """Something cannot be written."""

    exit_status = 1


class PreemptedError(RuntimeError):
    """The run was asked to stop, has saved where it stands, and continues when started again."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h

    def __init__(self):
        super().__init__("asked to stop; the same command continues")


def one_line(error: BaseException) -> str:
    """The message of an error as one line; the error's name if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


class DivergenceError(RuntimeError):
    """Training left the finite numbers; the message names where.

    Attributes:
      epoch, step: 0-based place of the first loss or gradient that is not finite; the epoch is None
        for a training without any.
      training: which one it was.
    """

    exit_status = 1

    def __init__(
        self,
        epoch: int | None,
        step: int,
        training: str = "training",
        *,
        field: str = "train.learning_rate",
    ):
        self.epoch, self.step, self.training = epoch, step, training
        place = f"step {step + 1}" if epoch is None else f"epoch {epoch + 1}, step {step + 1}"
        super().__init__(
            f"{training}, {place}: loss or gradient is not finite; try a lower {field}"
        )
