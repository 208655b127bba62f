from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.special import gammainc, gammaincc, gammainccinv, gammaincinv, gammaln

from diffvi._random import CellStreams

MAX_RATE = 1e7
"""Rates are capped here: numpy's Poisson overflows far above it, and no cell comes near it."""
MANY = 2.0
"""Clusters of molecules that a gene has on average, from which it is faster to draw its count on its own."""
HUGE = 1e3
"""Mean over inverse dispersion from which the same holds."""
TINY = 1e-300
"""Keeps divisors and probabilities from zero."""
SAME = 1e-6
"""Dispersions that differ by less, relatively, are the same: they come from networks of single precision."""


def sample_counts(px: Any, streams: CellStreams) -> sparse.csr_matrix:
    r"""Draw integer counts from scvi's NB, ZINB or Poisson, each cell from its own stream.

    Parameters
    ----------
    px
        A batch of ``n`` cells by ``G`` genes from ``module.generative``.
    streams
        One stream a cell.

    Returns
    -------
    CSR matrix of ``int32`` counts, ``(n, G)``.

    Notes
    -----
    A negative binomial of mean :math:`\mu` and inverse dispersion :math:`\theta` is the sum of
    :math:`\mathrm{Poisson}(\theta \log(1 + \mu / \theta))` clusters of logarithmic size (Quenouille 1949, *Biometrics* 5:162). The
    clusters of all genes of a cell are one Poisson process over the genes, so that what is drawn goes with the molecules of the cell, not
    with its genes. Genes of more than a few clusters are drawn as a Poisson whose rate is Gamma instead.

    Examples
    --------
    A negative binomial of mean 5 and inverse dispersion 2 has the variance 5 + 5² / 2 = 17.5.

    >>> import torch
    >>> from diffvi._random import CellStreams
    >>> from diffvi.data import sample_counts
    >>> from scvi.distributions import NegativeBinomial
    >>> px = NegativeBinomial(mu=torch.full((2000, 1), 5.0), theta=torch.tensor([2.0]))
    >>> counts = sample_counts(px, CellStreams(0, range(2000))).toarray()
    >>> round(counts.mean()), round(counts.var())
    (5, 17)
    """
    mean = _within(px.rate if hasattr(px, "rate") else px.mu)
    theta = _within(px.theta) if hasattr(px, "theta") else None
    clusters = mean if theta is None else theta * torch.log1p(mean / theta)
    many = clusters > MANY
    if theta is not None:
        # Where clusters are few and huge, their logarithmic sizes are lost in rounding.
        many |= mean > HUGE * theta
    cumulative = clusters.masked_fill(many, 0.0).cpu().double().cumsum(1).numpy()
    often_drawn = [np.flatnonzero(genes) for genes in many.cpu().numpy()]
    zero_prob = torch.sigmoid(px.zi_logits).cpu().numpy() if hasattr(px, "zi_logits") else None
    means, shapes = mean.cpu().numpy(), None if theta is None else theta.cpu().numpy()
    genes, counts = [np.empty(0, int)], [np.empty(0, int)]
    for i, stream in enumerate(streams):
        of_gene = _sorted_places(cumulative[i], stream)
        size = np.ones(len(of_gene), int)
        if shapes is not None:
            share = means[i, of_gene].astype(float)
            size = stream.logseries(share / (share + shapes[i, of_gene]))
        if len(often := often_drawn[i]):
            rate = means[i, often].astype(float)
            if shapes is not None:
                shape = shapes[i, often].astype(float)
                rate = stream.standard_gamma(shape) * (rate / shape)
            of_gene = np.concatenate([of_gene, often])
            size = np.concatenate([size, stream.poisson(np.minimum(rate, MAX_RATE))])
        if zero_prob is not None:
            size[(stream.random(means.shape[1]) < zero_prob[i])[of_gene]] = 0
        genes.append(of_gene)
        counts.append(size)
    ends = np.cumsum([len(part) for part in genes])
    drawn = sparse.csr_matrix((_joined(counts), _joined(genes), ends.astype(np.int32)), shape=means.shape)
    drawn.sum_duplicates()
    drawn.eliminate_zeros()
    return drawn


def _sorted_places(cumulative: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """Points of a Poisson process over steps of the heights of ``cumulative``: the step of each, in order."""
    total = cumulative[-1]
    # Sums of exponential gaps, as a share of the last, are uniform numbers in order: no sorting.
    gaps = stream.standard_exponential(stream.poisson(total) + 1).cumsum()
    points = np.minimum(gaps[:-1] * (total / gaps[-1]), np.nextafter(total, 0.0))
    return np.searchsorted(cumulative, points, side="right")


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays).astype(np.int32)


