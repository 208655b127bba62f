"""What one modality says of the other by kernel ridge regression, and of the training cells without having seen them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import rbf_kernel

WIDTHS = (1.0, 4.0, 16.0)
PENALTIES = (0.3, 1.0, 3.0)
"""What cross-validation chooses among: see :class:`KernelPath`."""
N_FOLDS = 5
"""Folds of the cross-validation."""
MAX_LANDMARKS = 2000
"""Landmark cells, at most: time grows with their cube."""
MAX_FITTED = 10_000
"""Cells that components and regression are fitted on, at most: their residuals and kernel are dense in memory."""
RESIDUAL_ROWS, KERNEL_ROWS = 5000, 10_000
"""Other cells whose residuals, and whose kernel, are in memory at a time."""


@dataclass
class RNAFeatures:
    """Principal components of analytic Pearson residuals (:cite:p:`Lause21`), and the log library.

    Components of residuals keep weak marker genes that log-normalised ones lose beside the most expressed.

    Parameters
    ----------
    share
        Each gene's share of all counts, ``(n_genes,)``.
    mean, components
        Mean of the residuals, ``(n_genes,)``, and their components, ``(n_components, n_genes)``.
    unit
        Standard deviation of the first component, which scores are divided by.
    library
        Mean and standard deviation of the log library.
    clip
        Largest residual.
    theta
        Inverse dispersion that the residuals assume.

    Examples
    --------
    >>> from diffvi.datasets import simulate_cells
    >>> from diffvi.module import RNAFeatures
    >>> from scipy.sparse import csr_matrix
    >>> counts = csr_matrix(simulate_cells(60, 30, seed=0).X)
    >>> features = RNAFeatures.fit(counts[:40], n_components=5)
    >>> features(counts[40:]).shape
    (20, 6)
    """

    share: np.ndarray
    mean: np.ndarray
    components: np.ndarray
    unit: float
    library: np.ndarray
    clip: float
    theta: float = 100.0

    @classmethod
    def fit(cls, counts: sparse.csr_matrix, n_components: int = 50, seed: int = 0) -> RNAFeatures:
        """Learn the components from raw counts of training cells, ``(n, n_genes)``; fewer where there are fewer cells or genes."""
        total = np.asarray(counts.sum(0), dtype=float).ravel()
        log_library = np.log(np.maximum(np.asarray(counts.sum(1), dtype=float).ravel(), 1))
        library = np.array([log_library.mean(), max(float(log_library.std()), 1e-6)])
        features = cls(
            (total / total.sum()).astype(np.float32),
            np.zeros(counts.shape[1], np.float32),
            np.empty((0, counts.shape[1]), np.float32),
            1.0,
            library,
            float(np.sqrt(counts.shape[0])),
        )
        residuals = features._residuals(counts)
        pca = PCA(min(n_components, *(n - 1 for n in counts.shape)), random_state=seed).fit(residuals)
        features.mean, features.components = pca.mean_.astype(np.float32), pca.components_.astype(np.float32)
        features.unit = max(float(np.sqrt(pca.explained_variance_[0])), 1e-6)
        return features

    def _residuals(self, counts: sparse.csr_matrix) -> np.ndarray:
        x = counts.toarray().astype(np.float32)
        mu = x.sum(1, keepdims=True) * self.share
        return np.clip((x - mu) / np.sqrt(mu + mu**2 / self.theta + 1e-9), -self.clip, self.clip)

    def __call__(self, counts: sparse.csr_matrix) -> np.ndarray:
        """Features of cells, ``(n, n_components + 1)``, on a scale on which a kernel width near 1 is sensible."""
        scores = [
            (self._residuals(counts[start : start + RESIDUAL_ROWS]) - self.mean) @ self.components.T
            for start in range(0, counts.shape[0], RESIDUAL_ROWS)
        ]
        log_library = np.log(np.maximum(np.asarray(counts.sum(1), dtype=float), 1))
        if not scores:
            return np.empty((0, len(self.components) + 1))
        return np.c_[np.concatenate(scores) / self.unit, 0.3 * (log_library - self.library[0]) / self.library[1]]


@dataclass
class ProteinFeatures:
    """Standardised log counts; a protein that is missing is at its mean.

    Parameters
    ----------
    mean, sd
        Of ``log(1 + count)``, ``(n_proteins,)``; 0 and infinite for a protein that no cell has.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.module import ProteinFeatures
    >>> features = ProteinFeatures.fit(np.array([[1.0, 10.0], [3.0, np.nan], [7.0, 1000.0]]))
    >>> features(np.array([[7.0, np.nan]])).round(2).tolist()
    [[0.87, 0.0]]
    """

    mean: np.ndarray
    sd: np.ndarray

    @classmethod
    def fit(cls, counts: np.ndarray) -> ProteinFeatures:
        """Learn mean and spread of the log counts of cells, ``(n, n_proteins)``, NaN where missing."""
        logged = np.log1p(counts)
        unmeasured = np.isnan(logged).all(0)
        logged[:, unmeasured] = 0.0
        sd = np.maximum(np.nanstd(logged, 0), 1e-6)
        # What other cells have of a protein that none of these has says nothing.
        sd[unmeasured] = np.inf
        return cls(np.nanmean(logged, 0), sd)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Features of cells, ``(n, n_proteins)``, divided by the root of the panel's size: distances do not grow with it."""
        return np.nan_to_num((np.log1p(counts) - self.mean) / self.sd) / np.sqrt(counts.shape[1])


