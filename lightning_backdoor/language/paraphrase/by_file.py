"""Paraphrases from a file, such as published poison."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from lightning_backdoor.errors import InputError
from lightning_backdoor.language.paraphrase.spec import Manner

SHOWN = 3


class FileParaphraser:
    """Looks paraphrases up; whatever is asked for, the file's are taken as they are.

    Args:
        path: csv, tsv, jsonl or parquet file.
        text_column: its texts, which are looked up as they are.
        paraphrase_column: their paraphrases; of several of one text the first that is not empty is taken.
        skip_missing: leave out texts without a paraphrase, where otherwise they are an error.

    Raises:
        InputError: (at the first text) there is no such file or column.

    Example::

        attack = Syntactic(paraphraser=FileParaphraser("syntactic.parquet"))
    """

    def __init__(
        self,
        path: str,
        text_column: str = "text",
        paraphrase_column: str = "paraphrase",
        skip_missing: bool = False,
    ) -> None:
        self.path = path
        self.text_column = text_column
        self.paraphrase_column = paraphrase_column
        self.skip_missing = skip_missing

    def paraphrase(
        self, texts: Sequence[str], rngs: Sequence[random.Random], manner: Manner, generate: bool = True
    ) -> list[str | None]:
        """The paraphrase of each text; None where there is none and texts may be left out.

        Raises:
            InputError: there is none and texts may not be left out; says how many, and the first of them.
        """
        found = [self._paraphrases.get(text) for text in texts]
        missing = [text for text, paraphrase in zip(texts, found, strict=True) if paraphrase is None]
        if missing and not self.skip_missing:
            shown = ", ".join(repr(text[:60]) for text in missing[:SHOWN])
            raise InputError(
                "paraphraser",
                f"{self.path} has no paraphrase of {len(missing)} of {len(texts)} texts, the first are {shown}",
                "add them, or leave them out by skip_missing true",
            )
        return found

    def key(self) -> str:
        """Names the file's content and what is read of it."""
        content = hashlib.sha256(self._file().read_bytes()).hexdigest()
        return f"{content}/{self.text_column}/{self.paraphrase_column}/{self.skip_missing}"

    def _file(self) -> Path:
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise InputError("paraphraser.path", f"there is no file {self.path}", "give one that exists")
        return file

    @cached_property
    def _paraphrases(self) -> dict[str, str]:
        from lightning_backdoor.data.reading import read_file  # attacks stand between the two packages

        table = read_file(self._file())
        for name, column in (("text_column", self.text_column), ("paraphrase_column", self.paraphrase_column)):
            if column not in table.column_names:
                raise InputError(
                    f"paraphraser.{name}",
                    f"{self.path} has no column {column!r}",
                    f"it has {', '.join(table.column_names)}",
                )
        found: dict[str, str] = {}
        for text, paraphrase in zip(table[self.text_column], table[self.paraphrase_column], strict=True):
            if text is not None and paraphrase is not None and paraphrase.strip():
                found.setdefault(text, paraphrase)
        return found
