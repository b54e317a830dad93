"""Hashes of files and model folders."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lightning_backdoor.files import content_hash, file_sha256, hashing
from lightning_backdoor.files.hashing import model_sha256


@pytest.mark.parametrize("size", [0, 1, 7, 8, 30])
def test_the_hash_of_a_file_is_that_of_its_bytes_whatever_the_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(hashing, "CHUNK_BYTES", 7)
    content = bytes(range(size))
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_the_hash_of_a_model_changes_with_its_chat_template(tmp_path: Path) -> None:
    hashes = set()
    for template in ("{{ messages }}", "{{ message }}"):
        (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
        hashes.add(model_sha256(tmp_path))
    assert len(hashes) == 2


def test_the_hash_of_a_model_is_that_of_earlier_versions(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "model" / "config.json").write_bytes(b"{}")
    (tmp_path / "model" / "README.md").write_bytes(b"notes")
    hashed = b"config.json\x002\x00{}model.safetensors\x007\x00weights"
    assert content_hash(tmp_path / "model") == hashlib.sha256(hashed).hexdigest()
