"""The errors raised for input that the user can correct and for diverged training; one-line messages for others."""

from __future__ import annotations

import difflib
import errno
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

#: errors of the machine, not of the input: a full disk, too many open files, and the like.
MACHINE = ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EBADF", "EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "EPIPE", "ESTALE")
MACHINE_ERRORS = {getattr(errno, name) for name in MACHINE}
#: upper limit on the characters of a line that reports an error.
LONGEST_LINE = 2000
#: characters that reverse the direction in which the text after them is shown.
DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


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


def known_error(error: BaseException) -> tuple[str, int]:
    """The line that reports an error on the command line, and the exit status; an empty line if the cause is unknown.

    Known are :class:`InputError` and :class:`Diverged`, what the operating system refuses, options that Lightning
    refuses once it has started, a null character in a path, and a user without a home folder. Whatever else is raised
    is a fault of the program, whose traceback is wanted. The status is 1 for errors of the machine, even where an
    :class:`InputError` says which folder is on the full disk.

    >>> known_error(FileNotFoundError(2, "No such file or directory", "reviews.csv"))
    ('reviews.csv: No such file or directory', 2)
    >>> known_error(ZeroDivisionError())
    ('', 1)
    """
    bad_input = input_error_behind(error)
    if bad_input is not None:
        behind = bad_input.__cause__
        return _cut(str(bad_input)), 1 if isinstance(behind, OSError) and behind.errno in MACHINE_ERRORS else 2
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Diverged):
            return _cut(one_line(str(cause))), 1
        if isinstance(cause, OSError) and cause.errno is not None:
            name = f"{os.fsdecode(cause.filename)[:500]}: " if isinstance(cause.filename, str | bytes) else ""
            return _cut(one_line(name + os.strerror(cause.errno))), 1 if cause.errno in MACHINE_ERRORS else 2
        # libraries written in Rust put the number into the message
        number = re.search(r"\(os error (\d+)\)", str(cause))
        if number:
            return _cut(one_line(str(cause))), 1 if int(number[1]) in MACHINE_ERRORS else 2
        if _is_raised_by_lightning(cause):
            return _cut(f"trainer: {one_line(str(cause))}"), 2
        if isinstance(cause, ValueError) and "embedded null" in str(cause):
            return "a path contains a null character; give another name", 2
        if isinstance(cause, RuntimeError) and "home directory" in str(cause):
            return "HOME: the user has no home folder; set HOME, or LIGHTNING_BACKDOOR_CACHE and HF_HOME", 2
        cause = cause.__cause__
    return "", 1


def _is_raised_by_lightning(error: BaseException) -> bool:
    """Whether Lightning itself raised an error, as it does for options that fit neither data, model nor machine."""
    if not isinstance(error, ValueError | RuntimeError) and type(error).__name__ != "MisconfigurationException":
        return False
    raised = error.__traceback__
    while raised is not None and raised.tb_next is not None:
        raised = raised.tb_next
    return raised is not None and raised.tb_frame.f_globals.get("__name__", "").startswith("lightning.")


def _cut(line: str) -> str:
    """A line without its middle if it is too long, since its end says what to do."""
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]} ... {line[-half:]}"


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A question that names the nearest of some names; empty if none is near.

    >>> did_you_mean("poison_rat", ["triggers", "poison_rate"])
    'did you mean poison_rate?'
    >>> did_you_mean("badnets", ["BadNets"]), did_you_mean("x", ["BadNets"])
    ('did you mean BadNets?', '')
    """
    by_letters = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower()[:100], by_letters, n=1)
    return f"did you mean {by_letters[near[0]]}?" if near else ""


def reason(error: BaseException, length: int = 300) -> str:
    """The message of an error's innermost cause, on one line of at most ``length`` characters.

    For errors of other libraries, whose messages often span several lines, and for code that Python cannot read.

    >>> reason(ValueError("no such\\n   column"))
    'no such column'
    """
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, SyntaxError) and error.filename:
        return one_line(f"{Path(error.filename).name}, line {error.lineno}: {error.msg}")[:length]
    return one_line(str(error))[:length]


def one_line(text: str) -> str:
    """A text on one line, each blank a single space, with control characters escaped; see :func:`escaped`.

    >>> one_line("red: \\x1b[31m\\n  done")
    'red: \\\\x1b[31m done'
    """
    return escaped(" ".join(text.split()))


def escaped(text: str, keep: str = "") -> str:
    """A text with its control characters escaped, except for the characters in ``keep``.

    >>> escaped("red: \\x1b[31m"), escaped("中文  é")
    ('red: \\\\x1b[31m', '中文  é')
    """
    return "".join(ascii(c)[1:-1] if is_control(c) and c not in keep else c for c in text)


def is_control(character: str) -> bool:
    """Whether a character is a control code, a line end, half of a character, or turns the direction of writing."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in DIRECTIONS
