"""``victim.predict``: names and probabilities of labels, in the order of the texts, without a trainer."""

from __future__ import annotations

from pathlib import Path

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
    with pytest.raises(lb.InputError, match="texts: a int is not a text"):
        victim.predict([3])  # type: ignore[list-item]
    with pytest.raises(lb.InputError, match="batch_size: 0 holds no text"):
        victim.predict("a film", batch_size=0)
