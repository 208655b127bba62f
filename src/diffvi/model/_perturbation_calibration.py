"""Effects of weightings of the training treatments on control cells, and how far they are to be trusted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from diffvi._exceptions import InvalidInputError, one_of
from diffvi._random import CellStreams
from diffvi.data import TrainingTable
from diffvi.module import EffectWeights

from ._generation import DEFAULT_STEPS
from ._perturbation_measures import PSEUDOCOUNT, FoundAgain, Transfer, coverage_factor, repeatable
from ._perturbation_spread import spread_gain
from ._perturbation_training import PerturbationTrainingMixin

N_CALIBRATION_CELLS = 64

USUAL_STEPS = {**DEFAULT_STEPS, "heun": 2}
"""A change that starts at what is expected of a cell needs fewer steps than a cell that starts from noise."""


class PerturbationCalibrationMixin(PerturbationTrainingMixin):
    """Mean effects on control populations, their variances, and the calibration of these."""

    # ---------------------------------------------------------------- effects on a population

    def _reference(
        self, groupby: str | None, n_cells: int, contexts: Collection[tuple[int, ...]] | None = None
    ) -> Iterator[tuple[Any, np.ndarray, TrainingTable]]:
        """Groups of remembered control cells, on request of some contexts alone; none where none is remembered.

        Name, states and what the decoder needs.
        """
        held = dict(self.controls_ or {})
        state = held.pop("state")
        table = TrainingTable(**held)
        if contexts is not None:
            rows = np.flatnonzero([c in contexts for c in self._contexts(table.codes)])
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
        if (offset := self._log_offset(weights[None], contexts)) is not None:
            after = after * np.exp(offset)
            after *= base.sum(1, keepdims=True) / after.sum(1, keepdims=True)
        cells = np.log(after + PSEUDOCOUNT) - np.log(base + PSEUDOCOUNT)
        ratio = _log_ratio(after, base)
        assert self.measured_ is not None
        apart = ratio - weights @ self.measured_["log_ratio"]
        doubt = np.maximum(apart**2 - weights**2 @ self.measured_["variance"], 0.0)
        return ratio, cells.std(0), doubt + new * (weights**2 @ self.measured_["between_contexts"])

    def _log_offset(self, weights: np.ndarray, contexts: Sequence[tuple[int, ...]]) -> np.ndarray | None:
        """What the decoder's log rates miss of the measured log ratios, for a weighting for all cells or one for each, in their contexts."""
        offset = None if self.measured_ is None else self.measured_.get("offset")
        return None if offset is None else self._carried(offset, self.offset_shares_, weights, contexts)

    def _log_library_change(self, weights: np.ndarray, contexts: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Expected change of the log library of each cell, for its weighting, ``(n,)``."""
        assert self.measured_ is not None
        if "library_effect" not in self.measured_:
            raise InvalidInputError(
                '`library_size="perturbed"`: the model was trained before libraries were measured; `train_diffusion` again.'
            )
        return self._carried(self.measured_["library_effect"], self.library_shares_, weights, contexts)[:, 0]

    def _carried(
        self, effects: np.ndarray, shares: dict[str, float], weights: np.ndarray, contexts: Sequence[tuple[int, ...]]
    ) -> np.ndarray:
        """Weighted effects of the training treatments, as far as they are found again in cells of these contexts."""
        seen = set(self.perturbed_contexts_)
        return np.array([[shares["seen" if c in seen else "new"]] for c in contexts]) * (weights @ effects)

    @torch.inference_mode()
    def _shares_found(self, transfers: Iterable[Transfer]) -> tuple[float | None, float | None]:
        """How much of the offsets, and of the changes of the library, that some cells tell is found in the others; ``None`` where nothing is told."""
        offsets, libraries = FoundAgain(self.shrink), FoundAgain(self.shrink)
        for transfer in transfers:
            told, asked = transfer.told, transfer.asked
            libraries.add(
                told.library[None], told.library_variance[None], asked.library[None], asked.library_variance[None]
            )
            if self.rate_offset:
                rest = (
                    measured.log_ratio - self._through(transfer.effects, where)
                    for measured, where in ((told, transfer.told_in), (asked, transfer.asked_in))
                )
                offsets.add(next(rest), told.variance, next(rest), asked.variance)
        return offsets.share, libraries.share

    def _fit_shares(self, halves: Iterable[Transfer], contexts: Iterable[Transfer]) -> None:
        """Of a new context one context alone tells nothing; after surgery the reference's shares stay where the query tells nothing."""
        # The dictionaries of a reference are its own.
        before = (self.offset_shares_, self.library_shares_) if self.replay_ is not None else ({}, {})
        self.offset_shares_, self.library_shares_ = {}, {}
        for which, transfers in (("seen", halves), ("new", contexts)):
            fitted = zip(
                (self.offset_shares_, self.library_shares_), before, self._shares_found(transfers), strict=True
            )
            for shares, held, found in fitted:
                shares[which] = held.get(which, 0.0) if found is None else found
        if not self.shrink:
            # What was measured in a context is taken as it is.
            self.offset_shares_["seen"] = self.library_shares_["seen"] = 1.0

    def _through(self, effects: np.ndarray, where: set[tuple[int, ...]]) -> np.ndarray:
        """Log ratios that mean latent effects have through the decoder, on control cells of some contexts; NaN where none is remembered."""
        cells = next(self._reference(None, N_CALIBRATION_CELLS, where), None)
        if cells is None:
            return np.full((len(effects), len(self.get_var_names())), np.nan)
        _, state, table = cells
        base, out = self._mean_counts(state, table), []
        for effect in effects:
            moved = state.copy()
            moved[:, :-1] += effect * self._z_scale
            out.append(_log_ratio(self._mean_counts(moved, table), base))
        return np.array(out)

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

    def _finish_diffusion(self) -> None:
        """See what the spread of the trained prior is good for."""
        sampler, n_steps = self._sampler(None, None, USUAL_STEPS)
        scales = self.vocabulary.scales(1.0)

        def draw(codes: np.ndarray, streams: CellStreams) -> torch.Tensor:
            return self._sampled(codes, streams, sampler, n_steps, scales)

        gain = spread_gain(self.module.prior, self._probes, draw)
        # A query without perturbed cells tells nothing: what the reference knew stays.
        self.spread_gain_ = self.spread_gain_ if gain is None else gain
        del self._probes

    def _calibrate(self, halves: list[Transfer], contexts: Iterator[Transfer]) -> None:
        """Shares of the offsets and libraries, and factors on the standard deviations, one a status, from predictions of training effects left out.

        The measured effects have noise of their own; a factor is the one with which 90 % of them lie within their
        interval when that noise is added. For treatments that were seen, one half of the cells predicts the other. Of a
        factor below 1 the root is taken: the decoder has seen what is left out here, and will not have seen what is
        asked for.
        """
        assert self.measured_ is not None
        process = self._responses.process
        _, state, table = next(self._reference(None, N_CALIBRATION_CELLS, set(self.perturbed_contexts_)))
        base = self._mean_counts(state, table)
        eye, held = np.eye(len(process.treatments)), self.measured_
        fitted = np.array([self._effect(state, table, base, w)[0] for w in eye])
        if self.rate_offset:
            held["offset"] = repeatable(held["log_ratio"] - fitted, held["variance"], self.shrink).astype(np.float32)
        self._fit_shares(halves, contexts)

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
        return _log_ratio(self._mean_counts(moved, table), base)

    @property
    def _z_scale(self) -> np.ndarray:
        return self.module.prior.scale.detach().cpu().numpy()[:-1]

    def _factors(self, status: Sequence[str]) -> np.ndarray:
        other = self.calibration_["other"]
        return np.array([0.0 if s == "control" else self.calibration_.get(s, other) for s in status])


def _log_ratio(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Log ratio of mean counts, as effects are measured."""
    ratio: np.ndarray = np.log(after.mean(0) + PSEUDOCOUNT) - np.log(before.mean(0) + PSEUDOCOUNT)
    return ratio
