"""Reads offline runs of Weights & Biases back, in its own record format."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2


def records(path: Path) -> list[Any]:
    """All records of a run's file, the run being finished."""
    for _ in range(100):  # the process that writes may be a moment behind the one that finishes
        found = [wandb_internal_pb2.Record.FromString(content) for content in entries(path.read_bytes())]
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path} does not end")


def entries(data: bytes) -> Iterator[bytes]:
    """The entries of a file in LevelDB's log format: chunks in blocks of 32 KiB, after a header."""
    place, entry = 7, b""
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:  # too short for another chunk
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7].ljust(7, b"\0"))
        entry += data[place + 7 : place + 7 + length]
        place += 7 + length
        if place <= len(data) and kind in (1, 4):  # whole, or the last chunk
            yield entry
            entry = b""


class Run:
    """The one run below a folder, and what was logged in it.

    Attributes:
        record: as it began: id, name, group, job type, tags.
        config: by name.
        history: by step, what was logged.
        logged: the last value of each name.
        summary: what is shown of it beside others.
        artifacts: by name.
        files: that its tables are made of, by name.
        exit_code: that it ended with.
    """

    def __init__(self, folder: Path) -> None:
        (path,) = folder.rglob("run-*.wandb")
        self.record: Any = None
        self.config: dict[str, Any] = {}
        self.history: dict[int, dict[str, Any]] = {}
        self.logged: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.artifacts: dict[str, Any] = {}
        self.files: dict[str, Path] = {}
        found = records(path)
        self.exit_code = found[-1].exit.exit_code
        for record in found:
            if record.WhichOneof("record_type") == "run":
                self.record = record.run
            for item in (*record.run.config.update, *record.config.update):
                _put(self.config, item)
            for item in record.history.item:
                _put(self.history.setdefault(record.history.step.num, {}), item)
                _put(self.logged, item)
            for item in record.summary.update:
                _put(self.summary, item)
            if record.WhichOneof("record_type") == "artifact":
                self.artifacts[record.artifact.name] = record.artifact
            for file in record.artifact.manifest.contents:
                self.files[file.path] = Path(file.local_path)
        self.folder = path.parent

    def table(self, key: str) -> list[dict[str, Any]]:
        """A logged table, its HTML cells read."""
        content = json.loads(self.files[f"{key}.table.json"].read_text(encoding="utf-8"))
        shown = json.loads((self.folder / "files" / self.logged[key]["path"]).read_text(encoding="utf-8"))
        assert (shown["columns"], len(shown["data"])) == (content["columns"], len(content["data"]))
        rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
        for row in rows:
            for name, cell in row.items():
                if isinstance(cell, dict) and cell.get("_type") == "html-file":
                    row[name] = self.files[cell["path"]].read_text(encoding="utf-8")
        return rows


def runs(folder: Path) -> list[Run]:
    """All offline runs below a folder, in the order in which they began."""
    found = [Run(path) for path in folder.glob("wandb/offline-run-*")]
    return sorted(found, key=lambda run: run.record.start_time.ToNanoseconds())


def _put(values: dict[str, Any], item: Any) -> None:
    *outer, key = item.nested_key or [item.key]
    for name in outer:
        values = values.setdefault(name, {})
    values[key] = json.loads(item.value_json)
