"""How much of what was measured would be measured again."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from sklearn.decomposition import PCA

from diffvi.metrics import log_normalise

MIN_CELLS = 50
"""Cells below which correlations over half of them tell nothing."""


def repeatable_share(counts: sparse.csr_matrix, frame: np.ndarray, kinds: np.ndarray, seed: int = 0) -> np.ndarray:
    """Share of the variance of principal components of log-normalised expression that is not noise of counting.

    Each count is split in halves by a binomial draw; the correlation :math:`r` of a component of both gives that of two whole measurements,
    :math:`2 r / (1 + r)` (Spearman 1910; Brown 1910). The components are fitted on one part of the cells and read in the others, since components follow the noise of the
    cells that they are fitted on. What scatters more than a Poisson count does counts as repeated.

    Parameters
    ----------
    counts
        Cells by genes.
    frame
        Section of each cell, whose mean is left out, ``(n,)``.
    kinds
        Kind of each component, in the order of their variance, ``(n_components,)``; a kind has the mean correlation of its components.
    seed
        Of the halves and the parts.

    Returns
    -------
    From 0 to 1, one for each kind up to the highest; 0 for kinds whose components half of the cells do not have, and throughout with fewer than 50 cells.

    Examples
    --------
    One program that cells differ in; the other components are noise.

    >>> import numpy as np
    >>> from scipy import sparse
    >>> from diffvi.module import repeatable_share
    >>> rng = np.random.default_rng(0)
    >>> rates = np.exp(rng.normal(size=(400, 1)) * rng.normal(size=30))
    >>> counts = sparse.csr_matrix(rng.poisson(5 * rates))
    >>> share = repeatable_share(counts, np.zeros(400, int), kinds=np.r_[0, np.ones(20, int)])
    >>> bool(share[0] > 0.9), bool(share[1] < 0.5)
    (True, True)
    """
    found = np.zeros(int(kinds.max(initial=-1)) + 1)
    if len(frame) < MIN_CELLS:
        return found
    rng = np.random.default_rng(seed)
    half = sparse.csr_matrix(counts, copy=True)
    half.data = rng.binomial(half.data.astype(np.int64), 0.5).astype(np.float32)
    whole, *halves = (_centred(log_normalise(c), frame) for c in (counts, half, sparse.csr_matrix(counts - half)))
    part = rng.permutation(len(frame)) % 2 == 0
    correlations = []
    for fitted, read in ((part, ~part), (~part, part)):
        pca = PCA(min(len(kinds), int(fitted.sum()) - 1, counts.shape[1]), random_state=0).fit(whole[fitted])
        a, b = (pca.transform(x[read]) for x in halves)
        a, b = a - a.mean(0), b - b.mean(0)
        correlations.append((a * b).sum(0) / np.maximum(np.sqrt((a**2).sum(0) * (b**2).sum(0)), 1e-12))
    n = min(map(len, correlations))
    r = np.mean([c[:n] for c in correlations], 0)
    for kind in np.unique(kinds[:n]):
        # The mean before the cut at zero, which would turn noise around zero into a share.
        mean = max(float(r[kinds[:n] == kind].mean()), 0.0)
        found[kind] = 2 * mean / (1 + mean)
    return found


def _centred(values: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Values from the mean of their section."""
    sums, sizes = np.zeros((frame.max() + 1, values.shape[1])), np.bincount(frame)
    np.add.at(sums, frame, values)
    return values - (sums / np.maximum(sizes, 1)[:, None])[frame]
