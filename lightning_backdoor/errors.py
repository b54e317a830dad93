"""The one error for what a user can mend."""


class InputError(ValueError):
    """Bad input. The message is one line: the field, the value, and what would be right.

    The command line prints it as it is and exits with status 2; in Python it is an ordinary ``ValueError``.
    """


class NotCached(InputError):
    """What takes long to compute is not in the cache and may not be computed now.

    Attributes:
        missing: how many texts are not there.
    """

    def __init__(self, message: str, missing: int) -> None:
        super().__init__(message)
        self.missing = missing
