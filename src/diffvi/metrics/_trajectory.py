"""Scores of predicted populations and fates."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score


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
    """
    weights = np.ones(len(predicted_labels)) if weights is None else np.asarray(weights, float)
    real = pd.Series(1 / len(real_labels), index=np.asarray(real_labels, str)).groupby(level=0).sum()
    predicted = pd.Series(weights / weights.sum(), index=np.asarray(predicted_labels, str)).groupby(level=0).sum()
    return float(real.subtract(predicted, fill_value=0).abs().sum() / 2)


def fate_correlation(real: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson correlation of predicted and measured fate probabilities over all cells and fates; 1 is best.

    Parameters
    ----------
    real, predicted
        Cells by fates; rows of ``real`` may be shares of clonal descendants, or one-hot.
    """
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
    """
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
    expected number of times, rounded up or down.
    """
    ends = np.cumsum(weights) / np.sum(weights)
    ticks = (np.arange(len(points)) + np.random.default_rng(seed).random()) / len(points)
    return points[np.minimum(np.searchsorted(ends, ticks), len(points) - 1)]
