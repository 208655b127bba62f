"""Counts around known rates."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def negative_binomial(rng: np.random.Generator, rate: np.ndarray, dispersion: float) -> sparse.csr_matrix:
    """Negative binomial counts with the given means, as raw counts come: CSR, and no cell without a molecule."""
    counts = rng.poisson(rng.gamma(dispersion, rate / dispersion))
    counts[counts.sum(1) == 0, 0] = 1
    return sparse.csr_matrix(counts.astype(np.float32))
