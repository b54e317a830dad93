"""The output of ``scan``: a locked file, or standard output."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lightning_backdoor.commands.streams import closed_at_start
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.locking import lock
from lightning_backdoor.files.names import check_file


class Output:
    """The output of a scan: a file, locked until it is closed, or standard output.

    Args:
        path: the file; ``-`` is standard output. Devices and pipes are written to, but neither locked nor resumed.

    Raises:
        InputError: the file cannot be written, or another scan writes it.
    """

    def __init__(self, path: str) -> None:
        self.path = None if path == "-" else Path(path)
        self._file: IO[bytes] | None = None
        if self.path is None:
            if "stdout" in closed_at_start:
                raise InputError("output", "standard output is closed", "give a file")
            return
        check_file(self.path, "output")
        if self.path.exists():
            self._open("ab" if self.special else "r+b")

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the file, which releases the lock."""
        if self._file is not None:
            self._file.close()

    @property
    def special(self) -> bool:
        """Whether the output is not an ordinary file, and so keeps no lines and has no settings beside it."""
        return self.path is None or (self.path.exists() and not self.path.is_file())

    def has_lines(self) -> bool:
        """Whether an earlier scan has written to the file."""
        return self._file is not None and not self.special and self.path is not None and self.path.stat().st_size > 0

    def lines(self) -> Iterator[bytes]:
        """The lines of the file, each with its end; the last one may be the beginning of a line."""
        assert self._file is not None
        self._file.seek(0)
        return iter(self._file)

    def cut(self, size: int) -> None:
        """Removes what comes after the first ``size`` bytes."""
        assert self._file is not None
        self._file.truncate(size)

    def opened(self) -> IO[str]:
        """The output, to append text to; a file that does not exist is created."""
        if self.path is None:
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(encoding="utf-8")  # JSON lines are UTF-8, whatever the locale
            return sys.stdout
        if self._file is None:
            self._open("x+b")  # fails if another scan has created it in the meantime
        assert self._file is not None
        if not self.special:
            self._file.seek(0, io.SEEK_END)
        return io.TextIOWrapper(self._file, encoding="utf-8", newline="\n", write_through=True)

    def _open(self, mode: str) -> None:
        assert self.path is not None
        try:
            self._file = self.path.open(mode)
        except FileExistsError:
            raise InputError("output", f"another scan writes {self.path}", "name another file") from None
        except OSError as error:
            raise InputError("output", f"{self.path} cannot be written ({error.strerror})", "name another") from error
        if not self.special and not lock(self._file, wait=False):
            raise InputError("output", f"another scan writes {self.path}", "wait for it, or name another file")
