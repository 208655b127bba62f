"""How control cells respond to the treatments of the training data, and to others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.neighbors import NearestNeighbors

from diffvi.data import Treatment

from ._effects import EffectProcess, EffectWeights

LEAST_WEIGHT = 0.05
"""A training treatment that counts less than this in a prediction adds its mean effect, not how it differs by cell."""


@dataclass
class Responses:
    """Latent changes of control cells, remembered from training.

    A prediction for a cell is a weighted sum over training treatments (see :class:`EffectProcess`) of the mean effect of
    each, plus how the responses of the cells most like it differ from that mean. With a treatment seen in several
    contexts, the contexts whose control cells are near thereby count most.

    Parameters
    ----------
    process
        Mean effects and the weights of a prediction.
    source, change, treatment
        Pairs of a control and a treated cell: latent of the control ``(n_pairs, d)``, difference ``(n_pairs, d)``, row
        of the treatment in ``process.treatments``, all in standardised units.
    n_neighbors
        Pairs that count as alike; 0 for mean effects alone.

    Examples
    --------
    A treatment whose effect is 1 on cells around 0 and 3 on cells around 5:

    >>> import numpy as np
    >>> from diffvi.module import EffectProcess, Responses
    >>> drug = (("A", 1.0),)
    >>> process = EffectProcess([drug], np.array([[2.0]]), noise=np.array([0.001]))
    >>> source, change = np.repeat([[0.0], [5.0]], 20, axis=0), np.repeat([[1.0], [3.0]], 20, axis=0)
    >>> responses = Responses(process, source, change, np.zeros(40, int), n_neighbors=10)
    >>> responses.shifts(np.array([[0.0], [5.0], [5.0]]), [drug, drug, ()]).round(1).tolist()
    [[1.0], [3.0], [0.0]]
    """

    process: EffectProcess
    source: np.ndarray
    change: np.ndarray
    treatment: np.ndarray
    n_neighbors: int = 100
    _searches: dict[int, Any] = field(default_factory=dict, repr=False)

    def predict(self, treatments: Sequence[Treatment]) -> EffectWeights:
        """Weights and variances: see :meth:`EffectProcess.predict`."""
        return self.process.predict(treatments)

    def shift(self, z: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Change of control cells at ``z`` of shape ``(n, d)`` under one weighting of the training treatments.

        Parameters
        ----------
        z
            Standardised latent of the cells.
        weights
            A row of :attr:`EffectWeights.weights`, ``(n_training,)``.

        Returns
        -------
        Change in standardised units, ``(n, d)``.
        """
        change = np.broadcast_to(weights @ self.process.effects, z.shape).copy()
        for row in np.flatnonzero(np.abs(weights) > LEAST_WEIGHT):
            change += weights[row] * self._deviation(int(row), z)
        return change

    def shifts(self, z: np.ndarray, treatments: Sequence[Treatment]) -> np.ndarray:
        """Change of each cell at ``z`` under its own treatment, ``(n, d)``; zero for the control."""
        unique = sorted(set(treatments))
        number = {t: i for i, t in enumerate(unique)}
        which = np.array([number[t] for t in treatments], dtype=int)
        predicted = self.predict(unique)
        out = np.zeros_like(z)
        for i, treatment in enumerate(unique):
            if treatment:
                out[which == i] = self.shift(z[which == i], predicted.weights[i])
        return out

    def _deviation(self, row: int, z: np.ndarray) -> np.ndarray | float:
        """How the pairs near ``z`` differ from the mean response to a treatment."""
        if row not in self._searches:
            mine = np.flatnonzero(self.treatment == row)
            few = self.n_neighbors < 1 or len(mine) <= self.n_neighbors
            search = None if few else NearestNeighbors(n_neighbors=self.n_neighbors).fit(self.source[mine])
            self._searches[row] = (mine, search)
        mine, search = self._searches[row]
        if search is None or len(z) == 0:
            return 0.0
        near = search.kneighbors(z, return_distance=False)
        change = self.change[mine]
        return change[near].mean(1) - change.mean(0)

    def joined(self, others: Responses, ratio: np.ndarray, offset: np.ndarray) -> tuple[Responses, list[int]]:
        """With the treatments of ``others`` that this one lacks, and which of them those are.

        A latent ``z`` of the others is ``ratio * z + offset`` in the units of this one.

        Parameters
        ----------
        others
            Responses whose doses have the same unit as those of this one.
        ratio, offset
            From their units to those of this one, ``(d,)``.

        Returns
        -------
        The joined responses, with hyperparameters fitted anew, and rows of ``others.process.treatments``.
        """
        mine, theirs = self.process, others.process
        taken = [i for i, t in enumerate(theirs.treatments) if t not in set(mine.treatments)]
        pairs = np.flatnonzero(np.isin(others.treatment, taken))
        place = {old: len(mine.treatments) + new for new, old in enumerate(taken)}
        process = EffectProcess(
            **{
                **mine.to_dict(),
                "treatments": [*mine.treatments, *(theirs.treatments[i] for i in taken)],
                "effects": np.concatenate([mine.effects, theirs.effects[taken] * ratio]),
                "noise": np.concatenate([mine.noise, theirs.noise[taken] * float((ratio**2).mean())]),
                "dose_unit": min(mine.dose_unit, theirs.dose_unit),
                "max_dose": max(mine.max_dose, theirs.max_dose),
                "params": {},
            }
        )
        which = np.array([place[i] for i in others.treatment[pairs]], dtype=int)
        return Responses(
            process,
            np.concatenate([self.source, others.source[pairs] * ratio + offset]),
            np.concatenate([self.change, others.change[pairs] * ratio]),
            np.concatenate([self.treatment, which]),
            self.n_neighbors,
        ), taken

    def to_dict(self) -> dict[str, Any]:
        """Plain values and arrays that can be saved."""
        names = ("source", "change", "treatment", "n_neighbors")
        return {"process": self.process.to_dict(), **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Responses:
        """The inverse of :meth:`to_dict`."""
        return cls(**{**values, "process": EffectProcess(**values["process"])})
