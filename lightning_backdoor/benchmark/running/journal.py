"""The journal of a grid: an append-only file with a JSON line per event, shared by processes and safe against kills."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from lightning_backdoor.files.locking import lock

Event = dict[str, Any]

#: upper limit on the bytes of a line of the journal.
LONGEST_LINE = 1 << 16
#: the events of a victim or cell: its result, the W&B run that was logged of it, that its files are damaged, and that a
#: worker has begun to make it.
KINDS = tuple(f"{what}{of}" for what in ("", "record of ", "damaged ", "begun ") for of in ("victim", "cell"))


class Journal:
    """The events of a grid by kind and id: the last event counts, except that a failure never replaces a success.

    An event with an ``error`` applies only to the launch that it names; all other events are final, until an event of
    the kind ``damaged victim`` or ``damaged cell`` takes back what the journal records as done.

    A line that is not an event, such as one that a disk error or another program left, is skipped, and so is an event
    that was changed after it was written.

    Args:
        path: path of the file; it is created with the first event.
        warn: function that is called with a one-line message for each line that is skipped.
    """

    def __init__(self, path: Path, warn: Callable[[str], None] = lambda message: None) -> None:
        self.path = path
        self._warn = warn
        self._position = 0
        self._lines = 0
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

    def forget(self, kind: str, id: str) -> None:
        """Takes back what was read of a victim or cell, without writing; what failed in a launch stays known."""
        self._events.pop((kind, id), None)
        self._events.pop((f"record of {kind}", id), None)

    def refresh(self) -> list[Event]:
        """Reads and returns the events written since the last call; an unfinished line is left for the next one."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._position)
            events = [event for line in self._new_lines(file) if (event := self._event(line)) is not None]
        for event in events:
            key = (event["kind"], event["id"])
            if event["kind"].startswith("damaged "):
                self.forget(event["kind"].removeprefix("damaged "), event["id"])
            if "error" in event:
                self._failed.add((*key, event["launch"]))
            if "error" not in event or self.is_open(*key):
                self._events[key] = event
        return events

    def append(self, kind: str, id: str, **facts: Any) -> None:
        """Writes an event to disk; an unfinished line that a kill left behind is removed first."""
        event = {"kind": kind, "id": id, **facts}
        line = json.dumps(event | {"check": _check(event)}).encode() + b"\n"
        with self.path.open("ab+") as file:
            lock(file)
            start = max(0, file.tell() - LONGEST_LINE)
            file.seek(start)
            end = file.read().rfind(b"\n") + 1
            if end or start == 0:
                file.truncate(start + end)
            else:  # too long for a line of ours: it stays, and is skipped
                line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def _new_lines(self, file: BinaryIO) -> Iterator[bytes]:
        """Yields the complete lines that have not been read yet; a line that is too long is cut."""
        while line := file.readline(LONGEST_LINE + 1):
            length, rest = len(line), line
            while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
                rest = file.readline(LONGEST_LINE + 1)
                length += len(rest)
            if not rest.endswith(b"\n"):
                return
            self._position += length
            self._lines += 1
            yield line

    def _event(self, line: bytes) -> Event | None:
        """The event in a line; None, with a warning, if the line is not an event."""
        problem = ""
        try:
            if len(line) > LONGEST_LINE:
                problem = "too long"
            elif line.strip():
                event = json.loads(line.decode(), parse_constant=_refuse)
                check = event.pop("check", None) if isinstance(event, dict) else None  # version 0.1.0 wrote none
                problem = _problem(event) if check in (None, _check(event)) else "changed since it was written"
                if not problem:
                    return event  # type: ignore[no-any-return]
        except (ValueError, RecursionError, OverflowError):
            problem = "not JSON"
        if problem:
            self._warn(f"{self.path}, line {self._lines}, is not an event of a grid ({problem}) and is skipped")
        return None


def _check(event: Any) -> str:
    """A digest of an event, by which a line that a disk error or an editor has changed is known."""
    return hashlib.sha256(json.dumps(event).encode()).hexdigest()[:16]


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _problem(event: Any) -> str:
    """Why a value is not an event; empty if it is one."""
    if not isinstance(event, dict):
        return "not a mapping"
    needed = ("kind", "id", "launch") if "error" in event else ("kind", "id")
    for name in needed:
        if name not in event:
            return f"without {name}"
    if event["kind"] not in KINDS:
        return "of an unknown kind"
    for name in ("id", "launch", "error", "digest", "needs", "fault"):
        if not isinstance(event.get(name, ""), str):
            return f"{name} is not text"
    if not _is_number(event.get("seconds", 0)):
        return "seconds is not a number"
    if not _holds(event.get("files", {}), str) or not _holds(event.get("row", {}), float, int, type(None)):
        return "files or row is malformed"
    return ""


def _holds(values: Any, *types: type) -> bool:
    return isinstance(values, dict) and all(
        type(value) in types and (not isinstance(value, float) or math.isfinite(value)) for value in values.values()
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


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
