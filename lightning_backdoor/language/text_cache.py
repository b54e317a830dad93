"""A cache on disk for results computed from texts, which any number of processes may read and write at once."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_backdoor.errors import InputError
from lightning_backdoor.files.cache import cache_folder
from lightning_backdoor.language.lookups import report_lookup, report_stored

LOCK_TIMEOUT = 120.0  # seconds to wait for another process's transaction
KEYS_PER_QUERY = 500
#: the first bytes of a stored value, followed by its digest; values of earlier versions have neither.
MARK = b"\x00sha\x01"
DIGEST_BYTES = 16


class TextCache:
    """A mapping from texts to bytes on disk, for one computation.

    A killed process loses nothing that it has put into the cache. Bytes are stored with a digest: if they are not what
    was put, the text counts as missing, the bytes are removed, and a warning says so.

    The overhead of a defense that uses it is that of the texts that were computed, between ``get`` and ``put``; see
    :class:`lightning_backdoor.metrics.Overhead`.

    Args:
        computation: a string that identifies everything except the text that determines the bytes: the computation, its
            settings, the model. Caches of different computations are separate.
        cache_dir: folder of the cache; ``LIGHTNING_BACKDOOR_CACHE`` or ``~/.cache/lightning_backdoor`` by default.
        is_whole: whether bytes can be the result for a text; decides about bytes of versions that stored no digest.
        version: a string that, where it is not empty, determines the bytes of a text in addition to ``computation``.

    Raises:
        InputError: (from ``get`` and ``put``) the cache cannot be read or written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = TextCache("upper case", folder)
    ...     cache.put({"a film": b"A FILM"})
    ...     cache.get(["a film", "a book"])
    [b'A FILM', None]
    """

    def __init__(
        self,
        computation: str,
        cache_dir: str | Path | None = None,
        is_whole: Callable[[str, bytes], bool] = lambda text, value: True,
        version: Callable[[str], str] | None = None,
    ) -> None:
        self.computation = computation
        self.path = cache_folder(cache_dir) / "language" / "texts.sqlite"
        self.is_whole = is_whole
        self.version = version

    def get(self, texts: Sequence[str]) -> list[bytes | None]:
        """The bytes of each text, None for texts that are not in the cache."""
        keys = [self._key(text) for text in texts]
        text_of = dict(zip(keys, texts, strict=True))
        distinct = list(text_of)
        values: dict[bytes, bytes] = {}
        damaged: list[tuple[bytes, bytes]] = []
        with self._open() as database:
            for start in range(0, len(distinct), KEYS_PER_QUERY):
                part = distinct[start : start + KEYS_PER_QUERY]
                placeholders = ",".join("?" * len(part))
                rows = database.execute(f"SELECT key, value FROM texts WHERE key IN ({placeholders})", part)
                for key, stored in rows:
                    value = _unpacked(key, stored)
                    if value is None or not self.is_whole(text_of[key], value):
                        damaged.append((key, stored))
                    else:
                        values[key] = value
            if damaged:
                with database:  # only these bytes: another process may have replaced them
                    database.executemany("DELETE FROM texts WHERE key = ? AND value IS ?", damaged)
        if damaged:
            rank_zero_warn(f"{len(damaged)} damaged entries of {self.path} are removed and computed again")
        report_lookup(values, missing=text_of.keys() - values.keys())
        return [values.get(key) for key in keys]

    def put(self, values: dict[str, bytes]) -> None:
        """Stores the bytes of each text, all of them or none; texts that are in the cache already keep their bytes."""
        rows = [(key := self._key(text), _packed(key, value)) for text, value in values.items()]
        with self._open() as database, database:
            database.executemany("INSERT OR IGNORE INTO texts VALUES (?, ?)", rows)
        report_stored()

    def _key(self, text: str) -> bytes:
        version = self.version(text) if self.version else ""
        return hashlib.sha256(json.dumps([self.computation, text, *filter(None, [version])]).encode()).digest()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Opens a new connection (a fraction of a millisecond), since a connection must not be used across a fork."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # sqlite's default rollback journal is safe on network folders, a write-ahead log is not
            with closing(sqlite3.connect(self.path, timeout=LOCK_TIMEOUT)) as database:
                database.execute("CREATE TABLE IF NOT EXISTS texts (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
                yield database
        except (OSError, sqlite3.Error) as error:
            folder = self.path.parent.parent
            raise InputError(
                "cache_dir",
                f"{folder} cannot be used ({error})",
                f"remove {self.path.relative_to(folder)} in it, or name another folder",
            ) from error


def _packed(key: bytes, value: bytes) -> bytes:
    return MARK + _digest(key, value) + value


def _unpacked(key: bytes, stored: object) -> bytes | None:
    """The value that was put, or None if it has changed since; values of earlier versions cannot be checked."""
    if not isinstance(stored, bytes):
        return None
    if not stored.startswith(MARK):
        return stored
    digest, value = stored[len(MARK) :][:DIGEST_BYTES], stored[len(MARK) + DIGEST_BYTES :]
    return value if digest == _digest(key, value) else None


def _digest(key: bytes, value: bytes) -> bytes:
    return hashlib.sha256(key + value).digest()[:DIGEST_BYTES]
