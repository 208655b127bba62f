"""What the learned process says of cells: fates, branch points, growth, transitions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from diffvi._exceptions import InvalidInputError, positive_int, seed_or_random

from ._trajectory_velocity import TrajectoryVelocityMixin


class TrajectoryAnalysisMixin(TrajectoryVelocityMixin):
    """Quantities derived from the learned process."""

    def get_fate_probabilities(
        self,
        labels_key: str | None = None,
        n_samples: int = 100,
        adata: AnnData | None = None,
        time: float | None = None,
        weighted: bool = False,
        start_time: float | Sequence[float] | None = None,
        seed: int | None = 0,
        batch_size: int = 2048,
    ) -> pd.DataFrame:
        """Probability of each fate of each cell, by sampling its future.

        Each sample is followed through the measured times to the last; its fate is the shares of labels among the
        training cells of that time that are nearest to where it ends.

        Parameters
        ----------
        labels_key
            A category of the model; ``None`` for its labels.
        n_samples
            Futures of each cell.
        adata
            Cells; ``None`` for the model's.
        time
            When fates are read off; ``None`` for the last measured time. Cells that start then, or later, keep the label of their neighbours.
        weighted
            Weight each future with the descendants it leaves: shares of a cell's descendants, rather than odds of one lineage.
        start_time, seed, batch_size
            As in :meth:`predict_trajectory`.

        Returns
        -------
        Data frame of the cells with two levels of columns: ``"probability"`` and ``"standard_error"`` (of the Monte-Carlo estimate),
        each with the fates; probabilities of a cell sum to 1.

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.
        InvalidInputError
            If the label is not known to the model, or no training cell of that time has one.

        Examples
        --------
        >>> fates = model.get_fate_probabilities(n_samples=5)
        >>> fates["probability"].shape, fates["probability"].columns.tolist()
        ((400, 2), ['down', 'up'])
        >>> fates["probability"].sum(axis=1).round(3).unique()
        array([1.])
        """
        self._require("diffusion")
        n_samples, seed = positive_int("n_samples", n_samples), seed_or_random(seed)
        adata = self._own_cells(adata)
        key, _ = self._labels(labels_key)
        time = self.times_[-1] if time is None else float(self._check_points(time)[0])
        assert self.cells_ is not None
        nearest = min(self.times_, key=lambda t: abs(t - time))
        shares_of = self._label_shares(key, np.flatnonzero(self.cells_["time"] == nearest))
        starts = self._starts(adata, start_time, batch_size)
        known, how = self._known(starts, None), self._sampling(None, None, 1.0)
        tables = []
        for first in range(0, adata.n_obs, batch_size):
            rows = np.arange(first, min(first + batch_size, adata.n_obs))
            here = starts.subset(rows)
            points = np.array([t for t in self.times_ if here.time.min() < t < time] + [time])
            shares, weights = [], []
            for sample in range(n_samples):
                states, log_weights = self._states(here, points, sample, seed, True, known[rows], how, weighted)
                # Cells that start after the time of the fates are judged as they are.
                end = np.where((here.time <= time)[:, None], states[-1], here.state)
                shares.append(shares_of(end[:, :-1]))
                weights.append(np.exp(log_weights[:, -1]) if weighted else np.ones(len(rows)))
            tables.append(_weighted_mean(np.stack(shares), np.stack(weights)))
        names = list(shares[0].columns)
        columns = pd.MultiIndex.from_product([("probability", "standard_error"), names], names=["quantity", key])
        values = np.concatenate([np.concatenate(parts, axis=1) for parts in tables])
        return pd.DataFrame(values, index=adata.obs_names, columns=columns)

    def get_growth_rates(
        self,
        adata: AnnData | None = None,
        start_time: float | Sequence[float] | None = None,
        batch_size: int = 2048,
    ) -> np.ndarray:
        """Growth rate of cells: births minus deaths per unit of time, up to a constant for each time.

        How much the population grows as a whole cannot be told from samples of it; rates compare cells of one time.
        Where ``growth_key`` was given they are smoothed versions of those rates.

        Parameters
        ----------
        adata
            Cells; ``None`` for the model's.
        start_time, batch_size
            As in :meth:`predict_trajectory`.

        Returns
        -------
        Array of shape ``(n_cells,)``.

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.

        Examples
        --------
        >>> model.get_growth_rates(adata).shape
        (400,)
        """
        self._require("diffusion")
        starts = self._starts(self._own_cells(adata), start_time, batch_size)
        return self._growth_rates(starts.state, starts.time)

    def get_branch_points(
        self,
        labels_key: str | None = None,
        n_samples: int = 50,
        adata: AnnData | None = None,
        time: float | None = None,
        seed: int | None = 0,
        batch_size: int = 2048,
    ) -> pd.DataFrame:
        """When and where pairs of fates part.

        For two fates, the entropy of the choice between them is weighted by the probability of either, and averaged over
        the cells of each time. It rises where ancestors of both become common and falls where cells have chosen.

        Parameters
        ----------
        labels_key, n_samples, adata, time, seed, batch_size
            As in :meth:`get_fate_probabilities`. ``adata`` needs at least two times.

        Returns
        -------
        A row for each pair of fates that have an undecided ancestor: ``fate_1``, ``fate_2``, ``time_rise`` and ``time_fall`` (when the mean
        entropy first comes above, and last falls below, half of its peak, linear between the times of the cells; NaN where it is above half from the first time on, or at the
        last), ``time_peak``, ``peak_entropy`` (bits), ``n_cells`` (undecided ones at the peak: entropy above one half) and ``latent``
        (their mean, weighted by entropy).

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.
        InvalidInputError
            If the cells are all of one time, or as of :meth:`get_fate_probabilities`.

        Examples
        --------
        >>> branches = model.get_branch_points(n_samples=5)
        >>> branches[["fate_1", "fate_2"]]
          fate_1 fate_2
        0   down     up
        """
        adata = self._own_cells(adata)
        fates = self.get_fate_probabilities(labels_key, n_samples, adata, time, seed=seed, batch_size=batch_size)
        probability = fates["probability"]
        starts = self._starts(adata, None, batch_size)
        times = np.unique(starts.time)
        if len(times) < 2:
            raise InvalidInputError(
                f"`adata`: its cells are all of the time {times[0]:g}; at least two times are needed."
            )
        rows = []
        for a, b in combinations(probability.columns, 2):
            entropy = _choice_entropy(probability[a].to_numpy(), probability[b].to_numpy())
            curve = np.array([entropy[starts.time == t].mean() for t in times])
            peak = int(curve.argmax())
            undecided = (starts.time == times[peak]) & (entropy > 0.5)
            if not undecided.any():
                continue
            rise, fall = _crossings(times, curve)
            rows.append(
                {
                    "fate_1": a,
                    "fate_2": b,
                    "time_rise": rise,
                    "time_peak": float(times[peak]),
                    "time_fall": fall,
                    "peak_entropy": float(curve[peak]),
                    "n_cells": int(undecided.sum()),
                    "latent": np.average(starts.state[undecided, :-1], axis=0, weights=entropy[undecided]),
                }
            )
        columns = ["fate_1", "fate_2", "time_rise", "time_peak", "time_fall", "peak_entropy", "n_cells", "latent"]
        return pd.DataFrame(rows, columns=columns).sort_values("peak_entropy", ascending=False, ignore_index=True)

    def get_transition_matrix(
        self,
        adata: AnnData | None = None,
        n_samples: int = 20,
        n_neighbors: int = 5,
        seed: int | None = 0,
        batch_size: int = 2048,
    ) -> sparse.csr_matrix:
        """Markov chain among cells: from each cell to the cells of the next time nearest to where its samples arrive.

        Cells of the last time stay where they are. The chain has an edge for each cell and neighbour, never a dense matrix.

        Parameters
        ----------
        adata
            Cells of at least two times; ``None`` for the model's.
        n_samples
            Samples of each cell.
        n_neighbors
            Cells that a sample is shared among.
        seed, batch_size
            As in :meth:`predict_trajectory`.

        Returns
        -------
        CSR matrix, ``(n_cells, n_cells)``, whose rows sum to 1.

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.

        Examples
        --------
        >>> chain = model.get_transition_matrix(adata, n_samples=5)
        >>> chain.shape, chain.sum(axis=1).round(3).min(), chain.sum(axis=1).round(3).max()
        ((400, 400), np.float64(1.0), np.float64(1.0))
        """
        self._require("diffusion")
        n_samples, n_neighbors = positive_int("n_samples", n_samples), positive_int("n_neighbors", n_neighbors)
        seed = seed_or_random(seed)
        adata = self._own_cells(adata)
        starts = self._starts(adata, None, batch_size)
        times, how = np.unique(starts.time), self._sampling(None, None, 1.0)
        known, scaled = self._known(starts, None), self._standardised(starts.state[:, :-1])
        final = np.flatnonzero(starts.time == times[-1])
        edges = [(final, final, np.ones(len(final)))]
        for now, then in pairwise(times):
            goals = np.flatnonzero(starts.time == then)
            k = min(n_neighbors, len(goals))
            search = NearestNeighbors(n_neighbors=k).fit(scaled[goals])
            here = np.flatnonzero(starts.time == now)
            for rows in np.array_split(here, -(-len(here) // batch_size)):
                cells = starts.subset(rows)
                for sample in range(n_samples):
                    states, *_ = self._states(cells, np.array([then]), sample, seed, False, known[rows], how, False)
                    near = search.kneighbors(self._standardised(states[0][:, :-1]), return_distance=False)
                    edges.append((np.repeat(rows, k), goals[near.ravel()], np.full(near.size, 1 / (k * n_samples))))
        row, column, value = (np.concatenate(parts) for parts in zip(*edges, strict=True))
        return sparse.coo_matrix((value, (row, column)), shape=(adata.n_obs, adata.n_obs)).tocsr()

    def to_cellrank_kernel(self, adata: AnnData | None = None, **kwargs: Any) -> Any:
        """A CellRank kernel of :meth:`get_transition_matrix`; needs ``pip install cellrank``.

        Parameters
        ----------
        adata
            Cells; ``None`` for the model's.
        **kwargs
            Passed to :meth:`get_transition_matrix`.

        Returns
        -------
        A ``cellrank.kernels.PrecomputedKernel``.

        Raises
        ------
        ImportError
            If CellRank is not installed.
        NotTrainedError
            If the diffusion stage is not trained.

        Examples
        --------
        >>> kernel = model.to_cellrank_kernel(adata, n_samples=5)
        >>> kernel.transition_matrix.shape
        (400, 400)
        """
        try:
            from cellrank.kernels import PrecomputedKernel
        except ImportError as error:
            raise ImportError("A CellRank kernel needs CellRank: `pip install cellrank`.") from error
        adata = self._own_cells(adata)
        return PrecomputedKernel(self.get_transition_matrix(adata, **kwargs), adata=adata)


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over samples of ``(n_samples, n_cells, n_fates)`` and its standard error, that of a ratio where weights differ."""
    share = weights / weights.sum(0)
    mean = np.einsum("sc,scf->cf", share, values)
    n = len(values)
    variance = np.einsum("sc,scf->cf", share**2, (values - mean) ** 2) * n / max(n - 1, 1)
    return mean, np.sqrt(variance)


def _choice_entropy(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Entropy in bits of the choice between two fates, times the probability of either."""
    either = a + b
    p = np.clip(np.divide(a, either, out=np.zeros_like(a), where=either > 0), 1e-12, 1 - 1e-12)
    return either * -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def _crossings(times: np.ndarray, curve: np.ndarray) -> tuple[float, float]:
    """When a curve first rises above half of its peak and when it last falls below."""
    half = 0.5 * curve.max()
    above = np.flatnonzero(curve >= half)
    rise = fall = float("nan")
    if (i := above[0]) > 0:
        rise = float(np.interp(half, curve[[i - 1, i]], times[[i - 1, i]]))
    if (j := above[-1]) < len(times) - 1:
        fall = float(np.interp(half, curve[[j + 1, j]], times[[j + 1, j]]))
    return rise, fall
