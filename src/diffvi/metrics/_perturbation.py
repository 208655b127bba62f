"""Scores of predicted perturbation effects; expression is log-normalised, ``(n_cells, n_genes)``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn.metrics import r2_score

from ._resampling import quantiles_of_draws


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

    Examples
    --------
    Half of the change in the right direction is enough for it, no change is not:

    >>> import diffvi
    >>> import numpy as np
    >>> control, real = np.array([1.0, 1.0, 1.0, 1.0]), np.array([1.0, 2.0, 0.0, 1.0])
    >>> predicted = (control + real) / 2
    >>> [round(diffvi.metrics.pearson_delta(real, x, control), 2) for x in (predicted, control)]
    [1.0, 0.0]
    """
    a, b = real - reference, predicted - reference
    constant = min(float(np.ptp(a)), float(np.ptp(b))) < 1e-6  # up to rounding of single precision
    return 0.0 if constant else float(np.corrcoef(a, b)[0, 1])


def effect_distance(real: np.ndarray, predicted: np.ndarray) -> float:
    """Euclidean distance over genes between predicted and real mean expression; 0 is best.

    Parameters
    ----------
    real, predicted
        Mean expression under the perturbation, ``(n_genes,)``.

    Returns
    -------
    The distance, in units of log-normalised expression; it grows with the number of genes.

    Examples
    --------
    >>> import diffvi
    >>> import numpy as np
    >>> diffvi.metrics.effect_distance(np.array([1.0, 2.0]), np.array([4.0, 6.0]))
    5.0
    """
    return float(np.linalg.norm(predicted - real))


def effect_norm_ratio(real: np.ndarray, predicted: np.ndarray, control: np.ndarray) -> float:
    """Length of the predicted change of the mean over that of the real one; 1 is best, below is timid.

    Parameters
    ----------
    real, predicted, control
        Mean expression under the perturbation, as predicted, and of the controls, ``(n_genes,)``.

    Returns
    -------
    The ratio, at least 0. The direction does not count: read it beside :func:`pearson_delta`.

    Examples
    --------
    >>> import diffvi
    >>> import numpy as np
    >>> control, real = np.array([1.0, 1.0, 1.0]), np.array([1.0, 2.0, 0.0])
    >>> round(diffvi.metrics.effect_norm_ratio(real, (control + real) / 2, control), 2)
    0.5
    """
    return float(np.linalg.norm(predicted - control) / max(float(np.linalg.norm(real - control)), 1e-12))


def fold_change_nmae(real: np.ndarray, predicted: np.ndarray, control: np.ndarray) -> float:
    r"""Normalised absolute error of the log fold changes, :math:`\sum|\hat d_g - d_g| / \sum|d_g|`; 0 is best.

    A prediction of no change scores 1.

    Parameters
    ----------
    real, predicted, control
        Mean expression under the perturbation, as predicted, and of the controls, ``(n_genes,)``.

    Returns
    -------
    The error as a share of the real change, at least 0 and not bounded by 1.

    Examples
    --------
    >>> import diffvi
    >>> import numpy as np
    >>> control, real = np.array([1.0, 1.0, 1.0]), np.array([1.0, 2.0, 0.0])
    >>> diffvi.metrics.fold_change_nmae(real, (control + real) / 2, control)
    0.5
    >>> diffvi.metrics.fold_change_nmae(real, control, control)
    1.0
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
    prediction that is the same for every perturbation scores 0.5 on average. NaN with a single perturbation.

    Examples
    --------
    >>> import diffvi
    >>> import numpy as np
    >>> effects = np.eye(3)
    >>> diffvi.metrics.discrimination(effects, effects).tolist()
    [1.0, 1.0, 1.0]
    >>> diffvi.metrics.discrimination(effects, np.ones((3, 3))).tolist()
    [0.5, 0.5, 0.5]
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
    """Differentially expressed genes of real and predicted cells; see :func:`de_agreement`.

    Attributes
    ----------
    n_real, n_predicted
        Number of differentially expressed genes of the real and of the predicted cells.
    overlap
        Share of the real ones that the predicted cells rank first, in [0, 1].

    Examples
    --------
    >>> import diffvi
    >>> found = diffvi.metrics.DEAgreement(n_real=10, n_predicted=8, overlap=0.7)
    >>> found.n_predicted / found.n_real
    0.8
    """

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
        Expression of cells, ``(n_cells, n_genes)`` each. Take about as many predicted as real cells: the number of
        genes found grows with the number of cells.
    alpha
        False discovery rate.

    Returns
    -------
    :class:`DEAgreement` with both numbers and the overlap.

    Examples
    --------
    Ten of fifty genes change; the controls in the place of a prediction find none of them:

    >>> import diffvi
    >>> import numpy as np
    >>> real, predicted, control = np.random.default_rng(0).normal(size=(3, 100, 50))
    >>> real[:, :10] += 2
    >>> predicted[:, :10] += 2
    >>> diffvi.metrics.de_agreement(real, predicted, control)
    DEAgreement(n_real=10, n_predicted=10, overlap=1.0)
    >>> diffvi.metrics.de_agreement(real, control, control).n_predicted
    0
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

    Parameters
    ----------
    real, predicted, control
        Expression of cells, ``(n_cells, n_genes)`` each.
    n_genes
        Genes with the largest absolute change of the mean between ``real`` and ``control``.

    Returns
    -------
    Coefficient of determination over these genes.

    Examples
    --------
    >>> import diffvi
    >>> import numpy as np
    >>> real, predicted, control = np.random.default_rng(0).normal(size=(3, 200, 50)) * np.linspace(0.5, 2, 50)
    >>> collapsed = np.tile(predicted.mean(0), (200, 1))
    >>> [bool(diffvi.metrics.variance_r2(real, x, control) > 0) for x in (predicted, collapsed)]
    [True, False]
    """
    top = np.argsort(-np.abs(real.mean(0) - control.mean(0)))[:n_genes]
    return float(r2_score(real.var(0)[top], predicted.var(0)[top]))


