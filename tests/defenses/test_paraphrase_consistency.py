"""Paraphrase consistency: flags, answers and thresholds, with paraphrases of a file and of a tiny language model."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.defenses.defense import judge, predict, threshold_at_fpr
from lightning_backdoor.defenses.paraphrase_consistency import EXAMPLES, ParaphraseConsistency
from lightning_backdoor.errors import InputError
from lightning_backdoor.language import FileParaphraser, LanguageModelParaphraser, Manner
from lightning_backdoor.testing import check_defense
from lightning_backdoor.victim import TextClassifier
from tests.language.conftest import config
from tests.support.tiny import DECODER, SENTENCES, loaded

TEXTS = (*SENTENCES[:8], "", " ")


class Reversed:
    """Paraphrases a text by its words in reverse; has none of texts that begin with ``it``."""

    def __init__(self) -> None:
        self.manners: list[Manner] = []

    def paraphrase(
        self, texts: Sequence[str], rngs: Sequence[random.Random], manner: Manner, generate: bool = True
    ) -> list[str | None]:
        self.manners.append(manner)
        return [None if text.startswith("it") else " ".join(text.split()[::-1]) for text in texts]

    def key(self) -> str:
        return "reversed"


def batch_of(victim: TextClassifier, texts: Sequence[str]) -> Batch:
    return batch_of_texts(list(texts), victim.tokenizer, victim.max_length)


@pytest.mark.parametrize("kind", ["bert", DECODER])
def test_scores_flags_and_answers_are_those_of_a_plain_loop(kind: str, tiny_folder: Callable[[str], str]) -> None:
    victim = loaded(tiny_folder(kind))
    defense = ParaphraseConsistency(Reversed())
    defense.calibrate(victim, [batch_of(victim, SENTENCES[8:])])
    verdict = judge(defense, victim, batch_of(victim, TEXTS))

    expected, answers = [], []
    for text in TEXTS:
        paraphrase = text if text.startswith("it") or not text.strip() else " ".join(text.split()[::-1])
        with torch.no_grad():
            plain, changed = victim(batch_of(victim, [text]))[0], victim(batch_of(victim, [paraphrase]))[0]
        label = int(plain.argmax())
        expected.append(float(changed[1 - label] - changed[label]))
        answers.append(paraphrase if int(changed.argmax()) != label else None)
    assert verdict.scores.text.tolist() == pytest.approx(expected, abs=1e-5)
    assert verdict.flagged.tolist() == [answer is not None for answer in answers]
    assert 0 < verdict.flagged.sum() < len(TEXTS)
    assert verdict.purified_text == answers
    assert torch.equal(verdict.confirmed, verdict.flagged)  # the prediction of the paraphrase is another
    flagged = [answer for answer in answers if answer is not None]
    assert torch.equal(verdict.defended_prediction[verdict.flagged], predict(victim, flagged))


def test_without_a_bar_the_threshold_comes_from_clean_rows(bert: TextClassifier) -> None:
    defense = ParaphraseConsistency(Reversed(), bar=None, fpr=0.3)
    clean = batch_of(bert, SENTENCES[8:])
    defense.calibrate(bert, [clean])
    assert torch.equal(defense.threshold, threshold_at_fpr(defense.score(bert, clean).text, 0.3))
    fixed = ParaphraseConsistency(Reversed(), bar=1.5)
    fixed.calibrate(bert, [clean])
    assert fixed.threshold > 1.5
    assert fixed.threshold == pytest.approx(1.5)
    assert torch.equal(fixed.budget_thresholds, defense.budget_thresholds)


def test_it_keeps_the_contract() -> None:
    check_defense(ParaphraseConsistency(Reversed()))
    check_defense(ParaphraseConsistency(Reversed(), bar=None))


def test_a_prompt_of_ones_own_has_no_examples(bert: TextClassifier) -> None:
    asked = Reversed()
    ParaphraseConsistency(asked).score(bert, batch_of(bert, TEXTS))
    ParaphraseConsistency(asked, prompt="Talk like a politician.").score(bert, batch_of(bert, TEXTS))
    assert [manner.examples for manner in asked.manners] == [EXAMPLES, ()]
    assert asked.manners[1].instruction == "Talk like a politician."


def test_paraphrases_come_from_a_file_such_as_translations(bert: TextClassifier, tmp_path: Path) -> None:
    rows = [{"text": text, "paraphrase": text.upper()[::-1]} for text in SENTENCES[:4]]
    pd.DataFrame(rows).to_csv(tmp_path / "back.csv", index=False)
    defense = ParaphraseConsistency(FileParaphraser(str(tmp_path / "back.csv"), skip_missing=True))
    assert defense.model_precision is None
    assert defense.paraphrases(SENTENCES[:5]) == [*(row["paraphrase"] for row in rows), SENTENCES[4]]


def test_paraphrases_by_a_language_model_depend_on_text_and_seed_alone(
    tiny_folder: Callable[[str], str], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder(DECODER))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = config("llama", len(tokenizer))
        settings.update({"max_position_embeddings": 512})
        AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")

    def defense(folder: str, seed: int) -> ParaphraseConsistency:
        model = LanguageModelParaphraser(
            str(tmp_path / "model"),
            candidates=1,
            rounds=1,
            temperature=2.0,
            min_similarity=-1.0,
            sentence_encoder=tiny_folder("bert"),
            cache_dir=str(tmp_path / folder),
        )
        return ParaphraseConsistency(model, prompt="Say it.", seed=seed)

    texts = SENTENCES[:3]
    together = defense("one", 0).paraphrases(texts)
    assert [defense("two", 0).paraphrases([text])[0] for text in reversed(texts)] == together[::-1]
    assert together != list(texts)
    assert defense("one", 1).paraphrases(texts) != together
    assert defense("one", 0).model_precision == "32-true"


@pytest.mark.parametrize("options", [{"prompt": " "}, {"bar": float("nan")}, {"bar": float("inf")}, {"fpr": 0.0}])
def test_values_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        ParaphraseConsistency(**options)  # type: ignore[arg-type]
