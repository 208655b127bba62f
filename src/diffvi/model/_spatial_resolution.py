"""Spots at a finer resolution, and what is around a cell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scvi.utils import track
from sklearn.neighbors import NearestNeighbors

from diffvi._exceptions import InvalidInputError, one_of, positive_int
from diffvi._random import keyed_seed
from diffvi.module import Surroundings

from ._spatial_context import Observed
from ._spatial_prediction import SpatialPredictionMixin
from ._spatial_setup import read_coordinates

METHODS = ("diffusion", "kriging", "nearest")


class SpatialResolutionMixin(SpatialPredictionMixin):
    """Super-resolution and niches."""

    def super_resolution(
        self,
        adata: AnnData | None,
        coordinates: np.ndarray | Sequence[Sequence[float]],
        section: str | Sequence[str] | None = None,
        method: Literal["diffusion", "kriging", "nearest"] = "diffusion",
        n_samples: int = 10,
        conditions: Mapping[str, Any] | None = None,
        guidance_scale: float | Mapping[str, float] = 1.0,
        n_steps: int | None = None,
        sampler: str | None = None,
        seed: int | None = None,
        batch_size: int = 2048,
        show_progress: bool = False,
    ) -> AnnData:
        """Divide the counts of spots among locations inside them, and tell what is expected there.

        Every location belongs to the nearest spot of its section, between spots too. Each gene's counts of a spot are divided among its locations in proportion to the rates
        that are predicted there, so that locations sum to their spot exactly, noise included. ``layers["log_expression"]`` leaves noise out: it weighs
        the spot that a location is in against those around it by how much of it a second measurement would repeat, as learned from the spots that the model was trained on.

        Parameters
        ----------
        adata
            Spots with counts and coordinates; ``None`` for the model's.
        coordinates
            Locations in the units of ``spatial_key``.
        section
            As in :meth:`generate_at_location`.
        method
            Where the rates come from: draws from the diffusion, kriging of the measured expression (of the spot itself too), or nothing (``"nearest"``: equal parts).
        n_samples
            Draws of the diffusion over which ``layers["mean"]`` averages.
        conditions, guidance_scale, n_steps, sampler, seed, show_progress
            As in :meth:`generate_at_location`.
        batch_size
            Locations at a time, but for those of one spot, which are always together.

        Returns
        -------
        AnnData with a row for each location: ``X`` (``int32`` counts, CSR, one draw), ``layers["mean"]`` (expected counts), ``layers["log_expression"]``
        (expected log-normalised expression, by kriging, whichever ``method``), ``obs["spot"]`` (name of the spot), ``obs["far_outside"]`` (as in :meth:`generate_at_location`) and the coordinates in ``obsm``. Counts of spots without a location are left out.

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.
        InvalidInputError
            If there are no spots in a section that is asked for, or for arguments that :meth:`generate_at_location` refuses.

        Examples
        --------
        >>> import numpy as np
        >>> halves = np.repeat(adata.obsm["spatial"], 2, axis=0) + np.tile([[0.1, 0.0], [-0.1, 0.0]], (300, 1))
        >>> fine = model.super_resolution(adata, halves, n_samples=2, seed=0)
        >>> fine.n_obs, bool(fine.X.sum() == adata.X.sum())  # no count is lost
        (600, True)
        >>> sorted(fine.layers)
        ['log_expression', 'mean']
        """
        self._require("diffusion")
        one_of("method", method, METHODS)
        n_samples, batch_size = positive_int("n_samples", n_samples), positive_int("batch_size", batch_size)
        adata = self._own_cells(adata)
        points = read_coordinates(coordinates, "`coordinates`", self.n_dims)
        frame = self._sections_of(section, len(points))
        observed = self._observed_of(adata)
        spot = self._spots(observed, points, frame)
        request = self._request(points, frame, conditions, guidance_scale, n_steps, sampler, seed)
        own, look = self._counts_of(adata), self._look_at(observed)
        rng = np.random.default_rng(keyed_seed(request.seed, "spots"))
        expected, kriged = (np.zeros((len(points), own.shape[1]), dtype=np.float32) for _ in range(2))
        drawn, order = [], []
        for members in track(_batches(spot, batch_size), style="tqdm", disable=not show_progress):
            rows, ends = np.concatenate(members), np.cumsum([len(m) for m in members])[:-1]
            counts = own[spot[[m[0] for m in members]]].toarray().astype(np.int64)
            around = self._around(observed, look, request, rows, np.where(request.far, -2, spot)[rows])
            kriged[rows] = self._expression(around[0].mean, around[0].frame).clip(0)
            tables: Iterable[np.ndarray]
            if method == "diffusion":
                draws = self._draws(observed, *around, request, n_samples, rows)
                tables = (draw["normalized"] * draw["library_size"][:, None] for draw in draws)
            else:
                tables = [np.expm1(kriged[rows]) if method == "kriging" else np.ones_like(kriged[rows])]
            for k, rates in enumerate(tables):
                shares = [_shares(part) for part in np.split(rates, ends)]
                if k == 0:
                    drawn += [_divided(c, s, rng) for c, s in zip(counts, shares, strict=True)]
                expected[rows] += np.concatenate([c * s for c, s in zip(counts, shares, strict=True)])
            expected[rows] /= k + 1
            order.append(rows)
        obs = pd.DataFrame(
            {"spot": adata.obs_names.to_numpy()[spot], "far_outside": request.far},
            index=pd.RangeIndex(len(points)).astype(str),
        )
        if self.section_key is not None:
            obs[self.section_key] = np.array(self._frames.names, dtype=object)[frame]
        stacked = sparse.vstack(drawn, format="csr")[np.argsort(np.concatenate(order))]
        result = self._placed(stacked, obs, points)
        result.layers["mean"], result.layers["log_expression"] = expected, kriged
        if "spatial" in adata.uns:
            result.uns["spatial"] = adata.uns["spatial"]
        result.uns["diffvi"] = self._provenance(seed=request.seed, method=method, n_samples=n_samples)
        return result

    def _spots(self, observed: Observed, points: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """Row of the spot that each location belongs to."""
        frames = self._frames
        spot = np.full(len(points), -1)
        for f in np.unique(frame):
            mine, theirs = np.flatnonzero(frame == f), np.flatnonzero(observed.frame == f)
            if not len(theirs):
                raise InvalidInputError(f"`adata` has no spot in the section {frames.names[f]!r}.")
            search = NearestNeighbors(n_neighbors=1).fit(observed.scaled[theirs])
            near = search.kneighbors(frames.scaled(points[mine], frame[mine]), return_distance=False)
            spot[mine] = theirs[near.ravel()]
        return spot

    def get_niche_representation(self, adata: AnnData | None = None, n_neighbors: int | None = None) -> np.ndarray:
        """What is around each cell: mean and standard deviation of the latents of the cell and its neighbours.

        Parameters
        ----------
        adata
            Cells with counts and coordinates; ``None`` for the model's.
        n_neighbors
            Cells around, within the section; ``None`` for the model's ``n_neighbors``.

        Returns
        -------
        ``(n_cells, 2 x n_latent)``: means, then standard deviations.

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.
        InvalidInputError
            For cells without coordinates, or an unknown section.

        Examples
        --------
        >>> model.get_niche_representation(adata, n_neighbors=10).shape  # 5 means, 5 standard deviations
        (300, 10)
        """
        self._require("diffusion")
        k = self.n_neighbors if n_neighbors is None else positive_int("n_neighbors", n_neighbors)
        observed = self._observed_of(self._own_cells(adata))
        latent = self._restored(observed.state)[:, :-1]
        rows = np.arange(len(latent))
        near = Surroundings(observed.scaled, observed.frame, rows, k)(observed.scaled, observed.frame, rows)[:, :k]
        members = np.c_[rows, np.where(near < 0, rows[:, None], near)]
        return np.concatenate([latent[members].mean(1), latent[members].std(1)], 1).astype(np.float32)


def _batches(spot: np.ndarray, batch_size: int) -> list[list[np.ndarray]]:
    """Rows of each spot, in lists of spots with about ``batch_size`` rows together."""
    order = np.argsort(spot, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(spot[order])) + 1)
    batch = np.cumsum([len(m) for m in members]) // batch_size
    return [[members[i] for i in np.flatnonzero(batch == b)] for b in np.unique(batch)]


def _shares(rates: np.ndarray) -> np.ndarray:
    """What part of each gene's counts goes to each of the locations of a spot."""
    rates = np.maximum(rates, 1e-12)
    return rates / rates.sum(0)


def _divided(counts: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> sparse.csr_matrix:
    """A multinomial draw for each gene, one binomial after the other."""
    out, left = np.zeros(shares.shape, dtype=np.int32), counts.copy()
    after = np.cumsum(shares[::-1], axis=0)[::-1]
    for i in range(len(shares)):
        out[i] = rng.binomial(left, np.clip(shares[i] / after[i], 0, 1))
        left -= out[i]
    return sparse.csr_matrix(out)
