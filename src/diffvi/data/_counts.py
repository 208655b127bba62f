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


def _numpy(x: torch.Tensor) -> np.ndarray:
    return np.clip(x.detach().cpu().double().numpy(), 1e-10, 1e12)
