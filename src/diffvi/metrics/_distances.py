"""Distances between two sets of points, such as cells in PCA space."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    r"""Energy distance :math:`2E|X-Y| - E|X-X'| - E|Y-Y'|`, unbiased; 0 is best (Székely and Rizzo 2013)."""
    n, m = len(x), len(y)
    return float(2 * cdist(x, y).mean() - cdist(x, x).sum() / (n * (n - 1)) - cdist(y, y).sum() / (m * (m - 1)))


def mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Squared maximum mean discrepancy, unbiased, with a sum of Gaussian kernels; 0 is best (Gretton et al. 2012).

    The bandwidths are 0.5, 1 and 2 times the median distance between points of ``x``.
    """
    xx, yy, xy = cdist(x, x, "sqeuclidean"), cdist(y, y, "sqeuclidean"), cdist(x, y, "sqeuclidean")
    median = np.median(xx[np.triu_indices(len(x), 1)])
    total = 0.0
    for factor in (0.25, 1.0, 4.0):
        kxx, kyy, kxy = (np.exp(-d / (2 * factor * median)) for d in (xx, yy, xy))
        n, m = len(x), len(y)
        total += (kxx.sum() - n) / (n * (n - 1)) + (kyy.sum() - m) / (m * (m - 1)) - 2 * kxy.mean()
    return float(total)


def wasserstein(x: np.ndarray, y: np.ndarray, p: int = 2, max_points: int = 2000, seed: int = 0) -> float:
    """Exact p-Wasserstein distance between two samples of equal size; 0 is best.

    Both are cut to the same number of points, at most ``max_points``, at random; its expectation is not
    zero between two halves of the same data, so read it beside its floor.
    """
    rng = np.random.default_rng(seed)
    n = min(len(x), len(y), max_points)
    cost = cdist(x[rng.permutation(len(x))[:n]], y[rng.permutation(len(y))[:n]]) ** p
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].mean() ** (1 / p))


def precision_recall_coverage(real: np.ndarray, generated: np.ndarray, k: int = 5) -> tuple[float, float, float]:
    """Precision, recall (Kynkäänniemi et al. 2019) and coverage (Naeem et al. 2020), each in [0, 1].

    With balls that reach to the ``k``-th neighbour: the share of generated cells inside a ball of a real
    cell; of real cells inside a ball of a generated cell; of real cells whose ball holds a generated cell.
    The best value is the one that other real cells reach.
    """

    def radii(points: np.ndarray) -> np.ndarray:
        return NearestNeighbors(n_neighbors=min(k, len(points) - 1) + 1).fit(points).kneighbors(points)[0][:, -1]

    d = cdist(real, generated)
    real_radii, generated_radii = radii(real), radii(generated)
    precision = (d <= real_radii[:, None]).any(0).mean()
    recall = (d <= generated_radii[None]).any(1).mean()
    coverage = (d.min(1) <= real_radii).mean()
    return float(precision), float(recall), float(coverage)


def memorisation_ratio(train: np.ndarray, held_out: np.ndarray, generated: np.ndarray) -> float:
    """Median distance to the nearest training cell: that of generated over that of held-out cells.

    About 1 for new cells; far below 1 for copies of the training cells.
    """
    nearest = NearestNeighbors(n_neighbors=1).fit(train)
    a, b = (np.median(nearest.kneighbors(points)[0]) for points in (generated, held_out))
    return float(a / max(b, 1e-12))
