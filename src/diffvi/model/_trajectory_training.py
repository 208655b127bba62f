"""Stage 2 of the trajectory model: couplings, growth, and the moves that the network is trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.neighbors import NearestNeighbors

from diffvi._exceptions import InvalidInputError
from diffvi.data import LatentData, TrainingTable
from diffvi.data._fields import check_obs_columns
from diffvi.module import KernelPath
from diffvi.process import Coupling, PathSampler, couple

FROM_TIME, ELAPSED = "from_time", "elapsed_time"
"""Names of the attributes that say when a cell starts and for how long it moves, both standardised."""

MIN_MOVES, MAX_MOVES = 20_000, 200_000
GENERATION_SHARE = 0.25
"""Cells as they are, over moves, among the examples."""
MAX_FITTED = 10_000
"""Cells that growth is fitted on, at most."""


class TrajectoryTrainingMixin:
    """Turns latents of cells of several times into paths, and paths into training examples."""

    module: Any
    adata: Any
    vocabulary: Any
    registry_: dict[str, Any]
    replay_: dict[str, Any] | None
    times_: list[float]
    gaps_: dict[str, float]
    cells_: dict[str, Any] | None
    growth_: dict[str, Any] | None
    coupling: str
    entropy: float
    source_penalty: float
    target_penalty: float
    n_growth_updates: int
    n_growth_neighbors: int
    max_block: int
    _standardised: Any
    _restored: Any
    manifold_pull: float
    n_neighbors: int

    @property
    def time_key(self) -> str:
        """Name of the time among the conditions."""
        return str(self.registry_["setup_args"]["time_key"])

    def _time_code(self, time: Any) -> np.ndarray:
        """Times in the units of the network."""
        entry = self.vocabulary.entries[self.time_key]
        return (np.asarray(time, float) - entry["mean"]) / entry["sd"]

    def _times_of(self, codes: np.ndarray) -> np.ndarray:
        """Times of cells, NaN where not given."""
        return self.vocabulary.numbers(self.time_key, codes)

    @property
    def _carried(self) -> list[int]:
        """Columns of the codes that a cell keeps as it moves: the conditions beside label, batch and time."""
        keys = self.registry_["setup_args"].get("condition_keys") or ()
        return [self.vocabulary.columns[k].start for k in keys if k != self.time_key]

    def _training_rows(
        self, latents: LatentData, table: TrainingTable, split: list[np.ndarray]
    ) -> tuple[LatentData, list[np.ndarray]]:
        """Every cell as it is, and moves along paths through the training cells."""
        rng = np.random.default_rng(0)
        state, times, training = self._standardised(latents.mean), self._times_of(latents.codes), split[0]
        measured = np.unique(times[training])
        if len(measured) < 2:
            raise InvalidInputError(
                f"`time_key`: the training cells are all of the time {measured[0]:g}; at least two times are needed."
            )
        rows = [training[times[training] == t] for t in measured]
        rates = self._given_rates(len(state))
        carried = [j for j in self._carried if j in self.vocabulary.categorical]
        groups = np.nan_to_num(latents.codes[:, carried], nan=-1).astype(int)
        couplings = []
        for k, gap in enumerate(np.diff(measured)):
            expected = None if rates is None else np.exp((rates[rows[k]] - rates[rows[k]].max()) * gap)
            couplings.append(self._couple(state[:, :-1], rows[k], rows[k + 1], groups, expected, k))
        self.times_ = measured.tolist()
        self.gaps_ = {"spread_first": couplings[0].spread, "spread_last": couplings[-1].spread}
        self._fit_growth(state, measured, rows, couplings, rates)
        kept = np.sort(rng.permutation(training)[: TrainingTable.MAX_CELLS])
        self.cells_ = {
            "state": latents.mean[kept],
            "spread": latents.scale[kept],
            "time": times[kept],
            **vars(table.subset(kept)),
        }

        scale = self.module.prior.scale.cpu().numpy()

        def draw(which: np.ndarray) -> np.ndarray:
            return state[which] + latents.scale[which] / scale * rng.normal(size=(len(which), state.shape[1]))

        sampler = PathSampler(measured, rows, couplings, draw, self._manifold(state[training]))
        n = int(np.clip(4 * len(training), MIN_MOVES, MAX_MOVES))
        moved = [sampler.moves(n // 2, backward, rng) for backward in (False, True)]
        start, begin, arrival, end, source, target = (np.concatenate(v) for v in zip(*moved, strict=True))
        known = np.full((len(start), latents.codes.shape[1]), np.nan, dtype=np.float32)
        known[:, self._carried] = latents.codes[source][:, self._carried]
        label = self.registry_["setup_args"].get("labels_key")
        if label is not None:
            column = self.vocabulary.columns[label].start
            known[:, column] = latents.codes[target, column]
        codes = self._move_codes(self._restored(start), begin, end, known)

        repeats = max(1, round(GENERATION_SHARE * len(start) / max(len(training), 1)))
        as_is = np.concatenate([np.tile(training, repeats), *split[1:]])
        more = codes.shape[1] - latents.codes.shape[1]
        examples = LatentData(
            np.concatenate([self._restored(arrival), latents.mean[as_is]]),
            np.concatenate([np.zeros_like(arrival), latents.scale[as_is]]),
            np.concatenate([codes, np.pad(latents.codes[as_is], ((0, 0), (0, more)), constant_values=np.nan)]),
        )
        ends = np.cumsum([len(start) + repeats * len(training), *map(len, split[1:])])
        return examples, np.split(np.arange(ends[-1]), ends[:-1])

    def _given_rates(self, n: int) -> np.ndarray | None:
        """Growth rates of the cells from ``growth_key``; cells of a reference, which have none, get the mean."""
        key = self.registry_["setup_args"].get("growth_key")
        if key is None:
            return None
        check_obs_columns(self.adata, growth_key=key)
        rates = self.adata.obs[key].to_numpy(float)
        return np.concatenate([rates, np.full(n - len(rates), rates.mean())])

    def _couple(
        self,
        x: np.ndarray,
        earlier: np.ndarray,
        later: np.ndarray,
        groups: np.ndarray,
        growth: np.ndarray | None,
        seed: int,
    ) -> Coupling:
        """Couple the cells of two times, within the combinations of carried conditions that both times have."""
        settings: dict[str, Any] = {
            "entropy": self.entropy,
            "source_penalty": self.source_penalty,
            "target_penalty": self.target_penalty,
            "n_growth_updates": self.n_growth_updates if self.coupling == "unbalanced" else 0,
            "n_growth_neighbors": self.n_growth_neighbors,
            "max_block": self.max_block,
            "seed": seed,
        }
        both = [g for g in np.unique(groups[earlier], axis=0) if (groups[later] == g).all(1).any()]
        pieces = [((groups[earlier] == g).all(1), (groups[later] == g).all(1)) for g in both]
        left = [
            ~np.any([p[i] for p in pieces], axis=0) if pieces else np.ones(len(r), bool)
            for i, r in enumerate((earlier, later))
        ]
        if left[0].any() or left[1].any():
            # A combination that only one of the times has may come from, or go, anywhere.
            pieces = [(np.ones(len(earlier), bool), np.ones(len(later), bool))]
        parts = []
        for a, b in pieces:
            given = None if growth is None else growth[a]
            parts.append((np.flatnonzero(a), np.flatnonzero(b), couple(x[earlier[a]], x[later[b]], given, **settings)))
        if len(parts) == 1:
            return parts[0][2]
        n_draws = parts[0][2].successors.shape[1]
        successors = np.empty((len(earlier), n_draws), dtype=np.int64)
        predecessors, factors = np.empty((len(later), n_draws), dtype=np.int64), np.empty(len(earlier))
        for a, b, part in parts:
            successors[a], predecessors[b], factors[a] = b[part.successors], a[part.predecessors], part.growth
        return Coupling(successors, predecessors, factors, float(np.mean([part.spread for *_, part in parts])))

    def _manifold(self, cells: np.ndarray) -> Any:
        """Moves states between two times towards the mean of the cells around them, across the path alone.

        Along it cells are crowded at the measured times, and would hold back what passes between.
        """
        search = NearestNeighbors(n_neighbors=min(self.n_neighbors, len(cells))).fit(cells[:, :-1])

        def project(states: np.ndarray, weight: np.ndarray, direction: np.ndarray) -> np.ndarray:
            between = np.flatnonzero(weight > 0)
            if self.manifold_pull == 0 or len(between) == 0:
                return states
            near = search.kneighbors(states[between, :-1], return_distance=False)
            pull = cells[near, :-1].mean(1) - states[between, :-1]
            along = direction[between, :-1]
            share = (pull * along).sum(1) / np.maximum((along**2).sum(1), 1e-12)
            out = states.copy()
            out[between, :-1] += (self.manifold_pull * weight[between])[:, None] * (pull - share[:, None] * along)
            return out

        return project

    def _move_codes(self, start: np.ndarray, begin: Any, end: Any, known: np.ndarray) -> np.ndarray:
        """Codes of cells that move from ``start`` at time ``begin`` to time ``end``, with what is known of the arrival."""
        codes = np.full((len(start), self.module.prior.origin.stop), np.nan, dtype=np.float32)
        codes[:, : known.shape[1]] = known
        if (batch := self.registry_["setup_args"].get("batch_key")) is not None:
            # The decoder's business: cells move alike whichever batch they were measured in.
            codes[:, self.vocabulary.columns[batch].start] = np.nan
        begin, end = self._time_code(begin), self._time_code(end)
        codes[:, self.vocabulary.columns[self.time_key].start] = end
        codes[:, known.shape[1]], codes[:, known.shape[1] + 1] = begin, end - begin
        codes[:, self.module.prior.origin] = start
        return codes

    # ---------------------------------------------------------------- growth

    def _growth_features(self, state: np.ndarray, time: Any) -> np.ndarray:
        """Features of the growth field from standardised states; after the last plan it stays as it was."""
        time = np.clip(np.asarray(time, float), self.times_[0], self.times_[-2])
        z = state[:, :-1] / np.sqrt(max(state.shape[1] - 1, 1))
        return np.c_[z, np.broadcast_to(self._time_code(time), len(z))]

    def _fit_growth(
        self,
        state: np.ndarray,
        times: np.ndarray,
        rows: list[np.ndarray],
        couplings: list[Coupling],
        rates: np.ndarray | None,
    ) -> None:
        """Fit a field of growth rates to the plans' row sums, or to the rates that were given."""
        which = np.concatenate(rows[:-1])
        found = np.concatenate([np.log(c.growth) / gap for c, gap in zip(couplings, np.diff(times), strict=True)])
        targets = found if rates is None else rates[which]
        when = np.repeat(times[:-1], [len(r) for r in rows[:-1]])
        kept = np.random.default_rng(0).permutation(len(which))[:MAX_FITTED]
        path, _ = KernelPath.fit(self._growth_features(state[which[kept]], when[kept]), targets[kept, None])
        self.growth_ = dict(vars(path))

    def _growth_rates(self, state: np.ndarray, time: Any) -> np.ndarray:
        """Growth rates per unit of time of states in the units of the data."""
        assert self.growth_ is not None
        return KernelPath(**self.growth_)(self._growth_features(self._standardised(state), time))[:, 0]
