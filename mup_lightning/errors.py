"""The one exception that a user's mistake, a damaged file or a refused configuration ends in."""


class UserError(Exception):
    """Something the user can mend. The command line prints the message alone, without a traceback, and exits with 1.

    The message says what is wrong, where, what was expected, and how to mend it.
    """
