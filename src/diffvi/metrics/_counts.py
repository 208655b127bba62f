"""Scores that look at counts: what a latent-space distance cannot see."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse, stats

Matrix = Any
"""Cells by genes: a numpy array or a scipy sparse matrix."""


def dense(x: Matrix) -> np.ndarray:
    """Dense ``float64`` copy of a matrix."""
    return np.asarray(x.toarray() if sparse.issparse(x) else x, dtype=np.float64)


def log_normalise(x: Matrix, total: float = 1e4) -> np.ndarray:
    """``log(1 + total * count / library)``, dense, ``(n_cells, n_genes)``.

    Examples
    --------
    >>> log_normalise(np.array([[1, 1], [0, 4]]), total=2).round(3).tolist()
    [[0.693, 0.693], [0.0, 1.099]]
    """
    x = dense(x)
    return np.log1p(total * x / np.maximum(x.sum(1, keepdims=True), 1))


def expression(cells: AnnData) -> np.ndarray:
    """Log-normalised expression of an AnnData, dense: ``X`` as it is after ``sc.pp.log1p``, else from raw counts."""
    return dense(cells.X) if "log1p" in cells.uns else log_normalise(cells.X)


def library_size_ks(real: Matrix, generated: Matrix) -> float:
    """Kolmogorov-Smirnov distance between the library sizes, in [0, 1]; 0 is best."""
    return float(stats.ks_2samp(dense(real).sum(1), dense(generated).sum(1)).statistic)


def zero_fraction_difference(real: Matrix, generated: Matrix) -> float:
    """Mean over genes of the absolute difference in the share of zeros, in [0, 1]; 0 is best."""
    return float(np.abs((dense(real) == 0).mean(0) - (dense(generated) == 0).mean(0)).mean())


def mean_variance_distance(real: Matrix, generated: Matrix) -> float:
    """Median over expressed genes of ``|log10(var_generated / var_real)|`` of the counts; 0 is best.

    Genes with a mean count of at least 0.1 in the real cells are used: below, the variance is the mean.
    """
    x, y = dense(real), dense(generated)
    kept = (x.mean(0) >= 0.1) & (x.var(0) > 0)
    if not kept.any():
        kept = x.var(0) > 0
    return float(np.median(np.abs(np.log10(np.maximum(y.var(0)[kept], 1e-12) / x.var(0)[kept]))))


def gene_wasserstein(real: Matrix, generated: Matrix) -> float:
    """Mean over genes of the 1-Wasserstein distance between the two marginals of log-normalised counts; 0 is best.

    For one gene this is the area between the two cumulative distributions (Vallender 1974).
    """
    x, y = log_normalise(real), log_normalise(generated)
    return float(np.mean([stats.wasserstein_distance(a, b) for a, b in zip(x.T, y.T, strict=True)]))


def correlation_agreement(real: Matrix, generated: Matrix, n_genes: int = 200) -> float:
    """Pearson correlation between the two gene-gene correlation matrices, in [-1, 1]; 1 is best.

    Correlations are Pearson's on log-normalised counts, over the pairs of the
    ``n_genes`` genes with the highest mean in the real cells.
    """
    x, y = log_normalise(real), log_normalise(generated)
    top = np.argsort(-x.mean(0))[:n_genes]
    pairs = np.triu_indices(len(top), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = (np.nan_to_num(np.corrcoef(m[:, top].T)[pairs]) for m in (x, y))
        return float(np.nan_to_num(np.corrcoef(a, b)[0, 1]))


def fold_change_agreement(
    real: Matrix, real_labels: np.ndarray, generated: Matrix, generated_labels: np.ndarray, n_genes: int = 50
) -> tuple[float, float]:
    """Slope and Pearson correlation of generated against real log fold changes of each label against the rest.

    Over the ``n_genes`` genes with the largest absolute fold change (difference in mean log-normalised
    expression) of every label in the real cells; both are best at 1, and a slope below 1 means that the
    generator attenuates the differences between labels.
    """
    x, y = log_normalise(real), log_normalise(generated)
    a: list[np.ndarray] = []
    b: list[np.ndarray] = []
    for label in np.intersect1d(np.unique(real_labels), np.unique(generated_labels)):
        r, g = real_labels == label, generated_labels == label
        if r.all() or g.all():
            continue
        real_change = x[r].mean(0) - x[~r].mean(0)
        top = np.argsort(-np.abs(real_change))[:n_genes]
        a.append(real_change[top])
        b.append((y[g].mean(0) - y[~g].mean(0))[top])
    if not a:
        return float("nan"), float("nan")
    u, v = np.concatenate(a), np.concatenate(b)
    return float(u @ v / (u @ u)), float(np.corrcoef(u, v)[0, 1])
