"""Expression at a location from the locations around it."""

from __future__ import annotations

import warnings
from typing import Protocol

import numpy as np
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import RidgeCV
from sklearn.neighbors import NearestNeighbors


class SpatialPredictor(Protocol):
    """A method that predicts log-normalised expression at locations."""

    name: str

    def fit(self, coordinates: np.ndarray, values: np.ndarray) -> None:
        """Learn from measured locations, ``(n, d)`` and ``(n, n_genes)``.

        Parameters
        ----------
        coordinates
            Measured locations, ``(n, d)``.
        values
            Log-normalised expression there, ``(n, n_genes)``.
        """

    def predict(self, coordinates: np.ndarray) -> np.ndarray:
        """Mean expression.

        Parameters
        ----------
        coordinates
            Locations, ``(m, d)``.

        Returns
        -------
        ``(m, n_genes)``, log-normalised.
        """

    def sample(self, coordinates: np.ndarray, seed: int) -> np.ndarray:
        """One sample of the expression; a method without a spread gives its mean.

        Parameters
        ----------
        coordinates
            Locations, ``(m, d)``.
        seed
            Seed of the draw.

        Returns
        -------
        ``(m, n_genes)``, log-normalised.
        """


class KNNSpace:
    """Mean of the ``k`` nearest measured locations.

    Parameters
    ----------
    k
        Neighbours.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import KNNSpace
    >>> method = KNNSpace(k=2)
    >>> method.fit(np.array([[0.0], [1.0], [9.0]]), np.array([[0.0], [1.0], [5.0]]))
    >>> method.predict(np.array([[0.2]]))
    array([[0.5]])
    """

    name = "kNN"

    def __init__(self, k: int = 10) -> None:
        self.k = k

    def fit(self, coordinates: np.ndarray, values: np.ndarray) -> None:
        """Keep the locations."""
        self.values = np.asarray(values, float)
        self.neighbours = NearestNeighbors(n_neighbors=min(self.k, len(values))).fit(coordinates)

    def weights(self, distances: np.ndarray) -> np.ndarray:
        """Weight of every neighbour, ``(n, k)`` from distances ``(n, k)``; they need not sum to 1."""
        return np.ones_like(distances)

    def predict(self, coordinates: np.ndarray) -> np.ndarray:
        """Weighted mean of the neighbours."""
        distances, rows = self.neighbours.kneighbors(coordinates)
        weights = self.weights(distances)
        weights = weights / weights.sum(1, keepdims=True)
        ends = np.arange(0, rows.size + 1, rows.shape[1])
        graph = sparse.csr_matrix((weights.ravel(), rows.ravel(), ends), shape=(len(rows), len(self.values)))
        return graph @ self.values

    def sample(self, coordinates: np.ndarray, seed: int) -> np.ndarray:
        """The mean."""
        return self.predict(coordinates)


class IDW(KNNSpace):
    """Inverse-distance weighting (Shepard 1968) of the nearest locations.

    Parameters
    ----------
    k
        Neighbours.
    power
        Exponent of the distance.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import IDW
    >>> method = IDW()
    >>> method.fit(np.array([[0.0], [1.0]]), np.array([[0.0], [1.0]]))
    >>> method.predict(np.array([[0.25]])).round(2)  # nearer to 0, and more like what is there
    array([[0.1]])
    """

    name = "IDW"

    def __init__(self, k: int = 30, power: float = 2.0) -> None:
        super().__init__(k)
        self.power = power

    def weights(self, distances: np.ndarray) -> np.ndarray:
        """Inverse distances, raised to the power, ``(n, k)``."""
        return 1 / np.maximum(distances, 1e-9) ** self.power


class NeighbourSample(KNNSpace):
    """A measured neighbour, drawn at random: keeps the noise and the variance that smoothers lose.

    Parameters
    ----------
    k
        Neighbours to draw from.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import NeighbourSample
    >>> method = NeighbourSample(k=2)
    >>> method.fit(np.array([[0.0], [1.0]]), np.array([[0.0], [1.0]]))
    >>> np.unique(method.sample(np.full((20, 1), 0.5), seed=0))  # a measured value, never one between
    array([0., 1.])
    """

    name = "sampled neighbour"

    def sample(self, coordinates: np.ndarray, seed: int) -> np.ndarray:
        """The values of one of the ``k`` neighbours."""
        rows = self.neighbours.kneighbors(coordinates, return_distance=False)
        chosen = np.random.default_rng(seed).integers(rows.shape[1], size=len(rows))
        return self.values[rows[np.arange(len(rows)), chosen]]


