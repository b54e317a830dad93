"""The output of ``scan``: a locked file of JSON lines, which may become a parquet file, or standard output."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from lightning_backdoor.commands.streams import closed_at_start
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.locking import lock
from lightning_backdoor.files.names import check_file

#: endings of tables and pages that are not the output of a scan.
TABLES = (".csv", ".tsv", ".txt", ".xlsx", ".html", ".htm")


def check_standard_output() -> None:
    """Checks that there is a standard output.

    Raises:
        InputError: it was closed when the command started.
    """
    if "stdout" in closed_at_start:
        raise InputError("output", "standard output is closed", "give a file")


class Output:
    """The output of a scan: a file, locked until it is closed, or standard output.

    The lines of a parquet file are first written to ``NAME.parquet.jsonl``, since a parquet file cannot be continued;
    :meth:`finish` turns them into the file.

    Args:
        path: the file; ``-`` is standard output. Devices and pipes are written to, but neither locked nor resumed.

    Attributes:
        name: the file that the user named; None for standard output.
        path: the file of the lines; None for standard output.

    Raises:
        InputError: the file cannot be written, or another scan writes it.
    """

    def __init__(self, path: str) -> None:
        self.name = self.path = None if path == "-" else Path(path)
        if self.name is not None and self.name.suffix.lower() in TABLES:
            kind = "page" if self.name.suffix.lower().startswith(".htm") else "table"
            problem = f"{path} would not hold a {kind}, but JSON lines"
            raise InputError("output", problem, "give a name that ends in .jsonl or .parquet")
        self.parquet = self.name is not None and self.name.suffix.lower() == ".parquet"
        if self.parquet:
            assert self.name is not None
            check_file(self.name, "output")
            self.path = self.name.with_name(f"{self.name.name}.jsonl")
        self._file: IO[bytes] | None = None
        self._text: IO[str] | None = None  # would close the file, and so release its lock, if it were collected
        self._restored = 0  # bytes of the lines that are in a parquet file as well
        if self.path is None:
            check_standard_output()
            return
        check_file(self.path, "output")
        if self.path.exists():
            self._open("ab" if self.special else "r+b")

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the file, which releases the lock."""
        if self._file is not None:
            if self._restored and self.path is not None and self.path.exists():
                self._drop_restored(self.path)
            self._file.close()

    @property
    def special(self) -> bool:
        """Whether the output is not an ordinary file, and so keeps no lines and has no settings beside it."""
        return self.path is None or (self.path.exists() and not self.path.is_file())

    def has_lines(self) -> bool:
        """Whether an earlier scan has written to the file."""
        if self.parquet and self.name is not None and self.name.exists():
            return True
        return self._file is not None and not self.special and self.path is not None and self.path.stat().st_size > 0

    def lines(self) -> Iterator[bytes]:
        """The lines of the file, each with its end; the last one may be the beginning of a line."""
        if self._file is None:
            self._open("x+b")
        assert self._file is not None
        if self.parquet and self.name is not None and self.name.exists() and not os.fstat(self._file.fileno()).st_size:
            from lightning_backdoor.commands.scan.lines_as_parquet import read_lines

            self._file.writelines(read_lines(self.name))
            self._file.flush()
            self._restored = self._file.tell()
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
        self._text = io.TextIOWrapper(self._file, encoding="utf-8", newline="\n", write_through=True)
        return self._text

    def rewrite(self, change: Callable[[str], str]) -> None:
        """Replaces the lines of a file, in one step, by what a function makes of each."""
        assert self.path is not None
        assert self._file is not None
        partial = self.path.with_name(f".{self.path.name}.partial")
        self._file.seek(0)
        with partial.open("wb") as changed:
            changed.writelines(change(line.decode()).encode() for line in self._file)
        partial.replace(self.path)
        self._file.close()
        self._open("r+b")

    def finish(self, defenses: Sequence[str]) -> None:
        """Completes the output: the lines of a parquet file become the file.

        Args:
            defenses: names of the defenses of the scan.
        """
        if self.parquet and self.name is not None and self.path is not None and self._file is not None:
            from lightning_backdoor.commands.scan.lines_as_parquet import write_parquet

            self._file.seek(0)
            write_parquet(self._file, self.name, defenses)
            self.path.unlink()

    def discard(self) -> None:
        """Removes the file of the lines."""
        if self.path is not None and not self.special:
            self.path.unlink(missing_ok=True)

    def _drop_restored(self, path: Path) -> None:
        """Removes lines to which nothing was added, since the parquet file has them."""
        if path.stat().st_size <= self._restored:
            path.unlink()

    def _open(self, mode: str) -> None:
        assert self.path is not None
        try:
            self._file = self.path.open(mode)
        except FileExistsError:
            raise InputError("output", f"another scan writes {self.name}", "name another file") from None
        except OSError as error:
            raise InputError("output", f"{self.path} cannot be written ({error.strerror})", "name another") from error
        if not self.special and not lock(self._file, wait=False):
            raise InputError("output", f"another scan writes {self.name}", "wait for it, or name another file")
