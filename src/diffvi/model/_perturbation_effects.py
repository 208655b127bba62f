"""Effects of perturbations on expression, with their uncertainties, for any number of perturbations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm
from scvi.utils import track

from diffvi._exceptions import InvalidInputError, one_of, positive_int
from diffvi.data import Treatment

from ._perturbation_calibration import PerturbationCalibrationMixin


class PerturbationEffectsMixin(PerturbationCalibrationMixin):
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

        Examples
        --------
        >>> effect = model.get_perturbation_effect(["A", "A+B"], genes=["gene_0", "gene_1"])
        >>> effect[["perturbation", "gene", "status"]]
          perturbation    gene status
        0            A  gene_0   seen
        1            A  gene_1   seen
        2          A+B  gene_0   seen
        3          A+B  gene_1   seen
        >>> bool(effect["log_fold_change"].between(effect["low"], effect["high"]).all())
        True
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

        Examples
        --------
        >>> ranked = model.screen_perturbations(pairs=True, show_progress=False)
        >>> len(ranked), ranked["effect_norm"].is_monotonic_decreasing  # 6 perturbations and their 15 pairs
        (21, True)
        >>> ranked["interaction"].isna().sum()  # single ones have none
        np.int64(6)
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
