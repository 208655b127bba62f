"""Paths of cells through the measured times and between them, as training examples of how cells move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ._transport import Coupling, walk


class Moves(NamedTuple):
    """Pairs of states on one path: ``start`` at time ``begin`` and ``arrival`` at time ``end``.

    ``source`` is the row of the measured cell that the path comes from, ``target`` that of the measured cell on it that is nearest
    in time to the arrival: the arrival itself, half of the time. States are ``(n, d)``, times and rows ``(n,)``. For an
    example see :class:`PathSampler`.
    """

    start: np.ndarray
    begin: np.ndarray
    arrival: np.ndarray
    end: np.ndarray
    source: np.ndarray
    target: np.ndarray


@dataclass
class PathSampler:
    r"""Draws from the path measure that couplings and Brownian bridges make.

    At the measured times a path is a Markov chain through the plans; between two it is a Brownian bridge with the variance
    that belongs to the plan's entropy. That is the Schrödinger bridge through all populations, a Markov process
    (:cite:p:`Leonard14`), so that one long move and many short ones have the same distribution.

    Parameters
    ----------
    times
        The measured times, ascending.
    rows
        Rows of the cells of each time.
    couplings
        One between each two neighbouring times.
    draw
        States of the given rows, drawn anew at each call; the last column is the log library.
    project
        Moves states that lie between two times, with the weight of that (0 at a measured time, 1 in the middle) and the direction
        in which the path goes, to where cells are.

    Examples
    --------
    Three populations that drift by 5 and scarcely spread. A move takes a cell as far as its time says, wherever it begins.

    >>> import numpy as np
    >>> from diffvi.process import PathSampler, couple
    >>> rng = np.random.default_rng(0)
    >>> states = np.concatenate([rng.normal(0.1 * rng.normal(size=(50, 2)) + [5 * t, 0], 0.1) for t in range(3)])
    >>> rows = np.split(np.arange(150), 3)
    >>> couplings = [couple(states[a], states[b], entropy=0.001) for a, b in zip(rows, rows[1:])]
    >>> paths = PathSampler(np.arange(3.0), rows, couplings, lambda r: states[r], lambda x, weight, direction: x)
    >>> moves = paths.moves(200, False, rng)
    >>> moves.start.shape, bool((moves.end >= moves.begin).all())
    ((200, 2), True)
    >>> speed = (moves.arrival - moves.start)[:, 0].sum() / (moves.end - moves.begin).sum()
    >>> float(speed.round(1))
    5.0
    """

    times: np.ndarray
    rows: Sequence[np.ndarray]
    couplings: Sequence[Coupling]
    draw: Callable[[np.ndarray], np.ndarray]
    project: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

    def moves(self, n: int, backward: bool, rng: np.random.Generator) -> Moves:
        """``n`` moves, of all lengths, forward or backward in time.

        Parameters
        ----------
        n
            Number of moves. They begin in every interval alike, however long it is.
        backward
            Whether the end of a move is before its begin.
        rng
            Where the randomness comes from.

        Returns
        -------
        The moves, those that begin in the first interval first.
        """
        last = len(self.times) - 1
        begins = rng.integers(last, size=n)
        parts = [self._from(k, int((begins == k).sum()), backward, rng) for k in range(last)]
        return Moves(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    def _from(self, k: int, n: int, backward: bool, rng: np.random.Generator) -> Moves:
        """Moves that begin in the ``k``-th interval, counted from where the paths start."""
        order = np.arange(len(self.times))[:: -1 if backward else 1][k:]
        at = self.times[order]
        cells = rng.integers(len(self.rows[order[0]]), size=n)
        path = walk(self.couplings, int(order[0]), cells, backward, rng)
        rows = np.stack([self.rows[o][path[:, i]] for i, o in enumerate(order)], axis=1)
        states = self.draw(rows.ravel()).reshape(*rows.shape, -1)
        each = np.arange(n)

        # Half of the moves begin at a measured time and half of them end at one.
        part = np.where(rng.random(n) < 0.5, 0.0, rng.random(n))
        begin = at[0] + part * (at[1] - at[0])
        start = self._bridge(states[:, 0], states[:, 1], at[0], at[1], begin, order[:2], rng)
        left = rng.integers(len(at) - 1, size=n)
        measured = rng.random(n) < 0.5
        floor = np.where(left == 0, begin, at[left])
        end = np.where(measured, at[left + 1], floor + rng.random(n) * (at[left + 1] - floor))
        previous = np.where((left == 0)[:, None], start, states[each, left])
        interval = np.stack([order[left], order[left + 1]])
        arrival = self._bridge(previous, states[each, left + 1], floor, at[left + 1], end, interval, rng)
        past = np.abs(end - at[left]) < np.abs(at[left + 1] - end)
        target = rows[each, np.where(past, left, left + 1)]
        start = self._projected(start, begin, at[0], at[1], states[:, 1] - states[:, 0])
        direction = states[each, left + 1] - states[each, left]
        arrival = self._projected(arrival, end, at[left], at[left + 1], direction)
        return Moves(start, begin, arrival, end, rows[:, 0], target)

    def _bridge(
        self,
        a: np.ndarray,
        b: np.ndarray,
        begin: np.ndarray | float,
        end: np.ndarray | float,
        time: np.ndarray,
        interval: np.ndarray,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """States at ``time`` on Brownian bridges from ``a`` to ``b``; the library is that of one of the ends."""
        first = np.minimum(interval[0], interval[1])
        spread = np.array([c.spread for c in self.couplings])[first]
        whole = self.times[first + 1] - self.times[first]
        gap = np.asarray(end, float) - begin
        part = (time - begin) / np.where(gap == 0, 1.0, gap)
        variance = spread / whole * part * (1 - part) * np.abs(gap)
        out = a + part[:, None] * (b - a) + np.sqrt(variance)[:, None] * rng.normal(size=a.shape)
        out[:, -1] = np.where(rng.random(len(a)) < part, b[:, -1], a[:, -1])
        return out

    def _projected(
        self, states: np.ndarray, time: np.ndarray, begin: np.ndarray, end: np.ndarray, direction: np.ndarray
    ) -> np.ndarray:
        part = (time - begin) / (end - begin)
        return self.project(states, 4 * part * (1 - part), direction)
