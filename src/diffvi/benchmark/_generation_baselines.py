"""What one would use without diffvi; every generator has ``fit(train, labels_key)`` and ``generate(labels, seed)``."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pandas as pd
import scvi
import torch
from anndata import AnnData
from scipy import sparse
from sklearn.mixture import GaussianMixture

from diffvi.metrics._counts import dense


class Generator(Protocol):
    """A method that learns from labelled cells and generates cells with given labels."""

    name: str

    def fit(self, train: AnnData, labels_key: str) -> None:
        """Learn from raw counts in ``train.X`` and ``train.obs[labels_key]``.

        Parameters
        ----------
        train
            Cells by genes, raw counts in ``X``.
        labels_key
            Column of ``train.obs`` with the label.
        """

    def generate(self, labels: np.ndarray, seed: int) -> AnnData:
        """Generate one cell for every label.

        Parameters
        ----------
        labels
            A label for each cell, ``(n,)``.
        seed
            Seed of the draws.

        Returns
        -------
        AnnData of ``n`` cells with counts in ``X`` and the labels in ``obs``, in their order.
        """


class IndependentNB:
    """Each gene on its own, negative binomial within a label, at library sizes drawn from the label's cells.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import IndependentNB
    >>> from diffvi.datasets import simulate_cells
    >>> cells = simulate_cells(1000, 20, n_types=1, seed=0)
    >>> method = IndependentNB()
    >>> method.fit(cells, "cell_type")
    >>> generated = method.generate(np.full(1000, "type_0"), seed=0)
    >>> means = [x.toarray().mean(0) for x in (cells.X, generated.X)]
    >>> between = [np.corrcoef(x.toarray().T)[np.triu_indices(20, 1)].std() for x in (cells.X, generated.X)]
    >>> round(np.corrcoef(means)[0, 1], 2), bool(between[1] < 0.5 * between[0])  # the means, not the correlations of genes
    (np.float64(1.0), True)
    """

    name = "independent NB per label"

    def fit(self, train: AnnData, labels_key: str) -> None:
        """Moment estimates of share and dispersion of each gene in each label."""
        self.var, self.labels_key = train.var[[]].copy(), labels_key
        labels = train.obs[labels_key].to_numpy(str)
        self.models = {}
        for label in np.unique(labels):
            x = dense(train.X[labels == label])
            library = x.sum(1)
            share = x.sum(0) / library.sum()
            mean = library[:, None] * share
            extra = ((x - mean) ** 2 - mean).sum(0)
            theta = np.where(extra > 0, (mean**2).sum(0) / np.maximum(extra, 1e-12), 1e6)
            self.models[label] = library, share, np.clip(theta, 1e-3, 1e6)

    def generate(self, labels: np.ndarray, seed: int) -> AnnData:
        """Draw counts gene by gene."""
        rng = np.random.default_rng(seed)
        counts = np.zeros((len(labels), len(self.var)))
        for label in np.unique(labels):
            library, share, theta = self.models[label]
            rows = labels == label
            mean = rng.choice(library, rows.sum())[:, None] * share
            counts[rows] = rng.poisson(rng.gamma(theta, mean / theta))
        return _cells(counts, labels, self.labels_key, self.var)


class BootstrapCells:
    """Real training cells of the label, drawn with replacement: perfect to every score but memorisation.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import BootstrapCells
    >>> from diffvi.datasets import simulate_cells
    >>> cells = simulate_cells(100, 20, seed=0)
    >>> method = BootstrapCells()
    >>> method.fit(cells, "cell_type")
    >>> generated = method.generate(np.array(["type_0", "type_1", "type_1"]), seed=0)
    >>> {tuple(c) for c in generated.X.toarray()} <= {tuple(c) for c in cells.X.toarray()}  # copies
    True
    """

    name = "bootstrap of real cells"

    def fit(self, train: AnnData, labels_key: str) -> None:
        """Keep the cells."""
        self.train, self.labels_key = train, labels_key
        self.labels = train.obs[labels_key].to_numpy(str)

    def generate(self, labels: np.ndarray, seed: int) -> AnnData:
        """Draw one cell a label."""
        rows = _draw_like(self.labels, labels, np.random.default_rng(seed))
        return _cells(dense(self.train.X[rows]), labels, self.labels_key, self.train.var[[]].copy())


class SCVIPrior:
    """scVI with its defaults; latents from N(0, I), library sizes from the label's training cells.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import SCVIPrior
    >>> from diffvi.datasets import simulate_cells
    >>> method = SCVIPrior()
    >>> method.fit(simulate_cells(100, 20, seed=0), "cell_type")
    >>> method.generate(np.array(["type_0", "type_1", "type_1"]), seed=0).shape
    (3, 20)
    """

    name = "scVI, N(0, I)"

    def fit(self, train: AnnData, labels_key: str) -> None:
        """Train :class:`scvi.model.SCVI` with its own defaults."""
        self.var, self.labels_key = train.var[[]].copy(), labels_key
        self.labels = train.obs[labels_key].to_numpy(str)
        self.library = np.asarray(train.X.sum(1)).ravel()
        train = train.copy()
        scvi.model.SCVI.setup_anndata(train)
        self.model = scvi.model.SCVI(train)
        self.model.train(enable_progress_bar=False)
        self.model.to_device("cpu")

    def latents(self, labels: np.ndarray, rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
        """One latent a label, ``(n, n_latent)``; ``rows`` are training cells of these labels."""
        return rng.normal(size=(len(labels), self.model.module.n_latent))

    def generate(self, labels: np.ndarray, seed: int) -> AnnData:
        """Decode latents and draw counts."""
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        rows = _draw_like(self.labels, labels, rng)
        return self._decode(self.latents(labels, rng, rows), self.library[rows], labels)

    def _decode(self, z: np.ndarray, library: np.ndarray, labels: np.ndarray) -> AnnData:
        return _cells(decode(self.model, z, library).sample().numpy(), labels, self.labels_key, self.var)


@torch.inference_mode()
def decode(model: Any, z: np.ndarray, library: np.ndarray) -> Any:
    """Count distribution of latents under an scVI model without batches, at given library sizes.

    Parameters
    ----------
    model
        A trained :class:`scvi.model.SCVI`.
    z
        Latents, ``(n, n_latent)``.
    library
        Library sizes, counts, ``(n,)``.

    Returns
    -------
    A distribution over counts, ``(n, n_genes)``.
    """
    return model.module.generative(
        z=torch.as_tensor(z, dtype=torch.float32),
        library=torch.as_tensor(np.log(library), dtype=torch.float32)[:, None],
        batch_index=torch.zeros(len(z), 1, dtype=torch.long),
    )["px"]


class SCVIGaussianMixture(SCVIPrior):
    """scVI with its defaults; latents from a Gaussian mixture fitted to draws from each label's posteriors.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import SCVIGaussianMixture
    >>> from diffvi.datasets import simulate_cells
    >>> method = SCVIGaussianMixture()
    >>> method.fit(simulate_cells(100, 20, n_types=3, seed=0), "cell_type")
    >>> list(map(str, method.mixtures)), method.generate(np.array(["type_0", "type_2"]), seed=0).shape
    (['type_0', 'type_1', 'type_2'], (2, 20))
    """

    name = "scVI, GMM per label"

    def fit(self, train: AnnData, labels_key: str) -> None:
        """Train scVI, then fit a mixture of up to 3 Gaussians to each label."""
        super().fit(train, labels_key)
        mean, variance = self.model.get_latent_representation(return_dist=True)
        rng = np.random.default_rng(0)
        self.mixtures = {}
        for label in np.unique(self.labels):
            rows = self.labels == label
            shape = (5, *mean[rows].shape)
            points = (mean[rows] + np.sqrt(variance[rows]) * rng.normal(size=shape)).reshape(-1, mean.shape[1])
            n_mixture = min(3, max(1, int(rows.sum()) // 20))
            self.mixtures[label] = GaussianMixture(n_mixture, random_state=0, reg_covar=1e-4).fit(points)

    def latents(self, labels: np.ndarray, rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
        """One latent a label, from the label's mixture."""
        z = np.empty((len(labels), self.model.module.n_latent))
        for label in np.unique(labels):
            mixture, n = self.mixtures[label], int((labels == label).sum())
            mixture.set_params(random_state=int(rng.integers(2**31)))
            z[labels == label] = rng.permutation(mixture.sample(n)[0])
        return z


