"""Parts of a computation run at once on a processor, and give what they give alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lightning_backdoor.language import Perplexity
from lightning_backdoor.models.bucketing import PassLimits
from lightning_backdoor.models.parallel import MAX_WORKERS, in_parallel, in_passes, worker_count
from tests.language.conftest import language_model

__all__ = ["language_model"]

CPU = torch.device("cpu")


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_parts_keep_their_order_and_get_equal_shares_of_the_threads(threads: Callable[[int], None]) -> None:
    threads(4)
    assert list(in_parallel(lambda part: (part, torch.get_num_threads()), [3, 1], CPU)) == [(3, 2), (1, 2)]
    assert torch.get_num_threads() == 4
    assert list(in_parallel(lambda part: torch.get_num_threads(), [1], CPU)) == [4]


def test_an_error_of_a_part_is_raised_and_the_threads_are_as_before(threads: Callable[[int], None]) -> None:
    threads(2)
    with pytest.raises(ZeroDivisionError):
        list(in_parallel(lambda part: 1 / part, [1, 0, 1, 1], CPU))
    assert torch.get_num_threads() == 2


def test_an_accelerator_computes_one_part_at_a_time(threads: Callable[[int], None]) -> None:
    threads(64)
    assert worker_count(CPU) == MAX_WORKERS
    assert worker_count(torch.device("cuda")) == 1


def test_perplexities_do_not_depend_on_the_number_of_threads(
    threads: Callable[[int], None], tmp_path: Path, language_model: Callable[[str], str]
) -> None:
    texts = [f"a {'very ' * i}good film" for i in range(40)]
    results = []
    for count in (1, 3):
        threads(count)
        results.append(Perplexity(language_model("llama"), str(tmp_path / str(count))).leave_one_out(texts))
    for alone, at_once in zip(*results, strict=True):
        assert alone.text == pytest.approx(at_once.text, rel=1e-4, nan_ok=True)
        assert alone.without == pytest.approx(at_once.without, rel=1e-4, nan_ok=True)


def test_rows_are_computed_in_passes_of_similar_length_that_do_not_depend_on_threads(
    threads: Callable[[int], None],
) -> None:
    lengths = [9, 1, 10, 0, 1, 1, *[5] * 40]
    limits = PassLimits(tokens=64, overhead=4)
    results = []
    for count in (1, 3):
        threads(count)
        results.append(list(in_passes(lambda rows: [10 * row for row in rows], lengths, limits, CPU)))
    assert results[0] == results[1]
    assert sorted(row for rows, _ in results[0] for row in rows) == [i for i, length in enumerate(lengths) if length]
    assert all(values == [10 * row for row in rows] for rows, values in results[0])
    sizes = [sum(lengths[row] for row in rows) for rows, _ in results[0]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] <= limits.tokens


def test_few_rows_are_divided_for_two_threads_unless_they_are_too_few() -> None:
    limits = PassLimits(tokens=512, overhead=4)
    assert len(list(in_passes(lambda rows: rows, [10] * 8, limits, CPU))) == 2
    assert len(list(in_passes(lambda rows: rows, [10], limits, CPU))) == 1
