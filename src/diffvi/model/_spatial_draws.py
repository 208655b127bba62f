"""Draws of cells at locations, and what is expected there."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scvi.utils import track

from diffvi._exceptions import positive_int, seed_or_random
from diffvi._random import CellStreams, keyed_seed
from diffvi.data import TrainingTable
from diffvi.metrics import log_normalise
from diffvi.module import Frames, Surroundings
from diffvi.process import get_sampler

from ._spatial_context import Context, Observed
from ._spatial_training import SpatialTrainingMixin

INTERVAL = (0.05, 0.95)
MAX_HELD = 50_000_000
"""Values of draws that are held at a time to tell their quantiles."""
MIN_SAMPLES = 10
"""Samples from which standard deviations and intervals are told."""


class SpatialDrawsMixin(SpatialTrainingMixin):
    """Draws what is at locations."""

    _decode: Any
    _decoder_attributes: list[str]
    _draw_cells: Any
    _override: Any
    _provenance: Any
    _sampler: Any
    get_var_names: Any

    def _at(
        self,
        observed: Observed,
        points: np.ndarray,
        frame: np.ndarray,
        conditions: Mapping[str, Any] | None,
        n_samples: int,
        return_mean: bool,
        guidance_scale: Any,
        n_steps: int | None,
        sampler: str | None,
        seed: int | None,
        batch_size: int,
        show_progress: bool = False,
    ) -> AnnData:
        """Cells, or what is expected, at locations, given observed cells."""
        n_samples, batch_size = positive_int("n_samples", n_samples), positive_int("batch_size", batch_size)
        sampler, n_steps = self._sampler(sampler, n_steps)
        scales, seed = self.vocabulary.scales(guidance_scale), seed_or_random(seed)
        frames = Frames(**(self.frames_ or {}))
        scaled = frames.scaled(points, frame)
        far = frames.far(scaled, frame)
        if far.any():
            warnings.warn(
                f"`coordinates`: {int(far.sum())} of {len(far)} locations are further from the tissue than ten times its own size, where nothing "
                "is known; `obs['far_outside']` marks them.",
                UserWarning,
                stacklevel=3,
            )
        codes = self.vocabulary.encode(conditions, len(points))
        if self.section_key is not None:
            codes[:, self.vocabulary.columns[self.section_key].start] = frame
        look = Surroundings(observed.scaled, observed.frame, np.arange(len(observed.frame)), self.n_neighbors)
        how = (sampler, n_steps, scales)
        if return_mean:
            # All draws of a batch are held at once.
            batch_size = max(1, min(batch_size, MAX_HELD // (n_samples * len(self.get_var_names()))))
        parts = []
        for first in track(
            range(0, len(points), batch_size), description="Generating", style="tqdm", disable=not show_progress
        ):
            rows = np.arange(first, min(first + batch_size, len(points)))
            context = self._context(observed, look, scaled[rows], frame[rows])
            table = self._table_at(observed, context, codes[rows])
            draws = self._draws(observed, context, codes[rows], table, how, n_samples, seed, rows)
            if return_mean:
                parts.append(self._summary(context, codes[rows], table, draws if n_samples >= MIN_SAMPLES else None))
            else:
                parts.append(_joined(list(draws), by_location=True))
        arrays = _joined(parts)
        repeats = 1 if return_mean else n_samples
        obs = self.vocabulary.decode(np.repeat(codes, repeats, axis=0))
        obs["far_outside"] = np.repeat(far, repeats)
        if not return_mean:
            obs["sample"] = np.tile(np.arange(n_samples), len(points))
        result = AnnData(
            X=arrays.pop("X"),
            obs=obs,
            var=pd.DataFrame(index=pd.Index(self.get_var_names())),
            obsm={self.spatial_key: np.repeat(points, repeats, axis=0)},
        )
        if not return_mean:
            result.obsm["X_latent"] = arrays.pop("latent")
            result.obs["library_size"] = arrays.pop("library_size")
        for name, values in arrays.items():
            result.layers[name] = values
        if return_mean:
            result.uns["log1p"] = {"base": None}
        result.uns["diffvi"] = self._provenance(
            seed=seed,
            sampler=sampler,
            n_steps=n_steps,
            guidance_scale=dict(zip(self.vocabulary.names, scales, strict=True)),
        )
        return result

    def _table_at(self, observed: Observed, context: Context, codes: np.ndarray) -> TrainingTable:
        """What the decoder is told at locations: what it is told of the nearest cell, but for what is asked for."""
        nearest = np.where(context.rows[:, 0] >= 0, context.rows[:, 0], 0)
        table = observed.table.subset(nearest)
        for name in self._decoder_attributes:
            self._override(table, name, codes[:, self.vocabulary.columns[name].start])
        return table

    @torch.inference_mode()
    def _draws(
        self,
        observed: Observed,
        context: Context,
        codes: np.ndarray,
        table: TrainingTable,
        how: tuple[str, int, list[float]],
        n_samples: int,
        seed: int,
        rows: np.ndarray,
    ) -> Iterator[dict[str, Any]]:
        """Draws of the cells at some locations, one after the other."""
        prior = self.module.prior
        device = prior.shift.device
        sampler, n_steps, scales = how
        known = torch.as_tensor(np.concatenate([codes, context.codes], 1), device=device)
        for sample in range(n_samples):
            streams = CellStreams(keyed_seed(seed, sample, "locations"), rows)
            noise = self._start_noise(observed, context, seed, sample, streams)
            state = prior.sample(
                torch.as_tensor(noise, device=device),
                known,
                get_sampler(sampler),
                n_steps,
                scales,
                noise=lambda streams=streams: streams.normal(prior.d).to(device),
            )
            drawn = self._draw_cells(state, table, streams)
            yield {"X": drawn.pop("counts"), "library_size": state[:, -1].exp().cpu().numpy(), **drawn}

    def _summary(
        self, context: Context, codes: np.ndarray, table: TrainingTable, draws: Iterator[dict[str, Any]] | None
    ) -> dict[str, Any]:
        """Expected log-normalised expression at locations, and its spread among draws."""
        assert self.mean_ is not None
        share = self.mean_["share"]
        mean = self._expression(context.mean, context.frame)
        if share > 0:
            decoded = self._expected(context, codes, table) + self.mean_["offset"]
            mean = np.where(context.far[:, None], mean, (1 - share) * mean + share * decoded)
        parts = {"X": mean.clip(0).astype(np.float32)}
        if draws is not None:
            values = np.stack([log_normalise(draw["X"]).astype(np.float32) for draw in draws])
            parts["sd"] = values.std(0)
            parts["lower"], parts["upper"] = np.quantile(values, INTERVAL, axis=0).astype(np.float32)
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
