"""The victims and cells in a grid's folder: what the journal records as done is compared with the files on disk."""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lightning_backdoor.benchmark.grid import Cell, PlannedVictim, all_victims
from lightning_backdoor.benchmark.report.flagged_words import words_of_defense, words_of_inspection
from lightning_backdoor.benchmark.running.journal import Event, Journal, claimed
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.hashing import file_sha256, model_sha256

Work = PlannedVictim | Cell

#: the checkpoint in a victim's folder from which its cells, repairs and data defenses load it.
CHECKPOINT = "checkpoints/best.ckpt"
#: the files of a cell with words that are shown, and what reads them; earlier records do not have them.
SHOWN = {"words.json": words_of_defense, "inspection.json": words_of_inspection}
#: the files of a victim and of a cell that are read later; the journal records the SHA-256 of those that there are.
FILES = {"victim": (CHECKPOINT, "config.yaml", "cleaning.json"), "cell": ("outcomes.csv", "texts.jsonl", *SHOWN)}
#: the files without which a victim or cell is not done.
NEEDED = {"victim": CHECKPOINT, "cell": "outcomes.csv"}

#: the digests that this process has computed, by path, with the state of the files at the time.
_digests: dict[Path, tuple[object, str]] = {}


class Products:
    """What the workers of a grid have made in its folder.

    A victim or cell is *done* if the journal records it and its files are as they were recorded. Files are hashed once
    per process, and again if their size, time or inode has changed.

    Args:
        folder: the grid's output folder.
        journal: the journal of the folder.
    """

    def __init__(self, folder: Path, journal: Journal) -> None:
        self.folder = folder
        self.journal = journal

    def folder_of(self, work: Work) -> Path:
        """The folder of a victim or cell."""
        return self.folder / f"{kind_of(work)}s" / work.id

    def is_done(self, work: Work) -> bool:
        """Whether a victim or cell is recorded and its files are as they were recorded."""
        return not self.journal.is_open(kind_of(work), work.id) and not self.fault(work)

    def fault(self, work: Work) -> str:
        """Why a victim or cell that the journal records as done cannot be used; empty if it can be used."""
        kind, folder = kind_of(work), self.folder_of(work)
        event = self.journal.get(kind, work.id) or {}
        if not (folder / NEEDED[kind]).is_file():
            return f"{NEEDED[kind]} is missing"
        if not {"seconds", "files", "row" if kind == "cell" else "digest"} <= event.keys():
            return "its record in the journal is incomplete"
        needed, digest = needed_by(work), self.needed_digest(work)
        if needed is not None and event.get("needs", digest) != digest:
            return f"it was made with another victim {needed.label}"
        try:
            return _difference(folder, FILES[kind], event)
        except OSError as error:
            return f"its files cannot be read ({error.strerror})"

    def digests(self, work: Work) -> dict[str, str]:
        """The SHA-256 of the files of a victim or cell that has just been made, by name."""
        folder = self.folder_of(work)
        return {name: _digest(folder / name, file_sha256) for name in FILES[kind_of(work)] if (folder / name).is_file()}

    def model_digest(self, victim: PlannedVictim) -> str:
        """The SHA-256 of the model of a victim that has just been trained."""
        return _digest(self.folder_of(victim) / "model", model_sha256)

    def needed_digest(self, work: Work) -> str:
        """The digest of the victim that a victim or cell is made with; empty if it needs none or none is recorded."""
        needed = needed_by(work)
        event = None if needed is None else self.journal.get("victim", needed.id)
        return "" if event is None else event.get("digest", "")

    def forget_damaged(self, cells: Sequence[Cell]) -> dict[str, str]:
        """Takes back, in memory, what the journal records as done of some cells and their victims, but is damaged.

        What depends on a damaged victim is to be made again with it.

        Returns:
            What is damaged and why, by id; a victim after the victims that it needs, cells after victims.
        """
        damaged: dict[str, str] = {}
        works: list[Work] = [*all_victims(cells).values(), *cells]
        works = [work for work in works if not self.journal.is_open(kind_of(work), work.id)]
        with ThreadPoolExecutor() as threads:  # hashing leaves the interpreter to other threads
            faults = [*threads.map(self.fault, works)]
        for work, fault in zip(works, faults, strict=True):
            needed = needed_by(work)
            if not fault and needed is not None and needed.id in damaged:
                fault = "its victim is trained again" if isinstance(work, Cell) else f"{needed.label} is trained again"
            if fault:
                damaged[work.id] = fault
        for work in works:
            if work.id in damaged:
                self.journal.forget(kind_of(work), work.id)
        return damaged

    def discard(self, cells: Sequence[Cell], damaged: Mapping[str, str], launch: str) -> list[Work]:
        """Records that victims and cells are damaged, see :meth:`forget_damaged`, and removes their files.

        What another worker has made again, or is making, is left alone.

        Returns:
            The victims and cells that are now to be made again.
        """
        discarded: list[Work] = []
        works: list[Work] = [*all_victims(cells).values(), *cells]
        for work in works:
            if work.id in damaged:
                folder = self.folder_of(work)
                if os.path.lexists(folder) and not folder.is_dir():
                    folder.unlink()  # a file, or a link to nothing, in place of the folder
                with claimed(folder / "log.txt") as log:
                    self.journal.refresh()
                    if log is not None and self.journal.is_open(kind_of(work), work.id):
                        self.record_damage(work, damaged[work.id], launch)
                        discarded.append(work)
        return discarded

    def record_damage(self, work: Work, fault: str, launch: str) -> None:
        """Records that a victim or cell that this process has claimed is damaged, and removes its files."""
        empty(self.folder_of(work))
        self.journal.append(f"damaged {kind_of(work)}", work.id, launch=launch, fault=fault)


def kind_of(work: Work) -> str:
    """``victim`` or ``cell``."""
    return "cell" if isinstance(work, Cell) else "victim"


def needed_by(work: Work) -> PlannedVictim | None:
    """The victim to train for a cell, or for a victim that starts from it or uses it; None if it needs none."""
    needed = work.victim if isinstance(work, Cell) else work.parent
    return None if needed is None or needed.checkpoint else needed


def empty(folder: Path) -> None:
    """Removes the files of an interrupted or damaged run, except for its log."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "log.txt":
            path.unlink()


def is_whole_checkpoint(path: Path) -> bool:
    """Whether a checkpoint's content matches the checksums in it, which torch does not compare when it loads one."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error):
        return False


def _difference(folder: Path, names: Iterable[str], event: Event) -> str:
    """How the files of a victim or cell differ from what the journal records; empty if they do not."""
    recorded: dict[str, str] = event["files"]
    for name in names:
        if name in recorded or not (folder / name).exists():
            continue
        if name not in SHOWN:
            return f"{name} was added"
        try:
            SHOWN[name](folder)
        except InputError:
            return f"{name} is damaged"
    for name, digest in recorded.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _digest(folder / name, file_sha256) != digest:
            return f"{name} has changed"
    if "digest" in event:
        if not (folder / "model").is_dir():
            return "model is missing"
        if _digest(folder / "model", model_sha256) != event["digest"]:
            return "model has changed"
    return ""


def _digest(path: Path, of: Callable[[Path], str]) -> str:
    """The digest of a file or folder, computed again only if its files may have changed."""
    files: Iterable[Path] = sorted(path.iterdir()) if path.is_dir() else [path]
    state = [_state(file) for file in files]
    known = _digests.get(path)
    if known is None or known[0] != state:
        known = _digests[path] = state, of(path)
    return known[1]


def _state(file: Path) -> tuple[object, ...]:
    status = file.stat()
    return file.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
