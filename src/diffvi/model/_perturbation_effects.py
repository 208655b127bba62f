"""Effects of perturbations on expression, with their uncertainties, for any number of perturbations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm
from scvi.utils import track

from diffvi._exceptions import InvalidInputError, one_of, positive_int
from diffvi.data import TrainingTable, Treatment
from diffvi.module import EffectWeights

from ._perturbation_measures import PSEUDOCOUNT, coverage_factor
from ._perturbation_training import PerturbationTrainingMixin

N_CALIBRATION_CELLS = 64


class PerturbationEffectsMixin(PerturbationTrainingMixin):
    """Mean effects on control populations: one table for some perturbations, a ranking for thousands."""

    # ---------------------------------------------------------------- names

    def _resolve(self, perturbation: Any, dose: Any = None, unseen: str | None = None) -> Treatment:
        """The treatment of a name, or a sentence that says why there is none."""
        one_of("unseen", unseen, (None, "mean"))
        coder = self._coder
        if dose is not None and (not np.isfinite(dose) or dose < 0):
            raise InvalidInputError(f"`dose` must be a number of at least 0; got {dose!r}.")
        if dose is None and coder.dose_key is not None and coder.parse(perturbation):
            raise InvalidInputError(f"`dose` is needed for {perturbation!r}: the model was set up with `dose_key`.")
        if dose and coder.dose_key is None and not coder.obsm:
            raise InvalidInputError(f"`dose`: the model was set up without `dose_key`; got {dose!r}.")
        treatment: Treatment = coder.parse(perturbation, 1.0 if dose is None else float(dose))
        process = self._responses.process
        unknown = [part for part, _ in treatment if part not in process.known and part not in process.features]
        if unknown and unseen != "mean":
            raise InvalidInputError(
                f"`perturbation`: {', '.join(map(repr, unknown))} was not seen in training and has no embedding, so nothing "
                f'is known of it; `unseen="mean"` predicts the mean effect. Known are {_some(process.known)}.'
            )
        return treatment

    # ---------------------------------------------------------------- effects on a population

    def _reference(
        self, groupby: str | None, n_cells: int, perturbed: bool = False
    ) -> Iterator[tuple[Any, np.ndarray, TrainingTable]]:
        """Groups of remembered control cells, on request of contexts in which effects were measured.

        Name, states and what the decoder needs.
        """
        held = dict(self.controls_ or {})
        state = held.pop("state")
        table = TrainingTable(**held)
        if perturbed:
            seen = set(self.perturbed_contexts_)
            rows = np.flatnonzero([c in seen for c in self._contexts(table.codes)])
            state, table = state[rows], table.subset(rows)
        groups = np.full(len(state), "all", dtype=object)
        if groupby is not None:
            names = [n for n, e in self.vocabulary.entries.items() if "categories" in e]
            groups = self.vocabulary.decode(table.codes)[one_of("groupby", groupby, names)].astype(object).to_numpy()
        for group in sorted(set(groups[pd.notna(groups)])):
            rows = np.random.default_rng(0).permutation(np.flatnonzero(groups == group))[:n_cells]
            yield group, state[np.sort(rows)], table.subset(np.sort(rows))

    @torch.inference_mode()
    def _mean_counts(self, state: np.ndarray, table: TrainingTable) -> np.ndarray:
        """Expected counts of states at the median library, ``(n, n_genes)``."""
        assert self.measured_ is not None
        state = np.concatenate([state[:, :-1], np.full((len(state), 1), np.log(self.measured_["library"]))], 1)
        device = self.module.prior.shift.device
        px = self._decode(torch.as_tensor(state, dtype=torch.float32, device=device), table)
        return px.mean.cpu().numpy().astype(float)

    def _moved(self, state: np.ndarray, weights: np.ndarray, gains: np.ndarray | float = 1.0) -> np.ndarray:
        """States after the mean response to one weighting of the training treatments."""
        shift, scale = (v.detach().cpu().numpy()[:-1] for v in (self.module.prior.shift, self.module.prior.scale))
        z = (state[:, :-1] - shift) / scale
        moved = z + self._responses.shift(z, weights) * np.reshape(gains, (-1, 1))
        return np.concatenate([moved * scale + shift, state[:, -1:]], 1)

    def _effect(
        self, state: np.ndarray, table: TrainingTable, base: np.ndarray, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For one weighting: log ratio of mean expression, its spread over cells, and a variance of doubt.

        The doubt is how far the log ratio through the latent is from the same weighting of the measured log ratios,
        beyond their noise: where the decoder has to extrapolate, the two part. In contexts in which no perturbed cell was
        seen there is also how much effects differ between contexts.
        """
        contexts = self._contexts(table.codes)
        gains, new = self._gains(contexts), 1 - np.mean([c in set(self.perturbed_contexts_) for c in contexts])
        after = self._mean_counts(self._moved(state, weights, gains), table)
        if (offset := self._log_offset(weights[None])) is not None:
            after = after * np.exp(offset)
            after *= base.sum(1, keepdims=True) / after.sum(1, keepdims=True)
        cells = np.log(after + PSEUDOCOUNT) - np.log(base + PSEUDOCOUNT)
        ratio = np.log(after.mean(0) + PSEUDOCOUNT) - np.log(base.mean(0) + PSEUDOCOUNT)
        assert self.measured_ is not None
        apart = ratio - weights @ self.measured_["log_ratio"]
        doubt = np.maximum(apart**2 - weights**2 @ self.measured_["variance"], 0.0)
        return ratio, cells.std(0), doubt + new * (weights**2 @ self.measured_["between_contexts"])

    def _log_offset(self, weights: np.ndarray) -> np.ndarray | None:
        """What the decoder's log rates miss of the measured log ratios, for weightings ``(n, n_treatments)``."""
        offset = None if self.measured_ is None else self.measured_.get("offset")
        return None if offset is None else weights @ offset

    def _variances(self, predicted: EffectWeights) -> tuple[np.ndarray, np.ndarray]:
        """Variance of log ratios by noise of the measured effects, and by what they leave open, ``(m, n_genes)`` each."""
        assert self.measured_ is not None
        ratio, variance = self.measured_["log_ratio"].astype(float), self.measured_["variance"].astype(float)
        noise = predicted.weights**2 @ variance
        between = np.maximum((ratio**2 - variance).mean(0), 0.05 * max(float((ratio**2 - variance).mean()), 1e-4))
        share = (predicted.epistemic - 0.5 * predicted.deviation) / self._responses.process.params["tau2"]
        # Half of a combination's deviation is in proportion to what is predicted, as an interaction that makes the sum of
        # the parts stronger or weaker is; the other half may be anywhere.
        size = ((predicted.weights @ self._responses.process.effects) ** 2).mean(1)
        strength = np.divide(0.5 * predicted.deviation, size, out=np.zeros_like(size), where=size > 0)
        return noise, share[:, None] * between[None] + strength[:, None] * (predicted.weights @ ratio) ** 2

    # ---------------------------------------------------------------- calibration

    def _calibrate(self) -> None:
        """Factors on the standard deviations, one a status, from predictions of training effects left out.

        The measured effects have noise of their own; a factor is the one with which 90 % of them lie within their
        interval when that noise is added. For treatments that were seen, one half of the cells predicts the other. Of a
        factor below 1 the root is taken: the decoder has seen what is left out here, and will not have seen what is
        asked for.
        """
        assert self.measured_ is not None
        process = self._responses.process
        _, state, table = next(self._reference(None, N_CALIBRATION_CELLS, perturbed=True))
        base = self._mean_counts(state, table)
        eye, held = np.eye(len(process.treatments)), self.measured_
        fitted = np.array([self._effect(state, table, base, w)[0] for w in eye])
        if self.rate_offset:
            rest, variance = held["log_ratio"] - fitted, held["variance"]
            signal = np.maximum((rest**2 - variance).mean(1, keepdims=True), 0.0)
            held["offset"] = (rest * signal / (signal + variance)).astype(np.float32)

        left_out = process.leave_one_out()
        errors: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
        noise, open_ = self._variances(left_out)
        for i, status in enumerate(left_out.status):
            guess, _, doubt = self._effect(state, table, base, left_out.weights[i])
            error = guess - held["log_ratio"][i]
            errors.setdefault(status, []).append((error, noise[i] + open_[i] + doubt, held["variance"][i]))
        for i, w in enumerate(eye):
            if np.isfinite(held["half_variance"][i]).all() and np.isfinite(held["other_variance"][i]).all():
                ratio = self._half_effect(state, table, base, w, held["half_effects"][i])
                apart = (ratio - held["half_log_ratio"][i]) ** 2 - held["half_variance"][i]
                variance = held["half_variance"][i] + np.maximum(apart, 0.0)
                error = ratio - held["other_log_ratio"][i]
                errors.setdefault("seen", []).append((error, variance, held["other_variance"][i]))
        pooled = [e for status, found in errors.items() if status != "seen" for e in found]
        self.calibration_ = {status: coverage_factor(found) for status, found in errors.items() if len(found) >= 3}
        self.calibration_["other"] = coverage_factor(pooled) if len(pooled) >= 3 else 1.0
        for name in ("half_effects", "half_log_ratio", "half_variance", "other_log_ratio", "other_variance"):
            del held[name]

    def _half_effect(
        self, state: np.ndarray, table: TrainingTable, base: np.ndarray, weights: np.ndarray, effect: np.ndarray
    ) -> np.ndarray:
        """Log ratio for a mean effect that was measured on half of the cells."""
        shift = (effect - weights @ self._responses.process.effects) * self._z_scale
        moved = self._moved(state, weights)
        moved[:, :-1] += shift
        after = self._mean_counts(moved, table)
        return np.log(after.mean(0) + PSEUDOCOUNT) - np.log(base.mean(0) + PSEUDOCOUNT)

    @property
    def _z_scale(self) -> np.ndarray:
        return self.module.prior.scale.detach().cpu().numpy()[:-1]

    def _factors(self, status: Sequence[str]) -> np.ndarray:
        other = self.calibration_["other"]
        return np.array([0.0 if s == "control" else self.calibration_.get(s, other) for s in status])

    # ---------------------------------------------------------------- tables

    def get_perturbation_effect(
        self,
        perturbations: Sequence[str] | str | None = None,
        dose: float | Sequence[float] | None = None,
        groupby: str | None = None,
        level: float = 0.9,
        genes: Sequence[str] | None = None,
        unseen: str | None = None,
        n_cells: int = 200,
        show_progress: bool = False,
    ) -> pd.DataFrame:
        """Log fold changes under perturbations, with calibrated intervals and where the uncertainty comes from.

        Parameters
        ----------
        perturbations
            Names, such as ``["KLF1", "KLF1+BAK1"]``; ``None`` for all that were seen.
        dose
            Dose, one number or one for each perturbation, in models with doses.
        groupby
            Attribute by whose categories the control cells are taken apart, such as the labels; ``None`` for all
            control cells together.
        level
            Nominal coverage of the intervals.
        genes
            Genes to report; ``None`` for all.
        unseen
            ``"mean"`` for the mean effect, with its large variance, where nothing is known of a perturbation.
        n_cells
            Control cells of a group that the effect is computed on, at most.
        show_progress
            Show a progress bar.

        Returns
        -------
        One row a group, perturbation and gene: ``log_fold_change`` (natural logarithm of the ratio of mean counts at the
        median library, 0.05 added to both), its interval ``low`` to ``high``, and three standard deviations of
        different things: ``sd_cells``, of the cells' own log fold changes; ``sd_noise``, because the training effects
        were measured on finitely many cells; ``sd_epistemic``, because they do not determine this one. The interval holds
        the last two, calibrated on training effects left out, one status at a time. Then ``status`` and ``effect_norm``,
        the Euclidean norm of the log fold changes over all genes.

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.
        InvalidInputError
            For a perturbation of which nothing is known, a bad dose, level, group or gene.
        """
        self._require("diffusion")
        if not 0 < level < 1:
            raise InvalidInputError(f"`level` must lie between 0 and 1; got {level!r}.")
        all_genes = pd.Index(self.get_var_names())
        columns = slice(None) if genes is None else [all_genes.get_loc(one_of("genes", g, all_genes)) for g in genes]
        names, treatments = self._asked(perturbations, dose, unseen)
        predicted = self._responses.predict(treatments)
        noise, open_ = self._variances(predicted)
        factors = self._factors(predicted.status)[:, None]
        z, with_doses = norm.ppf(0.5 + level / 2), self._coder.dose_key is not None
        tables = []
        for group, state, table in self._reference(groupby, positive_int("n_cells", n_cells)):
            base = self._mean_counts(state, table)
            for i in track(range(len(names)), description="Effects", style="tqdm", disable=not show_progress):
                ratio, cells, doubt = self._effect(state, table, base, predicted.weights[i])
                half = z * factors[i] * np.sqrt(noise[i] + open_[i] + doubt)
                values = {
                    "group": group,
                    "perturbation": names[i],
                    **({"dose": max((d for _, d in treatments[i]), default=0.0)} if with_doses else {}),
                    "gene": all_genes[columns],
                    "log_fold_change": ratio[columns],
                    "low": (ratio - half)[columns],
                    "high": (ratio + half)[columns],
                    "sd_cells": cells[columns],
                    "sd_noise": (factors[i] * np.sqrt(noise[i]))[columns],
                    "sd_epistemic": (factors[i] * np.sqrt(open_[i] + doubt))[columns],
                    "status": predicted.status[i],
                    "effect_norm": float(np.linalg.norm(ratio)),
                }
                tables.append(pd.DataFrame(values))
        return pd.concat(tables, ignore_index=True)

    def screen_perturbations(
        self,
        perturbations: Sequence[str] | None = None,
        pairs: bool = False,
        dose: float | None = None,
        unseen: str | None = None,
        n_cells: int = 32,
        batch_size: int = 500,
        path: str | Path | None = None,
        show_progress: bool = True,
    ) -> pd.DataFrame:
        """Rank many perturbations by the size of their predicted effect.

        Parameters
        ----------
        perturbations
            Names; ``None`` for all single perturbations that were seen or have an embedding.
        pairs
            Add all pairs of the single perturbations among them, each with its genetic interaction.
        dose
            Dose of all, in models with doses.
        unseen
            As in :meth:`get_perturbation_effect`.
        n_cells
            Control cells that an effect is computed on.
        batch_size
            Perturbations at a time; bounds the memory.
        path
            CSV file to which the rows are written as they are computed, in the order of computation.
        show_progress
            Show a progress bar.

        Returns
        -------
        One row a perturbation, largest effect first: ``perturbation``, ``status``, ``effect_norm`` (norm of the log fold
        changes), ``sd`` (root of the summed calibrated variances of the log fold changes, the size that error alone
        would have) and, for combinations, ``interaction``: norm of the difference to the sum of the parts' log fold changes,
        and ``interaction_fit``, the coefficient of the sum in a regression on it (1 additive, below 1 less, above 1 more).

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.
        InvalidInputError
            As in :meth:`get_perturbation_effect`.
        """
        self._require("diffusion")
        batch_size = positive_int("batch_size", batch_size)
        process = self._responses.process
        if perturbations is None:
            perturbations = sorted(process.known | set(process.features))
        names, treatments = self._asked(perturbations, dose, unseen)
        singles = sorted({item for t in treatments for item in t})
        _, state, table = next(self._reference(None, positive_int("n_cells", n_cells)))
        base = self._mean_counts(state, table)

        def effects(some: Sequence[Treatment]) -> tuple[list[str], np.ndarray, np.ndarray]:
            predicted = self._responses.predict(some)
            found = [self._effect(state, table, base, w) for w in predicted.weights]
            noise, open_ = self._variances(predicted)
            sd = self._factors(predicted.status) * np.sqrt((noise + open_ + [f[2] for f in found]).sum(1))
            return predicted.status, np.array([f[0] for f in found]), sd

        parts = dict(zip(singles, effects([(s,) for s in singles])[1], strict=True)) if singles else {}
        coder, asked = self._coder, list(zip(names, treatments, strict=True))
        if pairs:
            wanted = sorted({t[0] for t in treatments if len(t) == 1})
            asked += [(coder.name(pair), pair) for pair in combinations(wanted, 2) if pair[0][0] != pair[1][0]]
        found: list[pd.DataFrame] = []
        starts = range(0, len(asked), batch_size)
        for start in track(starts, description="Screening", style="tqdm", disable=not show_progress):
            some = asked[start : start + batch_size]
            status, ratios, sd = effects([t for _, t in some])
            rows = pd.DataFrame(
                {
                    "perturbation": [name for name, _ in some],
                    "status": status,
                    "effect_norm": np.linalg.norm(ratios, axis=1),
                    "sd": sd,
                }
            )
            scores = [_interaction(r, [parts[item] for item in t]) for (_, t), r in zip(some, ratios, strict=True)]
            rows[["interaction", "interaction_fit"]] = scores
            if path is not None:
                rows.to_csv(path, mode="a" if start else "w", header=start == 0, index=False)
            found.append(rows)
        return pd.concat(found).sort_values("effect_norm", ascending=False, kind="stable", ignore_index=True)

    def _asked(self, perturbations: Any, dose: Any, unseen: str | None) -> tuple[list[str], list[Treatment]]:
        """Canonical names and treatments of what a user asks for."""
        coder = self._coder
        if perturbations is None:
            treatments = list(self._responses.process.treatments)
            if dose is not None:
                raise InvalidInputError(
                    "`dose` needs `perturbations`: without, all treatments that were seen are taken."
                )
        else:
            asked = [perturbations] if isinstance(perturbations, str) else list(perturbations)
            doses = [dose] * len(asked) if dose is None or np.ndim(dose) == 0 else list(dose)
            if len(doses) != len(asked):
                raise InvalidInputError(f"`dose` has {len(doses)} values for {len(asked)} perturbations.")
            treatments = [self._resolve(p, d, unseen) for p, d in zip(asked, doses, strict=True)]
        if not treatments:
            raise InvalidInputError("`perturbations` is empty: name at least one.")
        return [coder.name(t) for t in treatments], treatments


def _interaction(ratio: np.ndarray, parts: list[np.ndarray]) -> tuple[float, float]:
    """Norm of the deviation from the sum of the parts, and the coefficient of the sum."""
    if len(parts) < 2:
        return float("nan"), float("nan")
    total = np.sum(parts, axis=0)
    return float(np.linalg.norm(ratio - total)), float(ratio @ total / max(float(total @ total), 1e-12))


def _some(names: set[str]) -> str:
    shown = sorted(names)[:8]
    return ", ".join(map(repr, shown)) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
