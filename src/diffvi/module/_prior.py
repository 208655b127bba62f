from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from diffvi._exceptions import one_of
from diffvi.nn import Attribute, Denoiser, columns
from diffvi.nn._conditions import drop_conditions
from diffvi.process import get_path, ode_log_prob
from diffvi.process._paths import PREDICTIONS, Prediction
from diffvi.process._samplers import Denoise, Noise, Sampler

from ._distillation import FewSteps

ORIGIN = "origin"
"""Name of the vector attribute that holds a state to start from, in the units of the data."""
STANDARDISER_ROWS = 2**18
"""Cells that are looked at in one go to standardise the state."""


Tensors = list[Tensor] | tuple[Tensor, ...]


@dataclass
class _WarmedUpAverage:
    """Exponential average whose decay starts low; a class, because a closure could not be pickled."""

    decay: float

    def __call__(self, averaged: Tensors, current: Tensors, n: Tensor | int) -> None:
        weight = 1 - min(self.decay, (1 + float(n)) / (10 + float(n)))
        torch._foreach_lerp_(averaged, current, weight)


class LatentPrior(nn.Module):
    r"""Diffusion model of the latent state of a cell, given attributes.

    The state ``u`` is whatever the model class puts into it; for the generative models it is the VAE's
    latent together with the log library size. Everything in here works on the standardised state
    ``(u - shift) / scale``, and, for a cell whose attribute :data:`ORIGIN` is given (a control cell, an earlier
    cell, a guess from the neighbours), on the difference to that: the prior then learns how cells move.

    Parameters
    ----------
    d
        Size of the state.
    attributes
        Attributes that condition it. A last one called :data:`ORIGIN`, with ``d`` columns, is the state that a cell
        starts from.
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
    head_weight
        Weight, beside the diffusion loss, of the squared error of a head that predicts the mean from the attributes;
        the diffusion is then that of the residual. 0 for no head.

    Raises
    ------
    InvalidInputError
        If a denoiser, process or prediction of the name is not known.

    Examples
    --------
    Two types of cells around 0 and 6, learnt in a hundred steps, then a draw of each, and its type hidden.

    >>> import torch
    >>> from diffvi.module import LatentPrior
    >>> from diffvi.nn import Attribute
    >>> from diffvi.process import heun
    >>> _ = torch.manual_seed(0)
    >>> prior = LatentPrior(1, [Attribute("cell_type", 2)], "mlp", {"width": 32, "depth": 1})
    >>> codes = torch.arange(400.0)[:, None] % 2
    >>> mean, sd = 6 * codes, torch.full((400, 1), 0.1)
    >>> prior.fit_standardiser(mean, sd)
    >>> optimizer = torch.optim.Adam(prior.denoiser.parameters(), lr=0.01)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     prior.loss(mean, sd, codes).backward()
    ...     optimizer.step()
    ...     prior.update_ema()
    >>> prior = prior.eval()
    >>> start = torch.randn(400, 1)
    >>> made = prior.sample(start, codes, heun, n_steps=10)
    >>> bool((made[codes == 0] < 3).all()), bool((made[codes == 1] > 3).all())
    (True, True)
    >>> hidden = prior.sample(start, torch.full_like(codes, float("nan")), heun, n_steps=10)
    >>> bool(0.3 < (hidden > 3).float().mean() < 0.7)
    True
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
        head_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.d, self.attributes = d, tuple(attributes)
        self.path = get_path(process)
        self.prediction: Prediction = one_of("prediction", prediction, PREDICTIONS)
        self.condition_dropout, self.head_weight = condition_dropout, head_weight
        self.denoiser = Denoiser(d, attributes, denoiser, head=head_weight > 0, **(denoiser_kwargs or {}))
        where = [c for a, c in zip(self.attributes, columns(self.attributes), strict=True) if a.name == ORIGIN]
        self.origin = where[0] if where else None

        self.ema = AveragedModel(self.denoiser, multi_avg_fn=_WarmedUpAverage(ema_decay))
        self.ema.requires_grad_(False)
        self.few_steps: FewSteps | None = None
        for name, value in (("shift", 0.0), ("scale", 1.0), ("low", -10.0), ("high", 10.0)):
            self.register_buffer(name, torch.full((d,), value))

    @torch.no_grad()
    def fit_standardiser(self, mean: Tensor, sd: Tensor, rows: Tensor | None = None) -> None:
        """Set shift and scale from the posteriors ``N(mean, sd**2)`` of the training cells, shapes ``(n, d)``.

        Also records the box, half a standard deviation wider than the cells' range, to which data
        estimates are confined in sampling: strong guidance extrapolates, and the decoder's exponential
        would turn that into absurd counts.

        Parameters
        ----------
        mean, sd
            Posteriors of the state, ``(n, d)``.
        rows
            Rows of the training cells; ``None`` for all.
        """
        rows = torch.arange(len(mean)) if rows is None else rows
        n, d = len(rows), mean.shape[1]
        total, squares = torch.zeros(2, d, dtype=torch.double)
        low, high = torch.full((d,), math.inf), torch.full((d,), -math.inf)
        # In blocks: what is given may lie in a file and be larger than the memory.
        for block in rows.split(STANDARDISER_ROWS):
            m, s = mean[block].cpu(), sd[block].cpu()
            low, high = torch.minimum(low, (m - 2 * s).amin(0)), torch.maximum(high, (m + 2 * s).amax(0))
            total += m.double().sum(0)
            squares += (m.double().square() + s.double().square()).sum(0)
        self.shift.copy_(total / n)
        self.scale.copy_((squares / n - (total / n).square()).clamp_min(1e-12).sqrt())
        self.low.copy_(self.standardise(low.to(self.shift)) - 0.5)
        self.high.copy_(self.standardise(high.to(self.shift)) + 0.5)

    def standardise(self, u: Tensor) -> Tensor:
        """From the units of the data to those of the diffusion, ``(n, d)``."""
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
            Attribute codes of shape ``(n, n_columns)``, NaN where unknown.

        Returns
        -------
        The loss, a scalar; near 1 before training, for the velocity of standardised data.
        """
        generator = None if self.training else torch.Generator().manual_seed(0)

        def normal() -> Tensor:
            return torch.randn(mean.shape, generator=generator).to(mean)

        if self.training:
            codes = drop_conditions(codes, self.attributes, self.condition_dropout)
        codes = self.with_noise(codes, generator)
        codes, origin = self._with_origin(codes)
        x0, noise = self.standardise(mean + sd * normal()) - origin, normal()
        t = self.path.random_times(len(mean), generator).to(mean)
        network = self.denoiser if self.training else self._averaged
        head_loss = torch.zeros((), device=x0.device)
        if (predicted := network.mean(codes)) is not None:
            head_loss = (x0 - predicted).square().mean()
            x0 = x0 - predicted.detach()
        output = network(self.path.diffuse(x0, noise, t), t, codes)
        error = output - self.path.target(self.prediction, x0, noise, t)
        return (self.path.weight(self.prediction, t) * error.square()).mean() + self.head_weight * head_loss

    def with_noise(self, codes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Codes ``(n, n_columns)`` with the noise of the attributes that have some, where they are given."""
        for attribute, where in zip(self.attributes, columns(self.attributes), strict=True):
            if attribute.noise > 0 and where.stop <= codes.shape[1]:
                shape = (len(codes), attribute.size)
                codes = codes.clone()
                codes[:, where] += attribute.noise * torch.randn(shape, generator=generator).to(codes)
        return codes

    def _with_origin(self, codes: Tensor) -> tuple[Tensor, Tensor | float]:
        """Codes with the origin standardised, and the origin itself: zeros where it is not given."""
        if self.origin is None:
            return codes, 0.0
        if codes.shape[1] < self.origin.stop:
            # Codes of the user's attributes alone: no origin, nor what else the model has added.
            codes = F.pad(codes, (0, self.origin.stop - codes.shape[1]), value=float("nan"))
        origin = self.standardise(codes[:, self.origin])
        codes = codes.clone()
        codes[:, self.origin] = origin
        return codes, origin.nan_to_num(0.0)

    @torch.no_grad()
    def mean(self, codes: Tensor) -> Tensor:
        """The head's prediction of the state, which is the origin where there is no head; zeros where there is neither.

        Codes are ``(n, n_columns)``, and the state is in the units of the data, ``(n, d)``; the zeros are standardised ones.
        """
        codes, base = self._with_origin(codes)
        predicted = self._averaged.mean(codes)
        return self.restore(base + (torch.zeros(len(codes), self.d).to(codes) if predicted is None else predicted))

    @torch.no_grad()
    def expected(self, codes: Tensor, noise: Tensor) -> Tensor:
        """Expected state given the attributes: what the diffusion makes of ``noise`` alone, shape ``(n, d)``.

        Noise says nothing of the data, so that the estimate of the data there is their mean; averaging over draws takes out
        what the network makes of the noise. One evaluation; the result is in the units of the data, ``(n, d)``.
        """
        base = self.standardise(self.mean(codes))
        return self.restore(base + self.estimate(noise, self.path.times(1)[0].to(noise.dtype), codes))

    @property
    def _averaged(self) -> Denoiser:
        averaged = self.ema.module
        assert isinstance(averaged, Denoiser)
        return averaged

    def update_ema(self) -> None:
        """Average the current weights in; call it after every optimiser step."""
        self.ema.update_parameters(self.denoiser)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # What was distilled is there only in some models.
        if self.few_steps is None and f"{prefix}few_steps.steps" in state_dict:
            self.few_steps = FewSteps(self._averaged, 1)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def estimate(
        self,
        x: Tensor,
        t: Tensor,
        codes: Tensor,
        guidance: Sequence[float] | float = 1.0,
        network: nn.Module | None = None,
    ) -> Tensor:
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
        network
            A denoiser to use instead of that with the averaged weights.

        Returns
        -------
        Standardised data, ``(n, d)``, as the difference to :meth:`mean`. :cite:p:`Ho22` is the source of the guidance.
        """
        t = t.expand(len(x))
        codes, _ = self._with_origin(codes)
        weighted = _guided_codes(codes, guidance, self.attributes)
        stacked = torch.cat([c for _, c in weighted])
        times, repeats = t.repeat(len(weighted)), (len(weighted), 1)
        output = (self.ema if network is None else network)(x.repeat(*repeats), times, stacked)
        data = self.path.data_from(self.prediction, output, x.repeat(*repeats), times)
        parts = data.chunk(len(weighted))
        return sum((w * p for (w, _), p in zip(weighted, parts, strict=True)), torch.zeros_like(x))

    def denoise_with(
        self, codes: Tensor, guidance: Sequence[float] | float = 1.0, network: nn.Module | None = None
    ) -> Denoise:
        """What a sampler needs: the data estimate for given attributes, confined to the range of the data.

        The arguments are those of :meth:`estimate`; ``denoise(x, t)`` is of the shape of ``x``.
        """
        return self._denoise_around(self.standardise(self.mean(codes)), codes, guidance, network)

    def _denoise_around(
        self, base: Tensor, codes: Tensor, guidance: Sequence[float] | float, network: nn.Module | None
    ) -> Denoise:
        """:meth:`denoise_with`, given the standardised :meth:`mean`."""

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            return (self.estimate(x, t, codes, guidance, network) + base).clamp(self.low, self.high) - base

        return denoise

    @torch.no_grad()
    def sample(
        self,
        start: Tensor,
        codes: Tensor,
        sampler: Sampler,
        n_steps: int,
        guidance: Sequence[float] | float = 1.0,
        noise: Noise | None = None,
        network: nn.Module | None = None,
    ) -> Tensor:
        """Carry standard normal ``start`` of shape ``(n, d)`` to states in the units of the data.

        Parameters
        ----------
        start, codes
            Noise, ``(n, d)``, and attribute codes, ``(n, n_columns)``.
        sampler, n_steps
            One of :data:`~diffvi.process.SAMPLERS`, and its steps.
        guidance, network
            See :meth:`estimate`.
        noise
            Draws further noise of that shape; ``ddpm`` needs it.
        """
        kwargs = {} if noise is None else {"noise": noise}
        base = self.standardise(self.mean(codes))
        denoise = self._denoise_around(base, codes, guidance, network)
        return self.restore(base + sampler(denoise, start, self.path.times(n_steps), self.path, **kwargs))

    def log_prob(self, u: Tensor, codes: Tensor, n_steps: int) -> Tensor:
        """Log density, in nats, ``(n,)``, of states in the units of the data, by the probability-flow ODE.

        For the states ``u``, ``(n, d)``, and ``n_steps`` see :func:`~diffvi.process.ode_log_prob`; there is no guidance in it.
        """

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            return self.estimate(x, t, codes)

        x = self.standardise(u) - self.standardise(self.mean(codes))
        log_prob = ode_log_prob(denoise, x, self.path.times(n_steps), self.path)
        return log_prob - self.scale.log().sum()


def _guided_codes(
    codes: Tensor, guidance: Sequence[float] | float, attributes: Sequence[Attribute]
) -> list[tuple[float, Tensor]]:
    """Weights and code tables whose weighted estimates add up to the guided estimate.

    Fixed attributes are shown in all of them.
    """
    places = list(zip(attributes, columns(attributes), strict=True))
    guided = [where for a, where in places if not a.fixed]
    if isinstance(guidance, int | float | np.number):
        guidance = [float(guidance)] * len(guided)
    scales = [float(s) for s in guidance]
    shown = torch.full_like(codes, float("nan"))
    for where in (where for a, where in places if a.fixed):
        shown[:, where] = codes[:, where]
    total: list[tuple[float, Tensor]] = []
    before = 1.0
    for where, scale in zip(guided, scales, strict=True):
        value = codes[:, where]
        if bool(value.isnan().all()):
            continue
        if scale != before:
            total.append((before - scale, shown.clone()))
            before = scale
        shown[:, where] = value
    return [*total, (before, shown)]
