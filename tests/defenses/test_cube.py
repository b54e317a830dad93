"""CUBE: the published code's steps on a real victim, what it removes, and bad input."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_backdoor.batch import pad, token_ids
from lightning_backdoor.data.cleaning import LabelledText, TrustedRows
from lightning_backdoor.defenses import cube
from lightning_backdoor.defenses.cube import NOISE, Cube, density_clusters, outside_of_largest, principal_components
from lightning_backdoor.defenses.row_states import row_states
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import TextClassifier
from tests.support.poisoned_rows import poisoned_rows
from tests.support.shared_files import shared_path
from tests.support.tiny import DECODER, SENTENCES, loaded


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(shared_path("golden/cube.json").read_text())
    return content


def same_partition(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two clusterings find the same noise and divide the other rows alike, whatever the clusters' names."""
    pairs = set(zip(one, other, strict=True))
    same_noise = all((first == NOISE) == (second == NOISE) for first, second in pairs)
    return same_noise and len(pairs) == len(set(one)) == len(set(other))


@pytest.mark.parametrize("features", ["pca2", "umap"])
@pytest.mark.parametrize("min_samples", [100, 20, 10])
def test_clusters_and_removed_rows_are_those_of_the_published_code(
    golden: dict[str, Any], features: str, min_samples: int
) -> None:
    of_features = golden["features"][features]
    expected = of_features["min_samples"][str(min_samples)]
    clusters = density_clusters(np.array(of_features["coordinates"]), min_samples)
    assert same_partition(clusters.tolist(), [int(name) for name in expected["labels_generic"].split()])
    labels = torch.tensor([int(label) for label in golden["labels_given"]])
    published = torch.tensor([int(name) for name in expected["labels"].split()])
    assert outside_of_largest(published, labels, drop_noise=True).nonzero().flatten().tolist() == expected["dropped"]


def test_features_reduced_by_pca_are_those_of_the_published_code(
    golden: dict[str, Any], backdoored: TextClassifier
) -> None:
    """The program reads the pooler's output, which is a function of the hidden state that this library reads."""
    rows = poisoned_rows(golden)
    assert "".join(str(row.label) for row in rows) == golden["labels_given"]
    states = row_states(backdoored, [row.text for row in rows])
    pooler = backdoored.network.base_model.pooler
    assert isinstance(pooler, torch.nn.Module)
    with torch.no_grad():
        found = principal_components(pooler(states[:, None]), 2)
    expected = np.array(golden["features"]["pca2"]["coordinates"])
    signs = np.sign((found * expected).sum(axis=0))
    differences, lengths = (np.linalg.norm(points, axis=1) for points in (found * signs - expected, expected))
    assert (differences <= 1e-4 * lengths).all()


@pytest.mark.parametrize("kind", ["bert", DECODER])
def test_states_are_those_that_the_head_reads(kind: str, tiny_folder: Callable[[str], str]) -> None:
    victim = loaded(tiny_folder(kind))
    texts = [*SENTENCES, "", SENTENCES[0]]
    for text, state in zip(texts, row_states(victim, texts), strict=True):
        ids, mask = pad(token_ids([text], victim.tokenizer, victim.max_length), victim.tokenizer)
        with torch.no_grad():
            output = victim.network(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        expected = output.hidden_states[-1][0, -1 if kind == DECODER else 0]
        assert state.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def blobs(sizes: Sequence[int]) -> Tensor:
    """Points around a distant centre per size, in this order."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(sum(sizes), 8, generator=rng)
    return noise + torch.cat([torch.eye(8)[i].mul(100).expand(size, 8) for i, size in enumerate(sizes)])


@pytest.mark.parametrize("reduction", ["auto", "pca", "umap"])
def test_rows_apart_from_their_label_go(reduction: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Label 0 has 60 rows; label 1 has 50 rows and 20 that lie apart."""
    if reduction == "umap":
        asked: list[dict[str, Any]] = []

        class Reducer:
            def __init__(self, **settings: Any) -> None:
                asked.append(settings)

            def fit_transform(self, components: np.ndarray) -> np.ndarray:
                assert components.shape == (130, 8)
                return components[:, :2]

        monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Reducer))
        monkeypatch.setattr(cube, "has_umap", lambda: True)
    labels = torch.tensor([0] * 60 + [1] * 70)
    marks = Cube(reduction).suspicious(blobs([60, 50, 20]), labels)
    assert marks.tolist() == [False] * 110 + [True] * 20
    if reduction == "umap":
        assert asked == [{"n_neighbors": 100, "min_dist": 0.0, "n_components": 2, "random_state": 42}]


def test_noise_stays_unless_it_is_dropped_and_a_label_of_noise_stays() -> None:
    clusters = torch.tensor([0, 0, 1, -1, -1, -1, -1, -1])
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    assert outside_of_largest(clusters, labels).nonzero().flatten().tolist() == [2]
    assert outside_of_largest(clusters, labels, drop_noise=True).tolist() == [False] * 2 + [True] * 4 + [False] * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reduction": "tsne"}, r"^reduction: 'tsne' is none of auto, umap and pca; give one of them$"),
        ({"reduction": "umap"}, r"^reduction: 'umap' needs the package umap-learn, which is not .*; run pip install"),
        ({"min_samples": 0}, r"^min_samples: 0 is not a number of neighbors; give at least 1$"),
    ],
)
def test_arguments_are_checked(settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cube, "has_umap", lambda: False)
    with pytest.raises(InputError, match=message):
        Cube(**settings)


@pytest.mark.parametrize(
    ("counts", "settings", "message"),
    [
        ((8, 4), {}, r"^data_defense: Cube needs at least 5 training rows per label, label 1 has 4; give more rows"),
        ((5, 5), {"min_samples": 10}, r"^min_samples: 10 is not below the 10 rows; lower it$"),
        ((0, 0), {}, r"^data_defense: Cube has no training rows; give rows$"),
    ],
)
def test_too_few_rows_are_refused(
    counts: tuple[int, int], settings: dict[str, Any], message: str, bert: TextClassifier
) -> None:
    rows = [LabelledText(f"film {i}", label) for label, count in enumerate(counts) for i in range(count)]
    with pytest.raises(InputError, match=message):
        Cube(**settings).clean(rows, TrustedRows([], []), bert)
    with pytest.raises(InputError, match=r"^data.victim: Cube needs a victim trained on the same rows; give one$"):
        Cube(**settings).clean(rows, TrustedRows([], []), None)
