"""Scores of predicted populations and fates."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from ._checks import check_length, check_rows, check_shape, checked_weights


def composition_distance(
    real_labels: np.ndarray, predicted_labels: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Total variation distance between the label shares of two populations, in [0, 1]; 0 is best.

    Parameters
    ----------
    real_labels, predicted_labels
        Label of each cell.
    weights
        Weight of each predicted cell, such as its growth; ``None`` for equal ones.

    Returns
    -------
    Half of the sum of the absolute differences of the shares.

    Raises
    ------
    InvalidInputError
        If a population is empty, or weights are not one for each predicted cell, negative, not finite or all 0.

    Examples
    --------
    The same labels without and with growth:

    >>> import diffvi
    >>> real, predicted = ["a", "a", "b", "b"], ["a", "a", "a", "b"]
    >>> diffvi.metrics.composition_distance(real, predicted)
    0.25
    >>> diffvi.metrics.composition_distance(real, predicted, weights=[1, 1, 1, 3])
    0.0
    """
    check_rows(1, real_labels=real_labels, predicted_labels=predicted_labels)
    n = len(predicted_labels)
    weights = np.ones(n) if weights is None else checked_weights(weights, n)
    real = pd.Series(1 / len(real_labels), index=np.asarray(real_labels, str)).groupby(level=0).sum()
    predicted = pd.Series(weights / weights.sum(), index=np.asarray(predicted_labels, str)).groupby(level=0).sum()
    return float(real.subtract(predicted, fill_value=0).abs().sum() / 2)


def fate_correlation(real: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson correlation of predicted and measured fate probabilities over all cells and fates; 1 is best.

    Parameters
    ----------
    real, predicted
        Cells by fates; rows of ``real`` may be shares of clonal descendants, or one-hot.

    Returns
    -------
    The correlation, in [-1, 1]; 0 where one side is constant.

    Raises
    ------
    InvalidInputError
        If the shapes differ, or there are no cells.

    Examples
    --------
    >>> import diffvi
    >>> import numpy as np
    >>> real = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    >>> predicted = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    >>> round(diffvi.metrics.fate_correlation(real, predicted), 2)
    0.97
    >>> diffvi.metrics.fate_correlation(real, np.full((3, 2), 0.5))
    0.0
    """
    check_rows(1, real=real)
    check_shape(real, predicted=predicted)
    a, b = np.asarray(real, float).ravel(), np.asarray(predicted, float).ravel()
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(np.corrcoef(a, b)[0, 1])


def fate_auroc(fates: np.ndarray, predicted: pd.DataFrame) -> float:
    """Mean over fates of the area under the ROC curve of each fate against the rest, in [0, 1]; 0.5 is chance.

    Parameters
    ----------
    fates
        The fate that each cell has taken.
    predicted
        Fate probabilities, cells by fates, with the fates as columns.

    Returns
    -------
    The mean over the columns that some cells, and not all, have taken; NaN where there is none.

    Raises
    ------
    InvalidInputError
        If fates are not one for each row of ``predicted``.

    Examples
    --------
    >>> import diffvi
    >>> import pandas as pd
    >>> up = pd.Series([0.9, 0.4, 0.6, 0.2])
    >>> predicted = pd.DataFrame({"up": up, "down": 1 - up})
    >>> diffvi.metrics.fate_auroc(["up", "up", "down", "down"], predicted)
    0.75
    """
    check_length("cells of `predicted`", len(predicted), fates=fates)
    fates = np.asarray(fates, str)
    areas = [
        roc_auc_score(fates == fate, predicted[fate])
        for fate in predicted.columns
        if 0 < (fates == fate).sum() < len(fates)
    ]
    return float(np.mean(areas)) if areas else float("nan")


def resample_weighted(points: np.ndarray, weights: np.ndarray, seed: int = 0) -> np.ndarray:
    """As many points, drawn with probabilities in proportion to their weights by systematic resampling.

    Turns a weighted population into a plain one, for scores that know no weights: each point is drawn its
    expected number of times, rounded up or down (Kitagawa 1996).

    Parameters
    ----------
    points
        ``(n, d)``, or any array whose rows are drawn.
    weights
        Weight of each point, ``(n,)``, not negative and not all zero; they need not sum to one.
    seed
        Seed of the one random number that it takes.

    Returns
    -------
    Drawn points, of the shape of ``points`` and in their order.

    Raises
    ------
    InvalidInputError
        If weights are not one for each point, negative, not finite or all 0.

    Examples
    --------
    >>> import diffvi
    >>> import numpy as np
    >>> diffvi.metrics.resample_weighted(np.array([10, 20, 30, 40]), [2, 1, 1, 0]).tolist()
    [10, 10, 20, 30]
    """
    weights = checked_weights(weights, len(points))
    ends = np.cumsum(weights) / np.sum(weights)
    ticks = (np.arange(len(points)) + np.random.default_rng(seed).random()) / len(points)
    return points[np.minimum(np.searchsorted(ends, ticks), len(points) - 1)]
