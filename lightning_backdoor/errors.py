"""The one error for what a user can mend."""


class InputError(ValueError):
    """Bad input. The message is one line: the field, the value, and what would be right.

    The command line prints it as it is and exits with status 2; in Python it is an ordinary ``ValueError``.
    """
