"""The set pass: defenses that study read all texts before the first is judged, or adopt kept directions."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from torch import Tensor

from lightning_backdoor.commands.scan.directions import (
    Directions,
    check_shapes,
    read_directions,
    set_of,
    write_directions,
)
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.locking import lock
from lightning_backdoor.files.names import check_file
from lightning_backdoor.outputs.progress import progress

#: seconds after which the sums of an unfinished pass are written again: what a kill may cost.
KEPT_SECONDS = 30.0

#: the number of texts in a group, and the sums over them.
Studied = tuple[int, dict[str, Tensor]]


class SetPass:
    """The set pass of a scan, in its first process.

    Directions that a file keeps are adopted without a pass. Otherwise all texts of the input are read, and their sums
    are written to the file; those of an unfinished pass are kept in ``NAME.unfinished`` beside it. The texts of the
    set are not kept: whatever their number, memory holds one group of them, and a few copies of the sums, per process.

    Args:
        path: the file; None where the sums are kept nowhere.
        given: whether the user named the file: what it holds is then adopted, or added to; otherwise only a pass over
            the same texts that was interrupted later is adopted from it, and another one is replaced.
        add: whether the sums of the input are added to those of the file.
        resumed: whether an interrupted scan is continued.
        belongs: what directions belong to.
        texts: the texts of the input from the one with a given number; None where they can be read only once.
        students: names of the defenses that study.

    Attributes:
        directions: sums of the sets that were read before; when the pass is done, with those of the input.
        sets: hash of the sets whose sums are adopted, which determines the results of the scan.

    Raises:
        InputError: when entered: the file does not hold directions of this victim and these defenses, another scan
            writes it, or the input can be read only once.
    """

    def __init__(
        self,
        path: Path | None,
        given: bool,
        add: bool,
        resumed: bool,
        belongs: Mapping[str, Any],
        texts: Callable[[int], Iterator[str]] | None,
        students: str,
    ) -> None:
        self.path, self._given, self._add, self._resumed = path, given, add, resumed
        self._belongs, self._texts, self._students = belongs, texts, students
        self.directions = Directions({})
        self.sets = ""
        self._begun: Directions | None = None  # of the input, as far as it is read; None where no pass is needed
        self._count = 0  # texts of the input
        self._written = False
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> SetPass:
        path = self.path
        if path is None or self._add or not (self._given and path.exists()):
            self._check_texts()
            self._lock = None if path is None else _locked(path)
        try:
            self._plan()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Releases the file to other scans."""
        self._release()

    @property
    def kept(self) -> str | None:
        """What an interrupted scan leaves of the pass, for the user; None if that is nothing."""
        if self._written:
            return f"the sums of {self.directions.texts} texts are kept in {self.path}"
        if self._begun is None or not self._begun.texts or self.path is None:
            return None
        return f"the sums of {self._begun.texts} of {self._count} texts are kept in {_unfinished(self.path)}"

    def groups(self, cut: Callable[[Iterator[str]], Iterator[list[str]]]) -> Iterator[list[str]]:
        """The groups of texts that are still to be studied; none where no pass is needed."""
        if self._begun is None or self._texts is None:
            return iter(())
        return cut(self._texts(self._begun.texts))

    def complete(self, parts: Iterator[Studied], empty: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adds the sums of all groups in their order, and keeps them.

        Args:
            parts: what each of :meth:`groups` gave.
            empty: sums over no texts.

        Returns:
            The sums that the defenses adopt.

        Raises:
            InputError: sums of the file have other shapes, or the input has changed while it was read.
        """
        if self.path is not None and self.directions.sums:
            check_shapes(self.path, self.directions, empty)
        if self.path is not None and self._begun is not None and self._begun.sums:
            check_shapes(_unfinished(self.path), self._begun, empty)
        if self._begun is None:
            for _ in parts:  # there are none, which the other processes are told
                pass
            return self.directions.sums
        self._add_up(parts)
        if self._begun.texts != self._count:
            problem = f"it had {self._count} texts when it was read first, and {self._begun.texts} now"
            raise InputError("input", problem, "scan it when it is complete")
        whole = self.directions.plus(self._begun.plus(empty, 0).sums, self._begun.texts)
        self.directions = whole._replace(sets=self.sets, last=self._begun.last)
        if self.path is not None:
            write_directions(self.path, self.directions, self._belongs)
            self._written = True
            _unfinished(self.path).unlink(missing_ok=True)
        return self.directions.sums

    def _add_up(self, parts: Iterator[Studied]) -> None:
        assert self._begun is not None
        before, saved = self._begun, time.monotonic()
        try:
            with progress(f"showing all texts to {self._students}", self._count, "texts", before.texts) as advance:
                for count, sums in parts:
                    self._begun = self._begun.plus(sums, count)  # sums and number at once, also when interrupted
                    advance(count)
                    if time.monotonic() - saved >= KEPT_SECONDS:
                        self._keep()
                        saved = time.monotonic()
        except BaseException:
            if self._begun.texts > before.texts:
                self._keep()
            raise

    def _keep(self) -> None:
        if self.path is not None and self._begun is not None:
            write_directions(_unfinished(self.path), self._begun, self._belongs)

    def _check_texts(self) -> None:
        if self._texts is None:
            problem = f"standard input and pipes can be read only once, but {self._students} studies all texts first"
            raise InputError("input", problem, "give files, or --directions that an earlier scan has written")

    def _plan(self) -> None:
        """Finds out what is there and what is to be read."""
        path = self.path
        known = path is not None and path.exists() and (self._given or self._resumed)
        if path is not None and known:
            self.directions = read_directions(path, self._belongs)
            self.sets = self.directions.sets
            if self._given and not self._add:
                return
        assert self._texts is not None
        self._count, last = set_of(self._texts(0))
        if known and self.directions.last == last:
            if not self._resumed:
                raise InputError("study", f"{path} has the sums of this input already", "leave out --study")
            return
        if not self._given:
            self.directions = Directions({})
        self.sets = self.directions.sets_with(last)
        self._begun = Directions({}, last=last, whole=False)
        if path is not None and _unfinished(path).exists():
            self._begun = self._interrupted(_unfinished(path), last)

    def _interrupted(self, path: Path, last: str) -> Directions:
        """What a pass that was interrupted has read."""
        if not self._resumed:
            raise InputError("directions", f"{path} exists", "add --resume to continue it, or delete it")
        begun = read_directions(path, self._belongs, whole=False)
        if begun.last != last:
            raise InputError("input", f"{path} was begun on other texts", "give these, or delete it")
        return begun

    def _release(self) -> None:
        if self._lock is not None:
            Path(self._lock.name).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None


def directions_path(output: Path) -> Path:
    """The file beside an output that keeps the directions of a scan that names no other."""
    return output.with_name(f"{output.name}.directions.safetensors")


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.unfinished")


def _locked(path: Path) -> IO[bytes]:
    """A file beside the directions, locked, so that no two scans write them."""
    check_file(path, "directions")
    file = path.with_name(f".{path.name}.lock").open("ab")
    # a file without a link was removed by the scan that held it last
    if lock(file, wait=False, field="directions") and os.fstat(file.fileno()).st_nlink:
        return file
    file.close()
    raise InputError("directions", f"another scan writes {path}", "wait for it, or name another file")
