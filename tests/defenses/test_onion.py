"""ONION: suspicions of words and tokens, the bar, and which words are removed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Batch, batch_of_texts, token_spans
from lightning_backdoor.callbacks import InferenceDefense, OutputFolder
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.data.cleaning import LabelledText, TrustedRows
from lightning_backdoor.defenses.defense import BUDGETS, DataDefense, judge, predict, threshold_at_fpr
from lightning_backdoor.defenses.onion import CANDIDATES, LOWEST, Onion, lowest_threshold, suspicions, without_outliers
from lightning_backdoor.errors import InputError
from lightning_backdoor.language import LeaveOneOut
from lightning_backdoor.language.precision import BFLOAT16, FLOAT32
from lightning_backdoor.victim import TextClassifier
from tests.data.test_source import write
from tests.language.conftest import language_model
from tests.support.tiny import SENTENCES

__all__ = ["language_model"]

Make = Callable[..., Onion]


def as_rows(texts: Sequence[str]) -> list[LabelledText]:
    return [LabelledText(text, 0) for text in texts]


@pytest.fixture
def onion(language_model: Callable[[str], str], tmp_path: Path) -> Make:
    def make(**settings: Any) -> Onion:
        # in float32 on every machine
        return Onion(
            language_model=language_model("llama"), cache_dir=str(tmp_path), **{"precision": FLOAT32, **settings}
        )

    return make


def labelled(victim: TextClassifier, texts: list[str], labels: list[int], size: int = 8) -> Iterator[Batch]:
    for start in range(0, len(texts), size):
        batch = batch_of_texts(texts[start : start + size], victim.tokenizer, victim.max_length)
        batch["original_label"] = torch.tensor(labels[start : start + size])
        yield batch


def perplexities(defense: Onion, texts: list[str]) -> list[LeaveOneOut]:
    return defense.perplexity.leave_one_out(texts)


def test_the_score_is_the_largest_drop_in_perplexity(bert: TextClassifier, onion: Make) -> None:
    defense = onion()
    texts = list(SENTENCES[:6])
    scores = defense.score(bert, next(labelled(bert, texts, [0] * 6)))
    for score, perplexity in zip(scores.text.tolist(), perplexities(defense, texts), strict=True):
        assert score == pytest.approx(max(perplexity.text - without for without in perplexity.without), rel=1e-5)


def test_every_token_has_the_suspicion_of_its_word_and_the_top_is_the_first_of_the_top_word(
    victim: TextClassifier, onion: Make
) -> None:
    defense, texts = onion(), [*SENTENCES[:8], "a  film  of  spaces", "unforgettable explosions"]
    batch = batch_of_texts(texts, victim.tokenizer, victim.max_length)
    scores = defense.score(victim, batch)
    assert scores.tokens is not None
    assert scores.top is not None
    for row, (text, one) in enumerate(zip(texts, perplexities(defense, texts), strict=True)):
        suspicion = [one.text - without for without in one.without]
        bounds = [0, *(i + 1 for i, character in enumerate(text) if character == " "), len(text) + 1]
        spans = token_spans(text, victim.tokenizer, victim.max_length)
        inside = []
        for position, (start, end) in enumerate(spans):
            if start == end:
                assert scores.tokens[row, position] == -math.inf
                continue
            (word,) = [i for i, (a, b) in enumerate(pairwise(bounds)) if a <= start < b]
            assert scores.tokens[row, position].item() == pytest.approx(suspicion[word], rel=1e-5)
            if suspicion[word] == max(suspicion):
                inside.append(position)
        top = int(scores.top[row])
        assert top == (inside[0] if inside else -1)
        assert (scores.tokens[row, len(spans) :] == -math.inf).all()


def test_a_text_of_one_word_scores_lowest_and_stays(bert: TextClassifier, onion: Make) -> None:
    defense, texts = onion(bar=-1e30), ["film", SENTENCES[0], "", "unforgettable"]
    batch = batch_of_texts(texts, bert.tokenizer, bert.max_length)
    defense.calibrate(bert, [batch])
    scores = defense.score(bert, batch)
    assert scores.text.isfinite().all()
    assert [i for i, score in enumerate(scores.text) if score == LOWEST] == [0, 2, 3]
    assert scores.top is not None
    assert (scores.top >= 0).tolist() == [False, True, False, False]
    verdict = judge(defense, bert, batch)
    assert verdict.flagged.tolist() == [False, True, False, False]
    assert len(verdict.purified_text[1] or "") > 0


@pytest.mark.parametrize(("precision", "tolerance"), [(FLOAT32, 1e-3), (BFLOAT16, 0.02)])
def test_a_score_does_not_depend_on_batch_mates(
    bert: TextClassifier, onion: Make, tmp_path: Path, precision: str, tolerance: float
) -> None:
    together = onion(precision=precision).score(bert, batch_of_texts(SENTENCES, bert.tokenizer, bert.max_length)).text
    for text, score in zip(SENTENCES[:5], together, strict=False):
        (tmp_path / "language" / "texts.sqlite").unlink()
        alone = onion(precision=precision).score(bert, batch_of_texts([text], bert.tokenizer, bert.max_length)).text
        assert alone.item() == pytest.approx(score.item(), rel=tolerance)


def test_words_above_the_bar_are_removed_and_the_rest_stays() -> None:
    suspicion = torch.tensor([3.0, 7.0, -torch.inf, 7.000001, 8.0])
    above = float(torch.nextafter(torch.tensor(7.0), torch.tensor(torch.inf)))
    assert without_outliers("one two  four five", suspicion, above) == "one two "
    assert without_outliers("one two  four five", suspicion, 9.0) == "one two  four five"
    assert without_outliers("two five", suspicion[[1, 4]], 0.0) == "two"


def test_a_fixed_bar_removes_what_is_above_it(bert: TextClassifier, onion: Make) -> None:
    defense, texts = onion(bar=0.0), list(SENTENCES)
    batch = batch_of_texts(texts, bert.tokenizer, bert.max_length)
    defense.calibrate(bert, [batch])
    purified = judge(defense, bert, batch).purified_text
    for text, found, one in zip(texts, purified, perplexities(defense, texts), strict=True):
        kept = [word for word, without in zip(text.split(" "), one.without, strict=True) if one.text <= without]
        assert kept
        assert (found or text) == " ".join(kept)
    assert any(found is not None and found != text for text, found in zip(texts, purified, strict=True))


def test_fpr_budgets_come_from_clean_scores(bert: TextClassifier, onion: Make) -> None:
    defense = onion(bar=0.0)
    batch = batch_of_texts(SENTENCES, bert.tokenizer, bert.max_length)
    defense.calibrate(bert, [batch])
    clean = defense.score(bert, batch).text
    assert defense.budget_thresholds.tolist() == [float(threshold_at_fpr(clean, budget)) for budget in BUDGETS]


@pytest.mark.parametrize("budget", [0.0, 0.1, 0.3])
def test_the_bar_is_the_lowest_that_keeps_the_accuracy_as_all_higher_ones_do(
    bert: TextClassifier, onion: Make, budget: float
) -> None:
    texts = list(SENTENCES)
    labels = predict(bert, texts).tolist()
    labels[3] = 1 - labels[3]  # the victim makes a mistake
    defense = onion(accuracy_budget=budget)
    defense.calibrate(bert, labelled(bert, texts, labels))
    suspicion = [
        torch.tensor([one.text - without for without in one.without], dtype=torch.float64).float()
        for one in perplexities(defense, texts)
    ]

    def loses_little(threshold: Tensor) -> bool:
        forms = [without_outliers(text, one, float(threshold)) for text, one in zip(texts, suspicion, strict=True)]
        right = [a == b for a, b in zip(predict(bert, forms).tolist(), labels, strict=True)]
        return bool(sum(right) >= len(texts) - 1 - budget * len(texts))

    ordered = torch.cat(suspicion).sort(descending=True).values
    candidates = [ordered[i * len(ordered) // CANDIDATES] for i in range(CANDIDATES)]
    good = [loses_little(torch.nextafter(bar, torch.tensor(torch.inf))) for bar in candidates]
    lowest = good.index(False) - 1
    assert lowest > 0
    assert defense.threshold == torch.nextafter(candidates[lowest], torch.tensor(torch.inf))


def test_each_form_of_a_text_is_predicted_once(bert: TextClassifier) -> None:
    texts = list(SENTENCES)
    rng = torch.Generator().manual_seed(0)
    found = [torch.randn(text.count(" ") + 1, generator=rng) for text in texts]
    rows = []
    bert.network.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    lowest_threshold(bert, texts, predict(bert, texts).tolist(), found, accuracy_budget=0.99)
    rows = rows[1:]  # without the call that gave the labels
    ordered = torch.cat(found).sort(descending=True).values
    bars = [float(ordered[i * len(ordered) // CANDIDATES]) for i in range(CANDIDATES)]
    forms = {without_outliers(text, one, bar + 1e-7) for text, one in zip(texts, found, strict=True) for bar in bars}
    assert sum(rows) <= len(forms | set(texts))


def test_rows_without_labels_set_the_bar_by_fpr_and_some_labels_are_refused(bert: TextClassifier, onion: Make) -> None:
    batch = batch_of_texts(SENTENCES, bert.tokenizer, bert.max_length)
    defense = onion(fpr=0.4)
    defense.calibrate(bert, [batch])
    flagged = int((defense.score(bert, batch).text >= defense.threshold).sum())
    assert 0.4 * len(SENTENCES) - 2 < flagged <= 0.4 * len(SENTENCES)
    batch["original_label"][0] = 1
    with pytest.raises(InputError, match="calibration: some clean texts have no label"):
        onion().calibrate(bert, [batch])
    with pytest.raises(InputError, match="calibration: no clean texts"):
        onion(bar=0.0).calibrate(bert, [])


@pytest.mark.parametrize("settings", [{"accuracy_budget": -0.1}, {"accuracy_budget": 1.0}, {"bar": math.nan}])
def test_settings_out_of_range_are_bad_input(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        Onion(**settings)


def test_the_language_model_is_in_no_checkpoint(bert: TextClassifier, onion: Make) -> None:
    defense = onion(bar=0.0)
    defense.calibrate(bert, [batch_of_texts(SENTENCES[:2], bert.tokenizer, bert.max_length)])
    assert defense.perplexity._network is not None
    assert set(defense.state_dict()) == {"threshold", "budget_thresholds"}


@pytest.mark.parametrize("fpr", [0.1, 0.4])
def test_on_training_rows_the_share_of_trusted_texts_that_lose_a_word_is_kept(onion: Make, fpr: float) -> None:
    defense = onion(fpr=fpr)
    assert isinstance(defense, DataDefense)
    trusted = list(SENTENCES)
    changed = [
        text
        for text, cleaned in zip(
            trusted, defense.clean(as_rows(trusted), TrustedRows([], as_rows(trusted))), strict=True
        )
        if text != cleaned
    ]
    assert len(changed) == int(fpr * len(trusted))


def test_on_training_rows_a_fixed_bar_needs_no_trusted_texts(onion: Make) -> None:
    texts = list(SENTENCES[:5])
    expected = [
        " ".join(word for word, without in zip(text.split(" "), one.without, strict=True) if one.text <= without + 5)
        for text, one in zip(texts, perplexities(onion(), texts), strict=True)
    ]
    assert onion(bar=5.0).clean(as_rows(texts), TrustedRows([], [])) == expected
    with pytest.raises(InputError, match="data_defense: no trusted texts"):
        onion().clean(as_rows(texts), TrustedRows([], []))


def test_a_run_purifies_as_the_defense_alone_would(
    tiny_folder: Callable[[str], str], onion: Make, tmp_path: Path
) -> None:
    sentences = [f"{i} {text}" for i, text in enumerate(SENTENCES * 5)]
    source = Source(write(tmp_path / "rows.csv", sentences, [i % 2 for i in range(len(sentences))]))
    data = BackdoorDataModule(source, cache_dir=str(tmp_path / "data"))
    attack = BadNets(model=tiny_folder("bert"), triggers=["cf"], poison_rate=0.2)
    defense = onion(accuracy_budget=0.1)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        callbacks=[InferenceDefense(defense, name="onion"), OutputFolder(tmp_path)],
    )
    (metrics, *_) = trainer.test(attack, datamodule=data, verbose=False)
    assert 0 <= metrics["test/onion/localisation"] <= 1
    assert not defense.threshold.isnan()
    rows = [json.loads(line) for line in (tmp_path / "onion" / "texts.jsonl").read_text().splitlines()]
    flagged = [row for row in rows if row["flagged"]]
    assert flagged
    for row in flagged:
        (one,) = perplexities(defense, [row["text"]])
        assert row["purified_text"] == without_outliers(row["text"], suspicions(one), float(defense.threshold))
