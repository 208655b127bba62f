from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from diffvi._exceptions import whole_number

Scores = dict[str, float]


def quantiles_of_draws(draws: np.ndarray, levels: Sequence[float] | np.ndarray, axis: int = 0) -> np.ndarray:
    """Quantiles over draws, of which a new value is below as often as the level says, however few draws there are.

    By ranks over the number of draws and one: interpolated between the least and the greatest, those of few draws lie too near to each other.
    """
    return np.asarray(np.quantile(draws, levels, axis=axis, method="weibull"))


def half_sample_intervals(
    scores: Callable[[np.ndarray, np.ndarray], Scores], n_real: int, n_generated: int, n_resamples: int, seed: int = 0
) -> pd.DataFrame:
    """95 % intervals of scores of two sets of cells, from random halves of both.

    The spread of a statistic over halves drawn *without* replacement is, to first order, its standard error on
    the whole (Politis and Romano 1994, with half of the sample). A bootstrap with replacement would put
    copies of cells into the sets, which every nearest-neighbour and transport score takes for a fault.

    Parameters
    ----------
    scores
        Called with the rows of the real and of the generated cells to score; returns a number by name.
    n_real, n_generated
        Sizes of the two sets.
    n_resamples
        Number of halves; with fewer than two there are no intervals.
    seed
        Seed of the halves.

    Returns
    -------
    One row a score, with the columns ``value`` (of the whole sets), ``low`` and ``high``. The
    intervals are for the cells at hand; they do not cover what another training run would change.

    Raises
    ------
    InvalidInputError
        If ``n_resamples`` is not a whole number of at least 0.

    Examples
    --------
    Of a difference of two means over 200 values each, the theory's interval is 0.2 to either side:

    >>> import diffvi
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 200))
    >>> def scores(real, generated):
    ...     return {"difference": y[generated].mean() - x[real].mean()}
    >>> table = diffvi.metrics.half_sample_intervals(scores, 200, 200, n_resamples=200)
    >>> round(float(table.loc["difference", "high"] - table.loc["difference", "value"]), 1)
    0.2
    """
    whole_number("n_resamples", n_resamples, 0)
    value = pd.Series(scores(np.arange(n_real), np.arange(n_generated)))
    if n_resamples < 2:
        return pd.DataFrame({"value": value, "low": np.nan, "high": np.nan})
    rng = np.random.default_rng(seed)
    halves = [
        scores(*(np.sort(rng.permutation(n)[: (n + 1) // 2]) for n in (n_real, n_generated)))
        for _ in range(n_resamples)
    ]
    error = 1.96 * pd.DataFrame(halves).std()
    return pd.DataFrame({"value": value, "low": value - error, "high": value + error})
