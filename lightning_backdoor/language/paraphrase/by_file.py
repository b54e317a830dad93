"""Paraphrases read from a file, such as poisoned texts that a paper's authors published."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from lightning_backdoor.data.tables import read_file, texts_of
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.hashing import file_sha256
from lightning_backdoor.files.names import existing_file
from lightning_backdoor.language.paraphrase.spec import Manner

MISSING_SHOWN = 3  # texts without a paraphrase that an error message quotes


class FileParaphraser:
    """A paraphraser that looks texts up in a file; it ignores manner and random generators.

    Args:
        path: csv, tsv, jsonl or parquet file.
        text_column: column of the texts, which must equal the texts to be paraphrased, apart from surrounding blanks.
        paraphrase_column: column of their paraphrases; where a text has several, the first that is not empty is taken.
        skip_missing: leave out texts that have no paraphrase; by default they are an error.
        text_path: file of the texts, if it is another than the file of the paraphrases; row for row the same rows.

    Raises:
        InputError: (at the first text) a file or a column is missing, or the two files differ in their number of rows.

    Example::

        attack = Syntactic(paraphraser=FileParaphraser("syntactic.parquet"))
    """

    def __init__(
        self,
        path: str,
        text_column: str | int = "text",
        paraphrase_column: str | int = "paraphrase",
        skip_missing: bool = False,
        text_path: str | None = None,
    ) -> None:
        self.path = path
        self.text_column = str(text_column)
        self.paraphrase_column = str(paraphrase_column)
        self.skip_missing = skip_missing
        self.text_path = text_path

    def paraphrase(
        self, texts: Sequence[str], rngs: Sequence[random.Random], manner: Manner, generate: bool = True
    ) -> list[str | None]:
        """The paraphrase of each text; None if the file has none and ``skip_missing`` is true.

        Raises:
            InputError: texts have no paraphrase and ``skip_missing`` is false; the message counts them and quotes the
                first.
        """
        paraphrases = [self._paraphrases.get(text, self._paraphrases.get(text.strip())) for text in texts]
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
        """A string that changes with the content of the files and with the columns that are read."""
        content = file_sha256(existing_file(self.path, "paraphraser.path"))
        key = f"{content}/{self.text_column}/{self.paraphrase_column}/{self.skip_missing}"
        if self.text_path is None:
            return key
        return f"{key}/{file_sha256(existing_file(self.text_path, 'paraphraser.text_path'))}"

    @cached_property
    def _paraphrases(self) -> dict[str, str]:
        """The paraphrase of each text, and of each text without surrounding blanks."""
        texts, paraphrases = self._columns()
        result: dict[str, str] = {}
        for text, paraphrase in zip(texts, paraphrases, strict=True):
            if paraphrase.strip():
                result.setdefault(text, paraphrase)
        for text, paraphrase in list(result.items()):
            result.setdefault(text.strip(), paraphrase)
        return result

    def _columns(self) -> tuple[list[str], list[str]]:
        """The texts, and as many paraphrases."""
        path = existing_file(self.path, "paraphraser.path")
        wanted = {self.text_column: "text_column", self.paraphrase_column: "paraphrase_column"}
        if self.text_path is None:
            columns = _read(path, wanted)
            return columns[self.text_column], columns[self.paraphrase_column]
        texts = _read(existing_file(self.text_path, "paraphraser.text_path"), {self.text_column: "text_column"})[
            self.text_column
        ]
        paraphrases = _read(path, {self.paraphrase_column: "paraphrase_column"})[self.paraphrase_column]
        if len(texts) != len(paraphrases):
            raise InputError(
                "paraphraser.text_path",
                f"{self.text_path} has {len(texts)} rows, {self.path} has {len(paraphrases)}",
                "give files with the same rows in the same order",
            )
        return texts, paraphrases


def _read(path: Path, columns: dict[str, str]) -> dict[str, list[str]]:
    try:
        table = read_file(path, columns)
    except InputError as error:
        if error.field in ("path", *columns.values()):
            raise error.under(f"paraphraser.{error.field}") from None
        raise
    return {column: texts_of(values) for column, values in table.columns.items()}
