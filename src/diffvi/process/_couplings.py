"""Pairing the cells of two populations that were never measured together."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from diffvi._exceptions import InvalidInputError, one_of

Pairing = Literal["ot", "random"]
"""How sources and targets are paired: see :func:`pair_sources`."""
PAIRINGS: tuple[Pairing, ...] = ("ot", "random")
"""All values of :data:`Pairing`."""

BLOCK = 2000
"""Larger populations are cut at random into blocks of this many cells, each solved exactly."""


def pair_sources(source: np.ndarray, target: np.ndarray, pairing: Pairing = "ot", seed: int = 0) -> np.ndarray:
    """A source for every target cell.

    Parameters
    ----------
    source, target
        States, ``(n_source, d)`` and ``(n_target, d)``.
    pairing
        ``"ot"``: the pairs of an exact optimal transport plan for the squared Euclidean distance, so that no pair
        moves further than the difference of the populations asks for. Solved by POT where it is installed, else as
        an assignment by scipy, in which some cells of the smaller population stand in twice. ``"random"``:
        independent pairs, whose differences are mostly those between any two cells.
    seed
        Seed of blocks, copies and random pairs.

    Returns
    -------
    Rows of ``source``, ``(n_target,)``. Every source is used as often as any other, as nearly as numbers allow.

    Raises
    ------
    InvalidInputError
        If ``pairing`` is not known, or there is no source.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.process import pair_sources
    >>> pair_sources(np.array([[0.0], [10.0]]), np.array([[11.0], [1.0]])).tolist()
    [1, 0]
    """
    one_of("pairing", pairing, PAIRINGS)
    if len(source) == 0:
        raise InvalidInputError(f"`source` must have at least one row; got the shape {source.shape}.")
    rng = np.random.default_rng(seed)
    targets = rng.permutation(len(target))
    sources = _evenly(len(source), max(len(source), len(target)), rng)
    if pairing == "random":
        picked = np.empty(len(target), dtype=int)
        picked[targets] = sources[: len(target)]
        return picked
    picked = np.empty(len(target), dtype=int)
    n_blocks = -(-max(len(source), len(target)) // BLOCK)
    for some, rows in zip(np.array_split(sources, n_blocks), np.array_split(targets, n_blocks), strict=True):
        if len(rows):
            picked[rows] = some[_plan(source[some], target[rows], rng)]
    return picked


def _evenly(n: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """``size`` numbers below ``n`` in random order, each as often as any other but for one."""
    return rng.permutation(np.concatenate([np.tile(np.arange(n), size // n), rng.permutation(n)[: size % n]]))


def _plan(source: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A row of ``source`` for every target, from an exact plan between uniform populations."""
    cost = cdist(source, target, "sqeuclidean")
    ot = _pot()
    if ot is None or len(source) == len(target):
        copies = _evenly(len(target), max(len(source), len(target)), rng)
        rows, columns = linear_sum_assignment(cost[:, copies])
        found = np.empty(len(target), dtype=int)
        found[copies[columns]] = rows
        return found
    plan = ot.emd(ot.unif(len(source)), ot.unif(len(target)), cost, numItermax=1_000_000).T
    shares = np.cumsum(plan / plan.sum(1, keepdims=True), axis=1)
    found = (shares < rng.random((len(target), 1))).sum(1)
    return np.minimum(found, len(source) - 1)


def _pot() -> Any:
    try:
        import ot
    except ImportError:
        return None
    return ot
