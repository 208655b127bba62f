"""Coordinates in comparable units, and the measured locations around a location."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.neighbors import NearestNeighbors

FAR = 10.0
"""A location so many times the size of a frame, two standard deviations, from its middle is far outside."""
THINNING = 4
"""Of so many locations a coarser level of neighbours keeps one."""


@dataclass
class Frames:
    """The frames that coordinates are given in, each with its centre and its units.

    Parameters
    ----------
    names
        Name of each frame, such as a section.
    centre, unit, reach
        Per frame and axis, ``(n_frames, n_dims)``: mean; distance between neighbouring locations, that of the planes for a third axis with few
        values; and standard deviation in these units.

    Examples
    --------
    A grid with a spacing of 50, as of spots that are 50 µm apart:

    >>> import numpy as np
    >>> from diffvi.module import Frames
    >>> grid = 50.0 * np.stack(np.meshgrid(np.arange(9), np.arange(9)), -1).reshape(-1, 2)
    >>> frame = np.zeros(81, int)
    >>> frames = Frames.fit(grid, frame, ["section"])
    >>> frames.unit.tolist(), frames.scaled(grid, frame)[0].tolist()
    ([[50.0, 50.0]], [-4.0, -4.0])
    >>> frames.far(np.array([[0.0, 0.0], [0.0, 100.0]]), frame[:2]).tolist()
    [False, True]
    """

    names: list[str]
    centre: np.ndarray
    unit: np.ndarray
    reach: np.ndarray

    @classmethod
    def fit(cls, coordinates: np.ndarray, frame: np.ndarray, names: Sequence[str]) -> Frames:
        """Frames of coordinates, ``(n, n_dims)``, with the number of the frame of each.

        Parameters
        ----------
        coordinates
            In whatever unit the frame has.
        frame
            Rows of ``names``, ``(n,)``.
        names
            Name of each frame; one without locations gets ones throughout.
        """
        n_dims = coordinates.shape[1]
        centre, unit, reach = (np.ones((len(names), n_dims)) for _ in range(3))
        for f in range(len(names)):
            mine = coordinates[frame == f]
            if len(mine):
                centre[f], unit[f] = mine.mean(0), _spacing(mine)
                reach[f] = np.maximum(mine.std(0) / unit[f], 1e-6)
        return cls(list(names), centre, unit, reach)

    def scaled(self, coordinates: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """Coordinates from the centre of their frame, in units of the distance between neighbours, ``(n, n_dims)``."""
        return (coordinates - self.centre[frame]) / self.unit[frame]

    def far(self, scaled: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """Locations further from the middle of their frame than ten times its size."""
        return (np.abs(scaled) > FAR * 2 * np.maximum(self.reach[frame], 1.0)).any(1)

    def waves(self, scaled: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """Fourier features of where a location is in its frame, five an axis, each axis on its own scale."""
        u = np.clip(scaled / self.reach[frame], -4, 4)
        angles = [0.5 * np.pi * f * u / 2 for f in (1, 2)]
        return np.concatenate([u, *map(np.sin, angles), *map(np.cos, angles)], 1).astype(np.float32)


def _spacing(coordinates: np.ndarray) -> np.ndarray:
    """Typical distance between neighbouring distinct locations, per axis."""
    if coordinates.shape[1] == 3:
        planes = np.unique(coordinates[:, 2])
        if len(planes) <= max(2, len(coordinates) / 5):
            gaps = np.diff(planes)
            flat = [_nearest(coordinates[coordinates[:, 2] == z, :2]) for z in planes]
            across = float(np.median(np.concatenate(flat))) if sum(map(len, flat)) else 1.0
            return np.array([across, across, float(np.median(gaps)) if len(gaps) else across])
    distances = _nearest(coordinates)
    return np.full(coordinates.shape[1], float(np.median(distances)) if len(distances) else 1.0)


def _nearest(coordinates: np.ndarray) -> np.ndarray:
    """Distance from each distinct location to the nearest other one."""
    points = np.unique(coordinates, axis=0)
    if len(points) < 2:
        return np.empty(0)
    return NearestNeighbors(n_neighbors=2).fit(points).kneighbors(points)[0][:, 1]


class Surroundings:
    """Finds the measured locations around others, within their frame: the nearest, and a few of coarser and coarser subsets.

    The coarser ones show what is further away at no cost that grows with the distance.

    Parameters
    ----------
    scaled, frame
        Measured locations.
    rows
        Those that may be found; the numbers that are returned are rows of ``scaled``.
    n_near
        Nearest locations.
    n_far
        Locations of each coarser level, of which there are two.
    seed
        Seed of the subsets.

    Examples
    --------
    Around the middle of a line: the two nearest, then one of each of two coarser levels.

    >>> import numpy as np
    >>> from diffvi.module import Surroundings
    >>> line, frame = np.arange(101.0)[:, None], np.zeros(101, int)
    >>> around = Surroundings(line, frame, np.arange(101), n_near=2, n_far=1)
    >>> found = around(line[50:51], frame[:1], itself=np.array([50]))
    >>> found.shape, sorted(found[0, :2].tolist())
    ((1, 4), [49, 51])
    """

    def __init__(
        self, scaled: np.ndarray, frame: np.ndarray, rows: np.ndarray, n_near: int, n_far: int = 8, seed: int = 0
    ) -> None:
        self.sizes = (n_near, n_far, n_far)
        self.searches: dict[int, list[tuple[np.ndarray, NearestNeighbors]]] = {}
        rng = np.random.default_rng(seed)
        for f in np.unique(frame[rows]):
            left = rng.permutation(rows[frame[rows] == f])
            levels = self.searches[int(f)] = []
            for size in self.sizes:
                # One more than is asked for, should the location itself be among them.
                levels.append((left, NearestNeighbors(n_neighbors=min(size + 1, len(left))).fit(scaled[left])))
                left = left[: max(len(left) // THINNING, min(len(left), size + 1))]

    @property
    def size(self) -> int:
        """Locations that are returned for each, at most."""
        return sum(self.sizes)

    def __call__(self, scaled: np.ndarray, frame: np.ndarray, itself: np.ndarray | None = None) -> np.ndarray:
        """Rows of the locations around others, ``(n, size)``, nearest first in each level and -1 where there is none.

        Parameters
        ----------
        scaled, frame
            The locations.
        itself
            For each the row that is the location itself and must not be found.
        """
        found = np.full((len(scaled), self.size), -1)
        for f, levels in self.searches.items():
            mine = np.flatnonzero(frame == f)
            first = 0
            for size, (rows, search) in zip(self.sizes, levels, strict=True):
                if len(mine):
                    near = rows[search.kneighbors(scaled[mine], return_distance=False)]
                    if itself is not None:
                        near = _without(near, itself[mine])
                    near = near[:, :size]
                    found[mine, first : first + near.shape[1]] = near
                first += size
        for j in range(self.sizes[0], self.size):
            again = (found[:, :j] == found[:, j : j + 1]).any(1)
            found[again, j] = -1
        return found


def _without(near: np.ndarray, itself: np.ndarray) -> np.ndarray:
    """Neighbours with a row taken out of each, and -1 behind."""
    near = np.where(near == itself[:, None], -1, near)
    return np.take_along_axis(near, np.argsort(near == -1, axis=1, kind="stable"), 1)
