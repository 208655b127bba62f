"""Moving cells through time: one step of the learned process, the clock beyond the measured times, and growth on the way."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from anndata import AnnData

from diffvi._exceptions import InvalidInputError
from diffvi._random import CellStreams, cell_number, keyed_seed
from diffvi.data import TrainingTable

from ._generation import DEFAULT_STEPS
from ._notes import without_notes
from ._trajectory_training import TrajectoryTrainingMixin

USUAL_STEPS = {**DEFAULT_STEPS, "heun": 4}
N_QUADRATURE = 3
"""Points on a move at which growth is evaluated."""


@dataclass
class Sampling:
    """How a move is drawn."""

    sampler: str
    n_steps: int
    scales: list[float]


@dataclass
class Starts:
    """Cells to start from: states in the units of the data, with their times, codes and what the decoder needs."""

    state: np.ndarray
    spread: np.ndarray
    time: np.ndarray
    codes: np.ndarray
    table: TrainingTable
    names: np.ndarray

    def subset(self, rows: np.ndarray) -> Starts:
        """The given rows."""
        values = {k: v[rows] for k, v in vars(self).items() if k != "table"}
        return Starts(**values, table=self.table.subset(rows))


class TrajectoryMovesMixin(TrajectoryTrainingMixin):
    """Draws where cells go."""

    _latent_data: Any
    _own_cells: Any
    _sampled: Any
    _sampler: Any

    # ---------------------------------------------------------------- arguments

    def _starts(self, adata: AnnData, start_time: Any = None, batch_size: int = 2048) -> Starts:
        """The cells of ``adata``, each with the time it starts at."""
        with without_notes():
            latents, table = self._latent_data(adata, batch_size=batch_size)
        if start_time is None:
            if self.time_key not in adata.obs:
                raise InvalidInputError(
                    f"`adata`: adata.obs has no {self.time_key!r}; say when the cells start with `start_time`."
                )
            time = adata.obs[self.time_key].to_numpy(float)
        else:
            time = np.broadcast_to(np.asarray(start_time, float), (adata.n_obs,)).copy()
        if n := int((~np.isfinite(time)).sum()):
            raise InvalidInputError(f"`adata`: {n} of {adata.n_obs} cells have no finite time to start at.")
        names = np.array([cell_number(name) for name in adata.obs_names], dtype=np.uint64)
        return Starts(latents.mean, latents.scale, self._snapped(time), latents.codes, table, names)

    def _snapped(self, times: np.ndarray) -> np.ndarray:
        """Times, those that are measured ones but for the digits that codes hold set to them."""
        measured = np.array(self.times_)
        near = measured[np.abs(times[:, None] - measured).argmin(1)]
        return np.where(np.abs(times - near) < 1e-4 * self.vocabulary.entries[self.time_key]["sd"], near, times)

    def _known(self, starts: Starts, conditions: Mapping[str, Any] | None) -> np.ndarray:
        """Codes of the arrivals: the conditions that cells keep, and those that are asked for."""
        if conditions and self.time_key in conditions:
            raise InvalidInputError(
                f"`conditions`: the time, {self.time_key!r}, is given by the method's own argument, not as a condition."
            )
        known = np.full_like(starts.codes, np.nan)
        known[:, self._carried] = starts.codes[:, self._carried]
        asked = self.vocabulary.encode(conditions, len(known))
        return np.where(np.isnan(asked), known, asked)

    def _check_points(self, time_points: Any) -> np.ndarray:
        """Requested times, ascending."""
        try:
            points = np.unique(np.atleast_1d(np.asarray(time_points, dtype=float)))
        except (TypeError, ValueError):
            points = np.array([np.nan])
        if points.size == 0 or not np.isfinite(points).all():
            raise InvalidInputError(f"`time_points` must be finite numbers; got {time_points!r}.")
        return self._snapped(points)

    def _warn_beyond(self, times: np.ndarray) -> None:
        first, last = self.times_[0], self.times_[-1]
        beyond = times[(times < first) | (times > last)]
        if len(beyond):
            warnings.warn(
                f"{beyond[-1] if beyond[-1] > last else beyond[0]:g} is beyond the measured times ({first:g} to {last:g}): "
                "this is an extrapolation, in which cells move ever less and spread ever more.",
                UserWarning,
                stacklevel=3,
            )

    def _sampling(self, sampler: str | None, n_steps: int | None, guidance_scale: Any) -> Sampling:
        name, steps = self._sampler(sampler, n_steps, USUAL_STEPS)
        return Sampling(name, steps, self.vocabulary.scales(guidance_scale))

    # ---------------------------------------------------------------- moves

    def _move(
        self,
        state: np.ndarray,
        begin: np.ndarray,
        end: np.ndarray,
        known: np.ndarray,
        streams: CellStreams,
        how: Sampling,
    ) -> np.ndarray:
        """States at the times ``end`` of cells that are at ``state`` at the times ``begin``.

        Beyond the measured times the clock slows down, so that a cell moves for at most one more gap between measured times in all,
        and the Brownian motion of the process goes on instead.
        """
        first, last = self.times_[0], self.times_[-1]
        inside = np.clip(end, first, last)
        # To the end of the measured times first: the rest is moved by what was learned there.
        state = self._jump(state, np.clip(begin, first, last), inside, known, streams, how)
        for edge, sign, gap, spread in (
            (last, 1, self.times_[-1] - self.times_[-2], self.gaps_["spread_last"]),
            (first, -1, self.times_[1] - self.times_[0], self.gaps_["spread_first"]),
        ):
            out = np.maximum(sign * (begin - edge), 0.0), np.maximum(sign * (end - edge), 0.0)
            beyond = out[1] > out[0]
            if beyond.any():
                slow = gap * (np.exp(-out[0] / gap) - np.exp(-out[1] / gap))
                slow = np.where(beyond, slow, 0.0)
                state = self._jump(state, edge - sign * slow, np.full(len(state), edge), known, streams, how)
                lost = np.where(beyond, out[1] - out[0] - slow, 0.0)
                noise = np.sqrt(spread / gap * lost)[:, None] * streams.normal(state.shape[1]).numpy()
                noise[:, -1] = 0.0
                state = state + noise * self.module.prior.scale.cpu().numpy()
        return state

    @torch.inference_mode()
    def _jump(
        self,
        state: np.ndarray,
        begin: np.ndarray,
        end: np.ndarray,
        known: np.ndarray,
        streams: CellStreams,
        how: Sampling,
    ) -> np.ndarray:
        """One move between measured times, drawn from the prior; cells whose time does not change stay."""
        noise = streams.normal(self.module.prior.d)
        if not (begin != end).any():
            return state
        codes = self._move_codes(state, begin, end, known)
        moved = self._sampled(codes, streams, how.sampler, how.n_steps, how.scales, start=noise)
        return np.where((begin != end)[:, None], moved.cpu().numpy(), state)

    def _log_growth(self, a: np.ndarray, begin: np.ndarray, b: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Log of the mass that cells gain as they move forward: the growth field along the straight line. 0 backward."""
        total = np.zeros(len(a))
        for part in (np.arange(N_QUADRATURE) + 0.5) / N_QUADRATURE:
            total += self._growth_rates(a + part * (b - a), begin + part * (end - begin)) / N_QUADRATURE
        return total * np.maximum(end - begin, 0.0)

    def _states(
        self,
        starts: Starts,
        points: np.ndarray,
        sample: int,
        seed: int,
        autoregressive: bool,
        known: np.ndarray,
        how: Sampling,
        weigh: bool = True,
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """One sample of every cell's state at each of the times, and the log weights, ``(n_cells, n_times)``.

        Times after a cell's own are visited in order, times before it in reverse order. Every move has streams of its own, so that
        it does not matter which other cells move then. Without ``weigh`` growth is left out, and the log weights are 0.
        """
        names = starts.names
        noise = CellStreams(keyed_seed(seed, sample, "start"), names).normal(starts.state.shape[1]).numpy()
        origin = starts.state + starts.spread * noise
        states = [origin] * len(points)
        log_weights = np.zeros((len(origin), len(points)))
        for ahead in (True, False):
            at, when, weight = origin, starts.time.copy(), np.zeros(len(origin))
            order = range(len(points)) if ahead else range(len(points) - 1, -1, -1)
            for k in order:
                due = points[k] >= starts.time if ahead else points[k] < starts.time
                goal = np.where(due, points[k], when)
                if not due.any():
                    continue
                streams = CellStreams(keyed_seed(seed, sample, float(points[k])), names)
                moved = self._move(at, when, goal, known, streams, how)
                gained = weight + self._log_growth(at, when, moved, goal) if weigh else weight
                states[k] = np.where(due[:, None], moved, states[k])
                log_weights[:, k] = np.where(due, gained, log_weights[:, k])
                if autoregressive:
                    at, when, weight = moved, goal, gained
        return states, log_weights

    # ---------------------------------------------------------------- what the cells at hand are

    def _remembered_starts(self, rows: np.ndarray | None = None) -> Starts:
        """Training cells, as the model remembers them."""
        held = dict(self.cells_ or {})
        state, spread, time = held.pop("state"), held.pop("spread"), held.pop("time")
        table = TrainingTable(**held)
        starts = Starts(state, spread, time, table.codes, table, np.arange(len(state), dtype=np.uint64))
        return starts if rows is None else starts.subset(rows)

    def _labels(self, labels_key: str | None) -> tuple[str, np.ndarray]:
        """Name and values of a label of the remembered training cells, missing ones as empty strings."""
        key = labels_key or self.registry_["setup_args"].get("labels_key")
        if key is None:
            raise InvalidInputError(
                "`labels_key`: the model has no labels; name a condition, or give `setup_anndata(labels_key=)`."
            )
        entry = self.vocabulary.entries.get(key, {})
        if "categories" not in entry:
            known: Sequence[str] = [n for n, e in self.vocabulary.entries.items() if "categories" in e]
            raise InvalidInputError(f"`labels_key` must be one of the model's categories, {known}; got {key!r}.")
        assert self.cells_ is not None
        codes = self.cells_["codes"][:, self.vocabulary.columns[key].start]
        names = np.array([*map(str, entry["categories"]), ""], dtype=object)
        return key, names[np.where(np.isnan(codes), -1, np.nan_to_num(codes)).astype(int)]
