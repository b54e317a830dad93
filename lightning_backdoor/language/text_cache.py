"""What was computed from a text, on disk: any number of processes may read and write, and a kill loses nothing put."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from lightning_backdoor.errors import InputError
from lightning_backdoor.files.cache import cache_folder

PATIENCE = 120.0  # seconds to wait for another process's transaction
KEYS_A_QUERY = 500


class TextCache:
    """Bytes by text, for one computation.

    Args:
        what: names all that decides the bytes beside the text: the computation, its settings, the model's identity.
        cache_dir: folder of the cache; ``LIGHTNING_BACKDOOR_CACHE`` or ``~/.cache/lightning_backdoor`` by default.

    Raises:
        InputError: from ``get`` and ``put``, the cache cannot be read or written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = TextCache("upper case", folder)
    ...     cache.put({"a film": b"A FILM"})
    ...     cache.get(["a film", "a book"])
    [b'A FILM', None]
    """

    def __init__(self, what: str, cache_dir: str | Path | None = None) -> None:
        self.what = what
        self.path = cache_folder(cache_dir) / "language" / "texts.sqlite"

    def get(self, texts: Sequence[str]) -> list[bytes | None]:
        """The bytes of each text, None where there are none."""
        keys = [self._key(text) for text in texts]
        wanted = list(dict.fromkeys(keys))
        found: dict[bytes, bytes] = {}
        with self._open() as database:
            for start in range(0, len(wanted), KEYS_A_QUERY):
                part = wanted[start : start + KEYS_A_QUERY]
                marks = ",".join("?" * len(part))
                found.update(database.execute(f"SELECT key, value FROM texts WHERE key IN ({marks})", part))
        return [found.get(key) for key in keys]

    def put(self, values: dict[str, bytes]) -> None:
        """Keeps the bytes of each text, all or none; what another process has put already stays."""
        rows = [(self._key(text), value) for text, value in values.items()]
        with self._open() as database, database:
            database.executemany("INSERT OR IGNORE INTO texts VALUES (?, ?)", rows)

    def _key(self, text: str) -> bytes:
        return hashlib.sha256(json.dumps([self.what, text]).encode()).digest()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own each time: it may cross no fork, and takes a fraction of a millisecond."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # the rollback journal of sqlite's default, unlike a write-ahead log, is safe on network folders too
            with closing(sqlite3.connect(self.path, timeout=PATIENCE)) as database:
                database.execute("CREATE TABLE IF NOT EXISTS texts (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
                yield database
        except (OSError, sqlite3.Error) as error:
            folder = self.path.parent.parent
            raise InputError(
                "cache_dir",
                f"{folder} cannot be used ({error})",
                f"remove {self.path.relative_to(folder)} in it, or name another folder",
            ) from error
