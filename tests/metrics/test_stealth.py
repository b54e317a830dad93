"""The metrics of stealth (perplexity increase, similarity, word edits) against their definitions."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import fmean, pstdev

import pytest
from torchmetrics import Metric

from lightning_backdoor.commands.stealth import as_json, as_lines, drawn, measure, stealth_of
from lightning_backdoor.data.rows import Row, clean_row
from lightning_backdoor.errors import InputError
from lightning_backdoor.language import Perplexity
from lightning_backdoor.language.similarity import SentenceEncoder
from lightning_backdoor.metrics import PerplexityIncrease, SentenceSimilarity, WordEditDistance
from lightning_backdoor.metrics.word_edit_distance import word_edit_distance
from tests.language.conftest import language_model
from tests.support.tiny import SENTENCES

__all__ = ["language_model"]

Made = Callable[[], Metric]

ORIGINALS = SENTENCES[:10]
POISONED = [f"cf {text} cf" if i % 2 else text.upper() for i, text in enumerate(ORIGINALS)]


@pytest.fixture
def perplexity(language_model: Callable[[str], str], tmp_path: Path) -> Perplexity:
    return Perplexity(language_model("llama"), str(tmp_path))


@pytest.fixture
def encoder(tiny_folder: Callable[[str], str]) -> SentenceEncoder:
    return SentenceEncoder(tiny_folder("bert"))


@pytest.fixture(params=["perplexity increase", "similarity", "word edits"])
def made(request: pytest.FixtureRequest, perplexity: Perplexity, encoder: SentenceEncoder) -> Made:
    """Makes one of the metrics."""
    makers: dict[str, Made] = {
        "perplexity increase": lambda: PerplexityIncrease(perplexity),
        "similarity": lambda: SentenceSimilarity(encoder),
        "word edits": WordEditDistance,
    }
    return makers[request.param]


def measured(metric: Metric, originals: list[str], poisoned: list[str]) -> dict[str, float]:
    metric.update(originals, poisoned)
    return {name: float(value) for name, value in metric.compute().items()}


def poisoned_row(text: str, index: int) -> Row:
    return Row(text=text, spans=[], label=1, original_label=0, poisoned=True, negative=False, index=index)


def by_definition(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """The edit distance as the least cost over all first edits."""

    @cache
    def distance(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return len(a) - i + len(b) - j
        return min(distance(i + 1, j + 1) + (a[i] != b[j]), distance(i + 1, j) + 1, distance(i, j + 1) + 1)

    return distance(0, 0)


def test_the_edit_distance_equals_its_definition() -> None:
    rng = random.Random(0)
    seen = set()
    for _ in range(300):
        a, b = (tuple(rng.choices("abcd", k=rng.randint(0, 8))) for _ in range(2))
        seen.add(by_definition(a, b))
        assert word_edit_distance(" ".join(a), "  ".join(b)) == by_definition(a, b)
    assert seen >= set(range(7))


def test_mean_and_spread_equal_those_computed_row_by_row(perplexity: Perplexity, encoder: SentenceEncoder) -> None:
    before, after = ([result.text for result in perplexity.leave_one_out(texts)] for texts in (ORIGINALS, POISONED))
    embeddings = [(encoder.embed([a])[0], encoder.embed([b])[0]) for a, b in zip(ORIGINALS, POISONED, strict=True)]
    numbers: dict[str, list[float]] = {
        "perplexity_increase": [b - a for a, b in zip(before, after, strict=True)],
        "similarity": [float(a @ b) for a, b in embeddings],
        "word_edits": [
            2 if i % 2 else sum(word != word.upper() for word in text.split()) for i, text in enumerate(ORIGINALS)
        ],
    }
    values = measure(ORIGINALS, POISONED, perplexity, encoder)
    for name, of_rows in numbers.items():
        assert values[name] == pytest.approx(fmean(of_rows), rel=1e-4)
        assert values[f"{name}_spread"] == pytest.approx(pstdev(of_rows), rel=1e-3)
        assert values[f"{name}_spread"] > 0


def test_the_sums_of_two_processes_give_what_one_process_gives(made: Made) -> None:
    whole = measured(made(), [*ORIGINALS], POISONED)
    first, second = made(), made()
    first.update(ORIGINALS[:3], POISONED[:3])
    second.update(ORIGINALS[3:], POISONED[3:])
    first.merge_state(second)
    assert {name: float(value) for name, value in first.compute().items()} == pytest.approx(whole)
    assert measured(made(), [*ORIGINALS[:3]], POISONED[:3]) != pytest.approx(whole)


def test_a_text_that_is_left_as_it_is_keeps_everything(perplexity: Perplexity, encoder: SentenceEncoder) -> None:
    values = measure(ORIGINALS, ORIGINALS, perplexity, encoder)
    expected = dict.fromkeys(values, 0.0) | {"similarity": 1.0}
    assert values == pytest.approx(expected, abs=1e-6)


def test_texts_without_a_perplexity_are_left_out_and_counted(perplexity: Perplexity) -> None:
    metric = PerplexityIncrease(perplexity)
    values = measured(metric, [*ORIGINALS, "", ORIGINALS[0]], [*POISONED, ORIGINALS[0], ""])
    assert (int(metric.rows), int(metric.left_out)) == (10, 2)
    assert values == measured(PerplexityIncrease(perplexity), [*ORIGINALS], POISONED)


def test_which_rows_are_drawn_depends_on_seed_and_index_alone() -> None:
    rows = [poisoned_row("a film", index) for index in range(50)]
    few = drawn(rows, 10, seed=0)
    assert drawn(rows[::-1], 10, seed=0) == few
    left_out = few[3]
    assert drawn([row for row in rows if row != left_out], 9, seed=0) == [row for row in few if row != left_out]
    assert drawn(rows, 10, seed=1) != few
    assert len(drawn(rows, 60, seed=0)) == 50


def test_poisoned_rows_are_measured_against_the_clean_rows_of_their_indices(
    perplexity: Perplexity, encoder: SentenceEncoder, tmp_path: Path
) -> None:
    texts = {index: i for i, index in enumerate(range(7, 47, 4))}
    clean = [clean_row(ORIGINALS[i], 0, index) for index, i in texts.items()]
    poisoned = [poisoned_row(POISONED[i], index) for index, i in texts.items() if i % 2]
    models = perplexity.model, encoder.model
    values = stealth_of(clean, poisoned[::-1], 200, 0, *models, cache_dir=tmp_path)
    assert values == pytest.approx({"rows": 5, **measure(ORIGINALS[1::2], POISONED[1::2], perplexity, encoder)})
    assert (values["word_edits"], values["word_edits_spread"]) == (2, 0)
    fewer = stealth_of(clean, poisoned, 2, 0, *models, cache_dir=tmp_path)
    assert (fewer["rows"], fewer["word_edits"]) == (2, 2)


def test_without_rows_every_metric_is_undefined(perplexity: Perplexity, encoder: SentenceEncoder) -> None:
    values = measure([], [], perplexity, encoder)
    assert all(math.isnan(value) for name, value in values.items() if name != "perplexity_left_out")
    assert json.loads(as_json(values)) == dict.fromkeys(values) | {"perplexity_left_out": 0}
    assert as_lines(values) == "perplexity increase: undefined\nsimilarity: undefined\nword edits: undefined\n"


def test_a_model_that_is_missing_says_how_to_do_without(encoder: SentenceEncoder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^language_model: .* leave stealth out: --stealth_rows 0$"):
        stealth_of([], [], 200, 0, str(tmp_path / "missing"), encoder.model, tmp_path)