def interval_coverage(truth: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """Share of true values inside ``[low, high]``; best at the nominal level of the interval.

    Parameters
    ----------
    truth
        True values, any shape.
    low, high
        Ends of the intervals, of the same shape, or numbers for all.

    Returns
    -------
    The share, in [0, 1]; NaN among the values counts as outside.

    Examples
    --------
    >>> import diffvi
    >>> import numpy as np
    >>> truth = np.array([0.0, 1.0, 2.0, 3.0])
    >>> diffvi.metrics.interval_coverage(truth, truth - 1, np.array([1.0, 1.0, 1.0, 5.0]))
    0.75
    """
    return float(((truth >= low) & (truth <= high)).mean())


def calibration_curve(truth: np.ndarray, samples: np.ndarray, levels: np.ndarray | None = None) -> np.ndarray:
    """Coverage of central intervals of samples at several nominal levels.

    Parameters
    ----------
    truth
        True values, any shape.
    samples
        Draws of the prediction, ``(n_samples, *truth.shape)``; at least 19 for a level of 0.9, as one of ``n`` draws in ``n + 1`` is above the greatest.
    levels
        Nominal levels; ``None`` for 0.1, 0.2, ..., 0.9.

    Returns
    -------
    ``(n_levels, 2)``: nominal level and measured coverage; a calibrated prediction lies on the diagonal.

    Examples
    --------
    Draws that spread as the truth does, and draws that spread half as much:

    >>> import diffvi
    >>> import numpy as np
    >>> truth, draws = np.split(np.random.default_rng(0).normal(size=(101, 1000)), [1])
    >>> for samples in (draws, draws / 2):
    ...     diffvi.metrics.calibration_curve(truth[0], samples, levels=[0.5, 0.9]).round(1).tolist()
    [[0.5, 0.5], [0.9, 0.9]]
    [[0.5, 0.3], [0.9, 0.6]]
    """
    levels = np.linspace(0.1, 0.9, 9) if levels is None else np.asarray(levels, float)
    low, high = (quantiles_of_draws(samples, 0.5 + side * levels / 2) for side in (-1, 1))
    return np.array([[q, interval_coverage(truth, a, b)] for q, a, b in zip(levels, low, high, strict=True)])


def scaled_score(score: float, baseline: float, ceiling: float) -> float:
    """``(score - baseline) / (ceiling - baseline)``: 0 is the baseline, 1 what a replicate would score.

    NaN where the ceiling is not above the baseline for a score of which more is better, that is, where the data
    leave nothing to be gained. For a score of which less is better pass all three with their sign changed.

    Parameters
    ----------
    score, baseline, ceiling
        The score of the method, of a baseline such as no change, and of a replicate.

    Returns
    -------
    The scaled score; below 0 where the method is worse than the baseline, above 1 where it beats the replicate.

    Examples
    --------
    A correlation, and a distance:

    >>> import diffvi
    >>> diffvi.metrics.scaled_score(0.75, baseline=0.5, ceiling=1.0)
    0.5
    >>> diffvi.metrics.scaled_score(-3.0, baseline=-5.0, ceiling=-1.0)
    0.5
    """
    return (score - baseline) / (ceiling - baseline) if ceiling > baseline else float("nan")


def _rank_sum_p(cells: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Two-sided p-values, gene by gene; 1 for a gene that is constant."""
    p = stats.mannwhitneyu(cells, control, axis=0, method="asymptotic").pvalue
    return np.nan_to_num(p, nan=1.0)
