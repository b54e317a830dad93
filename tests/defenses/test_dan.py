"""DAN: the figures of its published program, and what its scores depend on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.defenses import Dan
from lightning_backdoor.errors import InputError
from lightning_backdoor.testing import check_defense
from lightning_backdoor.victim import TextClassifier
from tests.defenses.conftest import GoldenStates
from tests.support.shared_files import shared_path
from tests.support.tiny import DECODER, SENTENCES, loaded


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(shared_path("golden/dan.json").read_text())
    return content


@pytest.mark.parametrize(("name", "token"), [("cls", "readout"), ("avg", "mean")])
def test_figures_are_those_of_the_published_program(
    name: str, token: Any, golden: dict[str, Any], golden_states: GoldenStates
) -> None:
    held_out = golden["normalising_validation_rows"]
    fitted = sorted(set(range(200)) - set(held_out))
    reference = golden_states.reference[token]
    expected = golden[name]
    for layers, published in (("mean", "score_mean"), ("max", "score_min")):
        defense = Dan(layers=layers, token=token)  # type: ignore[arg-type]
        learned = defense.fit_states(reference[:, fitted], golden_states.labels[fitted], reference[:, held_out])
        for key, value in learned.items():
            setattr(defense, key, value)
        moments = torch.stack([defense.mean, defense.std], dim=1)
        assert moments.flatten().tolist() == close(flat(expected["normalising_mean_std_by_layer"]))
        scored = golden_states.scored[token]
        assert defense.distances(scored).mT.flatten().tolist() == close(flat(expected["distances_by_text_and_layer"]))
        scores = defense.score_states(scored)
        assert (-scores).tolist() == close(expected[published], absolute=1e-3)
        if layers == "mean":
            of_held_out = defense.score_states(reference[:, held_out])
            assert (-of_held_out).tolist() == close(expected["score_mean_of_normalising_rows"], absolute=1e-3)
        auroc = (scores[20:, None] > scores[None, :20]).double().mean()
        assert auroc.item() == pytest.approx(expected[f"auroc_{published.removeprefix('score_')}"])


def close(expected: list[float], absolute: float = 0.0) -> Any:
    """Within the digits on which two computations of the published figures agree."""
    return pytest.approx(expected, rel=1e-4, abs=absolute)


def flat(rows: list[list[float]]) -> list[float]:
    return [value for row in rows for value in row]


def labelled(victim: TextClassifier, texts: list[str], labels: list[int] | None = None) -> Batch:
    batch = batch_of_texts(texts, victim.tokenizer, victim.max_length)
    batch["label"] = torch.tensor(labels or [i % 2 for i in range(len(texts))])
    return batch
