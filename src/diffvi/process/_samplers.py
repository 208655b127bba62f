"""Samplers as pure functions of a denoiser, a start and a list of times."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from diffvi._exceptions import one_of

from ._paths import GaussianPath

Denoise = Callable[[Tensor, Tensor], Tensor]
"""``denoise(x, t)``: the expected data ``x0``, shape ``(n, d)``, at states ``x`` and a scalar time."""
Noise = Callable[[], Tensor]
"""Fresh standard normal noise of the shape of the state."""


class Sampler(Protocol):
    """``sampler(denoise, x, times, path, noise)`` carries ``x`` from ``times[0]`` to ``times[-1]``.

    Parameters
    ----------
    denoise
        ``denoise(x, t)``: the expected data at states ``x``, ``(n, d)``, and a scalar time; nearly all of the cost.
    x
        States at ``times[0]``, ``(n, d)``: standard normal noise, where the times begin at noise.
    times
        Decreasing, ``(n_steps + 1,)``, in double precision: see :meth:`GaussianPath.times`.
    path
        The path that ``denoise`` was trained on.
    noise
        Draws standard normal noise of the shape of ``x``; only a stochastic sampler needs it.

    Returns
    -------
    States at ``times[-1]``, of the shape and dtype of ``x``.

    Examples
    --------
    The protocol is open: a sampler of one's own is a function. This one takes the first data estimate as it is.

    >>> import torch
    >>> from diffvi.process import LinearFlow
    >>> def one_shot(denoise, x, times, path, noise=None):
    ...     return denoise(x, times[0])
    >>> one_shot(lambda x, t: 0 * x + 3, torch.zeros(2, 1), LinearFlow().times(8), LinearFlow()).tolist()
    [[3.0], [3.0]]
    """

    def __call__(
        self, denoise: Denoise, x: Tensor, times: Tensor, path: GaussianPath, noise: Noise = ...
    ) -> Tensor: ...


def _no_noise() -> Tensor:
    raise ValueError("This sampler is stochastic: pass `noise`, a function that draws noise of the state's shape.")


def euler(denoise: Denoise, x: Tensor, times: Tensor, path: GaussianPath, noise: Noise = _no_noise) -> Tensor:
    """First order: one evaluation a step of the probability-flow ODE (Song et al. 2021).

    Parameters
    ----------
    denoise, x, times, path
        See :class:`Sampler`.
    noise
        Not used: the sampler is deterministic.

    Returns
    -------
    States at ``times[-1]``, of the shape of ``x``.

    Examples
    --------
    Data that follow N(3, 2²) have a known denoiser, and the ODE takes noise of 1 to 3 + 2 · 1 = 5 (4.99 at the time where the path
    is cut off). Twice the steps leave half of the error.

    >>> import torch
    >>> from diffvi.process import LinearFlow, euler
    >>> path = LinearFlow()
    >>> def denoise(x, t):  # E[x0 | x] for data that follow N(3, 2**2)
    ...     a, s = path.alpha(t), path.sigma(t)
    ...     return 3 + 4 * a * (x - 3 * a) / (4 * a**2 + s**2)
    >>> start = torch.ones(1, 1, dtype=torch.float64)
    >>> [round(float(euler(denoise, start, path.times(n), path)), 2) for n in (10, 20, 40)]
    [4.72, 4.85, 4.92]
    """
    for t, s in itertools.pairwise(times):
        t, s = t.to(x.dtype), s.to(x.dtype)
        x = x + (s - t) * path.drift(denoise(x, t), x, t)
    return x


def heun(denoise: Denoise, x: Tensor, times: Tensor, path: GaussianPath, noise: Noise = _no_noise) -> Tensor:
    """Second order: trapezoidal predictor and corrector, two evaluations a step (Karras et al. 2022).

    Parameters
    ----------
    denoise, x, times, path
        See :class:`Sampler`.
    noise
        Not used: the sampler is deterministic.

    Returns
    -------
    States at ``times[-1]``, of the shape of ``x``.

    Examples
    --------
    The example of :func:`euler`, for which ten steps of Heun cost what twenty of Euler do: 4.98 against 4.85, where 4.99 is exact.

    >>> import torch
    >>> from diffvi.process import LinearFlow, heun
    >>> path = LinearFlow()
    >>> def denoise(x, t):  # E[x0 | x] for data that follow N(3, 2**2)
    ...     a, s = path.alpha(t), path.sigma(t)
    ...     return 3 + 4 * a * (x - 3 * a) / (4 * a**2 + s**2)
    >>> round(float(heun(denoise, torch.ones(1, 1, dtype=torch.float64), path.times(10), path)), 2)
    4.98
    """
    for t, s in itertools.pairwise(times):
        t, s = t.to(x.dtype), s.to(x.dtype)
        d = path.drift(denoise(x, t), x, t)
        guess = x + (s - t) * d
        x = x + 0.5 * (s - t) * (d + path.drift(denoise(guess, s), guess, s))
    return x


def ddim(denoise: Denoise, x: Tensor, times: Tensor, path: GaussianPath, noise: Noise = _no_noise) -> Tensor:
    """First order and exact where the data estimate is constant (Song, Meng and Ermon 2021, eta = 0).

    One evaluation a step. On :class:`LinearFlow` a step is one of :func:`euler`.

    Parameters
    ----------
    denoise, x, times, path
        See :class:`Sampler`.
    noise
        Not used: the sampler is deterministic.

    Returns
    -------
    States at ``times[-1]``, of the shape of ``x``.

    Examples
    --------
    Data that are all 3 have a constant estimate, and one step arrives as near as a thousand; Euler's does not.

    >>> import torch
    >>> from diffvi.process import CosineVP, ddim, euler
    >>> path, start = CosineVP(), torch.ones(1, 1, dtype=torch.float64)
    >>> [round(float(ddim(lambda x, t: 0 * x + 3, start, path.times(n), path)), 2) for n in (1, 1000)]
    [3.0, 3.0]
    >>> round(float(euler(lambda x, t: 0 * x + 3, start, path.times(1), path)), 2)
    5.7
    """
    for t, s in itertools.pairwise(times):
        t, s = t.to(x.dtype), s.to(x.dtype)
        x0 = denoise(x, t)
        x = path.alpha(s) * x0 + path.sigma(s) / path.sigma(t) * (x - path.alpha(t) * x0)
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, times: Tensor, path: GaussianPath, noise: Noise = _no_noise) -> Tensor:
    """Second order with one evaluation a step: DPM-Solver++(2M) (Lu et al. 2022).

    The data estimate is extrapolated in log signal-to-noise from this step and the one before. The first
    step, which has no history, and the last, across which the log signal-to-noise rises so far that
    extrapolation overshoots, are DDIM's.

    Parameters
    ----------
    denoise, x, times, path
        See :class:`Sampler`.
    noise
        Not used: the sampler is deterministic.

    Returns
    -------
    States at ``times[-1]``, of the shape of ``x``.

    Examples
    --------
    The example of :func:`euler`: for the same number of evaluations a fraction of its error, as 4.99 is exact.

    >>> import torch
    >>> from diffvi.process import LinearFlow, dpmpp_2m
    >>> path = LinearFlow()
    >>> def denoise(x, t):  # E[x0 | x] for data that follow N(3, 2**2)
    ...     a, s = path.alpha(t), path.sigma(t)
    ...     return 3 + 4 * a * (x - 3 * a) / (4 * a**2 + s**2)
    >>> start = torch.ones(1, 1, dtype=torch.float64)
    >>> [round(float(dpmpp_2m(denoise, start, path.times(n), path)), 2) for n in (10, 20, 40)]
    [4.92, 4.97, 4.98]
    """
    log_snr = (path.alpha(times) / path.sigma(times)).log()
    previous: Tensor | None = None
    for i in range(len(times) - 1):
        t, s = times[i], times[i + 1]
        x0 = denoise(x, t.to(x.dtype))
        h = log_snr[i + 1] - log_snr[i]
        estimate = x0
        if previous is not None and i < len(times) - 2:
            w = (0.5 * h / (log_snr[i] - log_snr[i - 1])).to(x.dtype)
            estimate = (1 + w) * x0 - w * previous
        keep, gain = path.sigma(s) / path.sigma(t), -path.alpha(s) * torch.expm1(-h)
        x = keep.to(x.dtype) * x + gain.to(x.dtype) * estimate
        previous = x0
    return x


def ddpm(denoise: Denoise, x: Tensor, times: Tensor, path: GaussianPath, noise: Noise = _no_noise) -> Tensor:
    """Ancestral sampling: each step draws from the Gaussian posterior given ``x0`` (Ho et al. 2020, eq. 7).

    One evaluation a step, of which it needs the most: with few steps the spread of what it draws is too small, because
    the posterior takes the expected data for the data.

    Parameters
    ----------
    denoise, x, times, path
        See :class:`Sampler`.
    noise
        Draws standard normal noise of the shape of ``x``, once a step.

    Returns
    -------
    States at ``times[-1]``, of the shape of ``x``.

    Raises
    ------
    ValueError
        If ``noise`` is not given.

    Examples
    --------
    The standard deviation of draws of N(3, 2²) with 10 steps and with 200:

    >>> import torch
    >>> from diffvi.process import LinearFlow, ddpm
    >>> path = LinearFlow()
    >>> def denoise(x, t):  # E[x0 | x] for data that follow N(3, 2**2)
    ...     a, s = path.alpha(t), path.sigma(t)
    ...     return 3 + 4 * a * (x - 3 * a) / (4 * a**2 + s**2)
    >>> rng = torch.Generator().manual_seed(0)
    >>> def normal():
    ...     return torch.randn((4000, 1), generator=rng, dtype=torch.float64)
    >>> [round(float(ddpm(denoise, normal(), path.times(n), path, normal).std()), 1) for n in (10, 200)]
    [1.6, 2.0]
    """
    for i in range(len(times) - 1):
        t, s = times[i], times[i + 1]
        x0 = denoise(x, t.to(x.dtype))
        scale = path.alpha(t) / path.alpha(s)
        spread = path.sigma(t).square() - (scale * path.sigma(s)).square()
        share = (path.sigma(s) / path.sigma(t)).square()
        x = (scale * share).to(x.dtype) * x + (path.alpha(s) * spread / path.sigma(t).square()).to(x.dtype) * x0
        x = x + (spread * share).sqrt().to(x.dtype) * noise()
    return x


SAMPLERS: dict[str, Sampler] = {"ddpm": ddpm, "ddim": ddim, "euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m}


def get_sampler(name: str) -> Sampler:
    """Sampler of the given name, one of :data:`SAMPLERS`.

    Parameters
    ----------
    name
        ``"ddpm"``, ``"ddim"``, ``"euler"``, ``"heun"`` or ``"dpmpp_2m"``.

    Returns
    -------
    The function.

    Raises
    ------
    InvalidInputError
        If there is none of the name.

    Examples
    --------
    >>> from diffvi.process import SAMPLERS, get_sampler
    >>> get_sampler("heun").__name__, len(SAMPLERS)
    ('heun', 5)
    """
    return SAMPLERS[one_of("sampler", name, SAMPLERS)]
