"""Substitution voting: the votes of a plain loop, what is replaced, and thresholds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.defenses import substitution_voting
from lightning_backdoor.defenses.defense import judge
from lightning_backdoor.defenses.substitution_voting import SubstitutionVoting, pools_of, substituted
from lightning_backdoor.errors import Diverged, InputError
from lightning_backdoor.language.stop_words import stop_words
from lightning_backdoor.models.captures import plain_logits
from lightning_backdoor.testing import check_defense
from lightning_backdoor.victim import TextClassifier
from tests.support.tiny import DECODER, SENTENCES, loaded

CLEAN, TEXTS = SENTENCES[:8], [*SENTENCES[8:14], "film", "it is", "cf 3 !", ""]


def batch_of(victim: TextClassifier, texts: Sequence[str]) -> Batch:
    return batch_of_texts(list(texts), victim.tokenizer, victim.max_length)


def learned(victim: TextClassifier, **options: float | None) -> SubstitutionVoting:
    defense = SubstitutionVoting(**{"seed": 0, **options})  # type: ignore[arg-type]
    defense.learn(victim, [batch_of(victim, CLEAN[:5]), batch_of(victim, CLEAN[5:])])
    return defense


@pytest.mark.parametrize("kind", ["bert", DECODER])
def test_scores_are_those_of_a_plain_loop(kind: str, tiny_folder: Callable[[str], str]) -> None:
    victim = loaded(tiny_folder(kind))
    defense = learned(victim, copies=4)
    content = defense.get_extra_state()

    def probabilities(text: str) -> list[float]:
        with torch.no_grad():
            shares: list[float] = victim(batch_of(victim, [text]))[0].softmax(dim=0).tolist()
        return shares

    expected = []
    for text in TEXTS:
        own = probabilities(text)
        label, best = own.index(max(own)), 0.0
        rng = random.Random(f"0/substitution/{text}")
        for pools in (pools_of(content), pools_of(content, stop_words())):
            copies = [substituted(text, pools, rng) for _ in range(4)]
            votes = [probabilities(copy) for copy in copies]
            kept = sum(vote[label] == max(vote) for vote in votes)
            if any(copy != text for copy in copies):
                best = max(best, (kept + sum(vote[label] for vote in votes) / 4) / 5)
        expected.append(best)
    found = defense.score(victim, batch_of(victim, TEXTS)).text
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert found[-2:].tolist() == [0.0, 0.0]  # nothing to replace
    assert found[:-2].std() > 1e-2


def test_content_words_are_replaced_by_words_with_their_ending_and_the_rest_stays() -> None:
    content = ["cooking", "shouting", "carried", "lights", "book", "tax"]
    text, pools = "Acting, cf the FILMS; book 3D isn't…", pools_of(content)
    copies = {substituted(text, pools, random.Random(seed)) for seed in range(30)}
    assert copies == {
        f"{first}, cf the Lights; tax 3D isn't…" for first in ("Cooking", "Shouting")
    }  # book is not replaced by itself
    both = substituted(text, pools_of(content, ["with"]), random.Random(0))
    assert both.endswith(", cf with Lights; tax 3D with…")


def test_words_of_scripts_without_spaces_are_replaced_too() -> None:
    assert substituted("电影，喜欢看", pools_of(["书"]), random.Random(0)) == "书，书书"


def test_a_share_of_votes_is_the_published_bar(bert: TextClassifier) -> None:
    defense = learned(bert, copies=4, bar=0.75, function_words=False)
    defense.calibrate(bert, [batch_of(bert, CLEAN)])
    verdict = judge(defense, bert, batch_of(bert, TEXTS))
    expected = []
    for text, label in zip(TEXTS, verdict.prediction.tolist(), strict=True):
        rng = random.Random(f"0/substitution/{text}")
        copies = [substituted(text, pools_of(defense.get_extra_state()), rng) for _ in range(4)]
        with torch.no_grad():
            kept = int((bert(batch_of(bert, copies)).argmax(dim=1) == label).sum())
        expected.append(kept >= 3 and any(copy != text for copy in copies))
    assert verdict.flagged.tolist() == expected
    assert 0 < sum(expected) < len(TEXTS)
    by_budget = learned(bert, copies=4, bar=None, fpr=0.3)
    by_budget.calibrate(bert, [batch_of(bert, CLEAN)])
    assert (by_budget.score(bert, batch_of(bert, CLEAN)).text >= by_budget.threshold).float().mean() <= 0.3


def test_it_keeps_the_contract() -> None:
    check_defense(SubstitutionVoting(copies=3))
    check_defense(SubstitutionVoting(copies=3, bar=None, function_words=False))


def test_learned_words_survive_a_checkpoint(bert: TextClassifier, tmp_path: Path) -> None:
    defense = learned(bert)
    torch.save(defense.state_dict(), tmp_path / "defense.pt")
    restored = SubstitutionVoting(seed=0)
    restored.load_state_dict(torch.load(tmp_path / "defense.pt", weights_only=True))
    batch = batch_of(bert, TEXTS)
    assert torch.equal(restored.score(bert, batch).text, defense.score(bert, batch).text)
    assert not torch.equal(learned(bert, seed=1).score(bert, batch).text, defense.score(bert, batch).text)


def test_without_words_it_says_so(bert: TextClassifier) -> None:
    with pytest.raises(RuntimeError, match="call learn"):
        SubstitutionVoting().score(bert, batch_of(bert, TEXTS))
    with pytest.raises(InputError, match="reference rows: the clean texts have 1 content words"):
        SubstitutionVoting().learn(bert, [batch_of(bert, ["it is film", "!"])])


@pytest.mark.parametrize("options", [{"copies": 0}, {"bar": 0.0}, {"bar": 1.5}, {"fpr": 0.0}])
def test_values_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        SubstitutionVoting(**options)  # type: ignore[arg-type]


def test_a_nan_of_the_second_stage_is_not_hidden_by_the_first(
    bert: TextClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = bert.tokenizer("the")["input_ids"][:2]  # only the second stage replaces it

    def of_copies(network: object, input_ids: Tensor, mask: Tensor) -> Tensor:
        logits = plain_logits(bert.network, input_ids, mask)
        return torch.where((input_ids[:, :2] == torch.tensor(kept)).all(dim=1, keepdim=True), logits, torch.nan)

    monkeypatch.setattr(substitution_voting, "plain_logits", of_copies)
    learned(bert, function_words=False).score(bert, batch_of(bert, ["the film"]))
    with pytest.raises(Diverged, match=r"logits for \d+ of 20 texts"):
        learned(bert).score(bert, batch_of(bert, ["the film"]))
