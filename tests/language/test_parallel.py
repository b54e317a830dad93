"""Parts of a computation run at once on a processor, and give what they give alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lightning_backdoor.language import Perplexity
from lightning_backdoor.language.parallel import MAX_WORKERS, in_parallel, worker_count
from lightning_backdoor.language.perplexity import groups

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


def test_few_texts_are_divided_into_groups_for_all_workers() -> None:
    texts = [" ".join(["word"] * 16 + [str(i)]) for i in range(32)]
    assert len(groups(texts)) == 1
    assert len(groups(texts, 4)) == 4
    assert sorted(text for group in groups(texts, 4) for text in group) == sorted(texts)
    assert len(groups(texts, 1000)) == 11  # not too small
