from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from diffvi._exceptions import InvalidInputError, finite_number, positive_int, seed_or_random

from ._counts import check_count_model, finite_numbers, negative_binomial

BRANCHING = 1.5
"""Time around which cells choose."""
NOISE = 0.35
N_FUTURES = 200
"""Futures of each cell from which its true fate probability is counted."""


def simulate_trajectory(
    n_obs: int = 400,
    n_vars: int = 100,
    times: Sequence[float] = (0.0, 1.0, 1.5, 2.5, 4.0),
    growth: float = 0.4,
    reversion: float = 0.0,
    mean_library: float = 2000.0,
    dispersion: float = 10.0,
    seed: int | None = 0,
) -> AnnData:
    r"""Cells that develop, choose between two fates and grow at different rates, measured at several times.

    A cell is at :math:`(x, y)`. Along :math:`x` it advances by one a unit of time, with noise; :math:`y` diffuses before
    the branching, and is drawn to :math:`\pm 1` after it:

    .. math:: dy = \left[2 s(x)\,(y - y^3) - r\,(1 - s(x))\,y\right] dt + 0.35\, dW, \qquad s(x) = 1 / (1 + e^{-4 (x - 1.5)}).

    Cells grow at the rate ``growth`` :math:`\cdot \tanh(2 y)\, s(x)`, so that the upper branch takes over. Each time is a sample of its own of the population, as
    measuring destroys cells. Counts are negative binomial around a softmax of smooth gene programs of :math:`(x, y)`.

    Parameters
    ----------
    n_obs
        Cells at each time.
    n_vars
        Genes.
    times
        Measured times, ascending; the gaps may differ.
    growth
        Growth rate of the upper branch, and death rate of the lower one.
    reversion
        The :math:`r` above. Fluctuations around a mean that stays leave no trace in populations, so that where cells forget them no
        method can tell from snapshots how soon; with 0 the past of a cell is as visible as it can be.
    mean_library, dispersion
        Typical total counts of a cell, and inverse dispersion.
    seed
        Seed; ``None`` for one from the operating system.

    Returns
    -------
    AnnData with counts in ``X`` (CSR); ``obs``: ``time``, ``fate`` (``"up"``, ``"down"``, or ``"progenitor"`` for cells that have not chosen), ``outcome`` (the
    fate of one future of the cell at the last time), ``fate_probability`` (of ``"up"``, from many futures), ``growth_rate``; ``obsm["state"]``: :math:`(x, y)`.

    Raises
    ------
    InvalidInputError
        If the times are not finite numbers that ascend, a number of cells or genes is not a whole number of at least 1,
        ``growth`` or ``reversion`` is not finite, ``mean_library`` or ``dispersion`` is not positive, or the seed is not one
        of 0 to 2**63 - 1.

    Examples
    --------
    All cells are progenitors at first; at the end they have chosen, and the branch that grows has more of them:

    >>> import diffvi
    >>> cells = diffvi.datasets.simulate_trajectory(100, 10, seed=0)
    >>> fates = {time: at["fate"].value_counts() for time, at in cells.obs.groupby("time")}
    >>> int(fates[0.0]["progenitor"]), int(fates[4.0]["progenitor"]), bool(fates[4.0]["up"] > fates[4.0]["down"])
    (100, 0, True)
    """
    n_obs, n_vars = positive_int("n_obs", n_obs), positive_int("n_vars", n_vars)
    clock = finite_numbers("times", times)
    if (np.diff(clock) <= 0).any():
        raise InvalidInputError(f"`times` must ascend; got {list(times)}.")
    finite_number("growth", growth)
    finite_number("reversion", reversion)
    check_count_model(mean_library, dispersion)
    rng = np.random.default_rng(seed_or_random(seed))
    states = []
    for time in clock:
        n = 10 * n_obs
        state = np.c_[0.3 * rng.normal(size=n), 0.3 * rng.normal(size=n)]
        state, log_weight = _evolve(state, float(time - clock[0]), growth, reversion, rng)
        weight = np.exp(log_weight - log_weight.max())
        states.append(state[rng.choice(n, n_obs, p=weight / weight.sum())])
    state = np.concatenate(states)
    time = np.repeat(clock, n_obs)
    ends = np.stack([_futures(state, clock[-1] - time, reversion, rng)[:, 1] > 0 for _ in range(N_FUTURES + 1)])
    fate = np.where(
        _committed(state[:, 0]) * np.abs(state[:, 1]) < 0.4, "progenitor", np.where(state[:, 1] > 0, "up", "down")
    )

    features = np.c_[state, np.sin(state[:, 0]), state[:, 0] * state[:, 1] / 2, np.tanh(2 * state[:, 1])]
    logits = rng.normal(size=n_vars) + features @ rng.normal(scale=0.5, size=(features.shape[1], n_vars))
    share = np.exp(logits - logits.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    rate = (mean_library * np.exp(0.3 * rng.normal(size=len(state))))[:, None] * share
    counts = negative_binomial(rng, rate, dispersion)
    obs = pd.DataFrame(
        {
            "time": time,
            "fate": pd.Categorical(fate),
            "outcome": pd.Categorical(np.where(ends[-1], "up", "down")),
            "fate_probability": ends[:-1].mean(0),
            "growth_rate": _growth_rate(state, growth),
        },
        index=[f"cell_{i}" for i in range(len(state))],
    )
    adata = AnnData(
        counts,
        obs=obs,
        var=pd.DataFrame(index=[f"gene_{j}" for j in range(n_vars)]),
    )
    adata.obsm["state"] = state
    return adata


def _committed(x: np.ndarray) -> np.ndarray:
    """How far the branching has opened."""
    return 1 / (1 + np.exp(-4 * (x - BRANCHING)))


def _growth_rate(state: np.ndarray, growth: float) -> np.ndarray:
    return growth * np.tanh(2 * state[:, 1]) * _committed(state[:, 0])


def _step(state: np.ndarray, dt: np.ndarray | float, reversion: float, rng: np.random.Generator) -> np.ndarray:
    """One Euler-Maruyama step."""
    x, y = state.T
    open_ = _committed(x)
    drift = np.c_[np.ones_like(x), 2 * open_ * (y - y**3) - reversion * (1 - open_) * y]
    dt = np.broadcast_to(np.asarray(dt, float), x.shape)[:, None]
    return state + drift * dt + np.sqrt(dt) * rng.normal(size=state.shape) * np.array([0.15, NOISE])


def _evolve(
    state: np.ndarray, time: float, growth: float, reversion: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """States after ``time`` and the log of the mass that each has gained."""
    n_steps = max(1, int(np.ceil(time / 0.05)))
    total = np.zeros(len(state))
    for _ in range(n_steps if time > 0 else 0):
        total += _growth_rate(state, growth) * time / n_steps
        state = _step(state, time / n_steps, reversion, rng)
    return state, total


def _futures(state: np.ndarray, left: np.ndarray, reversion: float, rng: np.random.Generator) -> np.ndarray:
    """Where each cell is after the time it has ``left``."""
    n_steps = max(1, int(np.ceil(left.max() / 0.05)))
    for _ in range(n_steps):
        state = _step(state, left / n_steps, reversion, rng)
    return state
