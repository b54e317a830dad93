"""The cache of results computed from texts: shared by processes, whole after kills, damage told in one line."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from lightning_backdoor.errors import InputError
from lightning_backdoor.files.hashing import content_hash
from lightning_backdoor.language.text_cache import TextCache

FORK = multiprocessing.get_context("fork")


def put_many(folder: Path, name: str, count: int) -> None:
    for i in range(count):
        TextCache("test", folder).put({f"{name} {i}": name.encode(), f"both {i}": name.encode()})


def put_for_ever(folder: Path, report: Connection) -> None:
    for i in range(1 << 30):
        TextCache("test", folder).put({f"{i} {j}": b"x" * 1000 for j in range(20)})
        report.send(i)


def test_bytes_are_found_under_the_same_computation_and_text_only(tmp_path: Path) -> None:
    TextCache("one", tmp_path).put({"a film": b"1", "à film": b"2", "\ud800": b"3"})
    assert TextCache("one", tmp_path).get(["à film", "A film", "a film", "\ud800", "a film"]) == [
        b"2",
        None,
        b"1",
        b"3",
        b"1",
    ]
    assert TextCache("other", tmp_path).get(["a film"]) == [None]


def test_many_texts_are_found_at_once(tmp_path: Path) -> None:
    cache, texts = TextCache("test", tmp_path), [str(i) for i in range(3000)]
    cache.put({text: text.encode() for text in texts[::2]})
    assert cache.get(texts) == [text.encode() if i % 2 == 0 else None for i, text in enumerate(texts)]


def test_processes_write_at_once_and_the_first_value_stays(tmp_path: Path) -> None:
    writers = [FORK.Process(target=put_many, args=(tmp_path, name, 30)) for name in ("left", "right")]
    for writer in writers:
        writer.start()
    seen: dict[str, bytes] = {}
    both = [f"both {i}" for i in range(30)]
    while any(writer.is_alive() for writer in writers):
        for text, value in zip(both, TextCache("test", tmp_path).get(both), strict=True):
            assert value is None or seen.setdefault(text, value) == value
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    for name in ("left", "right"):
        assert TextCache("test", tmp_path).get([f"{name} {i}" for i in range(30)]) == [name.encode()] * 30


def test_a_killed_writer_loses_nothing_it_had_put(tmp_path: Path) -> None:
    here, there = FORK.Pipe(duplex=False)
    writer = FORK.Process(target=put_for_ever, args=(tmp_path, there))
    writer.start()
    done = 0
    while done < 20:
        done = here.recv()
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    texts = [f"{i} {j}" for i in range(done + 1) for j in range(20)]
    assert set(TextCache("test", tmp_path).get(texts)) == {b"x" * 1000}
    TextCache("test", tmp_path).put({"after": b"the kill"})


def test_keys_are_those_of_earlier_versions(tmp_path: Path) -> None:
    TextCache("perplexity/model", tmp_path).put({"a film": b"1"})
    with closing(sqlite3.connect(tmp_path / "language" / "texts.sqlite")) as database:
        (key,) = database.execute("SELECT key FROM texts").fetchone()
    assert key == hashlib.sha256(b'["perplexity/model", "a film"]').digest()


def changed(path: Path, text: str, change: Callable[[bytes], object]) -> None:
    key = TextCache("test")._key(text)
    with closing(sqlite3.connect(path)) as database, database:
        (value,) = database.execute("SELECT value FROM texts WHERE key = ?", [key]).fetchone()
        database.execute("UPDATE texts SET value = ? WHERE key = ?", [change(value), key])


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value[:-1],
        lambda value: value + b"0",
        lambda value: value[:-1] + b"?",
        lambda value: b"",
        lambda value: bytes(len(value)),
        lambda value: value[1:],
        lambda value: "text",
        lambda value: None,
        lambda value: 7,
    ],
)
def test_a_damaged_value_counts_as_missing_and_is_said(tmp_path: Path, change: Callable[[bytes], object]) -> None:
    cache = TextCache("test", tmp_path, is_whole=lambda text, value: value.startswith(b"value of"))
    cache.put({"a film": b"value of a film", "a book": b"value of a book"})
    changed(cache.path, "a film", change)
    with pytest.warns(UserWarning, match=f"^1 damaged entries of {cache.path} are removed and computed again$"):
        assert cache.get(["a film", "a book"]) == [None, b"value of a book"]
    cache.put({"a film": b"value of a film, again"})
    assert cache.get(["a film"]) == [b"value of a film, again"]


def test_the_value_of_another_text_is_not_believed(tmp_path: Path) -> None:
    cache = TextCache("test", tmp_path)
    cache.put({"a film": b"1", "a book": b"2"})
    with closing(sqlite3.connect(cache.path)) as database, database:
        key = cache._key("a book")
        (value,) = database.execute("SELECT value FROM texts WHERE key = ?", [key]).fetchone()
    changed(cache.path, "a film", lambda _: value)
    with pytest.warns(UserWarning, match="^1 damaged entries"):
        assert cache.get(["a film"]) == [None]


def test_values_of_earlier_versions_have_no_digest_and_are_read(tmp_path: Path) -> None:
    cache = TextCache("test", tmp_path)
    cache.put({"a film": b"1"})
    changed(cache.path, "a film", lambda _: b"as it is")
    assert cache.get(["a film"]) == [b"as it is"]


def test_a_version_separates_the_texts_that_have_one(tmp_path: Path) -> None:
    def version(text: str) -> str:
        return "new" if text.startswith("a") else ""

    TextCache("test", tmp_path).put({"a film": b"1", "the film": b"2"})
    assert TextCache("test", tmp_path, version=version).get(["a film", "the film"]) == [None, b"2"]


def test_a_damaged_cache_is_bad_input(tmp_path: Path) -> None:
    cache = TextCache("test", tmp_path)
    cache.put({"a film": b"1"})
    cache.path.write_bytes(b"no database at all" * 500)
    with pytest.raises(InputError, match=r"^cache_dir: .* remove language/texts\.sqlite"):
        cache.get(["a film"])


def test_a_cache_that_cannot_be_made_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^cache_dir: "):
        TextCache("test", tmp_path / "file").put({"a film": b"1"})


def test_the_default_folder_is_the_librarys_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_BACKDOOR_CACHE", str(tmp_path))
    TextCache("test").put({"a film": b"1"})
    assert TextCache("test", tmp_path).get(["a film"]) == [b"1"]


def test_a_models_identity_is_its_content(tmp_path: Path) -> None:
    def folder(name: str, weights: bytes, other: bytes = b"") -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
        (tmp_path / name / "notes.md").write_bytes(other)
        return content_hash(tmp_path / name)

    assert folder("a", b"1") == folder("b", b"1", b"a note") != folder("c", b"2")
