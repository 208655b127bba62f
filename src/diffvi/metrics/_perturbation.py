"""Scores of predicted perturbation effects; expression is log-normalised, ``(n_cells, n_genes)``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn.metrics import r2_score


def pearson_delta(real: np.ndarray, predicted: np.ndarray, reference: np.ndarray) -> float:
    """Pearson correlation over genes of predicted and real change of the mean, in [-1, 1]; 1 is best.

    Parameters
    ----------
    real, predicted
        Mean expression under the perturbation, ``(n_genes,)``.
    reference
        What the change is counted from: the mean of the controls, or (Systema, Viñas Torné et al. 2025)
        the mean of all perturbed cells, which takes out what all perturbations share.

    Returns
    -------
    The correlation; 0 where a change is constant, as for a prediction of no change.
    """
    a, b = real - reference, predicted - reference
    constant = min(float(np.ptp(a)), float(np.ptp(b))) < 1e-6  # up to rounding of single precision
    return 0.0 if constant else float(np.corrcoef(a, b)[0, 1])


def effect_distance(real: np.ndarray, predicted: np.ndarray) -> float:
    """Euclidean distance over genes between predicted and real mean expression; 0 is best."""
    return float(np.linalg.norm(predicted - real))


def effect_norm_ratio(real: np.ndarray, predicted: np.ndarray, control: np.ndarray) -> float:
    """Length of the predicted change of the mean over that of the real one; 1 is best, below is timid."""
    return float(np.linalg.norm(predicted - control) / max(float(np.linalg.norm(real - control)), 1e-12))


def fold_change_nmae(real: np.ndarray, predicted: np.ndarray, control: np.ndarray) -> float:
    r"""Normalised absolute error of the log fold changes, :math:`\sum|\hat d_g - d_g| / \sum|d_g|`; 0 is best.

    A prediction of no change scores 1.
    """
    change = real - control
    return float(np.abs(predicted - real).sum() / max(float(np.abs(change).sum()), 1e-12))


def discrimination(real: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Perturbation discrimination: does a predicted effect resemble its own real effect most (Wu et al. 2024)?

    Parameters
    ----------
    real, predicted
        Effects (changes of the mean), ``(n_perturbations, n_genes)``, in the same order.

    Returns
    -------
    For each perturbation 1 minus the normalised rank of its own real effect among all real effects, ordered by
    cosine similarity to the prediction, ``(n_perturbations,)``: 1 is best. Ties share their mean rank, so a
    prediction that is the same for every perturbation scores 0.5 on average.

    Examples
    --------
    >>> discrimination(np.eye(3), np.eye(3)).tolist()
    [1.0, 1.0, 1.0]
    """

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    similarity = np.round(unit(np.asarray(predicted, float)) @ unit(np.asarray(real, float)).T, 10)
    n = len(similarity)
    if n < 2:
        return np.full(n, np.nan)
    ranks = stats.rankdata(similarity, axis=1)  # 1 for the least similar
    return (np.diag(ranks) - 1) / (n - 1)


class DEAgreement(NamedTuple):
    """Differentially expressed genes of real and predicted cells; see :func:`de_agreement`."""

    n_real: int
    n_predicted: int
    overlap: float


def de_agreement(real: np.ndarray, predicted: np.ndarray, control: np.ndarray, alpha: float = 0.05) -> DEAgreement:
    """Number and overlap of differentially expressed genes.

    Genes are tested against the controls with a two-sided Mann-Whitney test, Benjamini-Hochberg corrected at
    ``alpha``. The overlap is the share of the real cells' differentially expressed genes that are among as many
    genes with the smallest p-values of the predicted cells, in [0, 1]; NaN where the real cells have none.

    Parameters
    ----------
    real, predicted, control
        Expression of cells. Take about as many predicted as real cells: the number of genes found
        grows with the number of cells.
    """
    p_real, p_predicted = (_rank_sum_p(cells, control) for cells in (real, predicted))
    found = [stats.false_discovery_control(p) < alpha for p in (p_real, p_predicted)]
    k = int(found[0].sum())
    top = np.argsort(p_predicted, kind="stable")[:k]
    # Genes that do not change at all are no prediction, however early they come.
    overlap = float((found[0][top] & (p_predicted[top] < 1)).mean()) if k else float("nan")
    return DEAgreement(k, int(found[1].sum()), overlap)


def variance_r2(real: np.ndarray, predicted: np.ndarray, control: np.ndarray, n_genes: int = 100) -> float:
    """R² of the predicted variance of the most changed genes; at most 1, which is best.

    Negative where the mean over genes would have been a better guess: cells collapsed to their mean.
    """
    top = np.argsort(-np.abs(real.mean(0) - control.mean(0)))[:n_genes]
    return float(r2_score(real.var(0)[top], predicted.var(0)[top]))


def interval_coverage(truth: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """Share of true values inside ``[low, high]``; best at the nominal level of the interval."""
    return float(((truth >= low) & (truth <= high)).mean())


def calibration_curve(truth: np.ndarray, samples: np.ndarray, levels: np.ndarray | None = None) -> np.ndarray:
    """Coverage of central intervals of samples at several nominal levels.

    Parameters
    ----------
    truth
        True values, any shape.
    samples
        Draws of the prediction, ``(n_samples, *truth.shape)``.
    levels
        Nominal levels; ``None`` for 0.1, 0.2, ..., 0.9.

    Returns
    -------
    ``(n_levels, 2)``: nominal level and measured coverage; a calibrated prediction lies on the diagonal.
    """
    levels = np.linspace(0.1, 0.9, 9) if levels is None else np.asarray(levels, float)
    low, high = (np.quantile(samples, 0.5 + side * levels / 2, axis=0) for side in (-1, 1))
    return np.array([[q, interval_coverage(truth, a, b)] for q, a, b in zip(levels, low, high, strict=True)])


def scaled_score(score: float, baseline: float, ceiling: float) -> float:
    """``(score - baseline) / (ceiling - baseline)``: 0 is the baseline, 1 what a replicate would score.

    NaN where the ceiling is not above the baseline for a score of which more is better, that is, where the data
    leave nothing to be gained. For a score of which less is better pass both with their sign changed.
    """
    return (score - baseline) / (ceiling - baseline) if ceiling > baseline else float("nan")


def _rank_sum_p(cells: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Two-sided p-values, gene by gene; 1 for a gene that is constant."""
    p = stats.mannwhitneyu(cells, control, axis=0, method="asymptotic").pvalue
    return np.nan_to_num(p, nan=1.0)
