"""Where cells are going: the expected change of their latent, or of an embedding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from anndata import AnnData
from sklearn.neighbors import NearestNeighbors

from diffvi._exceptions import InvalidInputError, positive_int, seed_or_random
from diffvi._random import CellStreams, nth_seed

from ._trajectory_prediction import TrajectoryPredictionMixin


class TrajectoryVelocityMixin(TrajectoryPredictionMixin):
    """Velocity of cells under the learned process."""

    def get_velocity(
        self,
        adata: AnnData | None = None,
        elapsed: float | None = None,
        basis: str | None = None,
        n_samples: int = 16,
        start_time: float | Sequence[float] | None = None,
        seed: int | None = 0,
        batch_size: int = 2048,
    ) -> np.ndarray:
        """Expected change of the latent, or of an embedding, per unit of time.

        Parameters
        ----------
        adata
            Cells; ``None`` for the model's.
        elapsed
            Time over which the change is taken; ``None`` for the smallest gap between measured times: the error of a change over a
            shorter time is divided by that time. Cells at the last time look back instead of ahead.
        basis
            Key of ``adata.obsm`` with an embedding, such as ``"X_umap"``: the change is then that of the embedding, from the cell's
            neighbours in the latent to the neighbours of where it is expected to be. ``adata.obsm["velocity_umap"]`` is where
            scvelo's and CellRank's plots look for it.
        n_samples
            Noise draws over which the expectation is averaged.
        start_time, seed, batch_size
            As in :meth:`predict_trajectory`.

        Returns
        -------
        Array of shape ``(n_cells, n_latent)``, or ``(n_cells, d)`` of the embedding.

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.
        InvalidInputError
            If ``adata.obsm`` has no such embedding or ``elapsed`` is not positive.

        Examples
        --------
        >>> adata.obsm["X_umap"] = adata.obsm["state"]  # any embedding of two dimensions
        >>> adata.obsm["velocity_umap"] = model.get_velocity(adata, basis="X_umap")
        >>> model.get_velocity(adata).shape, adata.obsm["velocity_umap"].shape
        ((400, 10), (400, 2))
        """
        self._require("diffusion")
        n_samples, seed = positive_int("n_samples", n_samples), seed_or_random(seed)
        adata = self._own_cells(adata)
        if basis is not None and basis not in adata.obsm:
            raise InvalidInputError(f"`basis`: adata.obsm has no {basis!r}; it has {list(adata.obsm)}.")
        if elapsed is None:
            elapsed = float(np.diff(self.times_).min())
        if not np.isfinite(elapsed) or elapsed <= 0:
            raise InvalidInputError(f"`elapsed` must be a positive number; got {elapsed!r}.")
        starts = self._starts(adata, start_time, batch_size)
        time = np.clip(starts.time, self.times_[0], self.times_[-1])
        ahead = time + elapsed <= self.times_[-1]
        change = np.empty((adata.n_obs, starts.state.shape[1] - 1), dtype=np.float32)
        for first in range(0, adata.n_obs, batch_size):
            rows = np.arange(first, min(first + batch_size, adata.n_obs))
            end = np.where(ahead[rows], time[rows] + elapsed, time[rows] - elapsed)
            known = self._known(starts.subset(rows), None)
            moved = self._expected(starts.state[rows], time[rows], end, known, starts.names[rows], n_samples, seed)
            sign = np.where(ahead[rows], 1.0, -1.0)[:, None]
            change[rows] = sign * (moved - starts.state[rows])[:, :-1] / elapsed
        if basis is None:
            return change
        return self._embedded(starts.state[:, :-1], change, np.asarray(adata.obsm[basis]), elapsed)

    @torch.inference_mode()
    def _expected(
        self,
        state: np.ndarray,
        begin: np.ndarray,
        end: np.ndarray,
        known: np.ndarray,
        names: np.ndarray,
        n_samples: int,
        seed: int,
    ) -> np.ndarray:
        """Expected states after moves."""
        prior = self.module.prior
        device = prior.shift.device
        codes = torch.as_tensor(self._move_codes(state, begin, end, known), device=device)
        draws = [
            prior.expected(codes, CellStreams(nth_seed(seed, k), names).normal(prior.d).to(device))
            for k in range(n_samples)
        ]
        return torch.stack(draws).mean(0).cpu().numpy()

    def _embedded(self, latent: np.ndarray, change: np.ndarray, embedding: np.ndarray, elapsed: float) -> np.ndarray:
        """The change of an embedding, by the mean over neighbours before and after."""
        search = NearestNeighbors(n_neighbors=min(self.n_neighbors, len(latent))).fit(self._standardised(latent))
        before, after = (
            embedding[search.kneighbors(self._standardised(points), return_distance=False)].mean(1)
            for points in (latent, latent + elapsed * change)
        )
        return (after - before) / elapsed
