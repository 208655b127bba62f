"""What training says of the effects of perturbations: a Gaussian process over treatments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

from diffvi.data import Treatment

MAX_TREATMENTS = 1500
"""Hyperparameters are fitted on at most this many treatments: the time of each evaluation grows with their cube."""


@dataclass
class EffectWeights:
    """Predicted effects as weighted sums of the training effects.

    Parameters
    ----------
    weights
        ``(n_predictions, n_training)``: multiply by training effects, in whatever space, for the prediction.
    noise
        Variance that comes from the training effects' own measurement errors, ``(n_predictions,)``, in the units of
        the process (squared standard deviations of the latent).
    epistemic
        Variance of what the training effects do not determine, in the same units.
    deviation
        The part of it by which a combination that was not measured may deviate from the sum of its parts.
    status
        How much training says of each: see :meth:`EffectProcess.status`.

    Examples
    --------
    The prediction of a treatment that was measured badly draws on the measurement and on the others.

    >>> import numpy as np
    >>> from diffvi.module import EffectProcess
    >>> treatments = [(("A", 1.0),), (("B", 1.0),)]
    >>> process = EffectProcess(treatments, np.array([[2.0], [2.0]]), noise=np.array([5.0, 0.01]))
    >>> made = process.predict(treatments)
    >>> made.weights.shape, bool(made.weights[0, 1] > 0.1), bool(made.weights[1, 0] > 0.1)
    ((2, 2), True, False)
    """

    weights: np.ndarray
    noise: np.ndarray
    epistemic: np.ndarray
    deviation: np.ndarray
    status: list[str]


@dataclass
class EffectProcess:
    r"""Gaussian process over treatments, whose posterior mean is a weighted sum of measured effects.

    The effect of a single perturbation ``i`` at a dose of weight ``w`` (0 at dose 0) is a Brownian motion in ``w``, so
    that effects vanish with the dose and are interpolated linearly between measured doses; perturbations resemble each
    other by what they share and by their features; a combination is the sum of its parts times a scale, and a deviation:

    .. math::

        k(t, t') = s_t s_{t'} \sum_{i \in t} \sum_{j \in t'} \tau^2 \left[\rho + (1 - \rho) r_{ij}\right] \min(w_i, w_j)
                   + \kappa^2 \tau^2 |t| \, 1[t = t', |t| > 1]

    with :math:`r_{ij} = \lambda [(1 - \omega) e^{-|f_i - f_j|^2 / 2 \ell^2} + \omega f_i^T f_j] + (1 - \lambda) 1[i = j]` for
    features of mean length one (kernel ridge on them, linear and not), :math:`s_t = 1` for singles and the combination
    scale for combinations. Every measured effect has its own noise. So a treatment that was measured well is predicted by its measurement, one measured badly is drawn to what its parts, its neighbours and the
    mean effect say, a combination that was not measured is the scaled sum of its parts, and an unknown perturbation
    has the mean effect and a large variance. Hyperparameters maximise the marginal likelihood under weak priors.

    Parameters
    ----------
    treatments
        Treatments of the training conditions; no control.
    effects
        Their effects in standardised units, ``(n, d)``; the dimensions share the kernel.
    noise
        Variance of each measured effect, mean over dimensions, ``(n,)``.
    dose_unit, max_dose
        Scale of the doses: see :class:`~diffvi.data.PerturbationCoder`.
    features
        A vector for each single perturbation, for those that have one.
    shrink
        Draw noisy measurements to what the others say; otherwise take them as they are.
    params
        Hyperparameters; fitted where not given.

    Examples
    --------
    Two perturbations that were measured well. They are predicted as measured, their combination as the sum, and one that nothing is
    known of has a small effect and a large variance.

    >>> import numpy as np
    >>> from diffvi.module import EffectProcess
    >>> a, b, c = ("A", 1.0), ("B", 1.0), ("C", 1.0)
    >>> process = EffectProcess([(a,), (b,)], np.array([[2.0, 0.0], [0.0, 3.0]]), noise=np.full(2, 0.01))
    >>> made = process.predict([(a,), (a, b), (c,)])
    >>> made.status
    ['seen', 'combo_seen2', 'unseen_no_information']
    >>> (made.weights @ process.effects).round(1).tolist()
    [[2.0, 0.0], [2.0, 3.0], [0.3, 0.5]]
    >>> made.epistemic.round(1).tolist()
    [0.0, 0.7, 3.1]
    """

    treatments: list[Treatment]
    effects: np.ndarray
    noise: np.ndarray
    dose_unit: float = 1.0
    max_dose: float = 1.0
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    shrink: bool = True
    params: dict[str, float] = field(default_factory=dict)

    DEFAULTS = {"tau2": 1.0, "rho": 0.2, "scale": 1.0, "kappa2": 0.1, "lam": 0.5, "length": 1.0, "omega": 0.5}

    def __post_init__(self) -> None:
        self.noise = np.maximum(np.asarray(self.noise, float), 1e-8)
        self.known = {part for t in self.treatments for part, _ in t}
        lengths = [float(np.linalg.norm(f)) for f in self.features.values()]
        self._norm = float(np.sqrt(np.mean(np.square(lengths)))) or 1.0 if lengths else 1.0
        self._length = self._median_distance()
        if not self.params:
            self.params = self._fit()
        self._covariance = self._kernel(self.treatments, self.treatments) + self._misfit(self.treatments)
        noise = self.noise if self.shrink else np.full_like(self.noise, 1e-6 * self.params["tau2"])
        self._precision = np.linalg.inv(self._covariance + np.diag(noise))

    # ---------------------------------------------------------------- kernel

    def _weight(self, doses: np.ndarray) -> np.ndarray:
        return np.log1p(doses / self.dose_unit) / np.log1p(self.max_dose / self.dose_unit)

    def _median_distance(self) -> float:
        vectors = np.array([self.features[p] for p in sorted(self.known) if p in self.features]) / self._norm
        if len(vectors) < 2:
            return 1.0
        distances = cdist(vectors, vectors)[np.triu_indices(len(vectors), 1)]
        return float(np.median(distances)) or 1.0

    def _design(self, treatments: Sequence[Treatment], scale: float) -> tuple[list[tuple[str, float]], np.ndarray]:
        items = sorted({item for t in treatments for item in t})
        place = {item: j for j, item in enumerate(items)}
        design = np.zeros((len(treatments), len(items)))
        for i, treatment in enumerate(treatments):
            for item in treatment:
                design[i, place[item]] = 1.0 if len(treatment) == 1 else scale
        return items, design

    def _kernel(self, a: Sequence[Treatment], b: Sequence[Treatment], p: dict[str, float] | None = None) -> np.ndarray:
        """Covariance without the deviation of combinations, ``(len(a), len(b))``."""
        p = p or self.params
        (items_a, design_a), (items_b, design_b) = (self._design(t, p["scale"]) for t in (a, b))
        if not items_a or not items_b:
            return np.zeros((len(a), len(b)))
        names_a, names_b = (np.array([name for name, _ in items]) for items in (items_a, items_b))
        same = (names_a[:, None] == names_b[None]).astype(float)
        if self.features:
            one, two = (self._vectors(items) for items in (items_a, items_b))
            alike = (1 - p["omega"]) * np.exp(-0.5 * (cdist(one, two) / (p["length"] * self._length)) ** 2)
            alike = np.nan_to_num(alike + p["omega"] * (one @ two.T))
            # Perturbations without features resemble none but themselves.
            bare = np.isnan(one[:, :1]) & np.isnan(two[:, 0])[None]
            same = np.where(bare, same, p["lam"] * alike + (1 - p["lam"]) * same)
        doses = [self._weight(np.array([d for _, d in items])) for items in (items_a, items_b)]
        core = p["tau2"] * (p["rho"] + (1 - p["rho"]) * same) * np.minimum(doses[0][:, None], doses[1][None])
        return design_a @ core @ design_b.T

    def _vectors(self, items: Sequence[tuple[str, float]]) -> np.ndarray:
        """Features of items at a mean length of one; NaN where there are none."""
        unknown = np.full(len(next(iter(self.features.values()))), np.nan)
        return np.array([self.features.get(name, unknown) for name, _ in items], dtype=float) / self._norm

    def _misfit(self, treatments: Sequence[Treatment], p: dict[str, float] | None = None) -> np.ndarray:
        p = p or self.params
        return np.diag([p["kappa2"] * p["tau2"] * len(t) * (len(t) > 1) for t in treatments])

    # ---------------------------------------------------------------- fit

    def _free(self) -> list[str]:
        free = ["tau2"]
        if len(self.treatments) >= 4:
            free.append("rho")
        combined = [t for t in self.treatments if len(t) > 1]
        if len(combined) >= 2:
            free += ["scale", "kappa2"]
        if len(self.features) >= 4:
            free += ["lam", "length", "omega"]
        return free

    def _fit(self) -> dict[str, float]:
        free, n = self._free(), len(self.treatments)
        if n == 0:
            return {**self.DEFAULTS, "lam": 0.0}
        rows = np.arange(n)
        if n > MAX_TREATMENTS:
            rows = np.random.default_rng(0).choice(n, MAX_TREATMENTS, replace=False)
        treatments, y, noise = [self.treatments[i] for i in rows], self.effects[rows], self.noise[rows]
        start = {**self.DEFAULTS, "tau2": float(max((y**2).mean() - noise.mean(), 0.05 * (y**2).mean(), 1e-6))}
        if "lam" not in free:
            start["lam"] = 0.5 if self.features else 0.0
        transform = dict.fromkeys(("rho", "lam", "omega"), _logit)
        inverse = dict.fromkeys(transform, _expit)
        # Weak priors, as standard deviations on the transformed scale.
        spread = {"tau2": 3.0, "rho": 1.5, "scale": 0.3, "kappa2": 1.5, "lam": 1.5, "length": 0.7, "omega": 1.5}
        centre = np.array([transform.get(k, np.log)(start[k]) for k in free])

        def unpack(x: np.ndarray) -> dict[str, float]:
            return {**start, **{k: float(inverse.get(k, np.exp)(v)) for k, v in zip(free, x, strict=True)}}

        def loss(x: np.ndarray) -> float:
            p = unpack(x)
            k = self._kernel(treatments, treatments, p) + self._misfit(treatments, p)
            factor = cho_factor(k + np.diag(noise + 1e-9), lower=True)
            fit = 0.5 * (y * cho_solve(factor, y)).sum() + y.shape[1] * np.log(np.diag(factor[0])).sum()
            return float(fit + 0.5 * (((x - centre) / [spread[k] for k in free]) ** 2).sum())

        best = minimize(loss, centre, method="L-BFGS-B", bounds=[(c - 8, c + 8) for c in centre])
        return unpack(best.x)

    # ---------------------------------------------------------------- predictions

    def predict(self, treatments: Sequence[Treatment]) -> EffectWeights:
        """Weights and variances for treatments; those of the control are zero.

        Parameters
        ----------
        treatments
            Any treatments, seen or not.

        Returns
        -------
        Weights ``(len(treatments), n_training)``: the prediction is ``weights @ effects``.
        """
        cross = self._kernel(treatments, self.treatments)
        prior = np.array([self._kernel([t], [t])[0, 0] for t in treatments])
        place = {t: j for j, t in enumerate(self.treatments)}
        extra = np.diag(self._misfit(treatments)) if len(treatments) else np.zeros(0)
        for i, treatment in enumerate(treatments):
            if treatment in place:
                cross[i, place[treatment]] += extra[i]
        weights = cross @ self._precision
        total = prior + extra - (weights * cross).sum(1)
        noise = (weights**2) @ self.noise
        epistemic, status = np.maximum(total - noise, 0.0), [self.status(t) for t in treatments]
        return EffectWeights(weights, noise, epistemic, self._deviation(treatments, status, epistemic), status)

    def leave_one_out(self) -> EffectWeights:
        """What would be predicted for each training treatment without its own measurement.

        Returns
        -------
        Weights ``(n_training, n_training)``, zero on the diagonal. The hyperparameters are those fitted with all treatments.
        """
        diagonal = np.diag(self._precision)
        weights = -self._precision / diagonal[:, None]
        np.fill_diagonal(weights, 0.0)
        noise = (weights**2) @ self.noise
        own = self.noise if self.shrink else 1e-6 * self.params["tau2"]
        status = [self.status(t, without=t) for t in self.treatments]
        epistemic = np.maximum(1 / diagonal - own - noise, 0.0)
        return EffectWeights(weights, noise, epistemic, self._deviation(self.treatments, status, epistemic), status)

    def _deviation(self, treatments: Sequence[Treatment], status: list[str], epistemic: np.ndarray) -> np.ndarray:
        """Variance of what is a combination's own, where it was not measured."""
        own = np.diag(self._misfit(treatments)) if len(treatments) else np.zeros(0)
        return np.minimum(np.where([s.startswith("combo") for s in status], own, 0.0), epistemic)

    def status(self, treatment: Treatment, without: Treatment | None = None) -> str:
        """How much training says about a treatment.

        Parameters
        ----------
        treatment
            Any treatment.
        without
            A training treatment that is taken for not measured.

        Returns
        -------
        ``"control"``, ``"seen"``, ``"combo_seen{n}"`` for a combination of which ``n`` parts are known, or for a single perturbation
        ``"unseen_dose"``, ``"seen_in_combination"``, ``"unseen_embedded"`` (it has features) or ``"unseen_no_information"``.
        """
        others = [t for t in self.treatments if t != without] if without is not None else self.treatments
        known = {part for t in others for part, _ in t} if without is not None else self.known
        if not treatment:
            return "control"
        if without is None and treatment in set(self.treatments):
            return "seen"
        if len(treatment) > 1:
            return f"combo_seen{sum(part in known for part, _ in treatment)}"
        part = treatment[0][0]
        if any(len(t) == 1 and t[0][0] == part for t in others):
            return "unseen_dose"
        if part in known:
            return "seen_in_combination"
        return "unseen_embedded" if part in self.features else "unseen_no_information"

    def to_dict(self) -> dict[str, Any]:
        """Everything needed to make the process again: ``EffectProcess(**values)``, without a second fit."""
        return {
            "treatments": list(self.treatments),
            "effects": self.effects,
            "noise": self.noise,
            "dose_unit": self.dose_unit,
            "max_dose": self.max_dose,
            "features": dict(self.features),
            "shrink": self.shrink,
            "params": dict(self.params),
        }


def _logit(p: float) -> float:
    p = min(max(p, 1e-4), 1 - 1e-4)
    return float(np.log(p / (1 - p)))


def _expit(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))
