"""Scores of expression predicted in space; values are log-normalised, locations by genes."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.stats import spearmanr
from sklearn.neighbors import NearestNeighbors

from diffvi._exceptions import positive_int

from ._checks import check_length, check_matrices, check_shape


def moran_i(values: np.ndarray, coordinates: np.ndarray, k: int = 6) -> np.ndarray:
    r"""Moran's I of every gene (Moran 1950): about 0 without spatial structure, 1 for perfect clustering.

    :math:`I = \frac{n}{\sum w_{ij}} \frac{\sum w_{ij} x_i x_j}{\sum x_i^2}` with centred values and weights that are
    ``1 / k`` for the ``k`` nearest neighbours.

    Parameters
    ----------
    values
        Locations by genes.
    coordinates
        Locations, ``(n, 2)`` or ``(n, 3)``.
    k
        Neighbours; six, as in a hexagonal lattice.

    Returns
    -------
    ``(n_genes,)``; NaN for a constant gene. Predictions are best at the value of the measured ones: every
    smoother inflates it.

    Raises
    ------
    InvalidInputError
        If there are fewer than two locations, not as many coordinates, or ``k`` is not a whole number of at least 1.

    Examples
    --------
    A gradient over a lattice, and noise:

    >>> import diffvi
    >>> import numpy as np
    >>> coordinates = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0)), -1).reshape(-1, 2)
    >>> noise = np.random.default_rng(0).normal(size=100)
    >>> values = np.stack([coordinates[:, 0], noise], 1)
    >>> [bool(i > 0.8) for i in diffvi.metrics.moran_i(values, coordinates)]
    [True, False]
    """
    check_matrices(2, values=values)
    check_matrices(coordinates=coordinates)
    values = np.asarray(values, float)
    n = len(values)
    check_length("locations of `values`", n, coordinates=coordinates)
    k = min(positive_int("k", k), n - 1)
    graph: sparse.csr_matrix = NearestNeighbors(n_neighbors=k).fit(coordinates).kneighbors_graph()
    x = values - values.mean(0)
    total = (x**2).sum(0)
    return np.divide((x * (graph @ x)).sum(0) / k, total, out=np.full(x.shape[1], np.nan), where=total > 1e-12)


def spatial_gene_agreement(real: np.ndarray, predicted: np.ndarray, coordinates: np.ndarray, k: int = 6) -> float:
    """Whether the same genes vary in space: Spearman correlation, over genes, of Moran's I.

    Parameters
    ----------
    real, predicted
        Log-normalised values, locations by genes.
    coordinates
        Of the locations, ``(n, 2)`` or ``(n, 3)``.
    k
        Neighbours, as in :func:`moran_i`.

    Returns
    -------
    1 is best; NaN with fewer than three genes that vary in both.

    Raises
    ------
    InvalidInputError
        If the shapes differ, or as :func:`moran_i`.

    Examples
    --------
    Genes with a gradient that is weak to strong, measured twice, and with the genes of the second in reverse:

    >>> import diffvi
    >>> import numpy as np
    >>> coordinates = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0)), -1).reshape(-1, 2)
    >>> signal = coordinates[:, :1] * np.linspace(0, 1, 10)
    >>> real, again = signal + np.random.default_rng(0).normal(size=(2, 100, 10))
    >>> bool(diffvi.metrics.spatial_gene_agreement(real, again, coordinates) > 0.8)
    True
    >>> bool(diffvi.metrics.spatial_gene_agreement(real, again[:, ::-1], coordinates) < -0.8)
    True
    """
    check_shape(real, predicted=predicted)
    a, b = (moran_i(values, coordinates, k) for values in (real, predicted))
    kept = np.isfinite(a) & np.isfinite(b)
    return float(spearmanr(a[kept], b[kept]).statistic) if kept.sum() > 2 else float("nan")


def variance_ratio(real: np.ndarray, predicted: np.ndarray) -> float:
    """Median over genes of predicted over real variance; 1 is best, below it is smoothed.

    Parameters
    ----------
    real, predicted
        Log-normalised values, locations by genes; genes that are constant in ``real`` are left out.

    Returns
    -------
    The ratio, at least 0; NaN where no gene varies in ``real``.

    Raises
    ------
    InvalidInputError
        If the number of genes differs, or there are no locations.

    Examples
    --------
    The mean of two independent measurements has half of their variance:

    >>> import diffvi
    >>> import numpy as np
    >>> first, second = np.random.default_rng(0).normal(size=(2, 1000, 20))
    >>> round(diffvi.metrics.variance_ratio(first, (first + second) / 2), 1)
    0.5
    """
    check_matrices(real=real, predicted=predicted)
    real_variance = np.var(real, axis=0)
    kept = real_variance > 0
    return float(np.median(np.var(predicted, axis=0)[kept] / real_variance[kept]))
