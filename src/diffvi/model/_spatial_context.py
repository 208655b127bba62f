"""What is known of a location: the cells around it, what kriging says, and the noise that a draw starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scvi import REGISTRY_KEYS

from diffvi._random import CellStreams, keyed_seed
from diffvi.data import LatentData, TrainingTable
from diffvi.metrics import log_normalise
from diffvi.module import BaggedTrees, Frames, LocalKriging, RandomField, Surroundings

PLACE, AROUND = "place", "around"
"""Names of the attributes that say where a location is and how well it is surrounded, and which cells are around it."""

KRIGED = (24, 12)
"""Cells around a location that kriging sees, at least: the nearest, and those of each of two coarser levels."""
N_CORRECTED = 40
"""The first components, to which trees add what is not linear."""
N_FEATURES = 24
"""Those that the trees see."""
MOST_DISTANT = 50.0
"""Distance between neighbours, in units of the usual one, above which they are all alike to the network."""


@dataclass
class Observed:
    """Cells that were measured, as a location may see them.

    Parameters
    ----------
    scaled, frame
        Where they are.
    values
        What is kriged, ``(n, d + n_components)``: the standardised state, then the components of the expression, from the mean of the frame.
    state, spread
        Standardised posterior of the state, ``(n, d)`` each.
    table
        What the decoder needs of them.
    """

    scaled: np.ndarray
    frame: np.ndarray
    values: np.ndarray
    state: np.ndarray
    spread: np.ndarray
    table: TrainingTable

    def subset(self, rows: np.ndarray) -> Observed:
        """The given rows."""
        values = {k: v[rows] for k, v in vars(self).items() if k != "table"}
        return Observed(**values, table=self.table.subset(rows))

    def to_dict(self) -> dict[str, Any]:
        """Plain arrays."""
        return {**{k: v for k, v in vars(self).items() if k != "table"}, **vars(self.table)}

    @classmethod
    def from_dict(cls, held: dict[str, Any]) -> Observed:
        """Inverse of :meth:`to_dict`."""
        own = {k: held[k] for k in ("scaled", "frame", "values", "state", "spread")}
        return cls(**own, table=TrainingTable(**{k: v for k, v in held.items() if k not in own}))


@dataclass
class Context:
    """What is known of some locations.

    Parameters
    ----------
    scaled, frame
        The locations.
    rows
        Observed cells around each, ``(n, k)``, -1 for none.
    weights
        Kriging weights of the state's features, ``(n, d, k)``.
    mean, sd
        Kriged values and their standard deviation, ``(n, d + n_components)``.
    codes
        Codes of the model's own attributes, ``(n, n_columns)``; NaN where the tissue is far.
    far
        Locations that are far outside of the tissue.
    """

    scaled: np.ndarray
    frame: np.ndarray
    rows: np.ndarray
    weights: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    codes: np.ndarray
    far: np.ndarray


class SpatialContextMixin:
    """Looks around locations."""

    module: Any
    vocabulary: Any
    registry_: dict[str, Any]
    get_anndata_manager: Any
    _decoder_attributes: list[str]
    _override: Any
    _standardised: Any
    _restored: Any
    frames_: dict[str, Any] | None
    components_: dict[str, np.ndarray] | None
    kriging_: dict[str, Any] | None
    mean_: dict[str, Any] | None
    correction_: dict[str, np.ndarray] | None
    cells_: dict[str, Any] | None
    n_neighbors: int
    n_dims: int

    @property
    def spatial_key(self) -> str:
        """Key of the coordinates in ``adata.obsm``."""
        return str(self.registry_["setup_args"]["spatial_key"])

    @property
    def section_key(self) -> str | None:
        """Column of ``adata.obs`` with the sections."""
        return self.registry_["setup_args"]["section_key"]

    @property
    def _frames(self) -> Frames:
        return Frames(**(self.frames_ or {}))

    @property
    def _kriging(self) -> LocalKriging:
        return LocalKriging(**(self.kriging_ or {}))

    @property
    def _place_size(self) -> int:
        return 5 * self.n_dims + 1 + int(self.module.n_latent) + 1

    @property
    def _token_size(self) -> int:
        return 2 * (int(self.module.n_latent) + 1) + self.n_dims + 1

    # ---------------------------------------------------------------- what was measured

    def _counts(self, adata: Any, rows: np.ndarray) -> sparse.csr_matrix:
        """Counts of cells, which may lie on the disk."""
        x = self.get_anndata_manager(adata, required=True).get_from_registry(REGISTRY_KEYS.X_KEY)
        return sparse.csr_matrix(x[np.sort(rows)][np.argsort(np.argsort(rows))])

    def _log_expression(self, adata: Any, rows: np.ndarray) -> np.ndarray:
        """Log-normalised measured expression of cells."""
        return log_normalise(self._counts(adata, rows)).astype(np.float32)

    def _observed(
        self, adata: Any, latents: LatentData, table: TrainingTable, scaled: np.ndarray, frame: np.ndarray
    ) -> Observed:
        """The cells of ``adata`` as locations see them."""
        held = self.components_
        assert held is not None
        state = self._standardised(latents.mean)
        scores = np.empty((len(state), len(held["components"])), np.float32)
        for first in range(0, len(state), 5000):
            rows = np.arange(first, min(first + 5000, len(state)))
            expression = self._log_expression(adata, rows) - held["mean"][frame[rows]]
            scores[rows] = expression @ held["components"].T / held["sd"]
        values = np.concatenate([state, scores], 1) - held["centre"][frame]
        spread = latents.scale / self.module.prior.scale.cpu().numpy()
        return Observed(scaled, frame, values.astype(np.float32), state, spread, table)

    # ---------------------------------------------------------------- what is around

    def _look(self, scaled: np.ndarray, frame: np.ndarray, rows: np.ndarray) -> Surroundings:
        """Finds those of the given rows that are around locations."""
        return Surroundings(scaled, frame, rows, max(self.n_neighbors, KRIGED[0]), KRIGED[1])

    def _context(
        self,
        observed: Observed,
        surroundings: Surroundings,
        scaled: np.ndarray,
        frame: np.ndarray,
        itself: np.ndarray | None = None,
        spot: np.ndarray | None = None,
    ) -> Context:
        """What the observed cells say of locations; ``itself`` are rows that a location must not see, ``spot`` rows that it is a part of, -2 for none."""
        assert self.components_ is not None
        d = int(self.module.prior.d)
        rows = surroundings(scaled, frame, itself)
        if spot is not None:
            # Not among the nearest where many cells share a location.
            unseen = (spot >= 0) & (rows != spot[:, None]).all(1)
            rows[unseen, surroundings.sizes[0] - 1] = spot[unseen]
        present, near = rows >= 0, np.maximum(rows, 0)
        inside = None if spot is None else rows == spot[:, None]
        all_weights, variance = self._kriging(scaled, observed.scaled[near], present, inside)
        centre = self.components_["centre"][frame]
        mean = centre + np.einsum("njk,nkj->nj", all_weights, observed.values[near])
        sd = np.sqrt(variance)

        n_near = self.n_neighbors
        offset = observed.scaled[near[:, :n_near]] - scaled[:, None]
        distance = np.where(present[:, :n_near], np.linalg.norm(offset, axis=2), np.nan)
        # Beyond the distances of masks the network has seen nothing.
        distance = np.minimum(distance, MOST_DISTANT)
        seen = present[:, :n_near].any(1)
        scale = np.ones(len(scaled))
        scale[seen] = np.maximum(np.nanmean(distance[seen], 1), 1e-3)
        relative = np.clip(offset / scale[:, None, None], -10, 10)
        tokens = np.concatenate(
            [
                observed.state[near[:, :n_near]],
                observed.spread[near[:, :n_near]],
                relative,
                np.log(np.maximum(distance, 0.02))[..., None],
            ],
            axis=2,
        )
        tokens[~present[:, :n_near]] = np.nan
        place = np.concatenate([self._frames.waves(scaled, frame), np.log(scale)[:, None], sd[:, :d]], 1)
        codes = np.concatenate([place, tokens.reshape(len(tokens), -1), self._restored(mean[:, :d])], 1)
        far = self._frames.far(scaled, frame)
        codes[far] = np.nan
        return Context(scaled, frame, rows, all_weights[:, :d], mean, sd, codes.astype(np.float32), far)

    def _asked(self, conditions: Mapping[str, Any] | None, frame: np.ndarray) -> np.ndarray:
        """Codes of what is asked for at locations, and of their section."""
        codes = self.vocabulary.encode(conditions, len(frame))
        if self.section_key is not None:
            codes[:, self.vocabulary.columns[self.section_key].start] = frame
        return codes

    def _told(self, observed: Observed, context: Context, codes: np.ndarray) -> TrainingTable:
        """What the decoder is told at locations: as of the nearest cell, but for what is asked for."""
        table = observed.table.subset(np.maximum(context.rows[:, 0], 0))
        for name in self._decoder_attributes:
            self._override(table, name, codes[:, self.vocabulary.columns[name].start])
        return table

    def _start_noise(
        self, observed: Observed, context: Context, seed: int, sample: int, streams: CellStreams
    ) -> np.ndarray:
        """Standard normal noise that is correlated between locations as what kriging leaves over is, ``(n, d)``.

        A draw of the field, minus what kriging makes of the same draw at the cells around (Matheron's rule; Chilès and Delfiner
        2012), is a draw of the field given those cells.
        """
        kriging, d = self._kriging, int(self.module.prior.d)
        own = keyed_seed(seed, sample, "field")
        field, nugget = RandomField(kriging, d, own), np.exp(0.5 * kriging.log_nuggets[kriging.kinds[:d]])
        used, inverse = np.unique(np.maximum(context.rows, 0), return_inverse=True)
        noise = np.random.default_rng(own + 1).normal(size=(len(observed.state), d))[used]
        around = (field(observed.scaled[used]) + nugget * noise)[inverse.reshape(context.rows.shape)]
        around[context.rows < 0] = 0.0
        here = field(context.scaled) + nugget * streams.normal(d).numpy()
        left = here - np.einsum("njk,nkj->nj", context.weights, around)
        # States are drawn from their posteriors, whose noise no location shares.
        posterior = (observed.spread**2).mean(0)
        variance = context.sd[:, :d] ** 2
        total = left + np.sqrt(posterior) * streams.normal(d).numpy()
        return (total / np.sqrt(variance + posterior)).astype(np.float32)

    def _features(self, kriged: np.ndarray, scaled: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """What the trees see of locations: the first components as kriged there, and the place in the frame."""
        return np.concatenate([kriged[:, :N_FEATURES], self._frames.waves(scaled, frame)[:, : self.n_dims]], 1)

    def _explained(self, context: Context) -> np.ndarray:
        """Share of the variance of the first components that kriging explains at locations, ``(n,)``."""
        d = int(self.module.prior.d)
        first = slice(d, d + N_CORRECTED)
        left = context.sd[:, first] ** 2 / self._kriging.variance[first]
        return np.asarray(1 - left.sum(1) / max(left.shape[1], 1))

    def _corrected(self, context: Context) -> np.ndarray:
        """Kriged values with what trees add to the first components, which fades where kriging explains less than where they were fitted."""
        assert self.mean_ is not None
        share = self.mean_.get("correction", 0.0)
        if not share or self.correction_ is None:
            return context.mean
        d, mean = int(self.module.prior.d), context.mean.copy()
        known = np.clip(self._explained(context) / max(self.mean_["explained"], 1e-6), 0, 1)
        added = BaggedTrees(**self.correction_)(self._features(mean[:, d:], context.scaled, context.frame))
        mean[:, d : d + added.shape[1]] += share * known[:, None] * added
        return mean

    def _expression(self, mean: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """Log-normalised expression of kriged values."""
        held = self.components_
        assert held is not None
        scores = mean[:, int(self.module.prior.d) :]
        return held["mean"][frame] + (scores * held["sd"]) @ held["components"]
