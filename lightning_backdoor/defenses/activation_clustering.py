"""Activation clustering (arXiv 1811.03728): removes the smaller of two clusters of a label's rows.

The victim reaches a label for different reasons in poisoned and in clean rows: where a label has poisoned rows, its
hidden states fall into two separate clusters, of which the poisoned one is the smaller.
"""

from __future__ import annotations

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_backdoor.defenses.row_states import StateFilter
from lightning_backdoor.errors import InputError


def two_clusters(states: Tensor, components: int, seed: int) -> tuple[Tensor, float]:
    """Divides the states of one label into two clusters by k-means on their independent components.

    The distances between rows, and so the clusters, are the same in independent components as in whitened principal
    components, of which the former are a rotation; only the latter are computed.

    Args:
        states: (rows, hidden size), at least 3 rows.
        components: number of components; fewer where rows or sizes are fewer.
        seed: seed of the first centres of k-means.

    Returns:
        Which rows are in the smaller cluster, (rows,), bool, and the silhouette score, from -1 to 1: how separate the
        clusters are. If all states are equal, no row is, and the score is 0.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import silhouette_score

    states = states.double()  # in float32, the mean of equal states would differ from them
    rank = int(torch.linalg.matrix_rank(states - states.mean(dim=0)))
    if rank == 0:
        return torch.zeros(len(states), dtype=torch.bool), 0.0
    whitened = PCA(min(components, rank), svd_solver="full", whiten=True).fit_transform(states.numpy())
    cluster = torch.from_numpy(KMeans(2, n_init=10, random_state=seed).fit_predict(whitened))
    smaller = cluster == int(2 * int(cluster.sum()) <= len(cluster))
    return smaller, float(silhouette_score(whitened, cluster.numpy()))


class ActivationClustering(StateFilter):
    """Activation clustering (arXiv 1811.03728): removes the smaller cluster of labels whose rows form two clusters.

    Per label, the hidden states from which the victim's head reads are reduced to 10 independent components and divided
    into two clusters by k-means. The smaller cluster is taken for poisoned if it is small (the paper's relative size:
    clean rows are divided about in halves) and the clusters are separate (the paper's silhouette score, which is low
    for clean rows: 0.10 to 0.15 divides them). The paper judges by either one, and its authors' program by size alone
    or by both; the third way of the paper, which trains a victim without each cluster, is not offered.

    Args:
        components: number of independent components.
        max_share: the largest share of a label's rows, above 0 and at most 0.5, that is taken for poisoned.
        min_silhouette: the lowest silhouette score at which a label is taken for poisoned; -1: size alone decides.
        seed: seed of k-means.

    Raises:
        InputError: a value is out of range (here); there is no victim, or a label has fewer than 3 rows (in ``clean``).

    Example::

        data = BackdoorDataModule(source, data_defense=ActivationClustering(), victim="undefended.ckpt")
    """

    fewest_rows = 3

    def __init__(
        self, components: int = 10, max_share: float = 0.35, min_silhouette: float = 0.1, seed: int = 0
    ) -> None:
        if components < 1:
            raise InputError("components", f"{components} components leave nothing to cluster", "give at least 1")
        if not 0 < max_share <= 0.5:
            problem = f"{max_share} is not a share of the smaller cluster"
            raise InputError("max_share", problem, "give a number above 0 and at most 0.5")
        if not -1 <= min_silhouette <= 1:
            raise InputError("min_silhouette", f"{min_silhouette} is not from -1 to 1", "give 0.1")
        self.components = components
        self.max_share = max_share
        self.min_silhouette = min_silhouette
        self.seed = seed

    def suspicious(self, states: Tensor, labels: Tensor) -> Tensor:
        """Marks the smaller cluster of each label whose clusters are separate and of unequal size."""
        marks = torch.zeros_like(labels, dtype=torch.bool)
        for label in sorted(set(labels.tolist())):
            rows = (labels == label).nonzero().flatten()
            smaller, silhouette = two_clusters(states[rows], self.components, self.seed)
            share = int(smaller.sum()) / len(smaller)  # a mean in float32 may be above the limit that it equals
            told = f"{share:.0%} of its rows in the smaller cluster, silhouette {silhouette:.2f}"
            rank_zero_info(f"activation clustering: label {label} has {told}")
            if 0 < share <= self.max_share and silhouette >= self.min_silhouette:
                marks[rows[smaller]] = True
        return marks