def _within(x: torch.Tensor) -> torch.Tensor:
    """Values kept from zero and from infinity; in single precision, which is what networks give."""
    return x.detach().float().clamp(1e-10, 1e12)


def transport_counts(
    counts: sparse.csr_matrix, before: Any, after: Any, streams: CellStreams
) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    r"""Move observed counts from one count distribution to another, keeping what is a cell's own.

    The coupling is the one in which both counts come from one Cox process. With means :math:`m_0, m_1` and one inverse
    dispersion :math:`\theta`, a gene's counts are :math:`X_i \sim \mathrm{Poisson}(m_i \gamma)` with one and the same
    :math:`\gamma \sim \mathrm{Gamma}(\theta, 1 / \theta)`, and the smaller set of molecules is part of the larger.
    Given an observed :math:`x_0` that means

    .. math::

        x_1 \mid x_0 \sim \mathrm{Binomial}\left(x_0, \min(1, \tfrac{m_1}{m_0})\right)
            + \mathrm{NB}\left(\text{mean } (\theta + x_0) \tfrac{(m_1 - m_0)_+}{\theta + m_0},
            \ \text{inverse dispersion } \theta + x_0\right),

    because :math:`\gamma \mid x_0 \sim \mathrm{Gamma}(\theta + x_0, 1 / (\theta + m_0))`. If :math:`x_0` follows the first
    negative binomial then :math:`x_1` follows the second exactly, for thinning and for addition, and equal means leave
    every count as it is. A Poisson is the limit of large :math:`\theta`. With zero inflation the zero of a gene may be a
    dropout; dropouts are shared as far as the two probabilities allow.

    Where the inverse dispersions :math:`\theta_0, \theta_1` differ, the two rates are not in proportion, and the cell keeps its
    quantile instead: with :math:`F_\theta` the distribution function of :math:`\mathrm{Gamma}(\theta, 1 / \theta)`,

    .. math::

        \gamma_0 \mid x_0 \sim \mathrm{Gamma}\left(\theta_0 + x_0, \tfrac{1}{\theta_0 + m_0}\right), \quad
        \gamma_1 = F_{\theta_1}^{-1}(F_{\theta_0}(\gamma_0)), \quad r_i = m_i \gamma_i, \quad
        x_1 \sim \mathrm{Binomial}\left(x_0, \min(1, \tfrac{r_1}{r_0})\right) + \mathrm{Poisson}((r_1 - r_0)_+).

    Before :math:`x_0` is seen, :math:`\gamma_i \sim \mathrm{Gamma}(\theta_i, 1 / \theta_i)`, so that this is exact too.

    Parameters
    ----------
    counts
        Observed counts, CSR, ``(n, G)``.
    before, after
        scvi's distributions at the cells' own library, a batch of ``n`` cells by ``G`` genes each.
    streams
        One stream a cell.

    Returns
    -------
    CSR matrix of ``int32`` counts, and expectation and variance of each count given the cell's own, ``(n, G)`` each; where
    dispersions differ, given the rates that were drawn too.

    Examples
    --------
    Twice the mean: counts are added to those observed, and what comes out follows the second distribution, of mean 10 and variance
    10 + 10² / 2 = 60.

    >>> import torch
    >>> from diffvi._random import CellStreams
    >>> from diffvi.data import sample_counts, transport_counts
    >>> from scvi.distributions import NegativeBinomial
    >>> before, after = (NegativeBinomial(mu=torch.full((2000, 1), m), theta=torch.tensor([2.0])) for m in (5.0, 10.0))
    >>> counts = sample_counts(before, CellStreams(0, range(2000)))
    >>> moved, expected, _ = transport_counts(counts, before, after, CellStreams(1, range(2000)))
    >>> round(moved.mean()), round(moved.toarray().var()), int((moved - counts).min())
    (10, 57, 0)
    """
    m0, m1 = (_numpy(px.rate if hasattr(px, "rate") else px.mu) for px in (before, after))
    theta, theta1 = (
        np.broadcast_to(_numpy(px.theta) if hasattr(px, "theta") else 1e12, m0.shape) for px in (before, after)
    )
    x = counts.toarray().astype(np.int64) if sparse.issparse(counts) else np.asarray(counts, dtype=np.int64)
    differ = np.abs(theta1 - theta) > SAME * theta
    keep = np.where(differ, 1.0, np.minimum(m1 / m0, 1.0))
    gain = np.where(differ, 0.0, np.maximum(m1 - m0, 0.0) / (theta + m0))
    mean = x * keep + (theta + x) * gain
    variance = x * keep * (1 - keep) + (theta + x) * gain * (1 + gain)
    inflated = hasattr(before, "zi_logits")
    if inflated:
        p0, p1 = (_numpy(torch.sigmoid(px.zi_logits)) for px in (before, after))
        zero = (theta / (theta + m0)) ** theta
        hidden = np.where(x == 0, p0 / (p0 + (1 - p0) * zero), 0.0)
        stays, falls = np.minimum(p1 / p0, 1.0), np.maximum(p1 - p0, 0.0) / np.maximum(1 - p0, 1e-10)
    out = np.empty(x.shape, dtype=np.int32)
    for i, stream in enumerate(streams):
        moved = x[i].copy()
        down, up = np.flatnonzero((x[i] > 0) & (keep[i] < 1)), np.flatnonzero(gain[i] > 0)
        moved[down] = stream.binomial(x[i, down], keep[i, down])
        rate = stream.standard_gamma(theta[i, up] + x[i, up]) * gain[i, up]
        moved[up] += stream.poisson(np.minimum(rate, MAX_RATE))
        if differ[i].any():
            at = i, np.flatnonzero(differ[i])
            moved[at[1]], mean[at], variance[at] = _keep_quantiles(x[at], m0[at], m1[at], theta[at], theta1[at], stream)
        if inflated:
            moved = _share_dropouts(moved, m1[i], theta1[i], hidden[i], stays[i], falls[i], stream)
        out[i] = moved
    if inflated:
        # A gene that comes out of dropout starts from the second distribution, not from its zero.
        fresh, seen = hidden * (1 - stays), (1 - hidden) * (1 - falls)
        second = fresh * (m1 + m1**2 + m1**2 / theta1) + seen * (variance + mean**2)
        mean = fresh * m1 + seen * mean
        variance = np.maximum(second - mean**2, 0.0)
    return sparse.csr_matrix(out), mean, variance