class SCVIPosteriorPredictive(SCVIPrior):
    """scVI with its defaults; latents from the posteriors of the label's training cells, at their library sizes.

    No generator: every cell is a noisy copy of a training cell.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import SCVIPosteriorPredictive
    >>> from diffvi.datasets import simulate_cells
    >>> method = SCVIPosteriorPredictive()
    >>> method.fit(simulate_cells(100, 20, seed=0), "cell_type")
    >>> method.generate(np.array(["type_0", "type_1"]), seed=0).shape
    (2, 20)
    """

    name = "scVI, posterior predictive"

    def latents(self, labels: np.ndarray, rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
        """A draw from the posterior of each training cell."""
        mean, variance = self.model.get_latent_representation(return_dist=True)
        return mean[rows] + np.sqrt(variance[rows]) * rng.normal(size=mean[rows].shape)


GENERATION_BASELINES: list[type[Generator]] = [
    IndependentNB,
    BootstrapCells,
    SCVIPrior,
    SCVIGaussianMixture,
    SCVIPosteriorPredictive,
]


def _draw_like(pool: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each label a row of ``pool`` that has it, drawn with replacement."""
    rows = np.empty(len(labels), dtype=int)
    for label in np.unique(labels):
        wanted = labels == label
        rows[wanted] = rng.choice(np.flatnonzero(pool == label), wanted.sum())
    return rows


def _cells(counts: np.ndarray, labels: np.ndarray, labels_key: str, var: pd.DataFrame) -> AnnData:
    obs = pd.DataFrame({labels_key: pd.Categorical(labels)}, index=[f"cell_{i}" for i in range(len(labels))])
    return AnnData(sparse.csr_matrix(counts.astype(np.int32)), obs=obs, var=var)
