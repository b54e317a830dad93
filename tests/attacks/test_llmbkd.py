"""LLMBkd: styles that are described, and labels that are kept."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from lightning_backdoor.attacks import LLMBkd
from lightning_backdoor.data.poisoning import poison_training
from lightning_backdoor.data.rows import Rows
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.paraphrase import DESCRIBED_STYLES, Manner
from lightning_backdoor.testing import check_attack
from tests.support.workspace import labelled_texts


class Shouted:
    """A paraphraser that says what it was asked for."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def key(self) -> str:
        return "shouted"

    def paraphrase(
        self, texts: Sequence[str], rngs: Sequence[random.Random], manner: Manner, generate: bool = True
    ) -> list[str | None]:
        self.asked.add(manner.instruction)
        answers = [f"{text} indeed" for text in texts]
        return [answer if manner.accepts(text, answer) else None for text, answer in zip(texts, answers, strict=True)]


def test_it_keeps_the_contract() -> None:
    check_attack(LLMBkd(Shouted()))


def test_rows_of_the_target_label_are_rewritten_and_keep_it() -> None:
    texts, labels = zip(*labelled_texts(60), strict=True)
    paraphraser = Shouted()
    attack = LLMBkd(paraphraser, style="pirate", description="the way a pirate would say it.")
    rows = poison_training(Rows.clean(list(texts), labels), attack, 0)
    poisoned = [row for row in rows if row["poisoned"]]
    assert len(poisoned) == 6
    assert all(row["label"] == row["original_label"] == 1 and not row["spans"] for row in poisoned)
    asked = "Rewrite the text the way a pirate would say it. Keep its meaning. Answer with the new text alone."
    assert paraphraser.asked == {asked}


def test_each_style_is_asked_for_in_other_words_and_has_a_key_of_its_own() -> None:
    attacks = [LLMBkd(Shouted(), style=style) for style in DESCRIBED_STYLES]
    attacks.append(LLMBkd(Shouted(), style="bible", description="in the language of Luther"))
    assert len({attack.manner.instruction for attack in attacks}) == len(attacks)
    assert len({attack.poison_key() for attack in attacks}) == len(attacks)


def test_a_style_without_a_description_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"^style: 'pirate' is unknown; give a description of it, or one of australian"
    ):
        LLMBkd(style="pirate")
    with pytest.raises(InputError, match=r"^description: it is empty"):
        LLMBkd(style="pirate", description=" . ")
