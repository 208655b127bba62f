"""Populations at a time that was not measured, from cells at the times around it, as points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from scipy.spatial.distance import cdist


class Interpolator(Protocol):
    """A method that predicts the population at a left-out time."""

    name: str

    def fit(self, points: Mapping[float, np.ndarray]) -> None:
        """Learn from the cells of each measured time.

        Parameters
        ----------
        points
            Cells by time, ``(n_cells, d)`` each, such as principal components.
        """

    def predict(self, time: float, n_obs: int, seed: int) -> np.ndarray:
        """Points at ``time``.

        Parameters
        ----------
        time
            The time, in the units of the measured ones.
        n_obs
            Number of points.
        seed
            Seed of the draw.

        Returns
        -------
        ``(n_obs, d)``.
        """


class _Neighbours:
    """Keeps the cells; knows the measured times before and after another."""

    name = ""

    def fit(self, points: Mapping[float, np.ndarray]) -> None:
        """Keep the cells."""
        self.points = {float(t): np.asarray(x) for t, x in points.items()}

    def around(self, time: float) -> tuple[float, float]:
        """The last measured time before and the first after; the nearest two where there is none."""
        times = np.array(sorted(self.points))
        right = int(np.clip(np.searchsorted(times, time), 1, len(times) - 1))
        return float(times[right - 1]), float(times[right])


class CopyPrevious(_Neighbours):
    """The cells of the time before.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import CopyPrevious
    >>> cells = np.random.default_rng(0).normal(size=(200, 1))
    >>> method = CopyPrevious()
    >>> method.fit({0.0: cells, 2.0: cells + 4})
    >>> predicted = method.predict(1.0, 1000, seed=0)
    >>> round(predicted.mean()), round(predicted.std())
    (0, 1)
    """

    name = "copy previous"

    def predict(self, time: float, n_obs: int, seed: int) -> np.ndarray:
        """Draw cells of the time before."""
        return _draw(self.points[self.around(time)[0]], n_obs, np.random.default_rng(seed))


class CopyNext(_Neighbours):
    """The cells of the time after.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import CopyNext
    >>> cells = np.random.default_rng(0).normal(size=(200, 1))
    >>> method = CopyNext()
    >>> method.fit({0.0: cells, 2.0: cells + 4})
    >>> predicted = method.predict(1.0, 1000, seed=0)
    >>> round(predicted.mean()), round(predicted.std())
    (4, 1)
    """

    name = "copy next"

    def predict(self, time: float, n_obs: int, seed: int) -> np.ndarray:
        """Draw cells of the time after."""
        return _draw(self.points[self.around(time)[1]], n_obs, np.random.default_rng(seed))


class Pooled(_Neighbours):
    """Cells of both neighbouring times, in proportion to how near each is.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import Pooled
    >>> cells = np.random.default_rng(0).normal(size=(200, 1))
    >>> method = Pooled()
    >>> method.fit({0.0: cells, 2.0: cells + 4})
    >>> predicted = method.predict(1.0, 1000, seed=0)
    >>> round(predicted.mean()), round(predicted.std())  # in two heaps, not one
    (2, 2)
    """

    name = "pooled"

    def predict(self, time: float, n_obs: int, seed: int) -> np.ndarray:
        """Draw from both times."""
        rng = np.random.default_rng(seed)
        before, after = self.around(time)
        late = rng.random(n_obs) < np.clip((time - before) / (after - before), 0, 1)
        drawn = [_draw(self.points[t], n_obs, rng) for t in (before, after)]
        return np.where(late[:, None], drawn[1], drawn[0])


class OTLinear(_Neighbours):
    """Displacement interpolation: pairs of an optimal transport plan, joined by straight lines (McCann 1997).

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import OTLinear
    >>> cells = np.random.default_rng(0).normal(size=(200, 1))
    >>> method = OTLinear()
    >>> method.fit({0.0: cells, 2.0: cells + 4})
    >>> predicted = method.predict(1.0, 1000, seed=0)
    >>> round(predicted.mean()), round(predicted.std())  # one population, half of the way
    (2, 1)
    """

    name = "OT linear"

    def plan(self, cost: np.ndarray) -> np.ndarray:
        """Coupling of two sets of cells, of any total mass.

        Parameters
        ----------
        cost
            Squared distances, ``(n_before, n_after)``.

        Returns
        -------
        The plan, ``(n_before, n_after)``, not negative.
        """
        import ot

        return ot.emd(np.full(len(cost), 1 / len(cost)), np.full(cost.shape[1], 1 / cost.shape[1]), cost)

    def predict(self, time: float, n_obs: int, seed: int) -> np.ndarray:
        """Draw pairs from the plan and go the due part of the way."""
        rng = np.random.default_rng(seed)
        before, after = self.around(time)
        x, y = self.points[before], self.points[after]
        plan = self.plan(cdist(x, y, "sqeuclidean"))
        pairs = rng.choice(plan.size, n_obs, p=plan.ravel() / plan.sum())
        rows, columns = np.unravel_index(pairs, plan.shape)
        part = (time - before) / (after - before)
        return (1 - part) * x[rows] + part * y[columns]


class UnbalancedOT(OTLinear):
    """The same with an entropic unbalanced plan: cells may multiply or die (Chizat et al. 2018).

    Parameters
    ----------
    entropy, marginal
        Weights of entropy and of the marginals' Kullback-Leibler divergence, in units of the mean cost.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import UnbalancedOT
    >>> cells = np.random.default_rng(0).normal(size=(200, 1))
    >>> method = UnbalancedOT()
    >>> method.fit({0.0: cells, 2.0: cells + 4})
    >>> predicted = method.predict(1.0, 1000, seed=0)
    >>> round(predicted.mean()), round(predicted.std())
    (2, 1)
    """

    name = "unbalanced OT"

    def __init__(self, entropy: float = 0.02, marginal: float = 1.0) -> None:
        self.entropy, self.marginal = entropy, marginal

    def plan(self, cost: np.ndarray) -> np.ndarray:
        """The unbalanced plan."""
        import ot

        a, b = (np.full(n, 1 / n) for n in cost.shape)
        # Beyond ten times the mean the kernel is zero in floating point, and the solver gives up.
        scaled = np.minimum(cost / cost.mean(), 10.0)
        return ot.unbalanced.sinkhorn_unbalanced(a, b, scaled, self.entropy, self.marginal, numItermax=2000)


TRAJECTORY_BASELINES: list[type[Interpolator]] = [CopyPrevious, CopyNext, Pooled, OTLinear, UnbalancedOT]


def _draw(points: np.ndarray, n_obs: int, rng: np.random.Generator) -> np.ndarray:
    """``n_obs`` of the points, as far as they go without replacement."""
    return points[rng.choice(len(points), n_obs, replace=n_obs > len(points))]
