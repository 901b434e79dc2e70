"""The exception that a user's mistake, a damaged file or a refused configuration ends in, and its one special case."""


class UserError(Exception):
    """Something the user can mend. The command line prints the message alone, without a traceback, and exits with 1.

    The message says what is wrong, where, what was expected, and how to mend it.
    """


class UsageError(UserError):
    """A command line that names an option or a verb that does not exist, or leaves out what a verb needs."""


class Diverged(UserError):  # noqa: N818  (a result, seen from a sweep)
    """The loss or the gradients of a run are no longer finite. For a sweep this is a result, not a mistake.

    Attributes:
        step: in which it was seen, counted from 1; the optimizer has not taken it.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step
