"""What locations say of a location between them: kriging from a few neighbours, and draws of the field it assumes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RANGES = (1.0, 4.0, 16.0)
"""Ranges of the covariance that the fit starts from, in units of the distance between neighbours."""
JITTER = 1e-5
"""Added to the diagonal: without it the covariance of locations that coincide would not be positive in single precision."""
BATCH_SIZE = 32
"""Locations in a step of the fit."""
ROWS = 256
"""Locations that are solved for at a time: a system for each of them and each feature is in memory."""
SMOOTHNESS = (0.5, 1.5, 2.5)
"""Of the Matérn covariance: rough fields, and such with one and with two derivatives."""
MAX_COMPARED = 2000
"""Locations on which the fits of each smoothness are compared, at most."""
FIELD_ROWS = 5000
"""Locations that a draw is read at, at a time: all waves of each are in memory."""


@dataclass
class LocalKriging:
    r"""Simple kriging of several features from the locations around each (Vecchia 1988; Datta et al. 2016).

    Feature :math:`j` is a Gaussian field of mean zero with the covariance

    .. math:: k_j(s, s') = \sum_r a_{jr} m_\nu(|M (s - s')| / \rho_r) + n_j [s = s'],

    of which all features share the Matérn correlation :math:`m_\nu`, the ranges :math:`\rho` and the metric :math:`M`, symmetric with determinant one, so that a tissue may
    change faster in one direction. They are found by maximising the density of locations given their neighbours (the composite
    likelihood of Vecchia), with neighbours hidden as they will be in use.

    Parameters
    ----------
    log_ranges, log_amplitudes, log_nuggets
        Of shapes ``(n_scales,)``, ``(n_kinds, n_scales)``, ``(n_kinds,)``.
    metric
        Logarithm of the metric, ``(n_dims, n_dims)``.
    kinds
        Which covariance each feature has, ``(n_features,)``: weak ones may share one.
    smoothness
        The :math:`\nu` of the Matérn correlation: 0.5 (:math:`e^{-h}`), 1.5 or 2.5.
    micro
        Share of each nugget that varies with the place, on a scale too small to see, and is not noise of the measurement, ``(n_kinds,)``; ``None``
        for none. A location inside a measured one shares this part with it.

    Examples
    --------
    A wave across a tissue. Amid measured locations less variance is left than far outside of them.

    >>> import numpy as np
    >>> from diffvi.module import LocalKriging, Surroundings
    >>> rng = np.random.default_rng(0)
    >>> places, frame = rng.uniform(0, 10, (300, 2)), np.zeros(300, int)
    >>> values = np.sin(0.8 * places[:, :1]) + rng.normal(0, 0.1, (300, 1))
    >>> around = Surroundings(places, frame, np.arange(300), n_near=8, n_far=4)
    >>> itself = np.arange(300)
    >>> kriging = LocalKriging.fit(values / values.std(), places, itself, around(places, frame, itself), n_steps=60)
    >>> asked = np.array([[5.0, 5.0], [5.0, 60.0]])
    >>> near = around(asked, frame[:2])
    >>> weights, variance = kriging(asked, places[near], near >= 0)
    >>> weights.shape, bool(variance[0, 0] < 0.5 * variance[1, 0])
    ((2, 1, 16), True)
    """

    log_ranges: np.ndarray
    log_amplitudes: np.ndarray
    log_nuggets: np.ndarray
    metric: np.ndarray
    kinds: np.ndarray
    smoothness: float = 0.5
    micro: np.ndarray | None = None

    @classmethod
    def fit(
        cls,
        values: np.ndarray,
        scaled: np.ndarray,
        targets: np.ndarray,
        around: np.ndarray,
        kinds: np.ndarray | None = None,
        n_steps: int = 150,
        smoothness: float | None = None,
        importance: np.ndarray | None = None,
    ) -> LocalKriging:
        """Fit the covariance.

        Parameters
        ----------
        values
            Features of unit variance, ``(n, n_features)``.
        scaled
            Locations, ``(n, n_dims)``.
        targets, around
            Rows that are predicted, ``(m,)``, and the rows around each, ``(m, k)``, -1 for none.
        kinds
            As of the class; ``None`` for a covariance of its own for each feature.
        n_steps
            Of the optimiser.
        smoothness
            0.5, 1.5 or 2.5; ``None`` for the one that predicts with the least squared error, which the likelihood, of all features alike, does not always find.
        importance
            Weights of the features in that error, ``(n_features,)``; ``None`` or zeros throughout for ones.

        Returns
        -------
        The fitted covariance, with which :meth:`__call__` predicts.
        """
        kinds = np.arange(values.shape[1]) if kinds is None else kinds
        if smoothness is None:
            smoothness = cls._smoothness(values, scaled, targets, around, kinds, n_steps, importance)
        n_dims = scaled.shape[1]
        n_kinds = int(kinds.max()) + 1
        parts = {
            "log_ranges": torch.tensor(RANGES).log(),
            "log_amplitudes": torch.full((n_kinds, len(RANGES)), math.log(0.5 / len(RANGES))),
            "log_nuggets": torch.full((n_kinds,), math.log(0.5)),
            "metric": torch.zeros(n_dims, n_dims),
        }
        for part in parts.values():
            part.requires_grad_(True)
        optimizer = torch.optim.Adam(parts.values(), lr=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
        x, y = (torch.as_tensor(v, dtype=torch.float32) for v in (scaled, values))
        rng = np.random.default_rng(0)
        with torch.enable_grad():
            for _ in range(n_steps):
                rows = rng.integers(len(targets), size=BATCH_SIZE)
                near = torch.as_tensor(around[rows])
                present, near = near >= 0, near.clamp_min(0)
                weights, variance = _solve(x[targets[rows]], x[near], present, smoothness, *parts.values())
                weights, variance = weights[:, kinds], variance[:, kinds]
                error = y[targets[rows]] - torch.einsum("njk,nkj->nj", weights, y[near])
                loss = 0.5 * (error.square() / variance + variance.log()).sum(1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        fitted = {name: part.detach().numpy() for name, part in parts.items()}
        return cls(**fitted, kinds=kinds, smoothness=smoothness)

    @classmethod
    def _smoothness(
        cls,
        values: np.ndarray,
        scaled: np.ndarray,
        targets: np.ndarray,
        around: np.ndarray,
        kinds: np.ndarray,
        n_steps: int,
        importance: np.ndarray | None,
    ) -> float:
        """The smoothness with the least error, fitted to the features that count in it."""
        weight = np.ones(values.shape[1]) if importance is None or not importance.any() else importance
        used = np.flatnonzero(weight)
        kinds = np.unique(kinds[used], return_inverse=True)[1]
        rows = np.random.default_rng(0).permutation(len(targets))[:MAX_COMPARED]
        given = values[:, used], scaled, targets[rows], around[rows], weight[used]

        def error(smoothness: float) -> float:
            return cls.fit(values[:, used], scaled, targets, around, kinds, n_steps, smoothness)._error(*given)

        return min(SMOOTHNESS, key=error)

    def _error(
        self, values: np.ndarray, scaled: np.ndarray, targets: np.ndarray, around: np.ndarray, weight: np.ndarray
    ) -> float:
        """Mean squared error of predictions, weighted by feature."""
        near = np.maximum(around, 0)
        weights, _ = self(scaled[targets], scaled[near], around >= 0)
        error = (values[targets] - np.einsum("njk,nkj->nj", weights, values[near])) ** 2
        return float(np.average(error.mean(0), weights=weight))

    @property
    def variance(self) -> np.ndarray:
        """Variance of each feature where nothing is known, ``(n_features,)``."""
        return np.asarray(np.exp(self.log_amplitudes).sum(1) + np.exp(self.log_nuggets))[self.kinds]

    @property
    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ranges, amplitudes, nuggets, metric = map(
            torch.as_tensor, (self.log_ranges, self.log_amplitudes, self.log_nuggets, self.metric)
        )
        return ranges, amplitudes, nuggets, metric

    def __call__(
        self, scaled: np.ndarray, near: np.ndarray, present: np.ndarray, inside: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Weights of the neighbours, ``(n, n_features, k)``, and the variance that is left, ``(n, n_features)``.

        Parameters
        ----------
        scaled
            Locations, ``(n, n_dims)``.
        near, present
            Locations around each, ``(n, k, n_dims)``, and which of them there are.
        inside
            Which of these contain the location, as a spot contains a cell, ``(n, k)``; ``None`` for none.
        """
        shared = np.zeros(len(self.log_nuggets)) if self.micro is None else self.micro * np.exp(self.log_nuggets)
        weights = np.empty((len(scaled), len(self.kinds), near.shape[1]), np.float32)
        variance = np.empty(weights.shape[:2], np.float32)
        with torch.no_grad():
            for first in range(0, len(scaled), ROWS):
                rows = slice(first, first + ROWS)
                x, around = (torch.as_tensor(v[rows], dtype=torch.float32) for v in (scaled, near))
                more = None
                if inside is not None:
                    more = torch.as_tensor(inside[rows][:, None] * shared[:, None], dtype=torch.float32)
                found = _solve(x, around, torch.as_tensor(present[rows]), self.smoothness, *self._tensors, more)
                weights[rows], variance[rows] = (v.numpy()[:, self.kinds] for v in found)
        return weights, variance


def _metric(log_metric: Tensor) -> Tensor:
    """A symmetric matrix of determinant one."""
    upper = log_metric.triu()
    symmetric = upper + log_metric.triu(1).T
    return torch.matrix_exp(symmetric - torch.eye(len(upper)) * upper.diagonal().mean())


def _correlation(distance: Tensor, smoothness: float) -> Tensor:
    """Matérn correlation of distances in units of the range (Rasmussen and Williams 2006, equations 4.16 and 4.17)."""
    scaled = math.sqrt(2 * smoothness) * distance
    polynomial = {0.5: lambda h: 1, 1.5: lambda h: 1 + h, 2.5: lambda h: 1 + h + h.square() / 3}[smoothness]
    return polynomial(scaled) * torch.exp(-scaled)


def _solve(
    x: Tensor,
    near: Tensor,
    present: Tensor,
    smoothness: float,
    log_ranges: Tensor,
    log_amplitudes: Tensor,
    log_nuggets: Tensor,
    log_metric: Tensor,
    more: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weights and variance; ``more`` is added to the covariance of locations with those around them."""
    metric = _metric(log_metric)
    x, near = x @ metric, near @ metric
    amplitudes, nuggets, ranges = log_amplitudes.exp(), log_nuggets.exp(), log_ranges.exp()

    def covariance(difference: Tensor) -> Tensor:
        # The square root has no gradient at zero.
        distance = difference.square().sum(-1).clamp_min(1e-20).sqrt()
        return torch.einsum("n...r,jr->nj...", _correlation(distance[..., None] / ranges, smoothness), amplitudes)

    there = present[:, None].to(x)
    between = covariance(near[:, :, None] - near[:, None]) * there[..., None] * there[:, :, None]
    # A neighbour that is not there is independent of everything.
    diagonal = torch.where(present[:, None], nuggets[None, :, None], torch.ones(())) + JITTER
    to_centre = covariance(near - x[:, None]) + (0 if more is None else more)
    to_centre = to_centre * there
    factor = torch.linalg.cholesky(between + torch.diag_embed(diagonal))
    weights = torch.cholesky_solve(to_centre[..., None], factor)[..., 0]
    variance = amplitudes.sum(1) + nuggets - (weights * to_centre).sum(-1)
    return weights, variance.clamp_min(1e-4)


class RandomField:
    r"""A draw of the fields of :class:`LocalKriging`, without their nugget, that can be read at any location.

    Random Fourier features (:cite:p:`Rahimi07`): the frequencies of a Matérn covariance of smoothness :math:`\nu` and range :math:`\rho` follow a multivariate t
    distribution with :math:`2 \nu` degrees of freedom and scale :math:`1 / \rho`.

    Parameters
    ----------
    kriging
        The covariance.
    n_features
        The first features that are drawn.
    seed
        Seed of the draw.
    n_waves
        Frequencies for each range.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.module import LocalKriging, RandomField
    >>> kriging = LocalKriging(np.log([5.0]), np.log([[1.0]]), np.log([0.1]), np.zeros((2, 2)), np.array([0]))
    >>> field = RandomField(kriging, n_features=1, seed=0)
    >>> line = np.stack([np.arange(5000.0), np.zeros(5000)], 1)
    >>> values = field(line)[:, 0]
    >>> near, far = (float(np.corrcoef(values[:-k], values[k:])[0, 1]) for k in (1, 20))
    >>> bool(near > 0.7), bool(abs(far) < 0.3)
    (True, True)
    """

    def __init__(self, kriging: LocalKriging, n_features: int, seed: int, n_waves: int = 256) -> None:
        rng = np.random.default_rng(seed)
        n_scales, n_dims = len(kriging.log_ranges), len(kriging.metric)
        shape = (n_scales, n_waves)
        freedom = 2 * kriging.smoothness
        spread = rng.chisquare(freedom, size=(*shape, 1)) / freedom
        frequency = rng.normal(size=(*shape, n_dims)) / np.sqrt(spread)
        frequency /= np.exp(kriging.log_ranges)[:, None, None]
        metric = _metric(torch.as_tensor(kriging.metric)).numpy()
        self.frequency = (frequency.reshape(-1, n_dims) @ metric).astype(np.float32)
        self.phase = rng.uniform(0, 2 * np.pi, n_scales * n_waves).astype(np.float32)
        amplitude = np.sqrt(2 / n_waves * np.exp(kriging.log_amplitudes[kriging.kinds[:n_features]]))
        weight = rng.normal(size=(*shape, n_features)) * amplitude.T[:, None]
        self.weight = weight.reshape(-1, n_features).astype(np.float32)

    def __call__(self, scaled: np.ndarray) -> np.ndarray:
        """Values at locations ``(n, n_dims)``, ``(n, n_features)``."""
        parts = [
            np.cos(scaled[first : first + FIELD_ROWS].astype(np.float32) @ self.frequency.T + self.phase) @ self.weight
            for first in range(0, len(scaled), FIELD_ROWS)
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.weight.shape[1]), np.float32)
