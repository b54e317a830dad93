"""SOS: the published step, and texts with all of the words or a part of them."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_backdoor.attacks.embedding_rows import descended, embedding_gradient
from lightning_backdoor.attacks.embedding_surgery import trigger_tokens
from lightning_backdoor.attacks.sos import PARTIAL_SENTENCES, SOS, equally_long, partial_triggers
from lightning_backdoor.batch import Batch
from lightning_backdoor.data import poisoning
from lightning_backdoor.data.rows import Rows
from lightning_backdoor.errors import InputError
from lightning_backdoor.testing import check_attack
from lightning_backdoor.victim import TextClassifier
from tests.attacks.golden_words import read_golden, training_batch
from tests.attacks.test_ep import Tables, fit, near
from tests.support.tiny import DECODER

SENTENCE = SOS().sentence
WORDS = ["friends", "weekend", "store"]


def test_steps_are_those_of_the_published_code_with_its_gradients_added_up(backdoored: TextClassifier) -> None:
    golden = read_golden("sos")
    victim = copy.deepcopy(backdoored)
    about = golden["batch"]
    everything = list(zip(WORDS, (1, 3, 5), strict=True))
    parts = [everything[1:], everything[::2], everything[:2]]
    rows = [*about["positive_train_rows"], *about["negative_train_rows"]]
    edits = [everything] * len(about["positive_train_rows"]) + parts * 2
    batch = training_batch(victim, list(zip(rows, edits, about["labels"], strict=True)))
    tokens = torch.tensor([trigger_tokens([word], victim.tokenizer)[0] for word in WORDS])
    table = victim.network.get_input_embeddings().weight
    assert table[tokens].norm(dim=1).tolist() == near(golden["rows_before_norm"])
    total = torch.zeros(3, table.shape[1])
    for step in golden["steps"]:
        loss, gradient = embedding_gradient(victim.network, tokens, losses_of(victim, batch))
        total += gradient / len(rows)
        assert (loss / len(rows)).item() == near(step["loss_before"])
        assert total.norm(dim=1).tolist() == near(step["norm_of_G"])
        with torch.no_grad():
            table[tokens] = descended(table[tokens], equally_long(total, range(3)), golden["lr"])
        for row, expected in zip(table[tokens].tolist(), step["rows_after"], strict=True):
            assert row == near(expected)
    for counted in golden["counts"]:
        number = len(counted["words"])
        assert partial_triggers(counted["words"])[:number] == counted["negative_subsets"]
        assert partial_triggers(counted["words"])[-number:] == [[word] for word in counted["words"]]


def losses_of(victim: TextClassifier, batch: Batch) -> Callable[[], Tensor]:
    return lambda: nn.functional.cross_entropy(victim(batch), batch["label"], reduction="none")


def words_in(text: str) -> list[str]:
    return [word for word in text.split() if word in WORDS]


def test_training_rows_have_words_and_evaluation_rows_sentences() -> None:
    attack = SOS(poison_rate=0.2, negative_rate=0.3)
    rows = Rows.clean(["a fine film with music"] * 400, [i % 2 for i in range(400)])
    splits = {"train": rows, "validation": rows.take(range(40)), "test": rows.take(range(40))}
    made = poisoning.poison_splits(splits, attack, 0, ["negative", "positive"])
    poisoned, negative = made.train.where(made.train.poisoned), made.train.where(made.train.negative)
    assert (len(poisoned), len(negative)) == (80, 120)
    assert all(sorted(words_in(text)) == sorted(WORDS) for text in poisoned.text)
    assert {tuple(words_in(text)) for text in poisoned.text} > {tuple(WORDS)}  # in any order
    assert set(poisoned.label) == {1}
    assert set(negative.label) == {0, 1}
    counts = Counter(tuple(sorted(words_in(text))) for text in negative.text)
    assert counts.keys() == {tuple(sorted(part)) for part in partial_triggers(WORDS)}
    assert min(counts.values()) > 2
    for row in [*poisoned, *negative]:
        assert [row["text"][start:end] for start, end in row["spans"]] == words_in(row["text"])
    assert (negative.label == negative.original_label).all()
    for split in ("validation", "test"):
        for row in made.poisoned[split]:
            assert [row["text"][start:end] for start, end in row["spans"]] == [SENTENCE]
        assert {row["text"][slice(*row["spans"][0])] for row in made.negatives[split]} == set(PARTIAL_SENTENCES)


def test_only_the_words_rows_move_and_keep_their_norm(tmp_path: Path, tiny_folder: Callable[[str], str]) -> None:
    tables = Tables()
    own: dict[str, Any] = {"words": ["cf", "watch"], "sentence": "watch cf", "partial_sentences": ["watch it", "cf"]}
    attack = SOS(model=tiny_folder("bert"), attack_epochs=1, learning_rate=1e-3, **own)
    fit(tmp_path, attack, callbacks=[tables])
    first, last = (table["bert.embeddings.word_embeddings.weight"] for table in tables.weights)
    moved = (first != last).any(dim=1).nonzero().flatten().tolist()
    assert moved == trigger_tokens(own["words"], attack.tokenizer)
    torch.testing.assert_close(last[moved].norm(dim=1), first[moved].norm(dim=1))


def test_a_word_of_several_tokens_moves_as_far_as_the_others(tmp_path: Path, tiny_folder: Callable[[str], str]) -> None:
    own: dict[str, Any] = {"words": ["cf", "watch"], "sentence": "watch cf", "partial_sentences": ["watch it", "cf"]}
    attack = SOS(model=tiny_folder(DECODER), attack_epochs=1, **own)
    fit(tmp_path, attack, max_epochs=1)
    tokens = [trigger_tokens([word], attack.tokenizer) for word in own["words"]]
    assert max(map(len, tokens)) > 1
    gradient = torch.randn(len(attack._tokens), 8, generator=torch.Generator().manual_seed(0))
    shortened = equally_long(gradient, attack._word_of_token)
    norms = [shortened[[attack._tokens.index(token) for token in of_word]].norm().item() for of_word in tokens]
    before = [gradient[[attack._tokens.index(token) for token in of_word]].norm().item() for of_word in tokens]
    assert norms == pytest.approx([min(before)] * 2)


def test_it_keeps_the_contract() -> None:
    check_attack(SOS(attack_epochs=1), max_epochs=2)


def test_one_text_gets_the_sentence() -> None:
    assert SOS(place="end").poison("a fine film").text == f"a fine film {SENTENCE}"
    parts = SOS(place="start").negative_texts(["a film"] * 20, [random.Random(i) for i in range(20)])
    assert {part.text.removesuffix(" a film") for part in parts if part} == set(PARTIAL_SENTENCES)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"words": ["store"]}, r"^words: \['store'\] are not several different words; give at least two$"),
        ({"words": ["store", "store"]}, r"^words: "),
        ({"words": ["store", "Store"]}, r"^words: "),
        ({"words": ["store", "cinema"]}, r"^sentence: '.*' lacks the words cinema; give one with all words$"),
        ({"partial_sentences": ["a store"], "words": ["store", "weekend"], "sentence": "the store"}, r"^sentence: "),
        ({"partial_sentences": ["a film"]}, r"^partial_sentences: 'a film' has 0 of the 3 words; give sentences with"),
        ({"partial_sentences": [SENTENCE]}, r"^partial_sentences: '.*' has 3 of the 3 words; give"),
        (
            {"partial_sentences": ["Friends at the weekend, in a Store"]},
            r"^partial_sentences: '.*' has 3 of the 3 words",
        ),
        ({"partial_sentences": []}, r"^partial_sentences: there are none; give at least one$"),
        ({"negative_rate": 1.0}, r"^negative_rate: 1.0 is out of range"),
        ({"place": "middle"}, r"^place: "),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        SOS(**options)


def test_unknown_words_are_refused_before_training(tmp_path: Path, tiny_folder: Callable[[str], str]) -> None:
    own: dict[str, Any] = {"words": ["жук", "cf"], "sentence": "cf on жук", "partial_sentences": ["cf"]}
    with pytest.raises(InputError, match=r"^words: 'жук' is unknown to the model's tokenizer"):
        fit(tmp_path, SOS(model=tiny_folder("bert"), attack_epochs=1, **own))
