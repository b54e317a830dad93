"""The record of trusted texts that a checkpoint was trained on: as threshold rows they are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from lightning_backdoor.data.rows import Rows
from lightning_backdoor.errors import InputError

#: name of the record in the state of a data module.
TRUSTED_TEXTS = "trusted_texts"
#: characters of the record for each text: 64 bits in hexadecimal.
DIGITS = 16


def record_of(texts: Iterable[str]) -> str:
    """A hash of each distinct text, of 16 characters, sorted and joined: checkpoints hold short lists alone.

    >>> record_of(["a", "b", "a"]) == record_of(["b", "a"]), len(record_of(["a", "b"]))
    (True, 32)
    """
    return "".join(sorted({*map(_hash, texts)}))


def united(first: str, second: str) -> str:
    """The record of the texts of two records.

    >>> united(record_of("ab"), record_of("bc")) == record_of("abc")
    True
    """
    return "".join(sorted(_hashes(first) | _hashes(second)))


def check_trusted_texts(state: Mapping[str, Any], threshold: Rows) -> None:
    """Checks that threshold rows are not trusted rows that a checkpoint was trained on.

    Args:
        state: the state that the checkpoint records. One without a record of trusted texts is not checked.
        threshold: the clean validation rows on which thresholds are set.

    Raises:
        InputError: some are.
    """
    trained = _hashes(str(state.get(TRUSTED_TEXTS, "")))
    if count := sum(_hash(text) in trained for text in threshold.text):
        raise InputError(
            "validation_parts",
            f"{count} of {len(threshold)} threshold rows are trusted rows that the checkpoint was trained on",
            "give seed, validation_parts and max_rows as they were then",
        )


def _hashes(record: str) -> set[str]:
    return {record[start : start + DIGITS] for start in range(0, len(record), DIGITS)}


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=DIGITS // 2).hexdigest()
