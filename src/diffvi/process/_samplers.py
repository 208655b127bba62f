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
    """``sampler(denoise, x, times, path, noise)`` carries ``x`` from ``times[0]`` to ``times[-1]``."""

    def __call__(
        self, denoise: Denoise, x: Tensor, times: Tensor, path: GaussianPath, noise: Noise = ...
    ) -> Tensor: ...


def _no_noise() -> Tensor:
    raise ValueError("This sampler is stochastic: pass `noise`, a function that draws noise of the state's shape.")


def euler(denoise: Denoise, x: Tensor, times: Tensor, path: GaussianPath, noise: Noise = _no_noise) -> Tensor:
    """First order: one evaluation a step of the probability-flow ODE (Song et al. 2021)."""
    for t, s in itertools.pairwise(times):
        t, s = t.to(x.dtype), s.to(x.dtype)
        x = x + (s - t) * path.drift(denoise(x, t), x, t)
    return x


def heun(denoise: Denoise, x: Tensor, times: Tensor, path: GaussianPath, noise: Noise = _no_noise) -> Tensor:
    """Second order: trapezoidal predictor and corrector, two evaluations a step (Karras et al. 2022)."""
    for t, s in itertools.pairwise(times):
        t, s = t.to(x.dtype), s.to(x.dtype)
        d = path.drift(denoise(x, t), x, t)
        guess = x + (s - t) * d
        x = x + 0.5 * (s - t) * (d + path.drift(denoise(guess, s), guess, s))
    return x


def ddim(denoise: Denoise, x: Tensor, times: Tensor, path: GaussianPath, noise: Noise = _no_noise) -> Tensor:
    """First order and exact where the data estimate is constant (Song, Meng and Ermon 2021, eta = 0)."""
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
    """Ancestral sampling: each step draws from the Gaussian posterior given ``x0`` (Ho et al. 2020, eq. 7)."""
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
    """Sampler of the given name, one of :data:`SAMPLERS`."""
    return SAMPLERS[one_of("sampler", name, SAMPLERS)]
