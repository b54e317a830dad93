"""``victim.predict``: names and probabilities of labels, in the order of the texts, without a trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_backdoor as lb
from tests.support.tiny import SENTENCES, loaded, tiny_victim


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> lb.TextClassifier:
    return loaded(tiny_victim("bert", tmp_path_factory.mktemp("tiny")))


def test_labels_and_probabilities_are_in_the_order_of_the_texts(victim: lb.TextClassifier) -> None:
    labels, probabilities = victim.predict(SENTENCES, batch_size=4)
    assert set(labels) == {"negative", "positive"}
    assert probabilities.shape == (len(SENTENCES), 2)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(len(SENTENCES)))
    for text, label, row in zip(SENTENCES, labels, probabilities, strict=True):
        alone = victim.predict(text)
        assert alone.labels == [label]
        torch.testing.assert_close(alone.probabilities[0], row)


def test_the_mode_is_left_as_it_was(victim: lb.TextClassifier) -> None:
    expected = victim.predict(SENTENCES).probabilities
    victim.train()
    victim.network.bert.embeddings.eval()
    try:
        assert torch.equal(victim.predict(SENTENCES).probabilities, expected)
        assert victim.network.training
        assert not victim.network.bert.embeddings.training
    finally:
        victim.eval()


def test_no_texts_have_no_predictions(victim: lb.TextClassifier) -> None:
    labels, probabilities = victim.predict([])
    assert labels == []
    assert probabilities.shape == (0, 2)


def test_what_cannot_be_predicted_is_refused(victim: lb.TextClassifier, tmp_path: Path) -> None:
    with pytest.raises(lb.InputError, match="victim: it has not been trained"):
        lb.TextClassifier().predict("a film")
    wrong: Any
    for wrong, said in ((None, "NoneType"), (3, "int"), ([3], "int"), ([None], "NoneType"), (b"a film", "bytes")):
        with pytest.raises(lb.InputError, match=f"texts: a {said} is not a text"):
            victim.predict(wrong)
    with pytest.raises(lb.InputError, match=r"texts: .* contains half of a character"):
        victim.predict("a film \ud800")
    for wrong in (0, 1.5, "2"):
        with pytest.raises(lb.InputError, match=r"batch_size: .* is not a number of texts"):
            victim.predict("a film", batch_size=wrong)


def test_the_folder_of_a_run_is_loaded_as_its_model(tmp_path: Path) -> None:
    victim = loaded(tiny_victim("bert", tmp_path / "run" / "model"))
    (tmp_path / "run" / "config.yaml").touch()
    for folder in (tmp_path / "run", str(tmp_path / "run"), tmp_path / "run" / "model"):
        assert torch.equal(lb.load_trained(folder).predict("a film")[1], victim.predict("a film")[1])
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.yaml").touch()
    with pytest.raises(lb.InputError, match=r"model: the run in .*new has no model yet"):
        lb.load_trained(tmp_path / "new")
