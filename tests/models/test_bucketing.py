"""Rows divided into forward passes."""

from __future__ import annotations

import random

import pytest
import torch

from lightning_backdoor.models.bucketing import AMX_LIMITS, PROCESSOR_LIMITS, PassLimits, divide_evenly, pass_limits

LIMITS = PassLimits(tokens=64, overhead=4)


@pytest.mark.parametrize("count", [1, 3, 10, 100])
def test_passes_are_of_about_equal_size_and_never_too_large(count: int) -> None:
    rng = random.Random(count)
    lengths = [rng.randint(1, 12) for _ in range(count)]
    passes = divide_evenly(lengths, LIMITS)
    assert sorted(row for rows in passes for row in rows) == list(range(count))
    ordered = [lengths[row] for rows in passes for row in rows]
    assert ordered == sorted(lengths, reverse=True)
    sizes = [sum(lengths[row] for row in rows) for rows in passes]
    assert max(sizes) <= LIMITS.tokens
    assert max(sizes) - min(sizes) <= 12 + 12
    assert len(passes) % 2 == 0 or sum(lengths) <= 8 * LIMITS.overhead or max(sizes) > LIMITS.tokens - 12


def test_no_small_pass_is_left_over() -> None:
    lengths = [12] * 21  # five rows fill a pass: four passes of their shares would leave a fifth with one row
    assert [len(rows) for rows in divide_evenly(lengths, LIMITS)] == [4, 3, 4, 3, 4, 3]


def test_rows_of_one_pass_are_similar_by_what_is_given() -> None:
    prefixes = [7, 1, 5, 3]
    assert divide_evenly([10] * 4, PassLimits(tokens=64, overhead=1), prefixes) == [[0, 2], [3, 1]]


def test_a_row_that_is_too_long_is_alone_and_no_row_makes_no_pass() -> None:
    assert divide_evenly([100, 1, 70], LIMITS)[:2] == [[0], [2]]
    assert divide_evenly([], LIMITS) == []


@pytest.mark.parametrize("amx", [False, True])
def test_large_passes_are_for_bfloat16_on_a_processor_with_amx(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    device = torch.device("cpu")
    assert pass_limits(device) == PROCESSOR_LIMITS
    assert pass_limits(device, torch.bfloat16) == (AMX_LIMITS if amx else PROCESSOR_LIMITS)
