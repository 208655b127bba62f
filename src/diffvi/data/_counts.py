from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse

from diffvi._random import CellStreams

MAX_RATE = 1e7
"""Rates are capped here: numpy's Poisson overflows far above it, and no cell comes near it."""


def sample_counts(px: Any, streams: CellStreams) -> sparse.csr_matrix:
    """Draw integer counts from scvi's NB, ZINB or Poisson, each cell from its own stream.

    Parameters
    ----------
    px
        A batch of ``n`` cells by ``G`` genes from ``module.generative``.
    streams
        One stream a cell.

    Returns
    -------
    CSR matrix of ``int32`` counts, ``(n, G)``. A negative binomial of mean ``mu`` and inverse dispersion
    ``theta`` is drawn as a Poisson whose rate is Gamma(theta, mu / theta).

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
    rate = _numpy(px.rate if hasattr(px, "rate") else px.mu)
    theta = _numpy(px.theta) if hasattr(px, "theta") else None
    zero_prob = _numpy(torch.sigmoid(px.zi_logits)) if hasattr(px, "zi_logits") else None
    counts = np.empty(rate.shape, dtype=np.int32)
    for i, stream in enumerate(streams):
        mean = rate[i]
        if theta is not None:
            shape = theta[i] if theta.ndim == 2 else theta
            mean = stream.standard_gamma(shape) * (mean / shape)
        counts[i] = stream.poisson(np.minimum(mean, MAX_RATE))
        if zero_prob is not None:
            counts[i, stream.random(rate.shape[1]) < zero_prob[i]] = 0
    return sparse.csr_matrix(counts)


def transport_counts(
    counts: sparse.csr_matrix, before: Any, after: Any, streams: CellStreams
) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    r"""Move observed counts from one count distribution to another, keeping what is a cell's own.

    The coupling is the one in which both counts come from one Cox process. With means :math:`m_0, m_1` and inverse
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
    CSR matrix of ``int32`` counts, and expectation and variance of each count given the cell's own, ``(n, G)`` each.

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
    (10, 61, 0)
    """
    m0, m1 = (_numpy(px.rate if hasattr(px, "rate") else px.mu) for px in (before, after))
    theta = _numpy(before.theta) if hasattr(before, "theta") else np.full(m0.shape[1], 1e12)
    theta = np.broadcast_to(theta, m0.shape)
    x = counts.toarray().astype(np.int64) if sparse.issparse(counts) else np.asarray(counts, dtype=np.int64)
    keep = np.minimum(m1 / m0, 1.0)
    gain = np.maximum(m1 - m0, 0.0) / (theta + m0)
    mean = x * keep + (theta + x) * gain
    variance = x * keep * (1 - keep) + (theta + x) * gain * (1 + gain)
    inflated = hasattr(before, "zi_logits")
    if inflated:
        p0, p1 = (_numpy(torch.sigmoid(px.zi_logits)) for px in (before, after))
        zero = (theta / (theta + m0)) ** theta
        hidden = np.where(x == 0, p0 / (p0 + (1 - p0) * zero), 0.0)
        stays, falls = np.minimum(p1 / p0, 1.0), np.maximum(p1 - p0, 0.0) / np.maximum(1 - p0, 1e-10)
        # A gene that comes out of dropout starts from the second distribution, not from its zero.
        fresh, seen = hidden * (1 - stays), (1 - hidden) * (1 - falls)
        second = fresh * (m1 + m1**2 + m1**2 / theta) + seen * (variance + mean**2)
        mean = fresh * m1 + seen * mean
        variance = np.maximum(second - mean**2, 0.0)
    out = np.empty(x.shape, dtype=np.int32)
    for i, stream in enumerate(streams):
        moved = x[i].copy()
        down, up = np.flatnonzero((x[i] > 0) & (keep[i] < 1)), np.flatnonzero(gain[i] > 0)
        moved[down] = stream.binomial(x[i, down], keep[i, down])
        rate = stream.standard_gamma(theta[i, up] + x[i, up]) * gain[i, up]
        moved[up] += stream.poisson(np.minimum(rate, MAX_RATE))
        if inflated:
            moved = _share_dropouts(moved, m1[i], theta[i], hidden[i], stays[i], falls[i], stream)
        out[i] = moved
    return sparse.csr_matrix(out), mean, variance


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
