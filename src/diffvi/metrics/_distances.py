"""Distances between two sets of points, such as cells in PCA space."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from diffvi._exceptions import finite_number, positive_int

from ._checks import check_matrices


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    r"""Energy distance :math:`2E|X-Y| - E|X-X'| - E|Y-Y'|`, unbiased; 0 is best (Székely and Rizzo 2013).

    Parameters
    ----------
    x, y
        Two samples of points, ``(n, d)`` and ``(m, d)``, of at least two points each.

    Returns
    -------
    The distance, in the unit of the points. Unbiased means that it is 0 on average, and as often below as above,
    where the two samples come from the same distribution.

    Raises
    ------
    InvalidInputError
        If a sample is empty, or the two differ in dimensions.

    Examples
    --------
    Two samples of one population are near 0, a shifted one is not:

    >>> import diffvi
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 200, 3))
    >>> round(diffvi.metrics.energy_distance(x, y), 2), round(diffvi.metrics.energy_distance(x, y + 1), 2)
    (0.01, 1.03)
    """
    check_matrices(x=x, y=y)
    n, m = len(x), len(y)
    return float(2 * cdist(x, y).mean() - cdist(x, x).sum() / (n * (n - 1)) - cdist(y, y).sum() / (m * (m - 1)))


def mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Squared maximum mean discrepancy, unbiased, with a sum of Gaussian kernels; 0 is best (Gretton et al. 2012).

    The bandwidths are 0.5, 1 and 2 times the median distance between points of ``x``, so that the result does not
    depend on the unit of the points.

    Parameters
    ----------
    x, y
        Two samples of points, ``(n, d)`` and ``(m, d)``, of at least two points each; ``x`` sets the bandwidths.

    Returns
    -------
    The sum over the three kernels, at most 6. As it is unbiased, it is 0 on average, and as often below as above,
    where the two samples come from the same distribution. NaN where more than half of the distances in ``x`` are 0.

    Raises
    ------
    InvalidInputError
        If a sample is empty, or the two differ in dimensions.

    Examples
    --------
    >>> import diffvi
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 200, 3))
    >>> round(diffvi.metrics.mmd(x, y), 2), round(diffvi.metrics.mmd(x, y + 1), 2)
    (0.0, 0.52)
    """
    check_matrices(x=x, y=y)
    xx, yy, xy = cdist(x, x, "sqeuclidean"), cdist(y, y, "sqeuclidean"), cdist(x, y, "sqeuclidean")
    median = np.median(xx[np.triu_indices(len(x), 1)])
    total = 0.0
    for factor in (0.25, 1.0, 4.0):
        kxx, kyy, kxy = (np.exp(-d / (2 * factor * median)) for d in (xx, yy, xy))
        n, m = len(x), len(y)
        total += (kxx.sum() - n) / (n * (n - 1)) + (kyy.sum() - m) / (m * (m - 1)) - 2 * kxy.mean()
    return float(total)


def wasserstein(x: np.ndarray, y: np.ndarray, p: int = 2, max_points: int = 2000, seed: int = 0) -> float:
    r"""Exact p-Wasserstein distance between two samples, :math:`\min_P (\sum_{ij} P_{ij} |x_i - y_j|^p)^{1/p}`; 0 is best.

    The linear programme is solved by POT where it is installed (``pip install "diffvi[ot]"``), for samples of any
    sizes up to ``max_points``, beyond which points are drawn at random. Without POT both samples are cut to the
    same number of points and matched by assignment, which is as exact. The expectation is not zero between two
    halves of the same data, so read it beside its floor.

    Parameters
    ----------
    x, y
        Two samples of points, ``(n, d)`` and ``(m, d)``.
    p
        Power of the Euclidean distance that is paid for moving a point.
    max_points
        Most points of each sample: the time grows with their third power.
    seed
        Seed of the choice of the points.

    Returns
    -------
    The distance, in the unit of the points.

    Raises
    ------
    InvalidInputError
        If a sample is empty, the two differ in dimensions, or ``p`` or ``max_points`` is not positive.

    Examples
    --------
    >>> import diffvi
    >>> import numpy as np
    >>> diffvi.metrics.wasserstein(np.array([[0.0], [1.0]]), np.array([[3.0], [4.0]]), p=1)
    3.0

    Two samples of one population do not score 0, which is why there is a floor:

    >>> x, y = np.random.default_rng(0).normal(size=(2, 200, 3))
    >>> round(diffvi.metrics.wasserstein(x, y), 2), round(diffvi.metrics.wasserstein(x, y + 1), 2)
    (0.65, 1.82)
    """
    check_matrices(x=x, y=y)
    finite_number("p", p, above=0)
    positive_int("max_points", max_points)
    rng = np.random.default_rng(seed)
    x, y = (points[rng.permutation(len(points))[:max_points]] for points in (x, y))
    if len(x) != len(y) and (ot := _pot()) is not None:
        plan = ot.emd(np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y)), cost := cdist(x, y) ** p)
        return float((plan * cost).sum() ** (1 / p))
    n = min(len(x), len(y))
    cost = cdist(x[:n], y[:n]) ** p
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].mean() ** (1 / p))


