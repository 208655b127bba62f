"""Few-step sampling: a copy of the denoiser that makes in one step what the sampler makes in many."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from diffvi.nn._conditions import drop_conditions
from diffvi.process import get_sampler

if TYPE_CHECKING:
    from ._prior import LatentPrior

SUBSTEPS = 4
"""Steps of Heun that the teacher takes for one of the student."""
AVERAGE = 0.995
"""Decay of the average of the student's weights."""


class FewSteps(nn.Module):
    """A denoiser and the number of DDIM steps that it was made for.

    Parameters
    ----------
    denoiser
        Where it starts from; it is copied.
    n_steps
        Number of steps.

    Examples
    --------
    >>> from diffvi.module import FewSteps
    >>> from diffvi.nn import Denoiser
    >>> few = FewSteps(Denoiser(10, backbone="mlp"), 4)
    >>> few.n_steps, any(p.requires_grad for p in few.parameters())
    (4, False)
    """

    steps: Tensor

    def __init__(self, denoiser: nn.Module, n_steps: int) -> None:
        super().__init__()
        self.denoiser: nn.Module = copy.deepcopy(denoiser)
        self.denoiser.requires_grad_(False)
        self.register_buffer("steps", torch.tensor(n_steps))

    @property
    def n_steps(self) -> int:
        """Number of steps."""
        return int(self.steps)


def distil(
    prior: LatentPrior, codes: Tensor, n_steps: int, batches: Iterable[Any], batch_size: int, lr: float, seed: int
) -> FewSteps:
    r"""Train a copy of the prior's denoiser to follow its probability-flow ODE in ``n_steps`` steps.

    Each step of the student is one DDIM step from :math:`x_t` to :math:`x_s`, and is trained to arrive where the teacher arrives in several steps of
    Heun, :math:`\| x_s^\mathrm{student}(x_t) - x_s^\mathrm{teacher}(x_t) \|^2`, along the teacher's own paths (progressive distillation, Salimans and Ho 2022,
    in one round). The map is deterministic, so nothing is averaged over and the student can follow it exactly; no data is needed.

    Parameters
    ----------
    prior
        A trained prior.
    codes
        Attribute codes to draw from, ``(n, n_columns)``. Attributes are hidden at random as in training.
    n_steps
        Steps of the student.
    batches
        Something to go through, once for each update.
    batch_size
        States in an update.
    lr
        Peak learning rate of Adam, decayed by a cosine.
    seed
        Seed.

    Returns
    -------
    The student, with averaged weights.

    Notes
    -----
    For each step of the student an update costs eight evaluations of the teacher and one, with its gradient, of the student.

    Examples
    --------
    Two updates of an untrained prior, to show what goes in and how the student is used.

    >>> import torch
    >>> from diffvi.module import LatentPrior, distil
    >>> from diffvi.nn import Attribute
    >>> from diffvi.process import ddim
    >>> prior = LatentPrior(3, [Attribute("cell_type", 2)], "mlp", {"width": 16})
    >>> codes = torch.tensor([[0.0], [1.0]])
    >>> student = distil(prior, codes, n_steps=2, batches=range(2), batch_size=8, lr=1e-3, seed=0)
    >>> prior.sample(torch.randn(2, 3), codes, ddim, student.n_steps, network=student.denoiser).shape
    torch.Size([2, 3])
    """
    batches = list(batches) if not hasattr(batches, "__len__") else batches
    # Codes may be those of the user's attributes alone, without what a model adds.
    n_columns = sum(attribute.size for attribute in prior.attributes)
    codes = F.pad(codes, (0, n_columns - codes.shape[1]), value=float("nan"))
    device, generator = prior.shift.device, torch.Generator().manual_seed(seed)
    student = FewSteps(prior._averaged, n_steps).to(device)
    # Without dropout, in teacher and student: what is to be learnt has no noise.
    prior.ema.eval()
    network = student.denoiser.requires_grad_(True).eval()
    average = AveragedModel(network, avg_fn=get_ema_avg_fn(AVERAGE))
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=len(batches) + 1, pct_start=0.05)  # type: ignore[arg-type]
    times, path, heun = prior.path.times(n_steps), prior.path, get_sampler("heun")
    for _ in batches:
        rows = torch.randint(len(codes), (batch_size,), generator=generator)
        known = drop_conditions(codes[rows], prior.attributes, prior.condition_dropout, generator)
        x = torch.randn((batch_size, prior.d), generator=generator).to(device)
        known = known.to(device)
        teacher, follow = prior.denoise_with(known), prior.denoise_with(known, network=network)
        loss = torch.zeros((), device=device)
        for t, s in itertools.pairwise(times):
            with torch.no_grad():
                to = heun(teacher, x, torch.linspace(float(t), float(s), SUBSTEPS + 1, dtype=times.dtype), path)
            arrived = get_sampler("ddim")(follow, x, torch.stack([t, s]), path)
            loss = loss + (arrived - to).square().mean()
            x = to
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(network)
    return FewSteps(average.module, n_steps).to(device).eval()
