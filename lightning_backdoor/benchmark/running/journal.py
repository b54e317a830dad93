"""What has been done, one JSON line an event: append-only, shared by processes, whole after a kill at any moment."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_backdoor.errors import InputError

Event = dict[str, Any]


class Journal:
    """The events of a folder, by kind and id: the last of each counts, but what is done stays done.

    An event with an ``error`` is of the launch that it names; others are for good.

    Args:
        path: of the file; made where there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_to = 0
        self._events: dict[tuple[str, str], Event] = {}
        self._failed: set[tuple[str, str, str]] = set()

    def get(self, kind: str, id: str) -> Event | None:
        """The event of this kind and id as last read; see :meth:`refresh`."""
        return self._events.get((kind, id))

    def failed(self, kind: str, id: str, launch: str) -> bool:
        """Whether this has failed in a launch, whatever became of it in others."""
        return (kind, id, launch) in self._failed

    def refresh(self) -> list[Event]:
        """Reads what was written since; a line that is not whole yet is left for later."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            lines = file.read().splitlines(keepends=True)
        new = []
        for line in lines:
            if not line.endswith(b"\n"):
                break
            self._read_to += len(line)
            event = json.loads(line)
            key = (event["kind"], event["id"])
            if "error" in event:
                self._failed.add((*key, event["launch"]))
            if "error" not in event or "error" in self._events.get(key, event):
                self._events[key] = event
            new.append(event)
        return new

    def append(self, kind: str, id: str, **facts: Any) -> None:
        """Writes an event down for good; half a line that a kill left behind goes first."""
        line = json.dumps({"kind": kind, "id": id, **facts}).encode() + b"\n"
        with self.path.open("ab+") as file:
            _lock(file.fileno(), self.path)
            file.truncate(_whole(file.fileno()))
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def _whole(descriptor: int, step: int = 65536) -> int:
    """The length of a file up to the end of its last whole line."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - step)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


@contextmanager
def claimed(log: Path) -> Iterator[int | None]:
    """Takes a piece of work for this process and those it starts, through its log file, which is the lock.

    After a kill, the lock falls with the last process that has the file open; over NFS, with the one that took it.

    Returns:
        The log's descriptor, opened to read and append; None where another process has the work.

    Raises:
        InputError: the file system has no locks.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        try:
            _lock(descriptor, log, fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        try:
            yield descriptor
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


@contextmanager
def waited_for(log: Path) -> Iterator[int]:
    """As :func:`claimed`, but waits its turn."""
    with log.open("ab") as file:
        _lock(file.fileno(), log)
        yield file.fileno()


def _lock(descriptor: int, path: Path, how: int = 0) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | how)
    except BlockingIOError:
        raise
    except OSError as error:
        raise InputError(
            "output", f"{path.parent} lies on a file system without locks ({error})", "give a folder on another"
        ) from None