def _keep_quantiles(
    x: np.ndarray,
    m0: np.ndarray,
    m1: np.ndarray,
    theta0: np.ndarray,
    theta1: np.ndarray,
    stream: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts of one cell of other dispersions, and their expectation and variance given the rates that are drawn."""
    # By its logarithm, as a gamma variable of small shape underflows.
    shape = theta0 + x
    log_gamma0 = np.log(stream.standard_gamma(shape + 1)) + np.log1p(-stream.random(len(x))) / shape
    log_gamma0 -= np.log(theta0 + m0)
    r0, r1 = m0 * np.exp(log_gamma0), m1 * _same_quantile(log_gamma0, theta0, theta1)
    keep, more = np.minimum(r0, r1) / np.maximum(r0, TINY), np.maximum(r1 - r0, 0.0)
    moved = stream.binomial(x, keep) + stream.poisson(np.minimum(more, MAX_RATE))
    return moved, x * keep + more, x * keep * (1 - keep) + more


def _same_quantile(log_gamma: np.ndarray, theta0: np.ndarray, theta1: np.ndarray) -> np.ndarray:
    """Where Gamma(theta1, 1 / theta1) has the quantile that Gamma(theta0, 1 / theta0) has there."""
    log_z = log_gamma + np.log(theta0)
    z = np.exp(log_z)
    # The first term of the series, which is exact there, where the argument is small and may underflow.
    tiny = log_z < -30
    first = np.exp(theta0 * np.minimum(log_z, -30) - gammaln(theta0 + 1))
    below, above = np.where(tiny, first, gammainc(theta0, z)), gammaincc(theta0, z)
    # From the nearer end, as digits of a probability near one are few.
    low = tiny | (below < 0.5)
    found = np.empty(len(z))
    found[low] = gammaincinv(theta1[low], below[low])
    found[~low] = gammainccinv(theta1[~low], np.maximum(above[~low], TINY))
    return found / theta1


def _share_dropouts(
    moved: np.ndarray,
    m1: np.ndarray,
    theta: np.ndarray,
    hidden: np.ndarray,
    stays: np.ndarray,
    falls: np.ndarray,
    stream: np.random.Generator,
) -> np.ndarray:
    """Counts of one cell with the zero inflation of the second distribution."""
    changes = (stays < 1) | (falls > 0)
    dropped, uniform = stream.random(len(moved)) < hidden, stream.random(len(moved))
    back = changes & dropped & (uniform >= stays)
    moved = np.where(dropped | (changes & ~dropped & (uniform < falls)), 0, moved)
    moved[back] = stream.poisson(np.minimum(stream.standard_gamma(theta[back]) * m1[back] / theta[back], MAX_RATE))
    return moved


def _numpy(x: torch.Tensor) -> np.ndarray:
    return np.clip(x.detach().cpu().double().numpy(), 1e-10, 1e12)
