"""Exceptions for users' mistakes, damaged files and refused configurations."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A problem that the user can fix. The command line prints the message without a traceback and exits with 1.

    The message says what is wrong, where, what was expected, and how to fix it.
    """


class UsageError(UserError):
    """A command line that names an option or a verb that does not exist, or leaves out what a verb needs."""


class Busy(UserError):  # noqa: N818  (no error of the program's)
    """Another process is doing what only one may do at a time."""


class Diverged(UserError):  # noqa: N818  (for a sweep it is a result, not an error)
    """The loss or the gradients of a run are no longer finite in `step`, counted from 1, which was not applied."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step

    @property
    def short(self) -> str:
        """The step, and what was seen in it."""
        return f"step {self.step}: {str(self).splitlines()[0].partition(' in step')[0]}"


@contextmanager
def located(place: object) -> Iterator[None]:
    """Put a place, such as a file's name, before the messages of errors in the block that do not name it yet."""
    try:
        yield
    except UserError as error:
        raise (error if str(error).startswith(str(place)) else type(error)(f"{place}: {error}")) from None
