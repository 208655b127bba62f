"""Scores of one modality predicted from another."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import stats

from diffvi._exceptions import one_of, positive_int

from ._checks import check_length, check_matrices, check_shape
from ._counts import dense, log_normalise


def feature_correlation(
    real: np.ndarray, predicted: np.ndarray, method: Literal["pearson", "spearman"] = "pearson"
) -> np.ndarray:
    """Correlation over cells of predicted and measured values, one for each feature, in [-1, 1]; 1 is best.

    Parameters
    ----------
    real, predicted
        Cells by features on the same scale; ``log1p`` of counts is the custom for proteins.
    method
        Of the values, or of their ranks.

    Returns
    -------
    ``(n_features,)``; 0 where the prediction is constant, NaN where the measurement is.

    Raises
    ------
    InvalidInputError
        If the shapes differ, there are no cells, or ``method`` is not known.

    Examples
    --------
    A prediction that is right but for the scale, and one that has it only in order:

    >>> import diffvi
    >>> import numpy as np
    >>> real = np.random.default_rng(0).normal(size=(100, 2))
    >>> predicted = np.stack([2 * real[:, 0], np.exp(3 * real[:, 1])], 1)
    >>> (diffvi.metrics.feature_correlation(real, predicted) > 0.9).tolist()
    [True, False]
    >>> diffvi.metrics.feature_correlation(real, predicted, method="spearman").round(2).tolist()
    [1.0, 1.0]
    """
    one_of("method", method, ("pearson", "spearman"))
    check_matrices(real=real)
    check_shape(real, predicted=predicted)
    real, predicted = np.asarray(real, float), np.asarray(predicted, float)
    if method == "spearman":
        real, predicted = stats.rankdata(real, axis=0), stats.rankdata(predicted, axis=0)
    a, b = real - real.mean(0), predicted - predicted.mean(0)
    scale = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    correlation = np.divide((a * b).sum(0), scale, out=np.zeros(a.shape[1]), where=scale > 1e-12)
    return np.where(np.ptp(real, axis=0) > 0, correlation, np.nan)


def feature_rmse(real: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Root mean square error over cells, one for each feature; 0 is best.

    Parameters
    ----------
    real, predicted
        Cells by features on the same scale.

    Returns
    -------
    ``(n_features,)``, in the unit of the values.

    Raises
    ------
    InvalidInputError
        If the shapes differ, or there are no cells.

    Examples
    --------
    >>> import diffvi
    >>> import numpy as np
    >>> real = np.random.default_rng(0).normal(size=(100, 2))
    >>> diffvi.metrics.feature_rmse(real, real + [0, 0.5]).round(2).tolist()
    [0.0, 0.5]
    """
    check_matrices(real=real)
    check_shape(real, predicted=predicted)
    return np.sqrt(((np.asarray(real, float) - predicted) ** 2).mean(0))


def cross_correlation_agreement(
    real_rna: np.ndarray,
    real_protein: np.ndarray,
    generated_rna: np.ndarray,
    generated_protein: np.ndarray,
    n_genes: int = 200,
) -> float:
    """Pearson correlation between the gene-protein blocks of the two correlation matrices, in [-1, 1]; 1 is best.

    Genes are log-normalised, proteins ``log1p``; all arguments are counts. Over the ``n_genes`` genes with
    the highest mean in the real cells. It sees whether the two modalities of a generated cell belong together,
    which no score of one modality can.

    Parameters
    ----------
    real_rna, real_protein
        Counts of the real cells, cells by genes and by proteins, dense or sparse.
    generated_rna, generated_protein
        Counts of the generated cells, with the same genes and proteins.
    n_genes
        Number of genes; with fewer in the data all are used.

    Returns
    -------
    The correlation over pairs of a gene and a protein.

    Raises
    ------
    InvalidInputError
        If genes or proteins differ, RNA and proteins are not of the same number of cells, a set is empty, or ``n_genes``
        is not a whole number of at least 1.

    Examples
    --------
    Proteins of other cells fit no gene, though each protein's distribution is right:

    >>> import diffvi
    >>> import numpy as np
    >>> mdata = diffvi.datasets.simulate_cite(300, 20, 4, seed=0)
    >>> rna, protein = mdata["rna"].X, mdata["protein"].X
    >>> shuffled = np.random.default_rng(0).permutation(protein[150:])
    >>> for other in (protein[150:], shuffled):
    ...     agreement = diffvi.metrics.cross_correlation_agreement(rna[:150], protein[:150], rna[150:], other)
    ...     print(bool(agreement > 0.8))
    True
    False
    """
    check_matrices(real_rna=real_rna, generated_rna=generated_rna)
    check_matrices(real_protein=real_protein, generated_protein=generated_protein)
    check_length("cells of `real_rna`", real_rna.shape[0], real_protein=real_protein)
    check_length("cells of `generated_rna`", generated_rna.shape[0], generated_protein=generated_protein)
    x, y = log_normalise(real_rna), log_normalise(generated_rna)
    top = np.argsort(-x.mean(0))[: positive_int("n_genes", n_genes)]
    blocks = []
    for rna, protein in ((x[:, top], real_protein), (y[:, top], generated_protein)):
        a, b = (_standardised(m) for m in (rna, np.log1p(dense(protein))))
        blocks.append((a.T @ b / len(a)).ravel())
    return float(np.nan_to_num(np.corrcoef(*blocks)[0, 1]))


def bimodality(x: np.ndarray) -> np.ndarray:
    """Sarle's bimodality coefficient of every column, in (0, 1]: ``(skewness² + 1) / kurtosis``.

    A normal distribution has 1/3, a uniform one 5/9, two equal points 1. Compare generated with real proteins
    (on ``log1p``): smoothed ones lose the gap between negative and positive cells. Without the correction for small
    samples (Pfister et al. 2013).

    Parameters
    ----------
    x
        Values, cells by features.

    Returns
    -------
    ``(n_features,)``; NaN for a constant feature.

    Examples
    --------
    A normal distribution, a mixture of two that lie apart, and two equal points:

    >>> import diffvi
    >>> import numpy as np
    >>> normal, two = np.random.default_rng(0).normal(size=5000), np.tile([0.0, 1.0], 2500)
    >>> diffvi.metrics.bimodality(np.stack([normal, normal + 6 * two, two], 1)).round(1).tolist()
    [0.3, 0.7, 1.0]
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return (stats.skew(x, axis=0) ** 2 + 1) / stats.kurtosis(x, axis=0, fisher=False)


def _standardised(x: np.ndarray) -> np.ndarray:
    spread = x.std(0)
    return (x - x.mean(0)) / np.where(spread > 0, spread, 1.0)
