"""Protein from RNA without a deep model: regressions on the principal components of log-normalised expression."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any, Protocol

import numpy as np
import pandas as pd
import scanpy as sc
import scvi
import torch
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

from diffvi.metrics import log_normalise
from diffvi.metrics._counts import dense


class Translator(Protocol):
    """A method that learns proteins from RNA."""

    name: str

    def fit(self, rna: AnnData, protein: AnnData) -> None:
        """Learn from raw counts of both modalities of the same cells.

        Parameters
        ----------
        rna, protein
            Raw counts in ``X``, cells in the same order.
        """

    def predict(self, rna: AnnData) -> np.ndarray:
        """Expected ``log1p`` protein counts of cells of which only the RNA is known.

        Parameters
        ----------
        rna
            Raw counts in ``X``.

        Returns
        -------
        ``(n_cells, n_proteins)``.
        """


class _Regression:
    """Principal components of the RNA, scaled to unit variance of the first, and a regressor."""

    name = ""
    n_components = 50

    def regressor(self) -> Any:
        raise NotImplementedError

    def fit(self, rna: AnnData, protein: AnnData) -> None:
        """Fit PCA and regressor; settings are chosen by cross-validation on the training cells."""
        x, y = log_normalise(rna.X), np.log1p(dense(protein.X))
        self.pca = PCA(min(self.n_components, *x.shape), random_state=0).fit(x)
        z = self.pca.transform(x)
        self.scale = z[:, 0].std()
        self.proteins = StandardScaler().fit(y)
        self.model = self.regressor().fit(z / self.scale, self.proteins.transform(y))

    def predict(self, rna: AnnData) -> np.ndarray:
        """Expected ``log1p`` counts."""
        z = self.pca.transform(log_normalise(rna.X)) / self.scale
        return self.proteins.inverse_transform(self.model.predict(z))


class RidgeTranslation(_Regression):
    """Ridge regression.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import RidgeTranslation
    >>> from diffvi.datasets import simulate_cite
    >>> rna, protein = simulate_cite(300, 40, 4, seed=0).mod.values()
    >>> method = RidgeTranslation()
    >>> method.fit(rna[:200], protein[:200])
    >>> truth = np.log1p(protein[200:].X.toarray())
    >>> error = np.abs(method.predict(rna[200:]) - truth).mean()
    >>> bool(error < np.abs(truth.mean(0) - truth).mean())  # better than the mean of each protein
    True
    """

    name = "ridge"

    def regressor(self) -> Any:
        """Ridge regression, its penalty by leave-one-out."""
        return RidgeCV(alphas=np.geomspace(1e-2, 1e4, 13))


class KNNTranslation(_Regression):
    """Mean of the nearest training cells.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import KNNTranslation
    >>> from diffvi.datasets import simulate_cite
    >>> rna, protein = simulate_cite(300, 40, 4, seed=0).mod.values()
    >>> method = KNNTranslation()
    >>> method.fit(rna[:200], protein[:200])
    >>> truth = np.log1p(protein[200:].X.toarray())
    >>> error = np.abs(method.predict(rna[200:]) - truth).mean()
    >>> bool(error < np.abs(truth.mean(0) - truth).mean())  # better than the mean of each protein
    True
    """

    name = "kNN"

    def regressor(self) -> Any:
        """Nearest neighbours, their number by cross-validation."""
        return GridSearchCV(KNeighborsRegressor(weights="distance"), {"n_neighbors": [10, 20, 40]}, cv=3)


class KernelRidgeTranslation(_Regression):
    """Kernel ridge regression with a Gaussian kernel (the best simple method of OpenProblems 2021).

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import KernelRidgeTranslation
    >>> from diffvi.datasets import simulate_cite
    >>> rna, protein = simulate_cite(300, 40, 4, seed=0).mod.values()
    >>> method = KernelRidgeTranslation()
    >>> method.fit(rna[:200], protein[:200])
    >>> truth = np.log1p(protein[200:].X.toarray())
    >>> error = np.abs(method.predict(rna[200:]) - truth).mean()
    >>> bool(error < np.abs(truth.mean(0) - truth).mean())  # better than the mean of each protein
    True
    """

    name = "kernel ridge"

    def regressor(self) -> Any:
        """Kernel ridge regression, its width and penalty by cross-validation."""
        grid = {"gamma": [0.05, 0.2, 0.8], "alpha": [0.3, 1.0, 3.0]}
        return GridSearchCV(KernelRidge(kernel="rbf"), grid, cv=3)


class TotalVITranslation:
    """totalVI with its defaults; held-out cells are a second batch without proteins, as its authors do.

    Examples
    --------
    >>> from diffvi.benchmark import TotalVITranslation
    >>> from diffvi.datasets import simulate_cite
    >>> rna, protein = simulate_cite(100, 40, 4, seed=0).mod.values()
    >>> method = TotalVITranslation()
    >>> method.fit(rna[:80].copy(), protein[:80].copy())
    >>> method.predict(rna[80:].copy()).shape
    (20, 4)
    """

    name = "totalVI"

    def fit(self, rna: AnnData, protein: AnnData) -> None:
        """Keep the data: totalVI imputes only cells that it has been trained with."""
        self.rna, self.protein = rna, protein

    def predict(self, rna: AnnData) -> np.ndarray:
        """Train on both sets (the query without its proteins) and impute."""
        counts = [AnnData(part.X, obs=pd.DataFrame(index=part.obs_names), var=part.var[[]]) for part in (self.rna, rna)]
        joint = sc.concat(dict(zip(("measured", "missing"), counts, strict=True)), label="batch", index_unique="-")
        zeros = np.zeros((rna.n_obs, self.protein.n_vars))
        joint.obsm["protein"] = pd.DataFrame(
            np.concatenate([dense(self.protein.X), zeros]), index=joint.obs_names, columns=self.protein.var_names
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scvi.model.TOTALVI.setup_anndata(joint, "protein", batch_key="batch")
            model = scvi.model.TOTALVI(joint)
            model.train(enable_progress_bar=False)
            with torch.inference_mode():
                _, values = model.get_normalized_expression(
                    indices=np.arange(self.rna.n_obs, joint.n_obs),
                    n_samples=25,
                    transform_batch=["measured"],
                    include_protein_background=True,
                    sample_protein_mixing=False,
                )
        return np.log1p(values.to_numpy(float))


class MOFATranslation:
    """MOFA+: shared linear factors of both modalities (``pip install "diffvi[mofa]"``; Argelaguet et al. 2020).

    Examples
    --------
    >>> import contextlib, io
    >>> from diffvi.benchmark import MOFATranslation
    >>> from diffvi.datasets import simulate_cite
    >>> rna, protein = simulate_cite(300, 40, 4, seed=0).mod.values()
    >>> method = MOFATranslation()
    >>> with contextlib.redirect_stdout(io.StringIO()):  # mofapy2 prints a page
    ...     method.fit(rna[:200], protein[:200])
    >>> method.predict(rna[200:]).shape
    (100, 4)
    """

    name = "MOFA"
    n_factors = 15

    def fit(self, rna: AnnData, protein: AnnData) -> None:
        """Fit factors and weights; new cells are placed by ridge regression on the RNA weights."""
        from mofapy2.run.entry_point import entry_point

        x, y = log_normalise(rna.X), np.log1p(dense(protein.X))
        self.centres = x.mean(0), y.mean(0)
        self.spread = np.maximum(y.std(0), 1e-6)
        centred = x - self.centres[0]
        views = [[centred.copy()], [(y - self.centres[1]) / self.spread]]
        with contextlib.redirect_stdout(io.StringIO()):  # pages that `quiet` does not stop
            mofa = entry_point()
            mofa.set_data_options(scale_views=True)
            mofa.set_data_matrix(views)
            mofa.set_model_options(factors=self.n_factors)
            mofa.set_train_options(iter=300, convergence_mode="fast", seed=0, quiet=True, verbose=False)
            mofa.build()
            mofa.run()
        weights = mofa.model.nodes["W"].getExpectation()
        factors = mofa.model.nodes["Z"].getExpectation()
        # The scale that MOFA gave the views is put back by regressing the proteins on its factors.
        self.rna_weights = weights[0]
        self.map = RidgeCV(alphas=np.geomspace(1e-3, 1e4, 15)).fit(self._place(centred), factors)
        found = self.map.predict(self._place(centred))
        self.proteins = RidgeCV(alphas=np.geomspace(1e-3, 1e3, 13)).fit(found, y)

    def _place(self, centred: np.ndarray) -> np.ndarray:
        return centred @ self.rna_weights

    def predict(self, rna: AnnData) -> np.ndarray:
        """Factors from the RNA, proteins from the factors."""
        return self.proteins.predict(self.map.predict(self._place(log_normalise(rna.X) - self.centres[0])))


TRANSLATION_BASELINES: list[type[Translator]] = [
    KernelRidgeTranslation,
    KNNTranslation,
    RidgeTranslation,
    TotalVITranslation,
    MOFATranslation,
]
