from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from diffvi._exceptions import one_of
from diffvi.nn import Attribute, Denoiser
from diffvi.nn._conditions import drop_conditions
from diffvi.process import get_path, ode_log_prob
from diffvi.process._paths import PREDICTIONS, Prediction
from diffvi.process._samplers import Noise, Sampler


@dataclass
class _WarmedUpAverage:
    """Exponential average whose decay starts low; a class, because a closure could not be pickled."""

    decay: float

    def __call__(self, averaged: Tensor, current: Tensor, n: Tensor | int) -> Tensor:
        return torch.lerp(current, averaged, min(self.decay, (1 + float(n)) / (10 + float(n))))


class LatentPrior(nn.Module):
    r"""Diffusion model of the latent state of a cell, given attributes.

    The state ``u`` is whatever the model class puts into it; for the generative models it is the VAE's
    latent together with the log library size. Everything in here works on the standardised state
    ``(u - shift) / scale``.

    Parameters
    ----------
    d
        Size of the state.
    attributes
        Attributes that condition it.
    denoiser
        ``"dit"`` (diffusion transformer) or ``"mlp"`` (residual MLP).
    denoiser_kwargs
        Passed to the backbone, such as ``{"width": 64, "depth": 3}``.
    process
        ``"linear"`` (flow matching), ``"vp_cosine"`` or ``"vp_linear"`` (DDPM).
    prediction
        What the network predicts: ``"velocity"``, ``"noise"`` or ``"data"``.
    condition_dropout
        Probability of hiding each attribute on its own, and of hiding all at once.
    ema_decay
        Decay of the averaged weights, which are the ones sampled from. It warms up as
        ``(1 + n) / (10 + n)``, so that short trainings average too.
    """

    shift: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        d: int,
        attributes: Sequence[Attribute] = (),
        denoiser: str = "dit",
        denoiser_kwargs: dict[str, Any] | None = None,
        process: str = "linear",
        prediction: Prediction = "velocity",
        condition_dropout: float = 0.1,
        ema_decay: float = 0.999,
    ) -> None:
        super().__init__()
        self.d, self.attributes = d, tuple(attributes)
        self.path = get_path(process)
        self.prediction: Prediction = one_of("prediction", prediction, PREDICTIONS)
        self.condition_dropout = condition_dropout
        self.denoiser = Denoiser(d, attributes, denoiser, **(denoiser_kwargs or {}))

        self.ema = AveragedModel(self.denoiser, avg_fn=_WarmedUpAverage(ema_decay))
        self.ema.requires_grad_(False)
        for name, value in (("shift", 0.0), ("scale", 1.0), ("low", -10.0), ("high", 10.0)):
            self.register_buffer(name, torch.full((d,), value))

    @torch.no_grad()
    def fit_standardiser(self, mean: Tensor, sd: Tensor) -> None:
        """Set shift and scale from the posteriors ``N(mean, sd**2)`` of the training cells, shapes ``(n, d)``.

        Also records the box, half a standard deviation wider than the cells' range, to which data
        estimates are confined in sampling: strong guidance extrapolates, and the decoder's exponential
        would turn that into absurd counts.
        """
        self.shift.copy_(mean.mean(0))
        self.scale.copy_((mean.var(0, correction=0) + sd.square().mean(0)).sqrt().clamp_min(1e-6))
        self.low.copy_(self.standardise(mean - 2 * sd).amin(0) - 0.5)
        self.high.copy_(self.standardise(mean + 2 * sd).amax(0) + 0.5)

    def standardise(self, u: Tensor) -> Tensor:
        """From the units of the data to those of the diffusion."""
        return (u - self.shift) / self.scale

    def restore(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`standardise`."""
        return x * self.scale + self.shift

    def loss(self, mean: Tensor, sd: Tensor, codes: Tensor) -> Tensor:
        r"""Weighted mean squared error of the prediction, for one fresh draw of everything random.

        States are drawn from ``N(mean, sd**2)`` rather than taken at the mean: the prior has to match
        the aggregated posterior that the decoder was trained on. In evaluation mode the draws come
        from a fixed seed and the averaged weights are scored, so that validation losses compare.

        Parameters
        ----------
        mean, sd
            Posterior of the state, shapes ``(n, d)``.
        codes
            Attribute codes of shape ``(n, n_attributes)``, NaN where unknown.
        """
        generator = None if self.training else torch.Generator().manual_seed(0)

        def normal() -> Tensor:
            return torch.randn(mean.shape, generator=generator).to(mean)

        if self.training:
            codes = drop_conditions(codes, self.condition_dropout, self.condition_dropout)
        x0, noise = self.standardise(mean + sd * normal()), normal()
        t = self.path.random_times(len(mean), generator).to(mean)
        network = self.denoiser if self.training else self.ema
        output = network(self.path.diffuse(x0, noise, t), t, codes)
        error = output - self.path.target(self.prediction, x0, noise, t)
        return (self.path.weight(self.prediction, t) * error.square()).mean()

    def update_ema(self) -> None:
        """Average the current weights in; call it after every optimiser step."""
        self.ema.update_parameters(self.denoiser)

    def estimate(self, x: Tensor, t: Tensor, codes: Tensor, guidance: Sequence[float] | float = 1.0) -> Tensor:
        r"""Expected data given the noisy state, by the averaged weights, with classifier-free guidance.

        With attributes :math:`c_1, \dots, c_K` and scales :math:`s_k`,

        .. math:: D = D(\varnothing) + \sum_k s_k \left[ D(c_1 .. c_k) - D(c_1 .. c_{k-1}) \right],

        which is the conditional estimate where every scale is one and the usual guidance where all
        are equal. Attributes of equal scale are taken in one step, so a plain call costs one pass.

        Parameters
        ----------
        x
            Standardised states, ``(n, d)``.
        t
            Time, a scalar or ``(n,)``.
        codes
            Attribute codes, NaN where not given.
        guidance
            One scale for all attributes, or one for each.
        """
        t = t.expand(len(x))
        weighted = _guided_codes(codes, guidance)
        stacked = torch.cat([c for _, c in weighted])
        times, repeats = t.repeat(len(weighted)), (len(weighted), 1)
        output = self.ema(x.repeat(*repeats), times, stacked)
        data = self.path.data_from(self.prediction, output, x.repeat(*repeats), times)
        parts = data.chunk(len(weighted))
        return sum((w * p for (w, _), p in zip(weighted, parts, strict=True)), torch.zeros_like(x))

    @torch.no_grad()
    def sample(
        self,
        start: Tensor,
        codes: Tensor,
        sampler: Sampler,
        n_steps: int,
        guidance: Sequence[float] | float = 1.0,
        noise: Noise | None = None,
    ) -> Tensor:
        """Carry standard normal ``start`` of shape ``(n, d)`` to states in the units of the data."""

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            return self.estimate(x, t, codes, guidance).clamp(self.low, self.high)

        kwargs = {} if noise is None else {"noise": noise}
        return self.restore(sampler(denoise, start, self.path.times(n_steps), self.path, **kwargs))

    def log_prob(self, u: Tensor, codes: Tensor, n_steps: int) -> Tensor:
        """Log density, in nats, of states in the units of the data, by the probability-flow ODE."""

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            return self.estimate(x, t, codes)

        log_prob = ode_log_prob(denoise, self.standardise(u), self.path.times(n_steps), self.path)
        return log_prob - self.scale.log().sum()


def _guided_codes(codes: Tensor, guidance: Sequence[float] | float) -> list[tuple[float, Tensor]]:
    """Weights and code tables whose weighted estimates add up to the guided estimate."""
    k = codes.shape[1]
    scales = [float(guidance)] * k if isinstance(guidance, int | float) else [float(s) for s in guidance]
    given = [i for i in range(k) if not bool(codes[:, i].isnan().all())]
    shown = torch.full_like(codes, float("nan"))
    total: list[tuple[float, Tensor]] = []
    before = 1.0
    for i in given:
        if scales[i] != before:
            total.append((before - scales[i], shown.clone()))
            before = scales[i]
        shown[:, i] = codes[:, i]
    return [*total, (before, shown)]
