"""Whether drawn changes bring control cells nearer to perturbed ones than their mean change does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from diffvi._random import CellStreams
from diffvi.data import Treatment
from diffvi.metrics import energy_distance
from diffvi.module import LatentPrior

Context = tuple[int, ...]
"""Category numbers of a context."""
MAX_PROBES = 30
"""Treatments in a context, the ones with most cells, that are looked at."""
MAX_CELLS = 500
"""Cells of each of them."""
MIN_CELLS = 10
"""Fewer cells than this tell nothing of a spread."""


@dataclass
class Probe:
    """Cells under one treatment in one context, and codes of control cells that are to become like them.

    Parameters
    ----------
    codes
        One row for each control cell.
    real
        States of the perturbed cells.
    """

    codes: np.ndarray
    real: np.ndarray


def probes(
    state: np.ndarray,
    groups: Mapping[tuple[Context, Treatment], Sequence[int]],
    controls: Mapping[Context, np.ndarray],
    training: np.ndarray,
    codes_of: Callable[[np.ndarray, list[Treatment], list[Context]], np.ndarray],
) -> list[Probe]:
    """Training cells of the largest groups, with control cells of their contexts."""
    rng, out = np.random.default_rng(0), []
    cells = {key: np.array(rows)[training[rows]] for key, rows in groups.items()}
    known = [key for key, mine in cells.items() if min(len(mine), len(controls[key[0]])) >= MIN_CELLS]
    for key in sorted(known, key=lambda key: (-len(cells[key]), key))[:MAX_PROBES]:
        context, treatment = key
        mine, start = (rng.permutation(rows)[:MAX_CELLS] for rows in (cells[key], controls[context]))
        out.append(Probe(codes_of(state[start], [treatment] * len(start), [context] * len(start)), state[mine]))
    return out


@torch.inference_mode()
def spread_gain(
    prior: LatentPrior, looked_at: Sequence[Probe], draw: Callable[[np.ndarray, CellStreams], torch.Tensor]
) -> float | None:
    """By how much the energy distance to real cells is lower with drawn changes than with mean ones.

    ``draw`` gives states of the prior for codes. In standardised latents without the library, mean over treatments weighted by their cells;
    ``None`` for none.
    """
    if not looked_at:
        return None

    def latent(state: torch.Tensor) -> np.ndarray:
        return prior.standardise(state)[:, :-1].cpu().numpy()

    device, gains = prior.shift.device, []
    for k, probe in enumerate(looked_at):
        real = latent(torch.as_tensor(probe.real, device=device))
        mean = latent(prior.mean(torch.as_tensor(probe.codes, device=device)))
        drawn = latent(draw(probe.codes, CellStreams(k, range(len(probe.codes)))))
        gains.append(energy_distance(real, mean) - energy_distance(real, drawn))
    return float(np.average(gains, weights=[len(probe.real) for probe in looked_at]))
