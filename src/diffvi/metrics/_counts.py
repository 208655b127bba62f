"""Scores that look at counts: what a latent-space distance cannot see."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse, stats

from diffvi._exceptions import positive_int

from ._checks import check_length, check_matrices, check_rows

Matrix = Any
"""Cells by genes: a numpy array or a scipy sparse matrix."""


def dense(x: Matrix) -> np.ndarray:
    """Dense ``float64`` copy of a matrix."""
    return np.asarray(x.toarray() if sparse.issparse(x) else x, dtype=np.float64)


def log_normalise(x: Matrix, total: float = 1e4) -> np.ndarray:
    """``log(1 + total * count / library)``, dense, ``(n_cells, n_genes)``.

    Parameters
    ----------
    x
        Counts, cells by genes, dense or sparse.
    total
        Library size that every cell is scaled to.

    Returns
    -------
    ``(n_cells, n_genes)``, natural logarithm. A cell without counts stays at 0.

    Examples
    --------
    >>> import diffvi
    >>> import numpy as np
    >>> diffvi.metrics.log_normalise(np.array([[1, 1], [0, 4]]), total=2).round(3).tolist()
    [[0.693, 0.693], [0.0, 1.099]]
    """
    x = dense(x)
    return np.log1p(total * x / np.maximum(x.sum(1, keepdims=True), 1))


def expression(cells: AnnData) -> np.ndarray:
    """Log-normalised expression of an AnnData, dense: ``X`` as it is after ``sc.pp.log1p``, else from raw counts.

    Parameters
    ----------
    cells
        Cells with raw counts in ``X``, or with what ``sc.pp.log1p`` made of them: it leaves ``uns["log1p"]`` behind.

    Returns
    -------
    ``(n_cells, n_genes)``, as from :func:`log_normalise`.

    Examples
    --------
    Before and after scanpy's own normalisation the values are the same:

    >>> import diffvi
    >>> import numpy as np
    >>> import scanpy as sc
    >>> cells = diffvi.datasets.simulate_cells(20, 10, seed=0)
    >>> before = diffvi.metrics.expression(cells)
    >>> sc.pp.normalize_total(cells, target_sum=1e4)
    >>> sc.pp.log1p(cells)
    >>> np.allclose(diffvi.metrics.expression(cells), before, atol=1e-4)
    True
    """
    return dense(cells.X) if "log1p" in cells.uns else log_normalise(cells.X)


def library_size_ks(real: Matrix, generated: Matrix) -> float:
    """Kolmogorov-Smirnov distance between the library sizes, in [0, 1]; 0 is best.

    Parameters
    ----------
    real, generated
        Counts, cells by genes, dense or sparse.

    Returns
    -------
    The largest difference between the two cumulative distributions of the cells' total counts.

    Raises
    ------
    InvalidInputError
        If a set is empty.

    Examples
    --------
    >>> import diffvi
    >>> counts = diffvi.datasets.simulate_cells(200, 20, seed=0).X
    >>> real, other = counts[:100], counts[100:]
    >>> distance = diffvi.metrics.library_size_ks
    >>> round(distance(real, other), 1), round(distance(real, 2 * other), 1)
    (0.1, 0.6)
    """
    check_rows(1, real=real, generated=generated)
    return float(stats.ks_2samp(dense(real).sum(1), dense(generated).sum(1)).statistic)


def zero_fraction_difference(real: Matrix, generated: Matrix) -> float:
    """Mean over genes of the absolute difference in the share of zeros, in [0, 1]; 0 is best.

    Parameters
    ----------
    real, generated
        Counts, cells by genes, dense or sparse.

    Returns
    -------
    The mean difference; it falls with the number of cells, even for two halves of the same data.

    Raises
    ------
    InvalidInputError
        If genes differ, or a set is empty.

    Examples
    --------
    Means in the place of counts have no zeros:

    >>> import diffvi
    >>> import numpy as np
    >>> counts = diffvi.datasets.simulate_cells(200, 20, seed=0).X.toarray()
    >>> real, other = counts[:100], counts[100:]
    >>> means = np.tile(other.mean(0), (100, 1))
    >>> difference = diffvi.metrics.zero_fraction_difference
    >>> round(difference(real, other), 2), round(difference(real, means), 2)
    (0.05, 0.22)
    """
    check_matrices(real=real, generated=generated)
    return float(np.abs((dense(real) == 0).mean(0) - (dense(generated) == 0).mean(0)).mean())


def mean_variance_distance(real: Matrix, generated: Matrix) -> float:
    """Median over expressed genes of ``|log10(var_generated / var_real)|`` of the counts; 0 is best.

    Genes with a mean count of at least 0.1 in the real cells are used: below, the variance is the mean.

    Parameters
    ----------
    real, generated
        Counts, cells by genes, dense or sparse.

    Returns
    -------
    The median, in decades: 0.3 is a factor of two. NaN where no gene varies in the real cells.

    Raises
    ------
    InvalidInputError
        If genes differ, or a set is empty.

    Examples
    --------
    Counts that are twice as large vary four times as much, which is 0.6 decades:

    >>> import diffvi
    >>> counts = diffvi.datasets.simulate_cells(100, 20, seed=0).X
    >>> round(diffvi.metrics.mean_variance_distance(counts, 2 * counts), 2)
    0.6
    """
    check_matrices(real=real, generated=generated)
    x, y = dense(real), dense(generated)
    kept = (x.mean(0) >= 0.1) & (x.var(0) > 0)
    if not kept.any():
        kept = x.var(0) > 0
    return float(np.median(np.abs(np.log10(np.maximum(y.var(0)[kept], 1e-12) / x.var(0)[kept]))))


def gene_wasserstein(real: Matrix, generated: Matrix) -> float:
    """Mean over genes of the 1-Wasserstein distance between the two marginals of log-normalised counts; 0 is best.

    For one gene this is the area between the two cumulative distributions (Vallender 1974).

    Parameters
    ----------
    real, generated
        Counts, cells by genes, dense or sparse, with the same genes.

    Returns
    -------
    The mean distance, in units of log-normalised expression. It is not 0 between two halves of the same data.

    Raises
    ------
    InvalidInputError
        If genes differ, or a set is empty.

    Examples
    --------
    Cells that are all alike have the right means, but not the right distributions:

    >>> import diffvi
    >>> import numpy as np
    >>> counts = diffvi.datasets.simulate_cells(200, 20, seed=0).X.toarray()
    >>> real, other = counts[:100], counts[100:]
    >>> means = np.tile(other.mean(0), (100, 1))
    >>> distance = diffvi.metrics.gene_wasserstein
    >>> round(distance(real, other), 1), round(distance(real, means), 1)
    (0.3, 2.0)
    """
    check_matrices(real=real, generated=generated)
    x, y = log_normalise(real), log_normalise(generated)
    return float(np.mean([stats.wasserstein_distance(a, b) for a, b in zip(x.T, y.T, strict=True)]))


def correlation_agreement(real: Matrix, generated: Matrix, n_genes: int = 200) -> float:
    """Pearson correlation between the two gene-gene correlation matrices, in [-1, 1]; 1 is best.

    Correlations are Pearson's on log-normalised counts, over the pairs of the
    ``n_genes`` genes with the highest mean in the real cells.

    Parameters
    ----------
    real, generated
        Counts, cells by genes, dense or sparse, with the same genes.
    n_genes
        Number of genes; with fewer in the data all are used.

    Returns
    -------
    The correlation over pairs of genes; 0 where all correlations of one set are equal, as for constant cells, and NaN
    with a single gene.

    Raises
    ------
    InvalidInputError
        If genes differ, a set is empty, or ``n_genes`` is not a whole number of at least 1.

    Examples
    --------
    Genes that are shuffled one by one keep their distributions and lose what they have in common:

    >>> import diffvi
    >>> import numpy as np
    >>> counts = diffvi.datasets.simulate_cells(200, 20, seed=0).X.toarray()
    >>> real, other = counts[:100], counts[100:]
    >>> shuffled = np.random.default_rng(0).permuted(other, axis=0)
    >>> agreement = diffvi.metrics.correlation_agreement
    >>> bool(agreement(real, other) > 0.9), bool(agreement(real, shuffled) < 0.3)
    (True, True)
    """
    check_matrices(real=real, generated=generated)
    x, y = log_normalise(real), log_normalise(generated)
    top = np.argsort(-x.mean(0))[: positive_int("n_genes", n_genes)]
    if len(top) < 2:
        return float("nan")
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

    Parameters
    ----------
    real, generated
        Counts, cells by genes, dense or sparse, with the same genes.
    real_labels, generated_labels
        Label of each cell, ``(n_cells,)``; labels that only one of the sets has are left out.
    n_genes
        Genes of each label.

    Returns
    -------
    Slope of the line through the origin, and correlation; NaN where no label can be compared with a rest.

    Raises
    ------
    InvalidInputError
        If genes differ, a set is empty, labels are not one for each cell, or ``n_genes`` is not a whole number of at
        least 1.

    Examples
    --------
    Labels that are given to the cells at random have no differences:

    >>> import diffvi
    >>> import numpy as np
    >>> cells = diffvi.datasets.simulate_cells(200, 20, seed=0)
    >>> counts, labels = cells.X, cells.obs["cell_type"].to_numpy(str)
    >>> random = np.random.default_rng(0).permutation(labels[100:])
    >>> for given in (labels[100:], random):
    ...     slope, _ = diffvi.metrics.fold_change_agreement(counts[:100], labels[:100], counts[100:], given)
    ...     print(round(slope, 1))
    1.0
    0.1
    """
    check_matrices(real=real, generated=generated)
    check_length("cells of `real`", real.shape[0], real_labels=real_labels)
    check_length("cells of `generated`", generated.shape[0], generated_labels=generated_labels)
    n_genes = positive_int("n_genes", n_genes)
    real_labels, generated_labels = np.asarray(real_labels), np.asarray(generated_labels)
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
