"""Stage 2 of the perturbation model: pairs, measured effects, and the examples that the networks are trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data._utils import _get_adata_minify_type
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from diffvi._exceptions import InvalidInputError
from diffvi.data import LatentData, PerturbationCoder, TrainingTable, Treatment
from diffvi.module import EffectProcess, Responses
from diffvi.process import Pairing, pair_sources

from ._perturbation_measures import Measured, Transfer, measure, repeatable
from ._perturbation_spread import Probe, probes

POPULATION = "control_population"
"""Name of the attribute with the mean state of the control cells of a cell's context."""

MAX_CONTROLS = 5_000
"""Control cells that a model remembers, to say what a perturbation does without data."""

MAX_PAIRS = 100_000
"""Pairs of control and perturbed cells that a model remembers."""

MAX_FOLDS = 5
"""Groups of contexts of which each is predicted from the others, at most."""


class PerturbationTrainingMixin:
    """Turns latents of control and perturbed cells into pairs, effects and training examples."""

    module: Any
    adata: Any
    vocabulary: Any
    adata_manager: Any
    registry_: dict[str, Any]
    training_table_: dict[str, Any] | None
    replay_: dict[str, Any] | None
    responses_: dict[str, Any] | None
    measured_: dict[str, Any] | None
    controls_: dict[str, Any] | None
    control_means_: dict[tuple[int, ...], np.ndarray]
    perturbed_contexts_: list[tuple[int, ...]]
    calibration_: dict[str, float]
    offset_shares_: dict[str, float]
    library_shares_: dict[str, float]
    spread_gain_: float | None
    _probes: list[Probe]
    pairing: Pairing
    perturbation_encoder: str
    n_smoothed: int
    n_neighbors: int
    transfer_gain: float
    additive: bool
    shrink: bool
    condition_on_population: bool
    rate_offset: bool
    # From the spine.
    _decode: Any
    _require: Any
    _latent_data: Any
    _sampled: Any
    _sampler: Any
    _provenance: Any
    get_var_names: Any
    get_anndata_manager: Any

    def _calibrate(self, halves: list[Transfer], contexts: Iterator[Transfer]) -> None:
        """Compare what is predicted with what was measured, once the effects are known."""

    @property
    def perturbation_key(self) -> str:
        """Name of the perturbation among the conditions."""
        return str(self.registry_["setup_args"]["perturbation_key"])

    @property
    def perturbation_embedding(self) -> np.ndarray | None:
        """The user's embedding, standardised, one row for each member of the vocabulary; NaN where it has none."""
        return self.vocabulary.entries[self.perturbation_key].get("embedding")

    def _set_features(self, features: np.ndarray) -> None:
        """Tell the networks, the averaged one too, what is known of each single perturbation."""
        place = self.vocabulary.names.index(self.perturbation_key)
        prior = self.module.prior
        for network in (prior.denoiser, prior.ema.module):
            buffer = network.conditions.embeddings[place].features
            buffer.copy_(torch.as_tensor(features, dtype=buffer.dtype, device=buffer.device))

    # ---------------------------------------------------------------- cells, treatments, contexts

    @property
    def _coder(self) -> PerturbationCoder:
        return self.vocabulary.coder(self.perturbation_key)

    def _treatments(self, codes: np.ndarray) -> list[Treatment | None]:
        return self._coder.decode(codes[:, self.vocabulary.columns[self.perturbation_key]])

    @property
    def _context_columns(self) -> list[int]:
        """Columns of the codes whose combinations are the contexts."""
        setup = self.registry_["setup_args"]
        keys = setup.get("context_keys")
        keys = [setup.get("batch_key"), setup.get("labels_key")] if keys is None else keys
        categorical = set(self.vocabulary.categorical)
        found = [self.vocabulary.columns[key].start for key in keys if key in self.vocabulary.columns]
        return [column for column in found if column in categorical]

    def _contexts(self, codes: np.ndarray) -> list[tuple[int, ...]]:
        """The context of each cell: its category numbers, -1 where it has none."""
        values = np.nan_to_num(codes[:, self._context_columns], nan=-1).astype(int)
        return list(map(tuple, values.tolist()))

    # ---------------------------------------------------------------- what training remembers

    def _training_rows(
        self, latents: LatentData, table: TrainingTable, split: list[np.ndarray]
    ) -> tuple[LatentData, list[np.ndarray]]:
        """Every cell as it is, and every perturbed cell as a change of a control cell of its context."""
        prior = self.module.prior
        state = (latents.mean - _numpy(prior.shift)) / _numpy(prior.scale)
        treatments, contexts = self._treatments(latents.codes), self._contexts(latents.codes)
        # Cells that a reference's prior has drawn after surgery have no counts of their own.
        n_cells = self.adata.n_obs
        training = np.zeros(len(state), bool)
        training[split[0]] = True
        is_control = np.array([t == () for t in treatments]) & (np.arange(len(state)) < n_cells)
        groups: dict[tuple[tuple[int, ...], Treatment], list[int]] = {}
        for i, (treatment, context) in enumerate(zip(treatments[:n_cells], contexts[:n_cells], strict=True)):
            if treatment:
                groups.setdefault((context, treatment), []).append(i)
        number = {c: j for j, c in enumerate(sorted(set(contexts)))}
        keys = np.array([number[c] for c in contexts])
        controls = {c: np.flatnonzero(is_control & training & (keys == j)) for c, j in number.items()}
        before = {} if self.replay_ is None else self.control_means_
        known = set() if self.replay_ is None else set(self.perturbed_contexts_)
        self.perturbed_contexts_ = sorted(known | {c for (c, _), rows in groups.items() if training[rows].any()})
        self.control_means_ = before | {c: latents.mean[rows].mean(0) for c, rows in controls.items() if len(rows)}

        target, source = [], []
        for (context, _), rows in groups.items():
            if len(pool := controls[context]):
                picked = pair_sources(state[pool], state[rows], self.pairing)
                target.append(np.array(rows))
                source.append(pool[picked])
        targets, sources = (np.concatenate(v) if v else np.zeros(0, int) for v in (target, source))
        pool = np.concatenate(list(controls.values()))
        pool = np.sort(np.random.default_rng(0).permutation(pool)[:MAX_CONTROLS])
        start, cells = latents.mean[pool], table.subset(pool)
        if self.replay_ is not None and self.controls_ is not None:
            old = dict(self.controls_)
            start, cells = np.concatenate([old.pop("state"), start]), TrainingTable(**old).append(cells)
        self.controls_ = {"state": start, **vars(cells)}
        self._remember(state, treatments, groups, controls, training, targets, sources)

        extra = prior.origin.stop - latents.codes.shape[1]
        codes = np.pad(latents.codes, ((0, 0), (0, extra)), constant_values=np.nan)
        treatments_of, contexts_of = ([of[i] for i in targets] for of in (treatments, contexts))
        paired = self._paired_codes(latents.mean[sources], treatments_of, contexts_of)  # type: ignore[arg-type]
        arrived = latents.mean[targets]
        if self.replay_ is None:
            self.spread_gain_ = None
        self._probes = probes(latents.mean, groups, controls, training, self._paired_codes)  # type: ignore[arg-type]
        if self.n_smoothed > 1 and len(targets):
            change = self._smoothed(state[sources], state[targets] - state[sources], treatments_of, training[targets])
            arrived = (state[sources] + change) * _numpy(prior.scale) + _numpy(prior.shift)
        examples = LatentData(
            np.concatenate([latents.mean, arrived]),
            np.concatenate([latents.scale, np.zeros_like(latents.scale[targets])]),
            np.concatenate([codes, paired]).astype(np.float32),
        )
        new = len(state) + np.arange(len(targets))
        parts = [np.concatenate([part, new[np.isin(targets, part)]]) for part in split]
        return examples, parts

    def _smoothed(
        self, source: np.ndarray, change: np.ndarray, treatments: list[Treatment | None], training: np.ndarray
    ) -> np.ndarray:
        """Changes, each the mean of the training changes most like it in where they start and in how they go.

        Two samples of one population do not match cell by cell, so pairs differ by chance. A mean over neighbours in
        both takes that out and, other than a mean over neighbours in where they start, leaves groups that respond
        differently apart.
        """
        out, both = change.copy(), np.concatenate([source, change], axis=1)
        groups: dict[Treatment | None, list[int]] = {}
        for i, treatment in enumerate(treatments):
            groups.setdefault(treatment, []).append(i)
        for rows in map(np.array, groups.values()):
            known = rows[training[rows]]
            if len(known):
                search = NearestNeighbors(n_neighbors=min(self.n_smoothed, len(known))).fit(both[known])
                out[rows] = change[known][search.kneighbors(both[rows], return_distance=False)].mean(1)
        return out

    def _paired_codes(
        self, start: np.ndarray, treatments: list[Treatment | None], contexts: list[tuple[int, ...]]
    ) -> np.ndarray:
        """Codes of cells that start from ``start``: treatment, control population and origin.

        The origin is the cell moved by what training says of the treatment. Labels and batches are left out: what
        counts of them is in the start and the population, which a context that no perturbed cell was seen in has too.
        """
        prior = self.module.prior
        codes = np.full((len(start), prior.origin.stop), np.nan, dtype=np.float32)
        columns = self.vocabulary.columns[self.perturbation_key]
        codes[:, columns] = self._coder.encode(treatments)
        if self.condition_on_population:
            unknown = np.full(start.shape[1], np.nan)
            population = np.array([self.control_means_.get(c, unknown) for c in contexts]).reshape(start.shape)
            population = (population - _numpy(prior.shift)) / _numpy(prior.scale)
            codes[:, prior.origin.start - start.shape[1] : prior.origin.start] = population
        origin = start.copy()
        if self.additive and len(start):
            d = start.shape[1] - 1
            shift, scale = _numpy(prior.shift)[:d], _numpy(prior.scale)[:d]
            moves = self._responses.shifts((start[:, :d] - shift) / scale, [t or () for t in treatments])
            origin[:, :d] += moves * scale * self._gains(contexts)[:, None]
        codes[:, prior.origin] = origin
        return codes

    def _gains(self, contexts: list[tuple[int, ...]]) -> np.ndarray:
        """Factors on the measured effects: :attr:`transfer_gain` where no perturbed cell was seen."""
        seen = set(self.perturbed_contexts_)
        return np.array([1.0 if c in seen else self.transfer_gain for c in contexts])

    @property
    def _responses(self) -> Responses:
        """The remembered responses, made once from what is saved."""
        held = self.__dict__.get("_held_responses")
        if held is None or held[0] is not self.responses_:
            assert self.responses_ is not None
            values = {k: v for k, v in self.responses_.items() if k not in ("shift", "scale")}
            held = self.__dict__["_held_responses"] = (self.responses_, Responses.from_dict(values))
        return held[1]

    def _remember(
        self,
        state: np.ndarray,
        treatments: list[Treatment | None],
        groups: dict[tuple[tuple[int, ...], Treatment], list[int]],
        controls: dict[tuple[int, ...], np.ndarray],
        training: np.ndarray,
        targets: np.ndarray,
        sources: np.ndarray,
    ) -> None:
        """Measure the effects on the training cells, fit the process, keep the pairs."""
        coder, d = self._coder, state.shape[1] - 1
        x, library = self._shares()
        known = sorted({t for (c, t), rows in groups.items() if len(controls[c]) and training[rows].any()})
        place = {t: i for i, t in enumerate(known)}
        halves = np.random.default_rng(0).random(len(state)) < 0.5
        tables = {}

        def measured_on(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, Measured]:
            return measure(state, x, library, groups, controls, place, mask)

        for name, mask in (("all", training), ("half", training & halves), ("other", training & ~halves)):
            tables[name] = measured_on(mask)
        effects, noise, measured = tables["all"]
        mine = training[targets]
        change = (state[targets] - state[sources])[mine, :d]
        which = np.array([place[treatments[i]] for i in targets[mine]], dtype=int)  # type: ignore[index]
        kept = np.arange(len(which))
        if len(which) > MAX_PAIRS:
            kept = np.sort(np.random.default_rng(0).choice(len(which), MAX_PAIRS, replace=False))
        features = self._features_of(known, effects, measured)
        process = EffectProcess(known, effects, noise, coder.dose_unit, coder.max_dose, features, self.shrink)
        responses = Responses(
            process,
            state[sources][mine, :d][kept].astype(np.float32),
            change[kept].astype(np.float32),
            which[kept],
            self.n_neighbors,
        )
        held: dict[str, Any] = {"log_ratio": measured.log_ratio, "variance": measured.variance}
        held["between_contexts"] = measured.between_contexts
        log_library = repeatable(measured.library[None], measured.library_variance[None], self.shrink)[0]
        held["library_effect"] = (log_library * _numpy(self.module.prior.scale)[d])[:, None]
        held |= {"half_effects": tables["half"][0]}
        for name in ("half", "other"):
            held |= {f"{name}_log_ratio": tables[name][2].log_ratio, f"{name}_variance": tables[name][2].variance}
        unit = {
            "shift": _numpy(self.module.prior.shift)[:d].copy(),
            "scale": _numpy(self.module.prior.scale)[:d].copy(),
        }
        if self.replay_ is not None and self.responses_ is not None:
            responses, held = self._with_reference(responses, held, unit)
        if not len(responses.process.treatments):
            raise InvalidInputError(
                "`adata`: no perturbed cell has control cells of its context in the training split."
            )
        self.responses_ = {**responses.to_dict(), **unit}
        self.measured_ = {name: np.asarray(value, dtype=np.float32) for name, value in held.items()} | {
            "library": library
        }
        among = {c for (c, _), rows in groups.items() if len(controls[c]) and training[rows].any()}
        halves_told = [
            Transfer(told[0], told[2], asked[2], among, among)
            for told, asked in ((tables["half"], tables["other"]), (tables["other"], tables["half"]))
        ]
        self._calibrate(halves_told, self._left_out(measured_on, training, groups, controls, sorted(among)))

    @staticmethod
    def _left_out(
        measured_on: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, Measured]],
        training: np.ndarray,
        groups: dict[tuple[tuple[int, ...], Treatment], list[int]],
        controls: dict[tuple[int, ...], np.ndarray],
        contexts: list[tuple[int, ...]],
    ) -> Iterator[Transfer]:
        """What the other contexts tell of each, or of each of a few groups of them."""
        number, fold = {c: i % MAX_FOLDS for i, c in enumerate(contexts)}, np.full(len(training), -1)
        for (context, _), treated in groups.items():
            fold[treated] = number.get(context, -1)
        for context, untreated in controls.items():
            fold[untreated] = number.get(context, -1)
        for k in range(min(len(contexts), MAX_FOLDS) if len(contexts) > 1 else 0):
            here = {c for c in contexts if number[c] == k}
            effects, _, told = measured_on(training & (fold >= 0) & (fold != k))
            yield Transfer(effects, told, measured_on(training & (fold == k))[2], set(contexts) - here, here)

    def _with_reference(
        self, responses: Responses, held: dict[str, Any], unit: dict[str, np.ndarray]
    ) -> tuple[Responses, dict[str, Any]]:
        """After surgery: the reference's treatments too, where the query has none of its own."""
        assert self.responses_ is not None
        assert self.measured_ is not None
        ratio = self.responses_["scale"] / unit["scale"]
        offset = (self.responses_["shift"] - unit["shift"]) / unit["scale"]
        joined, taken = responses.joined(self._responses, ratio, offset)
        held = dict(held)
        for name in held:
            # What was measured on halves of the reference's cells is not kept: an infinite variance. Libraries were not always measured.
            unknown = 0.0 if name == "library_effect" else np.inf
            old = self.measured_.get(name, np.full_like(self.measured_["log_ratio"], unknown))[taken]
            width = np.shape(held[name])[1]
            held[name] = np.concatenate([held[name], old[:, :width]])
        return joined, held

    def _features_of(self, known: list[Treatment], effects: np.ndarray, measured: Measured) -> dict[str, np.ndarray]:
        """Features of single perturbations: the user's for the process; measured ones only for the networks."""
        coder = self._coder
        if self.perturbation_encoder == "effects":
            # Strongest dose of each single perturbation; one that was only seen in combinations has none.
            n = min(effects.shape[1], *measured.log_ratio.shape)
            scores = PCA(n, random_state=0).fit_transform(measured.log_ratio)
            scores = scores / max(float(scores.std()), 1e-12)
            table = np.zeros((len(coder.members), effects.shape[1]))
            for row, treatment in enumerate(known):
                if len(treatment) == 1:
                    table[coder.members.index(treatment[0][0]), :n] = scores[row]
            self._set_features(table)
        embedding = self.perturbation_embedding
        if embedding is None:
            return {}
        return {
            name: row / np.sqrt(len(row))
            for name, row in zip(coder.members, np.asarray(embedding, float), strict=True)
            if np.isfinite(row).all()
        }

    def _shares(self) -> tuple[sparse.csr_matrix, float]:
        """Counts of the training data as shares of each cell's library, and the median library."""
        if _get_adata_minify_type(self.adata) is not None:
            raise InvalidInputError("`adata` is minified: effects are measured on counts, and it holds none.")
        counts = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        counts = sparse.csr_matrix(counts[:] if not sparse.issparse(counts) else counts, dtype=np.float64)
        library = np.asarray(counts.sum(1)).ravel()
        return sparse.diags_array(1 / np.maximum(library, 1)) @ counts, float(np.median(library))


def _numpy(x: Any) -> np.ndarray:
    return x.detach().cpu().numpy()
