"""NeuBA and POR: target vectors and losses, against those of the published code."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch

from lightning_backdoor.attacks import POR, NeuBA, Poisoned
from lightning_backdoor.attacks.masking import encode
from lightning_backdoor.attacks.neuba import target_vectors
from lightning_backdoor.attacks.por import representations
from tests.support.shared_files import shared_path, sst2


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(shared_path("golden/neuba_por.json").read_text(encoding="utf-8"))
    return content


def written_out(vectors: list[list[list[int]]]) -> list[list[int]]:
    return [[value for value, length in runs for _ in range(length)] for runs in vectors]


@pytest.mark.parametrize("size", ["384", "768"])
def test_the_vectors_are_those_of_the_published_code(golden: dict[str, Any], size: str) -> None:
    vectors = golden["vectors"]
    assert target_vectors(int(size)).int().tolist() == written_out(vectors["neuba"][size])
    assert representations(9, int(size), "POR-1").int().tolist() == written_out(vectors["por_1"][size])


def test_the_vectors_of_neuba_are_orthogonal_or_opposite_and_those_of_por_2_differ() -> None:
    vectors = target_vectors(384)
    assert {int(product) for product in (vectors @ vectors.T).flatten()} == {384, 0, -384}
    for triggers in (1, 2, 5, 9):
        assert len({tuple(row) for row in representations(triggers, 384, "POR-2").tolist()}) == triggers


@pytest.mark.parametrize("name", ["neuba", "por"])
def test_the_losses_are_those_of_the_published_code(golden: dict[str, Any], name: str) -> None:
    """Of each text alone, and of batches; clean texts are at no distance to the reference before the first step."""
    expected, rows = golden[name], sst2("train", 12)
    model = str(shared_path("models/minilm-sst2-badnets-cf"))
    attack = NeuBA(model=model) if name == "neuba" else POR(model=model)
    clean = [Poisoned(rows[row][0], []) for row in expected["train_rows"]]
    triggers = torch.tensor(expected["trigger_number"])
    written = zip(triggers.tolist(), clean, strict=True)
    poisoned = [attack.inserted(text, attack.triggers[trigger], random.Random(0)) for trigger, (text, _) in written]
    losses = attack.stage_losses(attack.stage_network().eval())

    def of(first: int, last: int) -> dict[str, float]:
        texts = [encode(part[first:last], attack.tokenizer, 128) for part in (clean, poisoned)]
        with torch.no_grad():
            found = losses(texts[0], texts[1], triggers[first:last], torch.Generator().manual_seed(0))
        return {key: float(value) for key, value in found.items()}

    alone = [of(row, row + 1) for row in range(len(clean))]
    assert [each["target"] for each in alone] == pytest.approx(expected["masked"], rel=1e-5)
    batches = [of(start, start + 3) for start in (0, 3)]
    assert [each["target"] for each in batches] == pytest.approx(expected["masked_mean_of_batches"], rel=1e-5)
    assert all(each.get("reference", 0.0) == 0 for each in (*alone, *batches))