@dataclass
class KernelPath:
    r"""Ridge regression on Gaussian kernels at landmark cells (the Nyström method; Williams and Seeger 2000).

    Width and penalty are chosen by cross-validation; the same folds give every training cell a prediction by cells other than
    itself, so that what the regression leaves over in the training cells is what it leaves over in new ones.

    Parameters
    ----------
    landmarks
        Features of the landmark cells, ``(m, k)``.
    width
        The kernel is the mean of :math:`\exp(-w |a - b|^2)` over :math:`w` = 0.05 and 0.4 times this.
    weights
        ``(m, n_targets)``.
    mean
        Mean of the targets.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.module import KernelPath
    >>> rng = np.random.default_rng(0)
    >>> x = rng.uniform(-2, 2, (200, 1))
    >>> path, held_out = KernelPath.fit(x, x**2 + rng.normal(0, 0.1, x.shape))
    >>> np.abs(path(np.array([[0.0], [1.0], [1.5]]))).astype(float).round(1).ravel().tolist()
    [0.0, 1.0, 2.2]
    >>> held_out.shape
    (200, 1)
    """

    landmarks: np.ndarray
    width: float
    weights: np.ndarray
    mean: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, targets: np.ndarray, seed: int = 0) -> tuple[KernelPath, np.ndarray]:
        """The path, and the out-of-fold predictions for the cells that it is fitted on, ``(n, n_targets)``.

        Parameters
        ----------
        features, targets
            Of the training cells, ``(n, k)`` and ``(n, n_targets)``.
        seed
            Seed of landmarks and folds.

        Returns
        -------
        The path, and predictions in the units of the targets.
        """
        n, rng = len(features), np.random.default_rng(seed)
        landmarks = features[np.sort(rng.choice(n, min(n, MAX_LANDMARKS), replace=False))]
        fold = rng.permutation(n) % min(N_FOLDS, n)
        mean, sd = targets.mean(0), np.maximum(targets.std(0), 1e-6)
        y = (targets - mean) / sd
        best: tuple[float, float, float, np.ndarray] | None = None
        for width in WIDTHS:
            gram = _kernel(landmarks, landmarks, width)
            kernel = _kernel(features, landmarks, width)
            parts = [
                (kernel[fold == f].T @ kernel[fold == f], kernel[fold == f].T @ y[fold == f]) for f in np.unique(fold)
            ]
            whole, right = sum(p[0] for p in parts), sum(p[1] for p in parts)
            for penalty in PENALTIES:
                predicted = np.empty_like(y)
                for f, (square, product) in zip(np.unique(fold), parts, strict=True):
                    predicted[fold == f] = kernel[fold == f] @ _solve(whole - square + penalty * gram, right - product)
                error = float(((predicted - y) ** 2).mean())
                if best is None or error < best[0]:
                    best = error, width, penalty, predicted
        assert best is not None
        _, width, penalty, predicted = best
        kernel = _kernel(features, landmarks, width)
        weights = _solve(kernel.T @ kernel + penalty * _kernel(landmarks, landmarks, width), kernel.T @ y) * sd
        path = cls(landmarks.astype(np.float32), width, weights.astype(np.float32), mean.astype(np.float32))
        return path, (predicted * sd + mean).astype(np.float32)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Predictions for cells, ``(n, n_targets)``."""
        if len(features) == 0:
            return np.empty((0, self.mean.size), dtype=np.float32)
        parts = [
            _kernel(features[start : start + KERNEL_ROWS], self.landmarks, self.width) @ self.weights + self.mean
            for start in range(0, len(features), KERNEL_ROWS)
        ]
        return np.concatenate(parts).astype(np.float32)


def _kernel(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Mean of a wide and a narrow Gaussian kernel: types differ by much, the states of one type by little."""
    return 0.5 * (rbf_kernel(a, b, gamma=0.05 * width) + rbf_kernel(a, b, gamma=0.4 * width))


def _solve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Solve a symmetric positive system; a little is added to the diagonal, as kernels of near cells are near dependent."""
    return cho_solve(cho_factor(a + 1e-6 * np.trace(a) / len(a) * np.eye(len(a))), b)
