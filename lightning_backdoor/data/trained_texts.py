"""The record of trusted texts that a checkpoint was trained on: as threshold or test rows they are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from lightning_backdoor.data.clean_splits import ValidationParts
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


def check_trusted_texts(state: Mapping[str, Any], parts: ValidationParts, test: Rows) -> None:
    """Checks that neither threshold nor test rows are trusted rows that a checkpoint was trained on.

    Args:
        state: the state that the checkpoint records. One without a record of trusted texts is not checked.
        parts: the parts of the validation rows.
        test: the clean test rows. Texts that are validation rows as well are not counted: the source has them twice.

    Raises:
        InputError: some are.
    """
    record = state.get(TRUSTED_TEXTS)
    if not isinstance(record, str):
        return
    trained = {record[start : start + DIGITS] for start in range(0, len(record), DIGITS)}
    also_validation = {*parts.selection.text, *parts.reference.text, *parts.threshold.text}
    for field, name, rows, twice in (
        ("validation_parts", "threshold", parts.threshold, set[str]()),
        ("source", "test", test, also_validation),
    ):
        if count := sum(text not in twice and _hash(text) in trained for text in rows.text):
            raise InputError(
                field,
                f"{count} of {len(rows)} {name} rows are trusted rows that the checkpoint was trained on",
                "give source, seed, validation_parts and max_rows as they were then, or rows of other texts",
            )


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=DIGITS // 2).hexdigest()
