"""Spots at a finer resolution, and what is around a cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from diffvi._exceptions import InvalidInputError, one_of, positive_int, seed_or_random
from diffvi._random import keyed_seed
from diffvi.module import Frames, Surroundings

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
        seed: int | None = None,
        **kwargs: Any,
    ) -> AnnData:
        """Divide the counts of spots among locations inside them.

        Every location belongs to the nearest spot of its section. Each gene's counts of a spot are divided among its locations in proportion to the rates
        that are predicted there, so that locations sum to their spot exactly.

        Parameters
        ----------
        adata
            Spots with counts and coordinates; ``None`` for the model's.
        coordinates
            Locations in the units of ``spatial_key``.
        section
            As in :meth:`generate_at_location`.
        method
            Where the rates come from: draws from the diffusion, kriging of the measured expression, or the spot itself (``"nearest"``: equal parts).
        n_samples
            Draws of the diffusion over which ``layers["mean"]`` averages.
        seed
            Seed.
        **kwargs
            Passed to :meth:`generate_at_location`: ``conditions``, ``guidance_scale``, ``n_steps``, ``sampler``, ``batch_size``.

        Returns
        -------
        AnnData with a row for each location: ``X`` (``int32`` counts, CSR, one draw), ``layers["mean"]`` (expected counts), ``obs["spot"]`` (name of the
        spot) and the coordinates in ``obsm``. Counts of spots without a location are left out.

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.
        InvalidInputError
            If there are no spots in a section that is asked for, or for arguments that :meth:`generate_at_location` refuses.
        """
        self._require("diffusion")
        one_of("method", method, METHODS)
        n_samples, seed = positive_int("n_samples", n_samples), seed_or_random(seed)
        adata = self.adata if adata is None else adata
        if adata is None:
            raise InvalidInputError("`adata`: the model was loaded without data; give the spots.")
        points = read_coordinates(coordinates, "`coordinates`", self.n_dims)
        frame = self._sections_of(section, len(points))
        observed = self._observed_of(adata)
        spot = self._spots(observed, points, frame)
        own, members = self._counts_of(adata), [(s, np.flatnonzero(spot == s)) for s in np.unique(spot)]
        drawn: list[sparse.csr_matrix] = []
        expected = np.zeros((len(points), own.shape[1]), dtype=np.float32)
        n_tables = n_samples if method == "diffusion" else 1
        for rates in self._rates(observed, points, frame, method, n_tables, seed, kwargs):
            for _, rows in members:
                rates[rows] = _shares(rates[rows])
            if not drawn:
                rng = np.random.default_rng(keyed_seed(seed, "spots"))
                drawn = [_divided(own[s].toarray().ravel().astype(np.int64), rates[rows], rng) for s, rows in members]
            expected += rates / n_tables
        for s, rows in members:
            expected[rows] *= own[s].toarray().ravel()
        order = np.argsort(np.concatenate([rows for _, rows in members]))
        obs = pd.DataFrame({"spot": adata.obs_names.to_numpy()[spot]}, index=pd.RangeIndex(len(points)).astype(str))
        if self.section_key is not None:
            obs[self.section_key] = np.array((self.frames_ or {})["names"], dtype=object)[frame]
        result = AnnData(
            X=sparse.vstack(drawn, format="csr")[order],
            obs=obs,
            var=pd.DataFrame(index=pd.Index(self.get_var_names())),
            layers={"mean": expected},
            obsm={self.spatial_key: points},
        )
        if "spatial" in adata.uns:
            result.uns["spatial"] = adata.uns["spatial"]
        result.uns["diffvi"] = self._provenance(seed=seed, method=method, n_samples=n_samples)
        return result

    def _spots(self, observed: Observed, points: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """Row of the spot that each location belongs to."""
        frames = Frames(**(self.frames_ or {}))
        spot = np.full(len(points), -1)
        for f in np.unique(frame):
            mine, theirs = np.flatnonzero(frame == f), np.flatnonzero(observed.frame == f)
            if not len(theirs):
                raise InvalidInputError(f"`adata` has no spot in the section {frames.names[f]!r}.")
            search = NearestNeighbors(n_neighbors=1).fit(observed.scaled[theirs])
            near = search.kneighbors(frames.scaled(points[mine], frame[mine]), return_distance=False)
            spot[mine] = theirs[near.ravel()]
        return spot

    def _rates(
        self,
        observed: Observed,
        points: np.ndarray,
        frame: np.ndarray,
        method: str,
        n_samples: int,
        seed: int,
        kwargs: Any,
    ) -> Iterator[np.ndarray]:
        """Predicted rates of the genes at locations, one table a draw, and one at a time as they are large."""
        if method == "nearest":
            yield np.ones((len(points), len(self.get_var_names())), np.float32)
            return
        arguments = {
            "conditions": None,
            "guidance_scale": 1.0,
            "n_steps": None,
            "sampler": None,
            "batch_size": 2048,
            **kwargs,
        }
        for sample in range(n_samples):
            own_seed = seed if sample == 0 else keyed_seed(seed, sample, "resolution") % 2**63
            mean = method == "kriging"
            cells = self._at(observed, points, frame, n_samples=1, return_mean=mean, seed=own_seed, **arguments)
            if mean:
                yield np.expm1(cells.X)
            else:
                yield cells.layers["normalized"] * cells.obs["library_size"].to_numpy()[:, None]

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
        InvalidInputError
            For cells without coordinates, or an unknown section.
        """
        self._require("diffusion")
        k = self.n_neighbors if n_neighbors is None else positive_int("n_neighbors", n_neighbors)
        adata = self.adata if adata is None else adata
        if adata is None:
            raise InvalidInputError("`adata`: the model was loaded without data; give the cells.")
        observed, prior = self._observed_of(adata), self.module.prior
        latent = (observed.state * prior.scale.cpu().numpy() + prior.shift.cpu().numpy())[:, :-1]
        rows = np.arange(len(latent))
        near = Surroundings(observed.scaled, observed.frame, rows, k)(observed.scaled, observed.frame, rows)[:, :k]
        members = np.c_[rows, np.where(near < 0, rows[:, None], near)]
        return np.concatenate([latent[members].mean(1), latent[members].std(1)], 1).astype(np.float32)


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
