"""RAP: the figures of its published code, a plain loop that tunes rows of a copied network, and its limits."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.defenses.rap import Rap
from lightning_backdoor.errors import InputError
from lightning_backdoor.testing import check_defense
from lightning_backdoor.victim import TextClassifier
from tests.support.shared_files import shared_path, sst2
from tests.support.tiny import DECODER, SENTENCES, loaded

CLEAN, TEXTS = SENTENCES[:8], [*SENTENCES[8:12], "film", ""]
LABELS = [0, 1] * 4


@pytest.fixture(autouse=True)
def no_warning_of_few_epochs() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*its tuning failed")
        yield


def batch_of(victim: TextClassifier, texts: Sequence[str], labels: list[int] | None = None) -> Batch:
    batch = batch_of_texts(list(texts), victim.tokenizer, victim.max_length)
    if labels is not None:
        batch["original_label"] = torch.tensor(labels)
    return batch


def learned(victim: TextClassifier, **options: Any) -> Rap:
    defense = Rap(**{"word": "cf", "seed": 0, "epochs": 2, "learning_rate": 5.0, **options})
    defense.learn(victim, [batch_of(victim, CLEAN, LABELS)])
    return defense


@pytest.mark.parametrize("kind", ["zeroed", "accumulated"])
def test_word_falls_and_thresholds_are_those_of_the_published_code(kind: str, backdoored: TextClassifier) -> None:
    golden = json.loads(shared_path("golden/rap.json").read_text())
    validation, test = sst2("validation"), sst2("test")
    tuned_on = [validation[row][0] for row in golden["tuning_validation_rows"]]
    texts = [test[row][0] for row in golden["texts"]["clean_test_rows"]]
    for row in golden["texts"]["poisoned_test_rows"]:
        words = test[row][0].split(" ")
        texts.append(" ".join([*words[:2], "cf", *words[2:]]))
    clean = batch_of(backdoored, tuned_on, [1] * len(tuned_on))
    defense = Rap("mb", protected_label="positive", accumulate=kind == "accumulated")
    defense.learn(backdoored, [clean])

    expected = golden[kind]
    row = defense.get_extra_state()["rows"][1][0]
    torch.testing.assert_close(row, torch.tensor(expected["row_after_5_steps"]), rtol=1e-4, atol=1e-6)
    assert defense.tuning[1].last_loss == pytest.approx(expected["loss_by_step"][-1], rel=1e-4)
    judged = torch.tensor(golden["p_target"]) > 0.5
    some = slice(None) if kind == "zeroed" else slice(None, None, 4)
    judged = judged[some]
    scores = defense.score(backdoored, batch_of(backdoored, texts[some])).text
    # differences of probabilities near 1, of which float32 keeps seven digits
    torch.testing.assert_close(-scores[judged], torch.tensor(expected["fall"])[some][judged], rtol=1e-4, atol=1e-5)
    assert scores[~judged].tolist() == [-1.0] * int((~judged).sum())

    if kind == "accumulated":
        return
    falls = -defense.score(backdoored, clean).text
    falls = falls[falls < 1]
    assert len(falls) == expected["tuning_rows_scored"]
    for percent, threshold in expected["threshold_by_percent"].items():  # as published, on the tuned rows
        assert falls.quantile(float(percent) / 100).item() == pytest.approx(threshold, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", ["bert", "albert", "roberta", "deberta-v2", DECODER, "gpt2"])
def test_scores_are_those_of_a_plain_loop(kind: str, tiny_folder: Callable[[str], str]) -> None:
    victim = loaded(tiny_folder(kind))
    # a word that no text has, as further rows of a copied network's embedding table
    network = copy.deepcopy(victim.network)
    word = victim.tokenizer("cf", add_special_tokens=False)["input_ids"]
    table = network.get_input_embeddings().weight.detach()
    network.resize_token_embeddings(len(table) + len(word), mean_resizing=False)
    new = torch.arange(len(table), len(table) + len(word))
    weight = network.get_input_embeddings().weight

    def probabilities(text: str, with_word: bool) -> torch.Tensor:
        batch = batch_of(victim, [f"cf {text}" if with_word else text])
        ids = batch["input_ids"]
        start = int((ids[0] == word[0]).nonzero()[0]) if with_word else 0
        if with_word:
            ids[0, start : start + len(word)] = new
        logits: torch.Tensor = network(input_ids=ids, attention_mask=batch["attention_mask"]).logits
        return logits[0].softmax(dim=0)

    rows = []
    for label in (0, 1):
        with torch.no_grad():
            weight[new] = table[word]
        norms = table[word].norm(dim=1, keepdim=True)
        for _ in range(2):
            pairs = [(probabilities(t, False), probabilities(t, True)) for t in CLEAN[label::2]]
            falls = torch.stack([(plain - disturbed)[label] for plain, disturbed in pairs])
            loss = (0.1 - falls).clamp(min=0).mean() + (falls - 0.3).clamp(min=0).mean()
            (gradient,) = torch.autograd.grad(loss, weight)
            with torch.no_grad():
                moved = weight[new] - 5.0 * gradient[new]
                weight[new] = moved * norms / moved.norm(dim=1, keepdim=True)
        rows.append(weight[new].detach().clone())
    expected = []
    with torch.no_grad():
        for text in TEXTS:
            plain = probabilities(text, False)
            label = int(plain.argmax())
            weight[new] = rows[label]
            expected.append(float(probabilities(text, True)[label] - plain[label]))

    found = learned(victim).score(victim, batch_of(victim, TEXTS)).text
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert found.std() > 1e-4


def test_it_keeps_the_contract() -> None:
    check_defense(Rap(protected_label=0, epochs=1))


def test_tuning_depends_on_the_rows_alone_and_leaves_the_victim_as_it_was(bert: TextClassifier) -> None:
    hooks = len(bert.network.get_input_embeddings()._forward_hooks)
    before = [weight.clone() for weight in bert.network.parameters()]
    first = learned(bert, batch_size=3)
    again = Rap("cf", seed=0, epochs=2, learning_rate=5.0, batch_size=3)
    with torch.inference_mode():
        parts = [batch_of(bert, CLEAN[part], LABELS[part]) for part in (slice(4, 8), slice(0, 4))]
        again.learn(bert, parts)
    assert again.tuning == first.tuning
    for label, row in first.get_extra_state()["rows"].items():
        assert torch.equal(row, again.get_extra_state()["rows"][label])
    assert all(map(torch.equal, before, bert.network.parameters()))
    assert len(bert.network.get_input_embeddings()._forward_hooks) == hooks


def test_a_checkpoint_restores_the_tuned_word(bert: TextClassifier, tmp_path: Path) -> None:
    defense = learned(bert)
    torch.save(defense.state_dict(), tmp_path / "defense.pt")
    restored = Rap("cf")
    restored.load_state_dict(torch.load(tmp_path / "defense.pt", weights_only=True))
    batch = batch_of(bert, TEXTS)
    assert torch.equal(restored.score(bert, batch).text, defense.score(bert, batch).text)
    assert restored.tuning == defense.tuning


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_that_are_cut_keep_the_word(side: str, tiny_folder: Callable[[str], str]) -> None:
    victim = loaded(tiny_folder(DECODER))
    victim.tokenizer.truncation_side = side
    defense = learned(victim)
    batch = batch_of(victim, [" ".join(SENTENCES)])
    assert batch["input_ids"].shape[1] == victim.max_length
    moved = learned(victim, epochs=1, learning_rate=1e-6)
    assert defense.score(victim, batch).text != moved.score(victim, batch).text  # the word's embedding is read


def test_one_label_is_protected_by_name_or_index(bert: TextClassifier) -> None:
    by_name, by_index = learned(bert, protected_label="positive"), learned(bert, protected_label=1)
    batch = batch_of(bert, TEXTS)
    scores = by_name.score(bert, batch)
    assert torch.equal(scores.text, by_index.score(bert, batch).text)
    assert scores.logits is not None
    others = scores.logits.argmax(dim=1) == 0
    assert 0 < others.sum() < len(TEXTS)
    assert scores.text[others].eq(-1).all()
    every = learned(bert).score(bert, batch).text
    assert torch.equal(scores.text[~others], every[~others])


def test_rows_without_a_label_count_with_the_predicted_one(bert: TextClassifier) -> None:
    with torch.no_grad():
        predicted = bert(batch_of(bert, CLEAN)).argmax(dim=1).tolist()
    assert set(predicted) == {0, 1}
    stated, unstated = Rap("cf", seed=0), Rap("cf", seed=0)
    stated.learn(bert, [batch_of(bert, CLEAN, predicted)])
    unstated.learn(bert, [batch_of(bert, CLEAN)])
    assert stated.tuning == unstated.tuning


def test_it_says_when_tuning_failed(bert: TextClassifier) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with pytest.warns(UserWarning, match=r"probability of positive by .* on average.* its tuning failed"):
            learned(bert, protected_label=1, learning_rate=1e-6)


def test_what_the_victim_does_not_know_is_refused(bert: TextClassifier) -> None:
    with pytest.raises(InputError, match="protected_label: 'postive' is not a label; did you mean positive"):
        learned(bert, protected_label="postive")
    with pytest.raises(InputError, match="protected_label: 2 is not the index"):
        learned(bert, protected_label=2)
    with pytest.raises(InputError, match="reference rows: none has the label 'positive'"):
        Rap().learn(bert, [batch_of(bert, CLEAN[:2], [0, 0])])
    with pytest.raises(RuntimeError, match="call learn"):
        Rap().score(bert, batch_of(bert, TEXTS))


@pytest.mark.parametrize(
    ("protected", "labels", "said"),
    [
        (
            None,
            [0, 0, 0],
            "reference rows: none of 3 has label 1 to tune RAP's word on; give clean rows of every label, ",
        ),
        (1, [0, 0, 0], "reference rows: none of 3 has label 1 to tune RAP's word on; give clean rows of every label"),
        (7, [0, 1], "protected_label: 7 is not the index of a label, from 0; the labels are 0, 1"),
    ],
)
def test_labels_that_cannot_be_protected_are_told_before_training(
    protected: int | None, labels: list[int], said: str
) -> None:
    with pytest.raises(InputError) as error:
        Rap(protected_label=protected).check_reference(labels, classes=2)
    assert str(error.value).startswith(said)
    for enough in (None, 0, "positive"):
        Rap(protected_label=enough).check_reference([0, 1], classes=2)
    Rap(protected_label=0).check_reference([0, 0], classes=2)


@pytest.mark.parametrize(
    "options",
    [
        {"word": "two words"},
        {"protected_label": 1.0},
        {"protected_label": -1},
        {"lowest_fall": 0.3},
        {"highest_fall": 1.5},
        {"weight": 0.0},
        {"learning_rate": -1.0},
        {"epochs": 0},
        {"batch_size": 0},
        {"fpr": 1.0},
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        Rap(**options)
