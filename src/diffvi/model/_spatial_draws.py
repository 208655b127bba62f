"""Draws of cells at locations, and what is expected there."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scvi.utils import track

from diffvi._exceptions import seed_or_random
from diffvi._random import CellStreams, keyed_seed
from diffvi.data import TrainingTable
from diffvi.metrics import log_normalise
from diffvi.metrics._resampling import quantiles_of_draws
from diffvi.module import Surroundings

from ._spatial_context import Context, Observed
from ._spatial_training import SpatialTrainingMixin

INTERVAL = (0.05, 0.95)
MAX_HELD = 50_000_000
"""Values of draws that are held at a time to tell their quantiles."""
MATCHED = 6000
"""Draws at places of training cells that are compared with the cells."""
MIN_MATCHED = 20
"""Places for each dimension below which they tell too little of how draws are off."""
MIN_SAMPLES = 10
"""Samples from which standard deviations and intervals are told."""


@dataclass
class Request:
    """Locations that are asked for, and how draws are made there.

    Parameters
    ----------
    points, scaled, frame
        Where they are: in the user's units, in those of the frames, and in which frame.
    far
        Which are far from the tissue.
    codes
        Codes of the conditions.
    sampler, n_steps, scales, seed
        Sampler, its steps, guidance scales and seed.
    """

    points: np.ndarray
    scaled: np.ndarray
    frame: np.ndarray
    far: np.ndarray
    codes: np.ndarray
    sampler: str
    n_steps: int
    scales: list[float]
    seed: int


class SpatialDrawsMixin(SpatialTrainingMixin):
    """Draws what is at locations."""

    _decode: Any
    _draw_cells: Any
    _provenance: Any
    _sampled: Any
    _sampler: Any
    get_var_names: Any
    moments_: dict[str, np.ndarray] | None

    def _request(
        self,
        points: np.ndarray,
        frame: np.ndarray,
        conditions: Mapping[str, Any] | None,
        guidance_scale: float | Mapping[str, float],
        n_steps: int | None,
        sampler: str | None,
        seed: int | None,
    ) -> Request:
        """What is asked for, checked; warns of locations far from the tissue."""
        sampler, n_steps = self._sampler(sampler, n_steps)
        scaled = self._frames.scaled(points, frame)
        far = self._frames.far(scaled, frame)
        if far.any():
            warnings.warn(
                f"`coordinates`: {int(far.sum())} of {len(far)} locations are further from the tissue than ten times its own size, where nothing "
                "is known; `obs['far_outside']` marks them.",
                UserWarning,
                stacklevel=3,
            )
        codes = self._asked(conditions, frame)
        scales = self.vocabulary.scales(guidance_scale)
        return Request(points, scaled, frame, far, codes, sampler, n_steps, scales, seed_or_random(seed))

    def _look_at(self, observed: Observed) -> Surroundings:
        """Finds observed cells around locations."""
        return self._look(observed.scaled, observed.frame, np.arange(len(observed.frame)))

    def _around(
        self,
        observed: Observed,
        look: Surroundings,
        request: Request,
        rows: np.ndarray,
        spot: np.ndarray | None = None,
    ) -> tuple[Context, np.ndarray, TrainingTable]:
        """What is known of some of the locations, their conditions, and what the decoder is told there."""
        codes = request.codes[rows]
        context = self._context(observed, look, request.scaled[rows], request.frame[rows], spot=spot)
        return context, codes, self._told(observed, context, codes)

    def _at(
        self,
        observed: Observed,
        request: Request,
        n_samples: int,
        return_mean: bool,
        batch_size: int,
        show_progress: bool = False,
    ) -> AnnData:
        """Cells, or what is expected, at locations, given observed cells."""
        look, n = self._look_at(observed), len(request.points)
        if return_mean:
            # All draws of a batch are held at once.
            batch_size = max(1, min(batch_size, MAX_HELD // (n_samples * len(self.get_var_names()))))
        parts = []
        batches = range(0, n, batch_size)
        for first in track(batches, description="Generating", style="tqdm", disable=not show_progress):
            rows = np.arange(first, min(first + batch_size, n))
            around = self._around(observed, look, request, rows)
            draws = self._draws(observed, *around, request, n_samples, rows)
            if return_mean:
                parts.append(self._summary(*around, draws if n_samples >= MIN_SAMPLES else None))
            else:
                parts.append(_joined(list(draws), by_location=True))
        arrays, repeats = _joined(parts), 1 if return_mean else n_samples
        obs = self.vocabulary.decode(np.repeat(request.codes, repeats, axis=0))
        obs["far_outside"] = np.repeat(request.far, repeats)
        result = self._placed(arrays.pop("X"), obs, np.repeat(request.points, repeats, axis=0))
        if return_mean:
            result.uns["log1p"] = {"base": None}
        else:
            result.obs["sample"] = np.tile(np.arange(n_samples), n)
            result.obsm["X_latent"] = arrays.pop("latent")
            result.obs["library_size"] = arrays.pop("library_size")
        for name, values in arrays.items():
            result.layers[name] = values
        result.uns["diffvi"] = self._provenance(
            seed=request.seed,
            sampler=request.sampler,
            n_steps=request.n_steps,
            guidance_scale=dict(zip(self.vocabulary.names, request.scales, strict=True)),
        )
        return result

    def _placed(self, x: Any, obs: pd.DataFrame, points: np.ndarray) -> AnnData:
        """Rows at locations, whose coordinates are where scanpy and squidpy look for them and under the model's own key."""
        var = pd.DataFrame(index=pd.Index(self.get_var_names()))
        return AnnData(X=x, obs=obs, var=var, obsm={"spatial": points, self.spatial_key: points})

    @torch.inference_mode()
    def _match_moments(self, observed: Observed, look: Surroundings, training: np.ndarray) -> None:
        """See how draws at the places of training cells are off from the cells, in mean and covariance, as those of any trained network are a little."""
        rows = np.sort(np.random.default_rng(0).permutation(training)[: MATCHED // 2])
        if len(rows) < MIN_MATCHED * int(self.module.prior.d):
            return
        context = self._context(observed, look, observed.scaled[rows], observed.frame[rows], rows)
        repeats = MATCHED // len(rows)
        known = np.tile(np.concatenate([self._asked(None, context.frame), context.codes], 1), (repeats, 1))
        # What is expected of a draw does not depend on that of its neighbours, and independent noise tells it with less error.
        streams = CellStreams(0, range(len(known)))
        sampler, n_steps = self._sampler(None, None)
        state = self._sampled(known, streams, sampler, n_steps, self.vocabulary.scales(1.0))
        drawn = self._standardised(state.cpu().numpy())
        real, spread = observed.state[rows], observed.spread[rows]
        covariance = np.cov(real.T) + np.diag((spread**2).mean(0))
        matrix = _gaussian_map(np.cov(drawn.T), covariance)
        shift = real.mean(0) - matrix @ drawn.mean(0)
        self.moments_ = {"matrix": matrix.astype(np.float32), "shift": shift.astype(np.float32)}

    def _matched(self, state: torch.Tensor) -> torch.Tensor:
        """Draws with that put right."""
        if self.moments_ is None:
            return state
        prior = self.module.prior
        matrix, shift = (torch.as_tensor(self.moments_[name], device=state.device) for name in ("matrix", "shift"))
        return prior.restore(prior.standardise(state) @ matrix.T + shift)

    @torch.inference_mode()
    def _draws(
        self,
        observed: Observed,
        context: Context,
        codes: np.ndarray,
        table: TrainingTable,
        request: Request,
        n_samples: int,
        rows: np.ndarray,
    ) -> Iterator[dict[str, Any]]:
        """Draws of the cells at some locations, one after the other."""
        known = np.concatenate([codes, context.codes], 1)
        for sample in range(n_samples):
            streams = CellStreams(keyed_seed(request.seed, sample, "locations"), rows)
            noise = self._start_noise(observed, context, request.seed, sample, streams)
            drawn_state = self._sampled(known, streams, request.sampler, request.n_steps, request.scales, start=noise)
            state = self._matched(drawn_state)
            drawn = self._draw_cells(state, table, streams)
            yield {"X": drawn.pop("counts"), "library_size": state[:, -1].exp().cpu().numpy(), **drawn}

    def _summary(
        self,
        context: Context,
        codes: np.ndarray,
        table: TrainingTable,
        draws: Iterator[dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Expected log-normalised expression at locations, and its spread among draws."""
        assert self.mean_ is not None
        share = self.mean_["share"]
        mean = self._expression(self._corrected(context), context.frame)
        if share > 0:
            decoded = self._expected(context, codes, table) + self.mean_["offset"]
            mean = np.where(context.far[:, None], mean, (1 - share) * mean + share * decoded)
        parts = {"X": mean.clip(0).astype(np.float32)}
        if draws is not None:
            values = np.stack([log_normalise(draw["X"]).astype(np.float32) for draw in draws])
            parts["sd"] = values.std(0)
            parts["lower"], parts["upper"] = quantiles_of_draws(values, INTERVAL).astype(np.float32)
        return parts

    @torch.inference_mode()
    def _expected(self, context: Context, codes: np.ndarray, table: TrainingTable, n_noise: int = 4) -> np.ndarray:
        """Log-normalised expression that the network expects at locations."""
        prior = self.module.prior
        device = prior.shift.device
        known = torch.as_tensor(np.concatenate([codes, context.codes], 1), device=device)
        out = np.empty((len(codes), len(self.get_var_names())), np.float32)
        # The same for all locations, so that none depends on which others are asked for.
        noise = CellStreams(0, range(n_noise)).normal(prior.d).to(device)
        for first in range(0, len(codes), 2048):
            rows = np.arange(first, min(first + 2048, len(codes)))
            states = [prior.expected(known[rows], one.expand(len(rows), -1)) for one in noise]
            px = self._decode(torch.stack(states).mean(0), table.subset(rows))
            out[rows] = np.log1p(1e4 * px.scale.cpu().numpy())
        return out


def _gaussian_map(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The matrix that takes one covariance to another and moves points least (optimal transport of Gaussians, Peyré and Cuturi 2019, remark 2.31)."""

    def power(matrix: np.ndarray, exponent: float) -> np.ndarray:
        values, vectors = np.linalg.eigh(matrix)
        return (vectors * np.maximum(values, 1e-6) ** exponent) @ vectors.T

    root, inverse = power(before, 0.5), power(before, -0.5)
    return inverse @ power(root @ after @ root, 0.5) @ inverse


def _joined(parts: list[dict[str, Any]], by_location: bool = False) -> dict[str, Any]:
    """Arrays of several parts one after the other; ``by_location``: those of one location together."""
    out = {}
    n = parts[0]["X"].shape[0]
    order = np.arange(n * len(parts)).reshape(len(parts), n).T.ravel() if by_location else None
    for name in parts[0]:
        values = [part[name] for part in parts]
        whole = sparse.vstack(values, format="csr") if sparse.issparse(values[0]) else np.concatenate(values)
        out[name] = whole if order is None else whole[order]
    return out
