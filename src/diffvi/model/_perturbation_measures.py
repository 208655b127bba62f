"""Mean effects of treatments, as measured on cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.stats import norm

from diffvi.data import Treatment

PSEUDOCOUNT = 0.05
"""Added to mean counts, at the median library of the training cells, before the logarithm of their ratio is taken."""


@dataclass
class Measured:
    """Log ratios of mean expression, perturbed over control, as measured on training cells.

    Parameters
    ----------
    log_ratio, variance
        Mean over contexts, and the square of its standard error, ``(n_treatments, n_genes)``.
    between_contexts
        Variance of the log ratios between contexts, beyond their noise; 0 for one context.
    library, library_variance
        Mean change of the log library, and the square of its standard error, ``(n_treatments,)``.
    """

    log_ratio: np.ndarray
    variance: np.ndarray
    between_contexts: np.ndarray
    library: np.ndarray
    library_variance: np.ndarray


@dataclass
class Transfer:
    """What some cells tell of others: other cells of the same contexts, or other contexts.

    Parameters
    ----------
    effects
        Latent effects measured on the first ones, ``(n_treatments, d)``.
    told, asked
        Log ratios measured on the first and on the others.
    told_in, asked_in
        The contexts of the first and of the others.
    """

    effects: np.ndarray
    told: Measured
    asked: Measured
    told_in: set[tuple[int, ...]]
    asked_in: set[tuple[int, ...]]


def repeatable(rest: np.ndarray, variance: np.ndarray, shrink: bool = True) -> np.ndarray:
    """What was measured, drawn to 0 by its noise: rows have a signal each, such as treatments by genes, ``(n_treatments, n_genes)``.

    Where nothing was measured (an infinite variance) it is 0; without ``shrink`` the rest is as it is.
    """
    finite = np.isfinite(variance)
    if not shrink:
        return np.where(finite, rest, 0.0)
    noise = np.where(finite, variance, 0.0)
    excess = np.where(finite, rest**2 - noise, 0.0).sum(1, keepdims=True)
    signal = np.maximum(excess / np.maximum(finite.sum(1, keepdims=True), 1), 0.0)
    total = signal + noise
    return np.where(finite & (total > 0), rest * signal / np.where(total > 0, total, 1.0), 0.0)


class FoundAgain:
    """How much of what some cells tell, shrunk or as it is, is found in others: least squares, 0 to 1."""

    def __init__(self, shrink: bool = True) -> None:
        self.shrink = shrink
        self.both = self.own = 0.0

    def add(self, told: np.ndarray, told_variance: np.ndarray, asked: np.ndarray, asked_variance: np.ndarray) -> None:
        """Count what was measured on some cells and on others, rows with a signal each; what is not finite counts for nothing."""
        known = np.isfinite(told_variance + asked_variance + told + asked)
        told = repeatable(told, told_variance, self.shrink)
        if known.any():
            left = max(float((asked[known] ** 2 - asked_variance[known]).mean()), 1e-3)
            weight = 1 / (asked_variance[known] + left)
            self.both += float((weight * told[known] * asked[known]).sum())
            self.own += float((weight * told[known] ** 2).sum())

    @property
    def share(self) -> float | None:
        """The share; ``None`` where nothing is told."""
        return float(np.clip(self.both / self.own, 0.0, 1.0)) if self.own > 0 else None


def measure(
    state: np.ndarray,
    shares: sparse.csr_matrix,
    library: float,
    groups: dict[tuple[tuple[int, ...], Treatment], list[int]],
    controls: dict[tuple[int, ...], np.ndarray],
    place: dict[Treatment, int],
    mask: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, Measured]:
    """Latent effect and its noise, and log ratios of expression, for each treatment: within contexts, then over them.

    The last column of ``state`` is the log library.
    """
    n, d, n_genes = len(place), state.shape[1], shares.shape[1]
    effect, noise, weight = np.zeros((n, d)), np.zeros((n, d)), np.zeros(n)
    ratio, variance, squares, apart = (np.zeros((n, n_genes)) for _ in range(4))
    n_contexts = np.zeros((n, 1))
    base = {c: _moments(state[rows[mask[rows]]], shares[rows[mask[rows]]], library) for c, rows in controls.items()}
    for (context, treatment), rows in groups.items():
        mine = np.array(rows)[mask[rows]]
        if treatment not in place or not len(mine) or base[context] is None:
            continue
        mean0, se0, log0, v0 = base[context]
        mean1, se1, log1, v1 = _moments(state[mine], shares[mine], library)
        i, w = place[treatment], len(mine)
        effect[i] += w * (mean1 - mean0)
        noise[i] += w**2 * (se0 + se1)
        ratio[i] += w * (log1 - log0)
        variance[i] += w**2 * (v0 + v1)
        squares[i] += w * (log1 - log0) ** 2
        apart[i] += w * (v0 + v1)
        weight[i] += w
        n_contexts[i] += 1
    weight = np.maximum(weight, 1e-12)[:, None]
    missing = weight[:, 0] < 1
    variance[missing], noise[missing] = np.inf, np.inf
    effect, ratio = effect / weight, ratio / weight
    between = np.maximum((squares - apart) / weight - ratio**2, 0.0)
    between *= np.where(n_contexts > 1, n_contexts / np.maximum(n_contexts - 1, 1), 0.0)
    noise = noise / weight**2
    measured = Measured(ratio, variance / weight**2, between, effect[:, -1], noise[:, -1])
    return effect[:, :-1], noise[:, :-1].mean(1), measured


def _moments(state: np.ndarray, shares: Any, library: float) -> Any:
    """Mean state and its squared error, log mean expression and its variance; ``None`` for no cells."""
    n = len(state)
    if n == 0:
        return None
    mean = library * np.asarray(shares.mean(0)).ravel()
    squares = library**2 * np.asarray(shares.multiply(shares).mean(0)).ravel()
    spread = state.var(0, ddof=1) / n if n > 1 else np.full(state.shape[1], 1.0)
    # A gene that no cell has was not measured to be exactly absent: at least the variance of a Poisson count.
    counts = np.maximum((squares - mean**2) * n / max(n - 1, 1), np.maximum(mean, 1 / n)) / n
    return state.mean(0), spread, np.log(mean + PSEUDOCOUNT), counts / (mean + PSEUDOCOUNT) ** 2


def coverage_factor(errors: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], level: float = 0.9) -> float:
    """Factor on standard deviations that makes intervals, with the noise of the truth added, cover at ``level``."""
    error, variance, noise = (np.concatenate([e[i] for e in errors]) for i in range(3))
    z = norm.ppf(0.5 + level / 2)
    low, high = 0.05, 20.0
    for _ in range(40):
        middle = np.sqrt(low * high)
        covered = (np.abs(error) <= z * np.sqrt(middle**2 * variance + noise)).mean()
        low, high = (low, middle) if covered >= level else (middle, high)
    return float(high if high > 1 else np.sqrt(high))
