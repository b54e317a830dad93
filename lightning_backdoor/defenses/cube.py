"""CUBE (arXiv 2206.08514): removes the training rows outside of the largest cluster of their label.

The victim's hidden states of all training rows, poisoned ones among them, are reduced to two dimensions and clustered
by density. Poisoned rows share a label with clean rows, but lie apart from them: of each label, the largest cluster is
kept.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_backdoor.defenses.row_states import StateFilter
from lightning_backdoor.errors import InputError

#: the label of rows in no cluster, as HDBSCAN gives it.
NOISE = -1
#: HDBSCAN's minimum of rows per cluster; published: the default of its library.
MIN_CLUSTER_SIZE = 5
#: published: ``min_samples`` 100, on data sets of which SST-2 with 6,920 rows is the smallest but one.
MIN_SAMPLES, PUBLISHED_ROWS = 100, 6920
#: digits after the point of the coordinates that are clustered, so that rounding errors do not decide.
DIGITS = 7


def has_umap() -> bool:
    """Whether the package ``umap-learn`` is installed."""
    try:
        return bool(version("umap-learn"))
    except PackageNotFoundError:
        return False


def principal_components(states: Tensor, count: int) -> np.ndarray:
    """The first principal components of each row; (rows, count), float32. Their signs are arbitrary, but fixed."""
    from sklearn.decomposition import PCA

    coordinates: np.ndarray = PCA(count, svd_solver="full").fit_transform(states.numpy())
    return coordinates


def umap_coordinates(states: Tensor, seed: int) -> np.ndarray:
    """PCA to 20 dimensions, then UMAP to two with the published settings; (rows, 2), float32."""
    umap = import_module("umap")
    rows, size = states.shape
    components = principal_components(states, min(20, rows, size))
    # UMAP itself would lower the number of neighbors, with a warning
    reducer = umap.UMAP(n_neighbors=min(100, rows - 1), min_dist=0.0, n_components=2, random_state=seed)
    coordinates: np.ndarray = reducer.fit_transform(components)
    return coordinates


def density_clusters(coordinates: np.ndarray, min_samples: int) -> Tensor:
    """The cluster of each row by HDBSCAN; (rows,), int64, ``NOISE`` for rows in no cluster.

    Args:
        coordinates: (rows, dimensions).
        min_samples: number of neighbors whose distance is the density of a row; fewer than rows.
    """
    from sklearn.cluster import HDBSCAN

    # scikit-learn counts the row itself
    model = HDBSCAN(min_cluster_size=MIN_CLUSTER_SIZE, min_samples=min_samples + 1, copy=True)
    return torch.from_numpy(model.fit_predict(np.round(coordinates.astype(np.float64), DIGITS))).long()


def outside_of_largest(clusters: Tensor, labels: Tensor, drop_noise: bool = False) -> Tensor:
    """Marks the rows outside of the largest cluster of their label; (rows,), bool.

    Noise is not a cluster. Of a label whose rows are all noise, none is marked.

    Args:
        clusters: (rows,), int64, cluster of each row, ``NOISE`` for none.
        labels: (rows,), int64.
        drop_noise: whether rows in no cluster are marked too.

    >>> outside_of_largest(torch.tensor([0, 0, 1, -1, -1, -1, -1]), torch.tensor([0, 0, 0, 0, 0, 0, 1]))
    tensor([False, False,  True, False, False, False, False])
    """
    outside = torch.zeros_like(labels, dtype=torch.bool)
    for label in set(labels.tolist()):
        of_label = labels == label
        counts = torch.bincount(clusters[of_label & (clusters != NOISE)])
        if len(counts):
            outside |= of_label & (clusters != counts.argmax())
    return outside if drop_noise else outside & (clusters != NOISE)


class Cube(StateFilter):
    """CUBE (arXiv 2206.08514): removes training rows outside of the largest cluster of their label.

    The hidden states from which the victim's head reads are reduced to two dimensions and clustered by HDBSCAN, all
    labels together; of each label, the rows in its largest cluster are kept. Published: PCA to 20 dimensions, then UMAP
    to 2 (100 neighbors, minimal distance 0), and HDBSCAN with ``min_samples`` 100 and clusters of at least 5 rows.

    OpenBackdoor's program reads the output of BERT's pooler, which other models do not have, of a separate RoBERTa that
    it trains on the poisoned rows. It treats rows in no cluster as one more cluster, which is kept if it is the largest
    and removed otherwise, and with it many clean rows; and it keeps a further cluster of half of the label's rows. Its
    ``min_samples`` is 100 for any number of rows: on a few hundred rows only huge clusters are found.

    Args:
        reduction: ``umap``, which needs ``pip install 'lightning-backdoor[umap]'``; ``pca``, to two principal
            components; or ``auto``: ``umap`` where it is installed. With ``pca``, clusters are less separate.
        min_samples: ``min_samples`` of HDBSCAN: the higher, the more rows are in no cluster; None: 100 per 6,920 rows,
            the size of SST-2, between 5 and 100.
        drop_noise: whether rows in no cluster are removed too, as in OpenBackdoor.
        seed: seed of UMAP; published: 42.

    Raises:
        InputError: ``reduction`` or ``min_samples`` cannot be used (here); there is no victim, or there are too few
            rows (in ``clean``).

    Example::

        data = BackdoorDataModule(source, data_defense=Cube(), victim="undefended.ckpt")
    """

    fewest_rows = MIN_CLUSTER_SIZE

    def __init__(
        self,
        reduction: Literal["auto", "umap", "pca"] = "auto",
        min_samples: int | None = None,
        drop_noise: bool = False,
        seed: int = 42,
    ) -> None:
        if reduction not in ("auto", "umap", "pca"):
            raise InputError("reduction", f"{reduction!r} is none of auto, umap and pca", "give one of them")
        if reduction == "umap" and not has_umap():
            problem = "'umap' needs the package umap-learn, which is not installed"
            raise InputError("reduction", problem, "run pip install 'lightning-backdoor[umap]', or give pca")
        if min_samples is not None and min_samples < 1:
            raise InputError("min_samples", f"{min_samples} is not a number of neighbors", "give at least 1")
        self.reduction = reduction
        self.min_samples = min_samples
        self.drop_noise = drop_noise
        self.seed = seed

    def suspicious(self, states: Tensor, labels: Tensor) -> Tensor:
        """Marks the rows outside of the largest cluster of their label.

        Raises:
            InputError: there are not more rows than ``min_samples``.
        """
        by_umap = self.reduction != "pca" and has_umap()
        min_samples = self.min_samples or min(MIN_SAMPLES, max(5, round(len(states) * MIN_SAMPLES / PUBLISHED_ROWS)))
        if min_samples >= len(states):
            raise InputError("min_samples", f"{min_samples} is not below the {len(states)} rows", "lower it")
        coordinates = umap_coordinates(states, self.seed) if by_umap else principal_components(states, 2)
        clusters = density_clusters(coordinates, min_samples)
        reduced = "UMAP" if by_umap else "PCA" if self.reduction == "pca" else "PCA, since umap-learn is not installed"
        found, noise = int(clusters.max()) + 1, int((clusters == NOISE).sum())
        rank_zero_info(f"CUBE: {found} clusters of states reduced by {reduced}; {noise} rows in no cluster")
        return outside_of_largest(clusters, labels, self.drop_noise)
