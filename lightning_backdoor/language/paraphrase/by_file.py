"""Paraphrases read from a file, such as poisoned texts that a paper's authors published."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from lightning_backdoor.data.reading import read_file
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.hashing import file_sha256
from lightning_backdoor.language.paraphrase.spec import Manner

MISSING_SHOWN = 3  # texts without a paraphrase that an error message quotes


class FileParaphraser:
    """A paraphraser that looks texts up in a file; it ignores manner and random generators.

    Args:
        path: csv, tsv, jsonl or parquet file.
        text_column: column of the texts, which must equal the texts to be paraphrased.
        paraphrase_column: column of their paraphrases; where a text has several, the first that is not empty is taken.
        skip_missing: leave out texts that have no paraphrase; by default they are an error.

    Raises:
        InputError: (at the first text) the file or a column is missing.

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
        """The paraphrase of each text; None if the file has none and ``skip_missing`` is true.

        Raises:
            InputError: texts have no paraphrase and ``skip_missing`` is false; the message counts them and quotes the
                first.
        """
        paraphrases = [self._paraphrases.get(text) for text in texts]
        missing = [text for text, paraphrase in zip(texts, paraphrases, strict=True) if paraphrase is None]
        if missing and not self.skip_missing:
            quoted = ", ".join(repr(text[:60]) for text in missing[:MISSING_SHOWN])
            raise InputError(
                "paraphraser",
                f"{self.path} has no paraphrase of {len(missing)} of {len(texts)} texts, the first are {quoted}",
                "add their paraphrases, or leave the texts out by skip_missing true",
            )
        return paraphrases

    def key(self) -> str:
        """A string that changes with the file's content and with the columns that are read."""
        return f"{file_sha256(self._file())}/{self.text_column}/{self.paraphrase_column}/{self.skip_missing}"

    def _file(self) -> Path:
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise InputError("paraphraser.path", f"there is no file {self.path}", "give an existing file")
        return file

    @cached_property
    def _paraphrases(self) -> dict[str, str]:
        table = read_file(self._file())
        for option, column in (("text_column", self.text_column), ("paraphrase_column", self.paraphrase_column)):
            if column not in table.column_names:
                raise InputError(
                    f"paraphraser.{option}",
                    f"{self.path} has no column {column!r}",
                    f"it has {', '.join(table.column_names)}",
                )
        paraphrases: dict[str, str] = {}
        for text, paraphrase in zip(table[self.text_column], table[self.paraphrase_column], strict=True):
            if text is not None and paraphrase is not None and paraphrase.strip():
                paraphrases.setdefault(text, paraphrase)
        return paraphrases
