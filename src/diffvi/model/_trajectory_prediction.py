"""Cells at other times: trajectories of given cells, and populations at times that were not measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data._utils import _get_adata_minify_type
from scvi.utils import track
from sklearn.neighbors import NearestNeighbors

from diffvi._exceptions import InvalidInputError, one_of, positive_int, seed_or_random
from diffvi._random import CellStreams, keyed_seed
from diffvi.data import sample_counts, transport_counts

from ._trajectory_moves import Sampling, Starts, TrajectoryMovesMixin

DECODERS = ("transport", "resample")


class TrajectoryPredictionMixin(TrajectoryMovesMixin):
    """Prediction of cells at other times."""

    _decode: Any
    _decoder_attributes: list[str]
    _override: Any
    _require: Any
    _provenance: Any
    get_var_names: Any
    get_anndata_manager: Any

    def predict_trajectory(
        self,
        adata: AnnData | None = None,
        time_points: float | Sequence[float] | np.ndarray | None = None,
        n_samples: int = 1,
        autoregressive: bool = True,
        conditions: Mapping[str, Any] | None = None,
        backward: bool = False,
        start_time: float | Sequence[float] | None = None,
        decode: Literal["transport", "resample"] = "transport",
        guidance_scale: float | Mapping[str, float] = 1.0,
        n_steps: int | None = None,
        sampler: str | None = None,
        seed: int | None = None,
        batch_size: int = 2048,
        show_progress: bool = False,
    ) -> AnnData:
        """Predict what becomes of cells, or what they came from.

        Parameters
        ----------
        adata
            Cells to start from, with raw counts of the model's genes and their time in ``obs``; ``None`` for the model's.
        time_points
            Times to predict, in the units of ``time_key``; ``None`` for the measured times after that of
            all cells.
        n_samples
            Draws of every cell's trajectory.
        autoregressive
            Go on from each time point to the next, which gives paths; otherwise jump to each from the start.
        conditions
            Attributes of the arrivals, such as ``{"cell_type": "ASG"}``. The ``condition_keys`` of a cell stay as they are.
        backward
            Allow times before a cell's own: its ancestors.
        start_time
            When the cells start, one number or one for each; ``None`` for their ``time_key``.
        decode
            ``"transport"``: move the cell's own counts by the ratio of the decoded rates
            (:func:`~diffvi.data.transport_counts`), which keeps what the latent does not hold. ``"resample"``: draw new counts.
        guidance_scale, n_steps, sampler
            As in :meth:`generate`, but for the default of 4 steps of Heun (8 on curved paths) in each move.
        seed
            With the same seed a cell's result is the same, whichever other cells are given.
        batch_size
            Cells at a time; bounds the memory.
        show_progress
            Show a progress bar.

        Returns
        -------
        AnnData with a row for each start cell, sample and time, in this order: ``X`` (``int32`` counts, CSR),
        ``layers["normalized"]`` (decoded expression; sums to 1), ``obsm["X_latent"]`` and ``obs`` with ``start_cell``, ``sample``, the
        time (under its own name), ``weight`` (expected descendants for one cell at the start, up to a factor for each time; 1 for ancestors)
        and, in models with labels, the label of the nearest training cells.

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.
        InvalidInputError
            For times before a cell's own without ``backward``, cells without a time, or an argument that is not allowed.

        Examples
        --------
        >>> early = adata[adata.obs["time"] == 0].copy()
        >>> future = model.predict_trajectory(early, [3.0, 4.0], n_samples=2, seed=0)
        >>> early.n_obs, future.n_obs  # a row for each cell, sample and time
        (80, 320)
        """
        self._require("diffusion")
        one_of("decode", decode, DECODERS)
        n_samples, batch_size = positive_int("n_samples", n_samples), positive_int("batch_size", batch_size)
        how, seed = self._sampling(sampler, n_steps, guidance_scale), seed_or_random(seed)
        adata = self._own_cells(adata)
        if decode == "transport" and _get_adata_minify_type(adata) is not None:
            raise InvalidInputError('`adata` is minified and holds no counts to move; `decode="resample"` needs none.')
        starts = self._starts(adata, start_time, batch_size)
        if time_points is None:
            time_points = [t for t in self.times_ if t > starts.time.max()]
            if not time_points:
                raise InvalidInputError(
                    f"`time_points`: no time was measured after {starts.time.max():g}, when the last of the cells start; "
                    "say which times to predict, or give cells of an earlier time."
                )
        points = self._check_points(time_points)
        if not backward and (early := points[points < starts.time.max()]).size:
            raise InvalidInputError(
                f"`time_points`: {early[0]:g} is before the time of cells that start at {starts.time.max():g}; "
                "pass `backward=True` to predict ancestors."
            )
        self._warn_beyond(points)
        known = self._known(starts, conditions)
        manager = self.get_anndata_manager(adata, required=True)
        own = manager.get_from_registry(REGISTRY_KEYS.X_KEY) if decode == "transport" else None

        whole = self._moved(starts, points, known, how, n_samples, autoregressive, seed, own, batch_size, show_progress)
        shape = (adata.n_obs, n_samples, len(points))
        cell, sample_of, point = np.unravel_index(np.arange(np.prod(shape)), shape)
        obs = pd.DataFrame(
            {
                "start_cell": adata.obs_names.to_numpy()[cell],
                "sample": sample_of,
                self.time_key: points[point],
                "weight": whole["weight"],
            },
            index=pd.RangeIndex(len(cell)).astype(str),
        )
        return self._result(whole, obs, known[cell], how, seed=seed, autoregressive=autoregressive, decode=decode)

    def interpolate(
        self,
        time: float,
        n_obs: int,
        conditions: Mapping[str, Any] | None = None,
        guidance_scale: float | Mapping[str, float] = 1.0,
        n_steps: int | None = None,
        sampler: str | None = None,
        seed: int | None = None,
        batch_size: int = 2048,
        show_progress: bool = False,
    ) -> AnnData:
        """The population at a time, measured or not.

        Cells come from the measured times before and after, each with the probability of how near it is: training
        cells of the time before, drawn in proportion to their growth, move forward, and those of the time after move back.

        Parameters
        ----------
        time
            The time.
        n_obs
            Number of cells.
        conditions
            Attributes of the cells. ``condition_keys`` are those of the training cells that are started from; a label guides the moves, which
            start from cells that have it where there are any.
        guidance_scale, n_steps, sampler, seed, batch_size, show_progress
            As in :meth:`predict_trajectory`.

        Returns
        -------
        AnnData as of :meth:`generate`, with the time in ``obs`` and, in models with labels, the label of the nearest training cells.

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.
        InvalidInputError
            If no training cell has the conditions asked for, or for an argument that is not allowed.

        Examples
        --------
        >>> cells = model.interpolate(2.0, 50, seed=0)  # between the measured times 1.5 and 2.5
        >>> cells.shape, cells.obs["time"].unique().tolist()
        ((50, 40), [2.0])
        """
        self._require("diffusion")
        n_obs, batch_size = positive_int("n_obs", n_obs), positive_int("batch_size", batch_size)
        how, seed = self._sampling(sampler, n_steps, guidance_scale), seed_or_random(seed)
        points = self._check_points(time)
        if len(points) != 1:
            raise InvalidInputError(f"`time` must be one number; got {time!r}.")
        self._warn_beyond(points)
        picked, names = self._pick_starts(float(points[0]), n_obs, conditions, seed)
        starts = self._remembered_starts(picked)
        starts.names = names
        known = self._known(starts, conditions)
        whole = self._moved(starts, points, known, how, 1, False, seed, None, batch_size, show_progress, weigh=False)
        obs = pd.DataFrame({self.time_key: float(points[0])}, index=pd.RangeIndex(n_obs).astype(str))
        return self._result(whole, obs, known, how, seed=seed)

    def _pick_starts(
        self, time: float, n_obs: int, conditions: Mapping[str, Any] | None, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Remembered training cells to start from, and numbers for the streams of the result."""
        asked = self.vocabulary.encode(conditions, n_obs)
        names = np.arange(n_obs, dtype=np.uint64)
        numbers = np.stack([s.random(2) for s in CellStreams(keyed_seed(seed, "which"), names)])
        picked = np.empty(n_obs, dtype=int)
        # Only categories choose among cells: no two share a measured number.
        groups = np.nan_to_num(asked[:, self.vocabulary.categorical], nan=-1).astype(int)
        guided = ~np.isnan(np.delete(asked, self._carried, axis=1)).all(1)
        for row in np.unique(np.c_[groups, guided], axis=0):
            mine = (np.c_[groups, guided] == row).all(1)
            wanted = dict(zip(self.vocabulary.categorical, row[:-1], strict=True))
            picked[mine] = self._pick_alike(
                time, {j: c for j, c in wanted.items() if c >= 0}, bool(row[-1]), numbers[mine]
            )
        return picked, names

    def _pick_alike(self, time: float, wanted: dict[int, int], guided: bool, numbers: np.ndarray) -> np.ndarray:
        """Remembered training cells for arrivals of the same categories ``wanted``, by two numbers in [0, 1) for each."""
        assert self.cells_ is not None
        codes, measured = self.cells_["codes"], np.array(self.times_)
        # What guides moves needs some: cells of that very time would stay as they are.
        past = measured[measured < time] if guided else measured[measured <= time]
        future = measured[measured > time]
        sides = (past[-1] if len(past) else future[0], future[0] if len(future) else past[-1])
        gap = sides[1] - sides[0]
        part = (time - sides[0]) / gap if gap > 0 else 0.0
        kept = {j: category for j, category in wanted.items() if j in self._carried}
        drawn = []
        for side in sides:
            pool = np.flatnonzero((self.cells_["time"] == side) & (codes[:, list(kept)] == list(kept.values())).all(1))
            if not len(pool):
                raise InvalidInputError(f"`conditions`: no training cell of time {side:g} has {self._named(kept)}.")
            for j in wanted.keys() - kept.keys():
                # Those that are what is asked for already, if there are any: the rest may have gone another way for good.
                if len(fit := pool[codes[pool, j] == wanted[j]]):
                    pool = fit
            weights = np.exp(self._growth_rates(self.cells_["state"][pool], side) * np.clip(time - side, 0.0, gap))
            ends = np.cumsum(weights) / weights.sum()
            drawn.append(pool[np.minimum(np.searchsorted(ends, numbers[:, 1]), len(pool) - 1)])
        return np.where(numbers[:, 0] < part, drawn[1], drawn[0])

    def _named(self, wanted: dict[int, int]) -> dict[str, Any]:
        """Categories by their names."""
        columns = {where.start: name for name, where in self.vocabulary.columns.items()}
        return {columns[j]: self.vocabulary.entries[columns[j]]["categories"][c] for j, c in wanted.items()}

    def _moved(
        self,
        starts: Starts,
        points: np.ndarray,
        known: np.ndarray,
        how: Sampling,
        n_samples: int,
        autoregressive: bool,
        seed: int,
        own: Any,
        batch_size: int,
        show_progress: bool,
        weigh: bool = True,
    ) -> dict[str, Any]:
        """Counts, decoded expression, latents and weights, a row for each cell, sample and time in this order."""
        parts: dict[str, list[Any]] = {name: [] for name in ("counts", "normalized", "latent", "weight", "order")}
        batches = [(s, b) for b in range(0, len(known), batch_size) for s in range(n_samples)]
        for sample, first in track(batches, description="Predicting", style="tqdm", disable=not show_progress):
            rows = np.arange(first, min(first + batch_size, len(known)))
            here = starts.subset(rows)
            states, log_weights = self._states(here, points, sample, seed, autoregressive, known[rows], how, weigh)
            counts = None if own is None else sparse.csr_matrix(own[rows])
            for k, state in enumerate(states):
                streams = CellStreams(keyed_seed(seed, sample, float(points[k]), "counts"), here.names)
                drawn = self._decoded(state, here, known[rows], streams, counts)
                drawn["weight"] = np.exp(log_weights[:, k])
                drawn["order"] = (rows * n_samples + sample) * len(points) + k
                for name, value in drawn.items():
                    parts[name].append(value)
        order = np.argsort(np.concatenate(parts.pop("order")))
        stacked = sparse.vstack(parts.pop("counts"), format="csr")[order]
        return {"counts": stacked, **{name: np.concatenate(values)[order] for name, values in parts.items()}}

    @torch.inference_mode()
    def _decoded(
        self,
        state: np.ndarray,
        here: Starts,
        known: np.ndarray,
        streams: CellStreams,
        own: sparse.csr_matrix | None,
    ) -> dict[str, Any]:
        """Counts of states: drawn anew, or the cells' own counts moved."""
        device = self.module.prior.shift.device
        table = here.table.subset(np.arange(len(state)))
        for name in self._decoder_attributes:
            self._override(table, name, known[:, self.vocabulary.columns[name].start])
        after = self._decode(torch.as_tensor(state, dtype=torch.float32, device=device), table)
        if own is None:
            counts = sample_counts(after, streams)
        else:
            before = self._decode(torch.as_tensor(here.state, dtype=torch.float32, device=device), here.table)
            counts = transport_counts(own, before, after, streams)[0]
        return {"counts": counts, "normalized": after.scale.cpu().numpy(), "latent": state[:, :-1].astype(np.float32)}

    def _result(
        self, arrays: dict[str, Any], obs: pd.DataFrame, codes: np.ndarray, how: Sampling, **settings: Any
    ) -> AnnData:
        """The object that is returned; cells keep their conditions and get the label of the cells around them."""
        setup = self.registry_["setup_args"]
        decoded = self.vocabulary.decode(codes, obs.index)
        for key in setup.get("condition_keys") or ():
            if key in decoded and key not in obs:
                obs[key] = decoded[key]
        if (key := setup.get("labels_key")) is not None:
            shares = self._label_shares(key)(arrays["latent"])
            names = shares.columns.to_numpy()
            obs[key] = pd.Categorical(names[shares.to_numpy().argmax(1)], categories=list(names))
        result = AnnData(
            X=arrays["counts"],
            obs=obs,
            var=pd.DataFrame(index=pd.Index(self.get_var_names())),
            layers={"normalized": arrays["normalized"]},
            obsm={"X_latent": arrays["latent"]},
        )
        scales = dict(zip(self.vocabulary.names, how.scales, strict=True))
        result.uns["diffvi"] = self._provenance(
            sampler=how.sampler, n_steps=how.n_steps, guidance_scale=scales, **settings
        )
        return result

    def _label_shares(self, key: str, rows: np.ndarray | None = None) -> Callable[[np.ndarray], pd.DataFrame]:
        """A function from latents to the shares of labels among the nearest labelled training cells, cells by labels."""
        assert self.cells_ is not None
        _, labels = self._labels(key)
        rows = np.arange(len(labels)) if rows is None else rows
        known = rows[labels[rows] != ""]
        if not len(known):
            raise InvalidInputError(f"`labels_key`: no training cell of the times asked for has a {key!r}.")
        points = self._standardised(self.cells_["state"][known, :-1])
        search = NearestNeighbors(n_neighbors=min(self.n_neighbors, len(known))).fit(points)
        found, names = labels[known], sorted(set(labels[known]))

        def shares(latent: np.ndarray) -> pd.DataFrame:
            near = found[search.kneighbors(self._standardised(latent), return_distance=False)]
            return pd.DataFrame({name: (near == name).mean(1) for name in names})

        return shares
