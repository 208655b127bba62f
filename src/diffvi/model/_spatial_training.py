"""Stage 2 of the spatial model: kriging, hidden regions, and the examples that the network is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.decomposition import PCA

from diffvi.data import LatentData, TrainingTable
from diffvi.module import BaggedTrees, Frames, LocalKriging, Surroundings, repeatable_share

from ._spatial_context import N_CORRECTED, Observed, SpatialContextMixin
from ._spatial_setup import check_counts, coordinates_of

N_COMPONENTS = 200
"""Principal components of the measured expression that are kriged."""
N_FREE = 12
"""The first of them, which have a covariance of their own; the others, each mostly noise, share one."""
MAX_FITTED = 10_000
"""Cells that the components are fitted on, at most."""
MAX_SPLIT = 4000
"""Cells whose counts are split to tell noise from what would be measured again, at most."""
HIDDEN = 0.2
"""Share of the locations of a section that a mask hides."""
EXAMPLES = (20_000, 200_000)
"""Examples with surroundings, at least (where masks can make them) and at most."""
MASKS = (6, 30)
"""Number of masks, at least and at most."""
GENERATION_SHARE = 0.25
"""Cells without surroundings, over those with, among the examples."""
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
CORRECTIONS = (0.0, 0.5, 1.0)
"""Shares of what trees add to the kriged components."""
LEAST_KNOWN = 0.05
"""Quantile of the variance explained at the examples, below which what the trees add fades."""
MAX_CORRECTED = 15_000
"""Examples that the trees are fitted on, at most."""


class SpatialTrainingMixin(SpatialContextMixin):
    """Turns latents of cells in a tissue into examples of what locations see around them."""

    KRIGING_STEPS = 300
    """Steps of the fit of the covariance."""

    adata: Any
    vocabulary: Any
    moments_: dict[str, np.ndarray] | None
    _expected: Any
    _match_moments: Any

    def _require_data(self) -> Any:
        adata = super()._require_data()  # type: ignore[misc]
        check_counts(adata)
        return adata

    def _frame_of(self, codes: np.ndarray) -> np.ndarray:
        """Number of the section of each cell."""
        if self.section_key is None:
            return np.zeros(len(codes), dtype=int)
        return codes[:, self.vocabulary.columns[self.section_key].start].astype(int)

    def _training_rows(
        self, latents: LatentData, table: TrainingTable, split: list[np.ndarray]
    ) -> tuple[LatentData, list[np.ndarray]]:
        """Every training cell as the cells around it see its place, with and without others hidden, and as it is."""
        rng, adata = np.random.default_rng(0), self._require_data()
        n = adata.n_obs
        training, validation = split[0][split[0] < n], split[1]
        # Until they are fitted, and where training is cut off: as drawn, as kriged.
        self.moments_, self.correction_ = None, None
        self.mean_ = {"share": 0.0, "correction": 0.0, "offset": np.zeros(adata.n_vars, np.float32)}
        coordinates = coordinates_of(adata, self.spatial_key, self.n_dims)
        frame = self._frame_of(latents.codes[:n])
        key = self.section_key
        names = [""] if key is None else [str(c) for c in self.vocabulary.entries[key]["categories"]]
        frames = Frames.fit(coordinates[training], frame[training], names)
        self.frames_, scaled = vars(frames), frames.scaled(coordinates, frame)
        own = LatentData(latents.mean[:n], latents.scale[:n], latents.codes[:n])
        self._fit_components(adata, own, frame, training)
        observed = self._observed(adata, own, table.subset(np.arange(n)), scaled, frame)

        targets, around = [], []
        loo = rng.permutation(training)[: EXAMPLES[1] // 2]
        for cells, hidden in [(loo, np.zeros(n, dtype=bool)), *self._masked(scaled, frame, training, rng)]:
            look = self._look(scaled, frame, training[~hidden[training]])
            targets.append(cells)
            around.append((look, cells))
        rows = np.concatenate([look(scaled[c], frame[c], c) for look, c in around])
        kinds = np.minimum(np.arange(observed.values.shape[1]), self.module.prior.d + N_FREE)
        seen = np.concatenate(targets)
        kriging = LocalKriging.fit(
            observed.values, scaled, seen, rows, kinds, self.KRIGING_STEPS, importance=self._importance
        )
        kriging.micro = self._micro(adata, frame, training, kriging)
        self.kriging_ = vars(kriging)

        look = self._look(scaled, frame, training)
        told = [self._told_around(observed, *pair, latents.codes) for pair in [*around, (look, validation)]]
        codes = [part for part, *_ in told]
        kriged, explained = (np.concatenate([part[i] for part in told[:-1]]) for i in (1, 2))
        repeats = max(1, round(GENERATION_SHARE * len(seen) / max(len(split[0]), 1)))
        alone = np.concatenate([np.tile(split[0], repeats), split[2]])
        more = codes[0].shape[1] - latents.codes.shape[1]
        cells = np.concatenate([seen, alone[: repeats * len(split[0])], validation, split[2]])
        bare = np.pad(latents.codes[alone], ((0, 0), (0, more)), constant_values=np.nan)
        whole = np.concatenate(
            [*codes[:-1], bare[: repeats * len(split[0])], codes[-1], bare[repeats * len(split[0]) :]]
        )
        ends = np.cumsum([len(seen) + repeats * len(split[0]), len(validation), len(split[2])])

        kept = np.sort(np.concatenate([training, validation]))
        self.cells_ = observed.subset(kept).to_dict()
        self._left_to_fit = observed, look, training, validation, seen, kriged, explained
        examples = LatentData(latents.mean[cells], latents.scale[cells], whole)
        return examples, np.split(np.arange(ends[-1]), ends[:-1])

    def _told_around(
        self, observed: Observed, look: Surroundings, cells: np.ndarray, codes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Codes of cells with what is known of their places, the first components as kriged there, and how much kriging explains."""
        d, n_kriged = int(self.module.prior.d), observed.values.shape[1]
        parts = [np.empty((0, self.module.prior.origin.stop), np.float32)]
        kriged, explained = [np.empty((0, min(N_CORRECTED, n_kriged - d)), np.float32)], [np.empty(0)]
        for first in range(0, len(cells), 5000):
            rows = cells[first : first + 5000]
            context = self._context(observed, look, observed.scaled[rows], observed.frame[rows], rows)
            parts.append(np.concatenate([codes[rows], context.codes], 1))
            kriged.append(context.mean[:, d : d + N_CORRECTED].copy())
            explained.append(self._explained(context))
        return np.concatenate(parts), np.concatenate(kriged), np.concatenate(explained)

    def _masked(
        self, scaled: np.ndarray, frame: np.ndarray, training: np.ndarray, rng: np.random.Generator
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Hidden training cells of random, blob-shaped and whole-plane masks, and the masks themselves."""
        n_masks = int(np.clip(np.ceil((EXAMPLES[0] - len(training)) / (HIDDEN * len(training) + 1)), *MASKS))
        most = EXAMPLES[1] // 2 // n_masks
        for i in range(n_masks):
            hidden = np.zeros(len(scaled), dtype=bool)
            for f in np.unique(frame[training]):
                mine = training[frame[training] == f]
                planes = np.unique(scaled[mine, 2]) if self.n_dims == 3 else np.empty(0)
                if i % 3 == 2 and 3 <= len(planes) <= len(mine) / 5:
                    hidden[mine[scaled[mine, 2] == rng.choice(planes)]] = True
                elif i % 2:
                    hidden[_blobs(scaled, mine, rng)] = True
                else:
                    hidden[rng.permutation(mine)[: round(HIDDEN * len(mine))]] = True
            yield rng.permutation(training[hidden[training]])[:most], hidden

    def _fit_components(self, adata: Any, latents: LatentData, frame: np.ndarray, training: np.ndarray) -> None:
        """Components of the measured expression, and the mean of each section."""
        n_frames = len(self._frames.names)
        sums, sizes = np.zeros((n_frames, adata.n_vars)), np.bincount(frame[training], minlength=n_frames)
        for first in range(0, len(training), 5000):
            rows = training[first : first + 5000]
            np.add.at(sums, frame[rows], self._log_expression(adata, rows))
        mean = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], sums.sum(0) / len(training))
        fitted = np.random.default_rng(0).permutation(training)[:MAX_FITTED]
        left = self._log_expression(adata, fitted) - mean[frame[fitted]]
        pca = PCA(min(N_COMPONENTS, len(fitted) - 1, adata.n_vars), random_state=0).fit(left)
        state = self._standardised(latents.mean)
        centre = np.zeros((n_frames, state.shape[1] + pca.n_components_), np.float32)
        for f in np.flatnonzero(sizes):
            centre[f, : state.shape[1]] = state[training[frame[training] == f]].mean(0)
        self.components_ = {
            "mean": mean.astype(np.float32),
            "components": pca.components_.astype(np.float32),
            "sd": np.maximum(np.sqrt(pca.explained_variance_), 1e-6).astype(np.float32),
            "centre": centre,
        }

    @property
    def _importance(self) -> np.ndarray:
        """What part of the variance of genes, each counted alike, is that of the components; the state is judged by them."""
        assert self.components_ is not None
        genes = (self.components_["components"] * self.components_["sd"][:, None]) ** 2
        return np.concatenate([np.zeros(int(self.module.prior.d)), (genes / np.maximum(genes.sum(0), 1e-6)).sum(1)])

    def _micro(self, adata: Any, frame: np.ndarray, training: np.ndarray, kriging: LocalKriging) -> np.ndarray:
        """Share of the nuggets of the components that is not noise of counting; the state has none that is known of."""
        d, cells = int(self.module.prior.d), np.sort(np.random.default_rng(0).permutation(training)[:MAX_SPLIT])
        share = repeatable_share(self._counts(adata, cells), frame[cells], kriging.kinds[d:])
        micro = np.zeros(len(kriging.log_nuggets), np.float32)
        told = np.flatnonzero(share)
        micro[told] = 1 - (1 - share[told]) / np.exp(kriging.log_nuggets[told])
        return micro.clip(0, 1)

    def _finish_diffusion(self) -> None:
        """Put draws right, and choose on validation cells what trees and the network have in the expected expression; the rest is that of kriging."""
        observed, look, training, rows, *examples = self._left_to_fit
        del self._left_to_fit
        self._match_moments(observed, look, training)
        if len(rows) < MIN_VALIDATED:
            return
        least = self._fit_correction(observed, *examples)
        context = self._context(observed, look, observed.scaled[rows], observed.frame[rows], rows)
        # As at a location: nothing is known of the cell but where it is.
        codes = self._asked(None, context.frame)
        decoded = self._expected(context, codes, self._told(observed, context, codes))
        real = self._log_expression(self.adata, rows)
        spread = np.maximum(real.var(0), 1e-6)
        found = []
        for correction in CORRECTIONS:
            self.mean_ = {**(self.mean_ or {}), "correction": correction, "explained": least}
            smooth = self._expression(self._corrected(context), context.frame)
            offset = (smooth - decoded).mean(0)
            for share in SHARES:
                error = float((((1 - share) * smooth + share * (decoded + offset) - real) ** 2 / spread).mean())
                found.append((error, {**self.mean_, "share": share, "offset": offset.astype(np.float32)}))
        self.mean_ = min(found, key=lambda pair: pair[0])[1]
        if not self.mean_["correction"]:
            self.correction_ = None

    def _fit_correction(self, observed: Observed, seen: np.ndarray, kriged: np.ndarray, explained: np.ndarray) -> float:
        """What kriging, which is linear, leaves of the first components of hidden cells, told by trees from those components and the place.

        Returns the share of variance that kriging explained at the least known of the places.
        """
        rows = np.random.default_rng(0).permutation(len(seen))[:MAX_CORRECTED]
        seen, kriged = seen[rows], kriged[rows]
        d = int(self.module.prior.d)
        weight = np.sqrt(self._importance[d : d + kriged.shape[1]]).astype(np.float32)
        left = observed.values[seen, d : d + kriged.shape[1]] - kriged
        features = self._features(kriged, observed.scaled[seen], observed.frame[seen])
        trees = BaggedTrees.fit(features, left * weight, seen)
        trees.values = trees.values / np.maximum(weight, 1e-6)
        self.correction_ = vars(trees)
        return float(np.quantile(explained, LEAST_KNOWN))


MIN_VALIDATED = 20
"""Validation cells below which the expected expression is that of kriging alone."""


def _blobs(scaled: np.ndarray, cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cells of a section in discs of many sizes that cover a share of it."""
    hidden = np.zeros(len(cells), dtype=bool)
    while hidden.sum() < HIDDEN * len(cells):
        size = int(np.exp(rng.uniform(np.log(5), np.log(max(1.25 * HIDDEN * len(cells), 6)))))
        distance = ((scaled[cells] - scaled[rng.choice(cells)]) ** 2).sum(1)
        hidden[np.argsort(distance)[:size]] = True
    return cells[hidden]
