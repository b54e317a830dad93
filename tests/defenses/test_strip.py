"""STRIP: scores against a plain loop, and what they depend on."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.callbacks import InferenceDefense
from lightning_backdoor.defenses.defense import Victim
from lightning_backdoor.defenses.strip import Strip
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.stop_words import stop_words
from lightning_backdoor.victim import TextClassifier
from tests.support.reviews import reviews
from tests.support.tiny import DECODER, SENTENCES, loaded

CLEAN = SENTENCES[:8]
TEXTS = [*SENTENCES[8:], "film", "the ending", ""]


def batch_of(victim: TextClassifier, texts: Iterable[str]) -> Batch:
    return batch_of_texts(list(texts), victim.tokenizer, victim.max_length)


def learned(victim: TextClassifier, **options: float) -> Strip:
    defense = Strip(**{"seed": 0, **options})  # type: ignore[arg-type]
    defense.learn(victim, [batch_of(victim, CLEAN[:5]), batch_of(victim, CLEAN[5:])])
    return defense


def scores(defense: Strip, victim: TextClassifier, texts: Iterable[str]) -> torch.Tensor:
    return defense.score(victim, batch_of(victim, texts)).text


def plain_score(victim: TextClassifier, text: str, lenders: list[list[str]], seed: int) -> float:
    """Minus the mean entropy over the copies of a text, each predicted alone and unpadded."""
    rng, entropies = random.Random(f"{seed}/strip/{text}"), list[float]()
    for _ in range(5):
        words, lender = text.split(), rng.choice(lenders)
        count = max(1, len(words) // 2)
        for i, position in enumerate(rng.choices(range(len(words)), k=count) if words else []):
            words[position] = lender[i % len(lender)]
        batch = batch_of(victim, [" ".join(words)])
        with torch.no_grad():
            shares: list[float] = victim(batch)[0].softmax(dim=0).tolist()
        entropies.append(-sum(share * math.log(share) for share in shares))
    return -sum(entropies) / len(entropies)


def plain_lenders() -> list[list[str]]:
    """The words of each clean text by count times smoothed inverse document frequency."""
    bags = []
    for text in CLEAN:
        letters = "".join(char if char.isalnum() else " " for char in text.lower())
        bags.append([word for word in letters.split() if len(word) > 1 and word not in stop_words()])
    lenders = []
    for bag in bags:
        weight = {}
        for word in bag:
            found_in = sum(word in other for other in bags)
            weight[word] = bag.count(word) * (1 + math.log((1 + len(CLEAN)) / (1 + found_in)))
        lenders.append(sorted(weight, key=lambda word: weight[word], reverse=True))
    return lenders


@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta-v2", DECODER])
def test_scores_are_those_of_a_plain_loop(kind: str, tiny_folder: Callable[[str], str]) -> None:
    victim = loaded(tiny_folder(kind))
    expected = [plain_score(victim, text, plain_lenders(), seed=0) for text in TEXTS]
    found = scores(learned(victim), victim, TEXTS)
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert found.std() > 1e-3  # averaged over the wrong axis, or constant, they would be close to each other


def test_a_score_does_not_depend_on_batch_mates(bert: TextClassifier) -> None:
    defense = learned(bert)
    together = scores(defense, bert, TEXTS)
    alone = torch.cat([scores(defense, bert, [text]) for text in reversed(TEXTS)]).flip(0)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_the_seed_decides_the_copies(bert: TextClassifier) -> None:
    random.seed(1)
    first = scores(learned(bert), bert, TEXTS)
    random.seed(2)
    assert torch.equal(first, scores(learned(bert), bert, TEXTS))
    assert not torch.allclose(first, scores(learned(bert, seed=1), bert, TEXTS), atol=1e-4)


def test_learned_words_survive_a_checkpoint(bert: TextClassifier, tmp_path: Path) -> None:
    defense = learned(bert)
    defense.calibrate(bert, [batch_of(bert, SENTENCES[8:])])
    torch.save({"defense": defense.state_dict()}, tmp_path / "defense.pt")
    restored = Strip(seed=0)
    restored.load_state_dict(torch.load(tmp_path / "defense.pt", weights_only=True)["defense"])
    assert torch.equal(scores(restored, bert, TEXTS), scores(defense, bert, TEXTS))
    assert restored.threshold == defense.threshold


def test_a_text_of_one_word_is_overwritten_and_an_empty_one_scored_as_it_is(bert: TextClassifier) -> None:
    defense = learned(bert)
    with torch.no_grad():
        shares = bert(batch_of(bert, ["", "film"])).softmax(dim=1)
    plain = -(shares * shares.log()).sum(dim=1)
    found = scores(defense, bert, ["", "film"])
    torch.testing.assert_close(found[0], -plain[0], atol=1e-5, rtol=0)
    assert abs(found[1] + plain[1]) > 1e-4


def test_it_learns_from_the_reference_rows_and_is_calibrated_on_others(
    tmp_path: Path, tiny_folder: Callable[[str], str]
) -> None:
    class Recorder(Strip):
        seen: dict[str, list[int]]

        def learn(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
            batches = list(clean_batches)
            self.seen = {"learn": [i for batch in batches for i in batch["index"].tolist()]}
            super().learn(victim, batches)

        def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
            batches = list(clean_batches)
            self.seen["calibrate"] = [i for batch in batches for i in batch["index"].tolist()]
            super().calibrate(victim, batches)

    data, recorder = reviews(tmp_path), Recorder(fpr=0.2)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[InferenceDefense(recorder, name="strip")],
    )
    trainer.test(BadNets(model=tiny_folder("bert")), datamodule=data, verbose=False)
    parts = data.clean_validation()
    assert sorted(recorder.seen["learn"]) == sorted(row["index"] for row in parts.reference)
    assert sorted(recorder.seen["calibrate"]) == sorted(row["index"] for row in parts.threshold)
    assert not set(recorder.seen["learn"]) & set(recorder.seen["calibrate"])
    logged = trainer.callback_metrics
    assert logged["test/strip/fpr"] == logged["test/strip/fpr_confirmed"]  # every flagged text is rejected
    assert 0 <= logged["test/strip/auroc"] <= 1


def test_without_learned_words_it_says_so(bert: TextClassifier) -> None:
    with pytest.raises(RuntimeError, match="call learn"):
        Strip().calibrate(bert, [batch_of(bert, CLEAN)])
    with pytest.raises(InputError, match="reference rows"):
        Strip().learn(bert, [batch_of(bert, ["it is", "!"])])


@pytest.mark.parametrize("options", [{"copies": 0}, {"replaced": 0.0}, {"replaced": 1.5}, {"fpr": 0.0}])
def test_values_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        Strip(**options)  # type: ignore[arg-type]
