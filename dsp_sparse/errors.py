"""The one exception for mistakes a user can mend."""


class UserError(ValueError):
    """Bad input. The message is one line: which argument, file or key, what it was, what was expected.

    The command line prints it without a traceback and exits with code 2.
    """
