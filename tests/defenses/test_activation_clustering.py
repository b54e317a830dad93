"""Activation clustering: clusters against independent components, when a cluster goes, and bad input."""

from __future__ import annotations

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import FastICA
from torch import Tensor

from lightning_backdoor.data.cleaning import LabelledText, TrustedRows
from lightning_backdoor.defenses.activation_clustering import ActivationClustering, two_clusters
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import TextClassifier


def states(clean: int, poisoned: int, distance: float, seed: int = 0) -> Tensor:
    """States of a label, of which the last rows are poisoned and lie apart."""
    drawn = torch.randn(clean + poisoned, 6, generator=torch.Generator().manual_seed(seed))
    drawn[clean:] += torch.tensor([distance, 0, 0, 0, 0, 0])
    return drawn


def test_clusters_are_those_of_independent_components() -> None:
    """k-means depends on distances alone, which are the same in independent and in whitened principal components."""
    drawn = states(60, 20, 5.0).exp()  # not Gaussian, so that there are independent components
    sources = FastICA(3, whiten="unit-variance", random_state=0, max_iter=1000).fit_transform(drawn.numpy())
    expected = KMeans(2, n_init=10, random_state=0).fit_predict(sources).tolist()
    smaller = two_clusters(drawn, 3, seed=0)[0].long().tolist()
    assert smaller in (expected, [1 - cluster for cluster in expected])
    assert sum(smaller) <= 40


@pytest.mark.parametrize(
    ("poisoned", "distance", "settings", "goes"),
    [
        (20, 12.0, {"components": 1}, True),
        (15, 12.0, {"components": 1, "max_share": 0.2}, True),  # 15 of 75
        (20, 12.0, {"components": 1, "max_share": 0.1}, False),  # the cluster is not small
        (20, 12.0, {"components": 1, "min_silhouette": 0.95}, False),  # the clusters are not separate
        (0, 0.0, {"min_silhouette": -1}, False),  # clean rows are divided about in halves
    ],
)
def test_a_small_separate_cluster_goes(poisoned: int, distance: float, settings: dict[str, float], goes: bool) -> None:
    of_labels = [states(60, 0, 0.0, seed=1), states(60, poisoned, distance)]
    labels = torch.tensor([0] * 60 + [1] * (60 + poisoned))
    defense = ActivationClustering(**{"max_share": 0.3, **settings})  # type: ignore[arg-type]
    marks = defense.suspicious(torch.cat(of_labels), labels)
    assert marks[120:].all() == (goes or not poisoned)
    assert not marks[60:120].any()


@pytest.mark.parametrize("value", [1.0, 0.1])  # of which the mean is not the value itself in float32
def test_equal_states_are_one_cluster(value: float) -> None:
    assert not ActivationClustering().suspicious(torch.full((50, 8), value), torch.zeros(50, dtype=torch.long)).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"components": 0}, r"^components: 0 components leave nothing to cluster; give at least 1$"),
        (
            {"max_share": 0.6},
            r"^max_share: 0.6 is not a share of the smaller cluster; give a number above 0 and at most",
        ),
        ({"min_silhouette": 2}, r"^min_silhouette: 2 is not from -1 to 1; give 0.1$"),
    ],
)
def test_arguments_are_checked(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ActivationClustering(**settings)  # type: ignore[arg-type]


def test_too_few_rows_are_refused(bert: TextClassifier) -> None:
    rows = [LabelledText(text, int(text > "c")) for text in "abcde"]
    with pytest.raises(
        InputError, match=r"^data_defense: ActivationClustering needs at least 3 .*, label 1 has 2; give"
    ):
        ActivationClustering().clean(rows, TrustedRows([], []), bert)
