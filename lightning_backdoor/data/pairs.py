"""Pairs of text and paraphrase, for fine-tuning a paraphraser."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypedDict, cast

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from lightning_backdoor.data.argument_checks import check_workers
from lightning_backdoor.data.batching import BatchDataset, loader
from lightning_backdoor.data.tables import read_file, texts_of
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.names import existing_file

#: label of the tokens that cross entropy ignores.
IGNORED = -100


class Pair(TypedDict):
    """Token ids of a prompt and its answer, and labels: the same ids, ``IGNORED`` where they are not learned."""

    input_ids: list[int]
    labels: list[int]


class PairBatch(TypedDict):
    """A batch of pairs, padded on the right to the longest pair.

    Attributes:
        input_ids: (batch, length), int64.
        attention_mask: (batch, length), int64, 1 for tokens and 0 for padding.
        labels: (batch, length), int64, the tokens to be learned and ``IGNORED`` elsewhere.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


class TokenisedPairs(BatchDataset[PairBatch]):
    """A dataset of tokenised pairs of text and paraphrase."""

    def __init__(self, pairs: list[Pair]) -> None:
        self.pairs = pairs
        self.lengths = [len(pair["input_ids"]) for pair in pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, positions: list[int]) -> PairBatch:
        ids = [torch.tensor(self.pairs[position]["input_ids"]) for position in positions]
        labels = [torch.tensor(self.pairs[position]["labels"]) for position in positions]
        return PairBatch(
            input_ids=pad_sequence(ids, batch_first=True),
            attention_mask=pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            labels=pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        )


class PairsDataModule(LightningDataModule):
    """Pairs of text and paraphrase from a file, split by text into training and validation pairs.

    The trained module turns a pair into token ids by its method ``tokenise(text, paraphrase)``.

    Args:
        path: csv, tsv, jsonl or parquet file.
        text_column: column of the texts.
        paraphrase_column: column of the paraphrases; rows without a paraphrase are left out.
        batch_size: pairs per batch and process.
        max_pairs: maximum number of texts to use with their paraphrases, drawn at random.
        validation_share: share of the texts that is held out for validation.
        seed: seed of the split, the draw and the order of the batches.
        num_workers: worker processes per loader.

    Raises:
        InputError: a value is out of range (here), or the file has no such columns or too few pairs (in
            ``prepare_data``).

    Example::

        Trainer(max_epochs=2).fit(ParaphraseTuner("bible"), datamodule=PairsDataModule("bible.parquet"))
    """

    def __init__(
        self,
        path: str,
        text_column: str | int = "text",
        paraphrase_column: str | int = "paraphrase",
        batch_size: int = 16,
        max_pairs: int | None = None,
        validation_share: float = 0.1,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError("batch_size", f"{batch_size} holds no pair", "give at least 1")
        if max_pairs is not None and max_pairs < 2:
            raise InputError("max_pairs", f"{max_pairs} leave nothing to train on or to validate by", "give at least 2")
        if not 0 < validation_share < 0.5:
            raise InputError(
                "validation_share", f"{validation_share} is out of range", "give a share above 0 and below 0.5"
            )
        check_workers(num_workers)
        self.path = path
        self.text_column = str(text_column)
        self.paraphrase_column = str(paraphrase_column)
        self.batch_size = batch_size
        self.max_pairs = max_pairs
        self.validation_share = validation_share
        self.seed = seed
        self.num_workers = num_workers
        self._pairs: dict[str, list[tuple[str, str]]] | None = None

    def pairs(self) -> dict[str, list[tuple[str, str]]]:
        """The pairs of ``train`` and ``validation``; all pairs with the same text are in one of them. Read once."""
        if self._pairs is None:
            by_text: dict[str, list[str]] = {}
            for text, paraphrase in self._read():
                by_text.setdefault(text, []).append(paraphrase)
            texts = sorted(by_text)
            random.Random(f"{self.seed}/pairs").shuffle(texts)
            texts = texts[: self.max_pairs]
            count = max(1, int(self.validation_share * len(texts) + 1e-9))  # 0.29 * 100 is 28.999…
            parts = {"validation": texts[:count], "train": texts[count:]}
            if not parts["train"]:
                raise InputError("path", f"{self.path} has {len(texts)} texts with a paraphrase", "give more")
            self._pairs = {
                name: [(text, paraphrase) for text in part for paraphrase in by_text[text]]
                for name, part in parts.items()
            }
        return self._pairs

    def _read(self) -> list[tuple[str, str]]:
        path = existing_file(self.path, "path")
        options = {self.text_column: "text_column", self.paraphrase_column: "paraphrase_column"}
        columns = read_file(path, options).columns
        pairs = zip(texts_of(columns[self.text_column]), texts_of(columns[self.paraphrase_column]), strict=True)
        return [(text, paraphrase) for text, paraphrase in pairs if text and paraphrase.strip()]

    def prepare_data(self) -> None:
        """Reads the file, so that errors are raised before training."""
        self.pairs()

    def train_dataloader(self) -> DataLoader[PairBatch]:
        """Training batches, shuffled anew each epoch."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[PairBatch]:
        """Validation batches."""
        return self._loader("validation", shuffle=False)

    def _loader(self, name: str, shuffle: bool) -> DataLoader[PairBatch]:
        assert self.trainer is not None
        tokenise = cast("Callable[[str, str], Pair]", self.trainer.lightning_module.tokenise)
        rows = TokenisedPairs([tokenise(*pair) for pair in self.pairs()[name]])
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return loader(rows, self.batch_size, rank, world_size, shuffle, self.seed, self.num_workers)
