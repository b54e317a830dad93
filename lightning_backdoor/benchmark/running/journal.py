"""The journal of a grid: an append-only file with a JSON line per event, shared by processes and safe against kills."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from lightning_backdoor.errors import InputError

Event = dict[str, Any]

#: upper limit on the bytes of a line of the journal.
LONGEST_LINE = 1 << 16


class Journal:
    """The events of a grid by kind and id: the last event counts, except that a failure never replaces a success.

    An event with an ``error`` applies only to the launch that it names; all other events are final.

    Args:
        path: path of the file; it is created with the first event.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0
        self._events: dict[tuple[str, str], Event] = {}
        self._failed: set[tuple[str, str, str]] = set()

    def get(self, kind: str, id: str) -> Event | None:
        """The event of this kind and id as last read; see :meth:`refresh`."""
        return self._events.get((kind, id))

    def is_open(self, kind: str, id: str) -> bool:
        """Whether a victim or cell has not run, or has failed and is to run again."""
        return "error" in self._events.get((kind, id), {"error": "not run"})

    def failed(self, kind: str, id: str, launch: str) -> bool:
        """Whether a victim or cell failed in this launch, whatever its result in other launches."""
        return (kind, id, launch) in self._failed

    def refresh(self) -> list[Event]:
        """Reads and returns the events written since the last call; an unfinished line is left for the next one."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._position)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._position += len(whole)
        events: list[Event] = [json.loads(line) for line in whole.splitlines()]
        for event in events:
            key = (event["kind"], event["id"])
            if "error" in event:
                self._failed.add((*key, event["launch"]))
            if "error" not in event or self.is_open(*key):
                self._events[key] = event
        return events

    def append(self, kind: str, id: str, **facts: Any) -> None:
        """Writes an event to disk; an unfinished line that a kill left behind is removed first."""
        line = json.dumps({"kind": kind, "id": id, **facts}).encode() + b"\n"
        with self.path.open("ab+") as file:
            lock(file)
            start = max(0, file.tell() - LONGEST_LINE)
            file.seek(start)
            file.truncate(start + file.read().rfind(b"\n") + 1)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def claimed(log: Path) -> Iterator[int | None]:
    """Claims a victim or cell for this process and its child processes, by a lock on the log file.

    After a kill, the lock is released when the last process that has the file open ends; over NFS, when the process
    that took it ends.

    Returns:
        The log's descriptor, opened for reading and appending; None if another process holds the lock.

    Raises:
        InputError: the file system has no locks.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab+") as file:
        if not lock(file, wait=False):
            yield None
            return
        try:
            yield file.fileno()
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # also for processes that still have the file open


def lock(file: BinaryIO, wait: bool = True) -> bool:
    """Locks an open file until it is closed; with ``wait=False``, returns False if another process holds the lock.

    Raises:
        InputError: the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        problem = f"{Path(file.name).parent} lies on a file system without locks ({error})"
        raise InputError("output", problem, "give a folder on another one") from None
    return True
