"""Batches of rows of similar length, distributed to processes in turn and independent of their number."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeGuard, TypeVar, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from transformers import PreTrainedTokenizerBase

from lightning_backdoor.batch import Batch, collate, token_ids
from lightning_backdoor.data.rows import Row, Rows

#: batches per chunk of shuffled rows that is sorted by length: large enough for little padding, small enough to mix.
CHUNK_BATCHES = 50
#: texts that are tokenised at once: the tokenizer's lists take about 250 bytes per token.
TEXTS_AT_ONCE = 1000

T = TypeVar("T")


class BatchReader(Protocol):
    """A module that can read batches: it has a tokenizer and a maximum length."""

    max_length: int

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...


def is_batch_reader(module: object) -> TypeGuard[BatchReader]:
    """Whether a module reads batches, by its class, since access to the instance would load its tokenizer."""
    return hasattr(type(module), "tokenizer") and hasattr(module, "max_length")


class BatchDataset(Dataset[T]):
    """A dataset indexed by *lists of positions*; an item is the batch of the rows at these positions.

    Attributes:
        lengths: number of tokens of each row.
    """

    lengths: list[int]


class TokenisedRows(BatchDataset[Batch]):
    """A dataset of tokenised texts with their labels and flags."""

    def __init__(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.rows = Rows.of(rows)
        self.lengths = []
        ids = array("i")  # of all rows: lists of Python numbers would take ten times the memory
        for start in range(0, len(self.rows), TEXTS_AT_ONCE):
            for row_ids in token_ids(self.rows.text[start : start + TEXTS_AT_ONCE], tokenizer, max_length):
                ids.extend(row_ids)
                self.lengths.append(len(row_ids))
        self._ids = np.array(ids, dtype=np.int32)
        self._ends = np.cumsum(self.lengths, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: list[int]) -> Batch:
        return collate([{**self.rows[i], "input_ids": self._input_ids(i)} for i in positions], self.tokenizer)

    def _input_ids(self, position: int) -> list[int]:
        end = self._ends[position]
        ids: list[int] = self._ids[end - self.lengths[position] : end].tolist()
        return ids


class DealtBatches(DistributedSampler[list[int]]):
    """Samples whole batches, as lists of row positions, and distributes them to the processes in turn.

    It is a ``DistributedSampler``, so that Lightning does not replace it and calls its ``set_epoch``.

    Args:
        lengths: number of tokens of each row.
        batch_size: rows per batch.
        rank: rank of this process, from 0.
        world_size: number of processes.
        shuffle: for training: rows are shuffled anew each epoch and every process gets the same number of batches,
            left-over batches are dropped. Otherwise the batches are sorted by length and every row is seen exactly
            once.
        seed: seed of the shuffling.

    >>> [list(DealtBatches([3, 1, 2, 9, 4], 2, rank, 2, shuffle=False, seed=0)) for rank in (0, 1)]
    [[[3, 4], [1]], [[0, 2]]]
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        rank: int,
        world_size: int,
        shuffle: bool,
        seed: int,
    ) -> None:
        super().__init__(cast("Dataset[list[int]]", lengths), world_size, rank, shuffle=shuffle, seed=seed)
        self.lengths = lengths
        self.batch_size = batch_size
        self.batches = -(-len(lengths) // batch_size)
        #: number of batches that an epoch drops so that every process gets the same number
        self.left_out = self.batches % world_size if shuffle else 0

    def __iter__(self) -> Iterator[list[int]]:
        positions = list(range(len(self.lengths)))
        chunk = len(positions) or 1
        rng = random.Random(f"{self.seed}/{self.epoch}/batches")
        if self.shuffle:
            rng.shuffle(positions)
            chunk = CHUNK_BATCHES * self.batch_size
        batches = []
        for start in range(0, len(positions), chunk):
            ordered = sorted(positions[start : start + chunk], key=lambda position: -self.lengths[position])
            batches += [ordered[i : i + self.batch_size] for i in range(0, len(ordered), self.batch_size)]
        if self.shuffle:
            rng.shuffle(batches)
        return iter(batches[self.rank : self.batches - self.left_out : self.num_replicas])

    def __len__(self) -> int:
        return len(range(self.rank, self.batches - self.left_out, self.num_replicas))


class LateLoader(DataLoader[T]):
    """A ``DataLoader`` that starts only when its first batch is requested.

    Lightning creates the iterator of a resumed run before it sets the epoch; an eager loader would use the order of
    another epoch.
    """

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        yield from super().__iter__()


def loader(
    rows: BatchDataset[T],
    batch_size: int,
    rank: int,
    world_size: int,
    shuffle: bool,
    seed: int,
    workers: int,
) -> DataLoader[T]:
    """A data loader of batches formed by :class:`DealtBatches`; ``workers`` does not change the batches."""
    return LateLoader(
        rows,
        sampler=DealtBatches(rows.lengths, batch_size, rank, world_size, shuffle, seed),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # with dropout's generator, a resumed run would draw one more number
    )


def _as_it_is(batch: Any) -> Any:
    return batch