def sliced_wasserstein(x: np.ndarray, y: np.ndarray, p: int = 2, n_projections: int = 200, seed: int = 0) -> float:
    r"""Sliced p-Wasserstein distance: :math:`(E_u W_p^p(u^T X, u^T Y))^{1/p}`; 0 is best (Bonneel et al. 2015).

    Over ``n_projections`` directions, uniform on the sphere. Unlike :func:`wasserstein` it stays cheap for
    any number of cells.

    Parameters
    ----------
    x, y
        Two samples of points, ``(n, d)`` and ``(m, d)``.
    p
        Power of the distance.
    n_projections
        Number of directions :math:`u`.
    seed
        Seed of the directions.

    Returns
    -------
    The distance, in the unit of the points. It is smaller than :func:`wasserstein`: a projection of a shift by ``s``
    onto a random direction is ``s / sqrt(d)`` long in the root mean square.

    Raises
    ------
    InvalidInputError
        If a sample is empty, the two differ in dimensions, or ``p`` or ``n_projections`` is not positive.

    Examples
    --------
    >>> import diffvi
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 200, 3))
    >>> round(diffvi.metrics.sliced_wasserstein(x, y), 2), round(diffvi.metrics.sliced_wasserstein(x, y + 1), 2)
    (0.19, 1.01)
    """
    check_matrices(x=x, y=y)
    finite_number("p", p, above=0)
    positive_int("n_projections", n_projections)
    directions = np.random.default_rng(seed).normal(size=(x.shape[1], n_projections))
    directions /= np.linalg.norm(directions, axis=0)
    # Both quantile functions on one grid, the midpoints of the larger sample.
    grid = (np.arange(max(len(x), len(y))) + 0.5) / max(len(x), len(y))
    a, b = (np.quantile(points @ directions, grid, axis=0, method="inverted_cdf") for points in (x, y))
    return float((np.abs(a - b) ** p).mean() ** (1 / p))


class Manifold(NamedTuple):
    """How two samples cover each other; see :func:`manifold_scores`.

    Attributes
    ----------
    precision, recall, density, coverage
        The four scores, in this order.

    Examples
    --------
    >>> import diffvi
    >>> scores = diffvi.metrics.Manifold(precision=0.9, recall=0.7, density=1.1, coverage=0.8)
    >>> scores.recall, list(scores._asdict())
    (0.7, ['precision', 'recall', 'density', 'coverage'])
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_scores(real: np.ndarray, generated: np.ndarray, k: int = 5) -> Manifold:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    With balls that reach to the ``k``-th neighbour. Precision: share of generated cells inside a ball of a real
    cell. Recall: share of real cells inside a ball of a generated cell. Density: mean number of real balls
    that hold a generated cell, over ``k`` (not bounded by 1). Coverage: share of real cells whose ball holds a
    generated cell. For all, the best value is the one that other real cells reach.

    Parameters
    ----------
    real, generated
        Points, ``(n, d)`` and ``(m, d)``, such as cells in PCA space.
    k
        Neighbour that sets the radius of a ball; the number of the other points of a set where that is smaller.

    Returns
    -------
    :class:`Manifold` with the four scores, each at least 0, and at most 1 but for the density.

    Raises
    ------
    InvalidInputError
        If a set has fewer than two points, the two differ in dimensions, or ``k`` is not a whole number of at least 1.

    Examples
    --------
    Cells that are too typical lie among the real ones, but leave most of these uncovered:

    >>> import diffvi
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 200, 3))
    >>> fine, typical = diffvi.metrics.manifold_scores(x, y), diffvi.metrics.manifold_scores(x, 0.3 * y)
    >>> bool(fine.precision > 0.9), bool(fine.recall > 0.9)
    (True, True)
    >>> bool(typical.precision > 0.9), bool(typical.recall > 0.9)
    (True, False)
    """
    check_matrices(2, real=real, generated=generated)
    positive_int("k", k)
    d = cdist(real, generated)
    real_radii, generated_radii = _radii(real, k), _radii(generated, k)
    inside = d <= real_radii[:, None]
    return Manifold(
        precision=float(inside.any(0).mean()),
        recall=float((d <= generated_radii[None]).any(1).mean()),
        density=float(inside.sum(0).mean() / min(k, len(real) - 1)),
        coverage=float(inside.any(1).mean()),
    )


