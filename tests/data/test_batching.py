"""Batches: the same whatever the number of processes, every row seen, little padding."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import chain

import pytest
import torch
from torch.utils.data import DistributedSampler

from lightning_backdoor.batch import Batch, token_ids
from lightning_backdoor.data.batching import DealtBatches, TokenisedRows, loader
from lightning_backdoor.victim import TextClassifier
from tests.data.examples import rows

LENGTHS = random.Random(0).choices(range(1, 101), k=500)


def dealt(
    world_size: int, shuffle: bool, lengths: Sequence[int] = LENGTHS, size: int = 7, seed: int = 0, epoch: int = 0
) -> list[list[list[int]]]:
    """The batches of each process."""
    samplers = [DealtBatches(lengths, size, rank, world_size, shuffle, seed) for rank in range(world_size)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    batches = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == list(map(len, batches))
    return batches


def in_turn(batches: list[list[list[int]]]) -> list[list[int]]:
    """The batches of all processes in the order in which they were dealt."""
    return [own[turn] for turn in range(max(map(len, batches))) for own in batches if turn < len(own)]


def padding(batches: Sequence[Sequence[int]]) -> float:
    """Padding as a share of all positions."""
    positions = sum(max(LENGTHS[place] for place in batch) * len(batch) for batch in batches)
    return 1 - sum(LENGTHS[place] for batch in batches for place in batch) / positions


@pytest.mark.parametrize("count", [0, 1, 6, 7, 8, 20, 21, 22, 500])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_in_evaluation_every_row_is_seen_exactly_once(world_size: int, count: int) -> None:
    batches = dealt(world_size, shuffle=False, lengths=LENGTHS[:count])
    assert sorted(chain(*chain(*batches))) == list(range(count))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("world_size", [2, 3])
def test_the_batches_are_the_same_for_any_number_of_processes(world_size: int, shuffle: bool) -> None:
    alone = dealt(1, shuffle)[0]
    together = in_turn(dealt(world_size, shuffle))
    assert together == alone[: len(together)]
    assert len(alone) - len(together) == (len(alone) % world_size if shuffle else 0)


@pytest.mark.parametrize("count", [0, 13, 20, 21, 22, 500])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_in_training_every_process_gets_as_many_batches_and_what_is_left_out_is_said(
    world_size: int, count: int
) -> None:
    batches = dealt(world_size, shuffle=True, lengths=LENGTHS[:count])
    assert len({len(own) for own in batches}) == 1
    seen = list(chain(*chain(*batches)))
    assert len(set(seen)) == len(seen)
    left_out = DealtBatches(LENGTHS[:count], 7, 0, world_size, shuffle=True, seed=0).left_out
    assert sum(map(len, batches)) == -(-count // 7) - left_out
    assert left_out < world_size


def test_what_is_left_out_changes_with_the_epoch() -> None:
    left_out = [set(range(500)) - set(chain(*chain(*dealt(3, True, size=2, epoch=epoch)))) for epoch in range(5)]
    assert all(left_out)
    assert not set.intersection(*left_out)


def test_each_epoch_has_its_own_order_and_the_seed_decides_it() -> None:
    orders = [dealt(1, True, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert orders == [dealt(1, True, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert all(one != other for i, one in enumerate(orders) for other in orders[:i])
    alike = [{tuple(sorted(batch)) for batch in order[0]} for order in orders]
    assert not set.intersection(*alike)  # not only the order of the batches: who is in a batch changes too


def test_all_batches_are_full_but_one() -> None:
    for shuffle in (False, True):
        sizes = sorted(map(len, dealt(1, shuffle)[0]))
        assert sizes == [500 % 7] + [7] * (500 // 7)


def test_padding_is_small_beside_that_of_random_batches() -> None:
    places = random.Random(1).sample(range(500), 500)
    at_random = padding([places[i : i + 7] for i in range(0, 500, 7)])
    assert padding(dealt(1, shuffle=True)[0]) < at_random / 5
    assert padding(dealt(1, shuffle=False)[0]) < at_random / 10


def test_the_longest_batch_comes_first_in_evaluation_so_that_memory_runs_out_at_once_or_never() -> None:
    batches = dealt(1, shuffle=False)[0]
    longest = [max(LENGTHS[place] for place in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_lightning_leaves_the_sampler_as_it_is() -> None:
    assert issubclass(DealtBatches, DistributedSampler)


@pytest.fixture(scope="module")
def tokenised(tiny_folder: Callable[[str], str]) -> TokenisedRows:
    return TokenisedRows(rows(100), TextClassifier(tiny_folder("bert")).tokenizer, 64)


def read(tokenised: TokenisedRows, workers: int, shuffle: bool) -> list[Batch]:
    batches = loader(tokenised, 16, 0, 1, shuffle, seed=0, workers=workers)
    return [batch for epoch in range(2) for batch in epoch_of(batches, epoch)]


def epoch_of(batches: torch.utils.data.DataLoader[Batch], epoch: int) -> list[Batch]:
    assert isinstance(batches.sampler, DealtBatches)
    batches.sampler.set_epoch(epoch)
    return list(batches)


def plain(batch: Batch) -> dict[str, object]:
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


@pytest.mark.parametrize("shuffle", [False, True])
def test_worker_processes_change_nothing(tokenised: TokenisedRows, shuffle: bool) -> None:
    here = read(tokenised, workers=0, shuffle=shuffle)
    assert len(here) == 14
    assert [plain(batch) for batch in read(tokenised, workers=2, shuffle=shuffle)] == [plain(batch) for batch in here]


def test_a_batch_holds_its_rows_padded_to_the_longest_of_them(tokenised: TokenisedRows) -> None:
    for batch in read(tokenised, workers=0, shuffle=True):
        own = [tokenised.rows[index] for index in batch["index"].tolist()]
        ids = token_ids([row["text"] for row in own], tokenised.tokenizer, 64)
        lengths = [len(row_ids) for row_ids in ids]
        assert batch["input_ids"].shape == (len(own), max(lengths)) == batch["attention_mask"].shape
        assert batch["attention_mask"].sum(dim=1).tolist() == lengths
        for i, row in enumerate(own):
            assert batch["input_ids"][i, : lengths[i]].tolist() == ids[i]
            assert (batch["text"][i], int(batch["label"][i])) == (row["text"], row["label"])
            assert bool(batch["poisoned"][i]) is row["poisoned"]
