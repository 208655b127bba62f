"""Gaussian paths between data (t = 0) and noise (t = 1)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from diffvi._exceptions import one_of

Prediction = Literal["velocity", "noise", "data"]
PREDICTIONS: tuple[Prediction, ...] = ("velocity", "noise", "data")

MAX_WEIGHT = 100.0
"""Largest weight of a squared error: one time in a batch would otherwise outweigh all others."""


class GaussianPath(ABC):
    r"""The family :math:`x_t = \alpha(t)\,x_0 + \sigma(t)\,\varepsilon` with :math:`\varepsilon\sim N(0, I)`.

    Time runs from data, ``t = 0``, to noise, ``t = 1``. All methods take times of shape ``(n,)`` or
    ``()`` and broadcast over states of shape ``(n, d)``. The four coefficients are all that a path
    has to say; targets, samplers and likelihoods follow from them.

    Notes
    -----
    The ends are cut off by :attr:`margin`, where one of the coefficients vanishes and the change of
    variables between data, noise and velocity is singular.

    Examples
    --------
    Halfway, the linear flow is the middle of a data point and a noise vector, and its drift goes from one to the other.

    >>> import torch
    >>> from diffvi.process import LinearFlow
    >>> path, t = LinearFlow(), torch.tensor([0.5])
    >>> x0, noise = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> x = path.diffuse(x0, noise, t)
    >>> x.tolist(), path.drift(x0, x, t).tolist()
    ([[1.0, 0.5]], [[-2.0, 1.0]])

    What a network says, whatever it was asked to predict, gives the data back:

    >>> [path.data_from(p, path.target(p, x0, noise, t), x, t).tolist() for p in ("velocity", "noise", "data")]
    [[[2.0, 0.0]], [[2.0, 0.0]], [[2.0, 0.0]]]
    """

    margin: float = 1e-3
    curved: bool = False
    """Whether data and noise are mixed along an arc, on which ODE solvers need about twice the steps."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the data at time ``t``, of the shape of ``t``: from 1 at data to 0, or nearly so, at noise."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Scale of the noise at time ``t``, of the shape of ``t``: from 0 at data to 1, or nearly so, at noise."""

    @abstractmethod
    def alpha_dot(self, t: Tensor) -> Tensor:
        """Time derivative of :meth:`alpha`, of the shape of ``t``."""

    @abstractmethod
    def sigma_dot(self, t: Tensor) -> Tensor:
        """Time derivative of :meth:`sigma`, of the shape of ``t``."""

    def times(self, n_steps: int) -> Tensor:
        """Evenly spaced times of shape ``(n_steps + 1,)`` from noise to data, in double precision."""
        return torch.linspace(1 - self.margin, self.margin, n_steps + 1, dtype=torch.float64)

    def random_times(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Stratified uniform times of shape ``(n,)``: one in each n-th of the interval, in random order.

        Parameters
        ----------
        n
            Number of times.
        generator
            Where the randomness comes from; ``None`` for torch's own.

        Returns
        -------
        Times in single precision; a batch of them covers the interval more evenly than independent ones.
        """
        strata = torch.randperm(n, generator=generator)
        t = (strata + torch.rand(n, generator=generator)) / n
        return self.margin + (1 - 2 * self.margin) * t

    def time_of_noise(self, ratio: Tensor) -> Tensor:
        """Time at which noise over signal, ``sigma(t) / alpha(t)``, has the given value (by interpolation).

        Parameters
        ----------
        ratio
            Noise over signal, ``(n,)`` or ``()``.

        Returns
        -------
        Times of the same shape; those of ratios that are not reached are the ends of the interval.

        Examples
        --------
        >>> import torch
        >>> from diffvi.process import LinearFlow
        >>> LinearFlow().time_of_noise(torch.tensor([1.0, 1e9])).tolist()
        [0.5, 0.9990000128746033]
        """
        grid = torch.linspace(self.margin, 1 - self.margin, 2001, dtype=torch.float64, device=ratio.device)
        ratios = self.sigma(grid) / self.alpha(grid)
        i = torch.searchsorted(ratios, ratio.double()).clamp(1, len(grid) - 1)
        w = ((ratio - ratios[i - 1]) / (ratios[i] - ratios[i - 1])).clamp(0, 1)
        return (grid[i - 1] + w * (grid[i] - grid[i - 1])).to(ratio.dtype)

    def diffuse(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """State at time ``t`` on the way from ``x0`` to ``noise``, all states ``(n, d)``."""
        t = _column(t)
        return self.alpha(t) * x0 + self.sigma(t) * noise

    def drift(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        r"""Time derivative :math:`\dot x`, ``(n, d)``, of the path through ``x`` whose data end is ``x0``.

        With ``x0`` the expected data at ``x`` that is the probability-flow ODE (Song et al. 2021).
        """
        t = _column(t)
        noise = (x - self.alpha(t) * x0) / self.sigma(t)
        return self.alpha_dot(t) * x0 + self.sigma_dot(t) * noise

    def target(self, prediction: Prediction, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        r"""What the network has to predict.

        ``"velocity"`` is :math:`\dot x_t` divided by the speed of the path in the
        :math:`(\alpha, \sigma)` plane, so that it has the same scale for every path and time: noise
        minus data (times a constant) on the linear flow, Salimans and Ho's
        :math:`\alpha\varepsilon-\sigma x_0` on the variance-preserving paths.

        Parameters
        ----------
        prediction
            ``"velocity"``, ``"noise"`` or ``"data"``.
        x0, noise
            The two ends, ``(n, d)``.
        t
            Times.

        Returns
        -------
        The target, ``(n, d)``.
        """
        if prediction == "velocity":
            da, ds = self._direction(_column(t))
            return da * x0 + ds * noise
        return noise if prediction == "noise" else x0

    def data_from(self, prediction: Prediction, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Estimate of ``x0`` that a network output means at state ``x`` and time ``t``; the inverse of :meth:`target`."""
        if prediction == "data":
            return output
        t = _column(t)
        alpha, sigma = self.alpha(t), self.sigma(t)
        if prediction == "noise":
            return (x - sigma * output) / alpha
        da, ds = self._direction(t)
        return (ds * x - sigma * output) / (alpha * ds - sigma * da)

    def weight(self, prediction: Prediction, t: Tensor) -> Tensor:
        """Weight of a squared error at time ``t``: what it amounts to in the velocity, at most :data:`MAX_WEIGHT`.

        An error in the noise is blown up where there is little signal, one in the data where there is
        little noise; unweighted, a network spends its capacity elsewhere (Salimans and Ho 2022, section 4).

        Parameters
        ----------
        prediction
            What the network predicts.
        t
            Times.

        Returns
        -------
        Weights that broadcast over states, ``(n, 1)``; ones for ``"velocity"``.

        Examples
        --------
        >>> import torch
        >>> from diffvi.process import LinearFlow
        >>> LinearFlow().weight("noise", torch.tensor([0.5, 0.99])).round(decimals=1).tolist()
        [[2.0], [100.0]]
        """
        t = _column(t)
        alpha, sigma = self.alpha(t), self.sigma(t)
        da, ds = self._direction(t)
        if prediction == "velocity":
            return torch.ones_like(alpha)
        return ((alpha * ds - sigma * da) / (alpha if prediction == "noise" else sigma)).square().clamp(max=MAX_WEIGHT)

    def _direction(self, t: Tensor) -> tuple[Tensor, Tensor]:
        da, ds = self.alpha_dot(t), self.sigma_dot(t)
        speed = (da.square() + ds.square()).sqrt()
        return da / speed, ds / speed


class LinearFlow(GaussianPath):
    r"""Straight lines, :math:`\alpha = 1 - t`, :math:`\sigma = t` (flow matching, :cite:p:`Lipman23`).

    Examples
    --------
    >>> import torch
    >>> from diffvi.process import LinearFlow
    >>> path, t = LinearFlow(), torch.tensor([0.0, 0.25, 1.0])
    >>> path.alpha(t).tolist(), path.sigma(t).tolist()
    ([1.0, 0.75, 0.0], [0.0, 0.25, 1.0])
    """

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class CosineVP(GaussianPath):
    r"""Variance preserving, :math:`\alpha = \cos(\pi t / 2)` (Nichol and Dhariwal 2021).

    Examples
    --------
    Data of unit variance keep it at every time:

    >>> import torch
    >>> from diffvi.process import CosineVP
    >>> path, t = CosineVP(), torch.tensor([0.1, 0.5, 0.9])
    >>> (path.alpha(t) ** 2 + path.sigma(t) ** 2).round(decimals=4).tolist()
    [1.0, 1.0, 1.0]
    """

    curved = True

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(0.5 * math.pi * t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -0.5 * math.pi * self.sigma(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * self.alpha(t)


class LinearVP(GaussianPath):
    r"""Variance preserving with :math:`\beta` linear from 0.1 to 20 (DDPM, Ho et al. 2020).

    The continuous limit (Song et al. 2021) of the 1000-step schedule with :math:`\beta` from 1e-4 to
    0.02: ``times(1000)`` gives those steps back.

    Examples
    --------
    The scale of the data after 500 of DDPM's steps, and here:

    >>> import torch
    >>> from diffvi.process import LinearVP
    >>> round(float((1 - torch.linspace(1e-4, 0.02, 1000))[:500].prod().sqrt()), 2)
    0.28
    >>> round(float(LinearVP().alpha(torch.tensor(0.5))), 2)
    0.28
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    curved = True

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t.square() * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta(t) * self.alpha(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return 0.5 * self._beta(t) * self.alpha(t).square() / self.sigma(t)


PATHS: dict[str, type[GaussianPath]] = {"linear": LinearFlow, "vp_cosine": CosineVP, "vp_linear": LinearVP}


def get_path(name: str) -> GaussianPath:
    """Path of the given name, one of :data:`PATHS`.

    Parameters
    ----------
    name
        ``"linear"``, ``"vp_cosine"`` or ``"vp_linear"``.

    Returns
    -------
    A new path.

    Raises
    ------
    InvalidInputError
        If there is none of the name.

    Examples
    --------
    >>> from diffvi.process import get_path
    >>> get_path("vp_cosine").times(2).tolist()
    [0.999, 0.5, 0.001]
    """
    return PATHS[one_of("process", name, PATHS)]()


def _column(t: Tensor) -> Tensor:
    """Make times of shape ``(n,)`` broadcast over rows."""
    return t[:, None] if t.ndim == 1 else t