def nearest_neighbour_test(real: np.ndarray, generated: np.ndarray) -> tuple[float, float]:
    """Leave-one-out 1-nearest-neighbour two-sample test, one accuracy for each set (Lopez-Paz and Oquab 2017).

    The share of real cells whose nearest other cell is real, and of generated cells whose nearest is generated;
    0.5 is best for sets of equal size. Read both: cells that are too typical have the first below and the second
    above 0.5 (or the reverse), which the mean of the two hides. The larger set is cut to the size of the smaller.

    Parameters
    ----------
    real, generated
        Points, ``(n, d)`` and ``(m, d)``, such as cells in PCA space. Copies of real cells bring both accuracies to 0.

    Returns
    -------
    Accuracy among the real cells and among the generated ones, each in [0, 1]; NaN where all points are the same, as
    none is nearest then.

    Raises
    ------
    InvalidInputError
        If a set is empty, or the two differ in dimensions.

    Examples
    --------
    >>> import diffvi
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 300, 50))
    >>> [round(accuracy, 1) for accuracy in diffvi.metrics.nearest_neighbour_test(x, y)]
    [0.5, 0.6]
    >>> [round(accuracy, 1) for accuracy in diffvi.metrics.nearest_neighbour_test(x, y / 2)]
    [0.0, 1.0]
    """
    check_matrices(real=real, generated=generated)
    n = min(len(real), len(generated))
    rng = np.random.default_rng(0)
    points = np.concatenate([a[rng.permutation(len(a))[:n]] for a in (real, generated)])
    if not np.ptp(points, axis=0).any():
        return float("nan"), float("nan")
    # A copy of a cell is at distance zero too, so the cell itself is told by its row.
    rows = NearestNeighbors(n_neighbors=2).fit(points).kneighbors(points)[1]
    nearest = np.where(rows[:, 0] == np.arange(2 * n), rows[:, 1], rows[:, 0])
    same = (nearest < n) == (np.arange(2 * n) < n)
    return float(same[:n].mean()), float(same[n:].mean())


def memorisation_ratio(train: np.ndarray, held_out: np.ndarray, generated: np.ndarray) -> float:
    """Median distance to the nearest training cell: that of generated over that of held-out cells.

    About 1 for new cells; far below 1 for copies of the training cells.

    Parameters
    ----------
    train, held_out, generated
        Points, ``(n, d)``, ``(m, d)`` and ``(l, d)``, such as cells in PCA space.

    Returns
    -------
    The ratio, at least 0; NaN where the held-out cells are copies of training cells themselves, so that there is nothing
    to compare with.

    Raises
    ------
    InvalidInputError
        If a set is empty, or the sets differ in dimensions.

    Examples
    --------
    >>> import diffvi
    >>> import numpy as np
    >>> train, held_out, new = np.random.default_rng(0).normal(size=(3, 300, 5))
    >>> copies = train + 0.01
    >>> [round(diffvi.metrics.memorisation_ratio(train, held_out, cells), 1) for cells in (new, copies)]
    [1.1, 0.0]
    """
    check_matrices(train=train, held_out=held_out, generated=generated)
    nearest = NearestNeighbors(n_neighbors=1).fit(train)
    a, b = (np.median(nearest.kneighbors(points)[0]) for points in (generated, held_out))
    # In many dimensions the distance of a copy is 0 only up to rounding.
    return float(a / b) if b > 1e-6 * np.linalg.norm(np.std(train, axis=0)) else float("nan")


def _radii(points: np.ndarray, k: int) -> np.ndarray:
    """Distance of every point to its ``k``-th neighbour."""
    return NearestNeighbors(n_neighbors=min(k, len(points) - 1) + 1).fit(points).kneighbors(points)[0][:, -1]


def _pot() -> Any:
    try:
        import ot
    except ImportError:
        return None
    return ot
