"""Reader of the files that offline runs of Weights & Biases write, in W&B's own record format."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2  # private: wandb 0.31.0


class UnfinishedRunError(AssertionError):
    """A run that was begun and not ended, such as by a kill."""


def records(path: Path) -> list[Any]:
    """All records in the file of a finished run.

    Raises:
        UnfinishedRunError: the run has not ended.
    """
    for _ in range(100):  # wandb writes in a process of its own, which may end a moment after the run
        read = [wandb_internal_pb2.Record.FromString(content) for content in entries(path.read_bytes())]
        if read and read[-1].WhichOneof("record_type") == "exit":
            return read
        time.sleep(0.1)
    raise UnfinishedRunError(f"{path} does not end")


def entries(data: bytes) -> Iterator[bytes]:
    """The entries of a file in LevelDB's log format: chunks in blocks of 32 KiB, after a header."""
    position, entry = 7, b""
    while position < len(data):
        block_rest = 32768 - position % 32768
        if block_rest < 7:  # too short for another chunk
            position += block_rest
            continue
        _, length, chunk_type = struct.unpack("<IHB", data[position : position + 7].ljust(7, b"\0"))
        entry += data[position + 7 : position + 7 + length]
        position += 7 + length
        if position <= len(data) and chunk_type in (1, 4):  # a whole entry, or the last chunk of one
            yield entry
            entry = b""


class Run:
    """The only offline run below a folder, and everything that was logged in it.

    Attributes:
        record: the run's record from its start: id, name, group, job type, tags.
        config: the run's config by name.
        history: the logged values by step and name.
        logged: the last logged value of each name.
        summary: the summary values by name.
        artifacts: the artifacts by name.
        files: the local path of each artifact's files, by their name in the artifact.
        exit_code: the exit code of the run.
        folder: the folder of the run's files.
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
        all_records = records(path)
        self.exit_code = all_records[-1].exit.exit_code
        for record in all_records:
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
        """The rows of a logged table; HTML cells hold their content."""
        content = json.loads(self.files[f"{key}.table.json"].read_text(encoding="utf-8"))
        shown = json.loads((self.folder / "files" / self.logged[key]["path"]).read_text(encoding="utf-8"))
        assert (shown["columns"], len(shown["data"])) == (content["columns"], len(content["data"]))
        rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
        for row in rows:
            for name, cell in row.items():
                if isinstance(cell, dict) and cell.get("_type") == "html-file":
                    row[name] = self.files[cell["path"]].read_text(encoding="utf-8")
        return rows


def runs(folder: Path, unfinished_too: bool = False) -> list[Run]:
    """All offline runs below a folder, in the order in which they were started.

    Args:
        folder: output of a grid, or working directory of a run.
        unfinished_too: whether there may be runs that a kill cut off, which are left out.
    """
    read = []
    for path in folder.glob("wandb/offline-run-*"):
        try:
            read.append(Run(path))
        except UnfinishedRunError:
            if not unfinished_too:
                raise
    return sorted(read, key=lambda run: run.record.start_time.ToNanoseconds())


def _put(values: dict[str, Any], item: Any) -> None:
    *outer, key = item.nested_key or [item.key]
    for name in outer:
        values = values.setdefault(name, {})
    values[key] = json.loads(item.value_json)
