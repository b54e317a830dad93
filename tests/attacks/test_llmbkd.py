"""LLMBkd: styles that are described, and labels that are kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from lightning_backdoor.attacks import LLMBkd
from lightning_backdoor.data.poisoning import poison_training
from lightning_backdoor.data.rows import Rows
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.paraphrase import DESCRIBED_STYLES, Manner
from lightning_backdoor.testing import check_attack
from lightning_backdoor.victim import TextClassifier
from tests.support.reviews import reviews
from tests.support.tiny import tiny_masked_model
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


def test_a_selector_chooses_the_rows_whose_new_text_it_finds_least_like_the_target(
    tiny_folder: Callable[[str], str],
) -> None:
    texts, labels = zip(*labelled_texts(60), strict=True)
    clean = Rows.clean(list(texts), labels)
    attack = LLMBkd(Shouted(), selector=tiny_folder("bert"), labels=["LABEL_0", "LABEL_1"])
    rewritten = {row["index"]: f"{row['text']} indeed" for row in clean if row["label"] == 1}
    victim = TextClassifier.load_trained(tiny_folder("bert"))
    probabilities = victim.predict(list(rewritten.values())).probabilities[:, 1].tolist()
    lowest = sorted(zip(probabilities, rewritten, strict=True))[:6]
    poisoned = [row for row in poison_training(clean, attack, 0) if row["poisoned"]]
    assert {row["index"] for row in poisoned} == {index for _, index in lowest}
    assert all(row["text"] == rewritten[row["index"]] for row in poisoned)
    assert poison_training(clean[::-1], attack, 0)[::-1] == poison_training(clean, attack, 0)
    assert attack.poison_key() != LLMBkd(Shouted()).poison_key()


def test_a_selector_that_is_not_there_or_has_other_labels_is_refused(tiny_folder: Callable[[str], str]) -> None:
    with pytest.raises(InputError, match=r"^selector: nothing does not exist"):
        LLMBkd(selector="nothing")
    attack = LLMBkd(Shouted(), selector=tiny_folder("bert"), labels=["no", "yes"])
    with pytest.raises(InputError, match=r"^selector: .* has the labels LABEL_0, LABEL_1; give one with no, yes"):
        attack.poison_rank(["a text"])  # type: ignore[misc]
    of_data = LLMBkd(Shouted(), selector=tiny_folder("bert"))
    of_data.know_labels(["no", "yes"])
    with pytest.raises(InputError, match=r"^selector: .* has the labels LABEL_0, LABEL_1; give one with no, yes"):
        of_data.poison_rank(["a text"])  # type: ignore[misc]


def test_random_numbers_after_poisoning_do_not_depend_on_the_cache(tmp_path: Path) -> None:
    without_head = tiny_masked_model("bert", tmp_path / "model")
    selector = TextClassifier(without_head, labels=["negative", "positive"])
    selector.configure_model()
    checkpoint = {"state_dict": selector.state_dict(), "hyper_parameters": dict(selector.hparams)}
    torch.save(checkpoint, tmp_path / "selector.ckpt")
    drawn = []
    for _ in range(2):  # poisoned anew, read from the cache
        torch.manual_seed(0)
        data = reviews(tmp_path, 120)
        data.attack = LLMBkd(Shouted(), selector=str(tmp_path / "selector.ckpt"))
        data.poisoned_splits()
        drawn.append(float(torch.rand(1)))
    assert drawn[0] == drawn[1]
