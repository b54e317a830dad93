"""The errors raised for input that the user can correct and for diverged training; one-line messages for others."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used. Its message is one line: the field, what is wrong with its value, and what to give.

    The command line prints it and exits with status 2; in Python it is a ``ValueError``.

    Args:
        field: name of the option, argument, file or column, as the user knows it.
        problem: what is wrong, including the value.
        remedy: what to give or to do instead; empty if the problem already implies it.

    >>> error = InputError("fpr", "2 is not a share of clean texts", "give a number above 0 and below 1")
    >>> str(error)
    'fpr: 2 is not a share of clean texts; give a number above 0 and below 1'
    >>> str(error.under("defenses.STRIP"))
    'defenses.STRIP: 2 is not a share of clean texts; give a number above 0 and below 1'
    """

    def __init__(self, field: str, problem: str, remedy: str = "") -> None:
        super().__init__(field, problem, remedy)
        self.field = field
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return one_line(f"{self.field}: {self.problem}" + (f"; {self.remedy}" if self.remedy else ""))

    def under(self, field: str) -> InputError:
        """The same problem and remedy for another field: the field through which the user gave the value."""
        return InputError(field, self.problem, self.remedy)


class Diverged(RuntimeError):
    """Training or a victim has diverged: losses, weights or logits are NaN or infinite. Its message is one line.

    The command line prints it and exits with status 1.
    """


def input_error_behind(error: BaseException | None) -> InputError | None:
    """The :class:`InputError` that caused an error, if any; jsonargparse replaces errors of constructors by its own."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def reason(error: BaseException, length: int = 300) -> str:
    """The message of an error's innermost cause, on one line of at most ``length`` characters.

    For errors of other libraries, whose messages often span several lines.

    >>> reason(ValueError("no such\\n   column"))
    'no such column'
    """
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(str(error))[:length]


def one_line(text: str) -> str:
    """A text on one line, with control characters escaped, so that a terminal does not interpret them.

    >>> one_line("red: \\x1b[31m\\n  done")
    'red: \\\\x1b[31m done'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