class GPSpace:
    """Gaussian process (kriging) on principal components, its range and nugget fitted by marginal likelihood.

    Parameters
    ----------
    n_components
        Principal components of the expression.
    max_locations
        Locations that the process is fitted to, drawn at random: its cost is cubic.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import GPSpace
    >>> x = np.random.default_rng(0).uniform(0, 6, size=(200, 1))
    >>> method = GPSpace()
    >>> method.fit(x, np.c_[np.sin(x), np.cos(x)])
    >>> where = np.array([[1.0], [2.0], [4.0]])
    >>> bool(np.allclose(method.predict(where), np.c_[np.sin(where), np.cos(where)], atol=0.05))
    True
    """

    name = "GP"

    def __init__(self, n_components: int = 10, max_locations: int = 1500) -> None:
        self.n_components, self.max_locations = n_components, max_locations

    def fit(self, coordinates: np.ndarray, values: np.ndarray) -> None:
        """Fit one process a component; ranges on a part of the locations."""
        rng = np.random.default_rng(0)
        rows = rng.permutation(len(values))[: self.max_locations]
        self.scale = coordinates.std()
        self.pca = PCA(min(self.n_components, *values.shape), random_state=0).fit(values)
        targets = self.pca.transform(values)
        self.residual = (values - self.pca.inverse_transform(targets)).std(0)
        kernel = ConstantKernel(0.5) * RBF(0.2, (1e-2, 5.0)) + WhiteKernel(0.5)
        few = rows[:500]
        self.models = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for target in targets.T:
                fitted = GaussianProcessRegressor(kernel, normalize_y=True).fit(
                    coordinates[few] / self.scale, target[few]
                )
                whole = GaussianProcessRegressor(fitted.kernel_, optimizer=None, normalize_y=True)
                self.models.append(whole.fit(coordinates[rows] / self.scale, target[rows]))

    def predict(self, coordinates: np.ndarray) -> np.ndarray:
        """Posterior mean."""
        z = np.stack([model.predict(coordinates / self.scale) for model in self.models], 1)
        return self.pca.inverse_transform(z)

    def sample(self, coordinates: np.ndarray, seed: int) -> np.ndarray:
        """A draw from the posterior, nugget included, plus the noise that the components leave out."""
        z = np.concatenate([m.sample_y(coordinates / self.scale, random_state=seed) for m in self.models], 1)
        noise = np.random.default_rng(seed).normal(size=(len(z), len(self.residual)))
        return self.pca.inverse_transform(z) + self.residual * noise


class FourierRidge:
    """Ridge regression on random Fourier features of the coordinates, its penalty chosen by leaving one out.

    Parameters
    ----------
    n_waves
        Frequencies on each of three scales.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import FourierRidge
    >>> x = np.random.default_rng(0).uniform(0, 6, size=(200, 1))
    >>> method = FourierRidge()
    >>> method.fit(x, np.c_[np.sin(x), np.cos(x)])
    >>> where = np.array([[1.0], [2.0], [4.0]])
    >>> bool(np.allclose(method.predict(where), np.c_[np.sin(where), np.cos(where)], atol=0.05))
    True
    """

    name = "Fourier ridge"

    def __init__(self, n_waves: int = 66) -> None:
        self.n_waves = n_waves

    def fit(self, coordinates: np.ndarray, values: np.ndarray) -> None:
        """Fit all genes at once."""
        rng = np.random.default_rng(0)
        self.centre, self.scale = coordinates.mean(0), coordinates.std()
        shape = (coordinates.shape[1], self.n_waves)
        self.waves = np.concatenate([rng.normal(size=shape) * width for width in (0.5, 1.5, 4.0)], axis=1)
        self.ridge = RidgeCV(alphas=np.logspace(-1, 4, 12)).fit(self._features(coordinates), values)

    def _features(self, coordinates: np.ndarray) -> np.ndarray:
        angles = (coordinates - self.centre) / self.scale @ self.waves
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    def predict(self, coordinates: np.ndarray) -> np.ndarray:
        """Mean expression."""
        # The ridge drops the axis of a single gene.
        return self.ridge.predict(self._features(coordinates)).reshape(len(coordinates), -1)

    def sample(self, coordinates: np.ndarray, seed: int) -> np.ndarray:
        """The mean."""
        return self.predict(coordinates)


SPACE_BASELINES: list[type[SpatialPredictor]] = [KNNSpace, IDW, GPSpace, FourierRidge, NeighbourSample]
