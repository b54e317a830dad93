"""The time of texts that are computed is told from the time of texts that a cache answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_backdoor.language import lookups as module
from lightning_backdoor.language.lookups import Lookups, recorded_lookups, untimed
from lightning_backdoor.language.text_cache import TextCache


class Clock:
    """A clock that only :meth:`pass_` moves on."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def perf_counter(self) -> float:
        return self.seconds

    def pass_(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def judged(cache: TextCache, texts: list[str], clock: Clock) -> Lookups:
    """Computing a text takes 3 seconds, and all else about it 1 second."""
    with recorded_lookups() as lookups:
        missing = [text for text, value in zip(texts, cache.get(texts), strict=True) if value is None]
        if missing:
            with untimed():
                clock.pass_(50.0)  # a model is loaded
            for text in missing:
                clock.pass_(3.0)
                cache.put({text: b"value"})
        clock.pass_(1.0 * len(texts))
        cache.get(texts)  # as purify does
    return lookups


@pytest.mark.parametrize("cached", [0, 1, 2, 4])
def test_a_text_takes_the_same_time_whatever_part_of_its_batch_was_cached(
    tmp_path: Path, clock: Clock, cached: int
) -> None:
    texts = ["a", "b", "c", "d"]
    cache = TextCache("test", tmp_path)
    cache.put(dict.fromkeys(texts[:cached], b"value"))
    started = clock.seconds
    lookups = judged(cache, texts, clock)
    computed = len(texts) - cached
    assert lookups.share == computed / len(texts)
    assert lookups.seconds_of_computed(clock.seconds - started) == pytest.approx(4.0 * computed)


def test_without_look_ups_all_time_counts() -> None:
    with recorded_lookups() as lookups:
        pass
    assert lookups.share == 1
    assert lookups.seconds_of_computed(2.5) == 2.5


def test_look_ups_outside_of_the_block_do_not_count(tmp_path: Path) -> None:
    cache = TextCache("test", tmp_path)
    cache.put({"a": b"value"})
    with recorded_lookups() as lookups:
        pass
    cache.get(["a"])
    assert lookups.share == 1
