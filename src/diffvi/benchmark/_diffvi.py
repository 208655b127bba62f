from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from diffvi.metrics import log_normalise
from diffvi.model import LatentDiffusionSCVI, PerturbDiffusion, SpatialDiffusion, TotalDiffusion, TrajectoryDiffusion

GROUP = "label_and_batch"
"""Column of ``obs`` with label and batch where both are asked for together."""

PAIR = " | "
"""Between label and batch in that column."""


class Diffvi:
    """:class:`~diffvi.model.LatentDiffusionSCVI` as one of the generators.

    Parameters
    ----------
    name
        Its name in the table.
    train_kwargs
        Passed to ``train``.
    generate_kwargs
        Passed to ``generate``.
    keys
        Columns of label and batch, where the labels to generate are pairs of both: they are then two conditions.
    **model_kwargs
        Passed to the model.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import Diffvi
    >>> from diffvi.datasets import simulate_cells
    >>> method = Diffvi(train_kwargs={"max_epochs": 1, "max_epochs_diffusion": 1})
    >>> method.fit(simulate_cells(100, 20, seed=0), "cell_type")
    >>> method.generate(np.array(["type_0", "type_1", "type_1"]), seed=0).obs["cell_type"].tolist()
    ['type_0', 'type_1', 'type_1']
    """

    def __init__(
        self,
        name: str = "diffvi",
        train_kwargs: dict[str, Any] | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        keys: tuple[str, str] | None = None,
        **model_kwargs: Any,
    ) -> None:
        self.name = name
        self.train_kwargs, self.generate_kwargs = train_kwargs or {}, generate_kwargs or {}
        self.keys, self.model_kwargs = keys, model_kwargs

    def fit(self, train: AnnData, labels_key: str) -> None:
        """Train both stages."""
        self.labels_key = labels_key
        train = train.copy()
        label, batch = self.keys or (labels_key, None)
        LatentDiffusionSCVI.setup_anndata(train, labels_key=label, batch_key=batch)
        self.model = LatentDiffusionSCVI(train, **self.model_kwargs)
        self.model.train(**{"enable_progress_bar": False, **self.train_kwargs})

    def generate(self, labels: np.ndarray, seed: int) -> AnnData:
        """Generate a cell for every label."""
        conditions = {self.labels_key: labels}
        if self.keys is not None:
            values = np.array([label.split(PAIR) for label in labels])
            conditions = dict(zip(self.keys, values.T, strict=True))
        cells = self.model.generate(len(labels), conditions, seed=seed, **self.generate_kwargs)
        cells.obs[self.labels_key] = labels
        return cells


class DiffviPerturbation:
    """:class:`~diffvi.model.PerturbDiffusion` as one of the predictors.

    Parameters
    ----------
    name
        Its name in the table.
    embedding
        What is known of the perturbations, also of held-out ones: see the model's ``setup_anndata``.
    train_kwargs
        Passed to ``train``.
    predict_kwargs
        Passed to ``predict_perturbation``.
    **model_kwargs
        Passed to the model.

    Examples
    --------
    >>> from diffvi.datasets import simulate_perturbations
    >>> cells = simulate_perturbations(200, 20, seed=0)
    >>> method = DiffviPerturbation(train_kwargs={"max_epochs": 1, "max_epochs_diffusion": 1})
    >>> method.fit(cells, "perturbation", "control", "cell_type")
    >>> method.predict(cells[cells.obs["perturbation"] == "control"][:5], "A+B").shape
    (5, 20)
    """

    def __init__(
        self,
        name: str = "diffvi",
        embedding: pd.DataFrame | None = None,
        train_kwargs: dict[str, Any] | None = None,
        predict_kwargs: dict[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> None:
        self.name, self.embedding = name, embedding
        self.train_kwargs, self.predict_kwargs = train_kwargs or {}, predict_kwargs or {}
        self.model_kwargs = model_kwargs

    def fit(self, train: AnnData, perturbation_key: str, control: str, context_key: str | None) -> None:
        """Train both stages."""
        train = train.copy()
        PerturbDiffusion.setup_anndata(
            train,
            perturbation_key,
            control,
            labels_key=context_key,
            perturbation_embedding=self.embedding,
        )
        self.model = PerturbDiffusion(train, **self.model_kwargs)
        self.model.train(**{"enable_progress_bar": False, "train_size": 1.0, **self.train_kwargs})

    def predict(self, control: AnnData, perturbation: str) -> np.ndarray:
        """Log-normalised counts of the control cells, moved."""
        cells = AnnData(control.X.copy(), obs=control.obs.copy(), var=control.var[[]].copy())
        self.model.predict_perturbation(cells, perturbation, unseen="mean", seed=0, **self.predict_kwargs)
        return log_normalise(cells.layers["perturbed"])


class DiffviTranslation:
    """:class:`~diffvi.model.TotalDiffusion` as one of the translators.

    Parameters
    ----------
    name
        Its name in the table.
    train_kwargs
        Passed to ``train``.
    translate_kwargs
        Passed to ``translate_rna_to_protein``.
    **model_kwargs
        Passed to the model.

    Examples
    --------
    >>> from diffvi.datasets import simulate_cite
    >>> rna, protein = simulate_cite(100, 20, 4, seed=0).mod.values()
    >>> method = DiffviTranslation(train_kwargs={"max_epochs": 1, "max_epochs_diffusion": 1})
    >>> method.fit(rna[:80], protein[:80])
    >>> method.predict(rna[80:]).shape
    (20, 4)
    """

    def __init__(
        self,
        name: str = "diffvi",
        train_kwargs: dict[str, Any] | None = None,
        translate_kwargs: dict[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> None:
        self.name = name
        self.train_kwargs, self.translate_kwargs = train_kwargs or {}, translate_kwargs or {}
        self.model_kwargs = model_kwargs

    def fit(self, rna: AnnData, protein: AnnData) -> None:
        """Train both stages."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            mdata = MuData({"rna": rna.copy(), "protein": protein.copy()})
        TotalDiffusion.setup_mudata(mdata)
        self.model = TotalDiffusion(mdata, **self.model_kwargs)
        self.model.train(**{"enable_progress_bar": False, **self.train_kwargs})

    def predict(self, rna: AnnData) -> np.ndarray:
        """Expected ``log1p`` counts."""
        cells = AnnData(rna.X, obs=rna.obs[[]].copy(), var=rna.var[[]].copy())
        self.model.translate_rna_to_protein(cells, seed=0, **self.translate_kwargs)
        return cells.obsm["protein_log1p"].to_numpy()


class DiffviTrajectory:
    """:class:`~diffvi.model.TrajectoryDiffusion` as one of the interpolators: cells of the time before, moved on.

    Parameters
    ----------
    name
        Its name in the table.
    n_samples
        Futures of each cell.
    train_kwargs
        Passed to ``train``.
    predict_kwargs
        Passed to ``predict_trajectory``.
    **model_kwargs
        Passed to the model.

    Examples
    --------
    >>> from diffvi.datasets import simulate_trajectory
    >>> cells = simulate_trajectory(40, 20, times=(0.0, 2.0), seed=0)
    >>> method = DiffviTrajectory(train_kwargs={"max_epochs": 1, "max_epochs_diffusion": 1})
    >>> method.fit_cells(cells)
    >>> method.predict(1.0, 30, seed=0).shape
    (30, 20)
    """

    def __init__(
        self,
        name: str = "diffvi",
        n_samples: int = 10,
        train_kwargs: dict[str, Any] | None = None,
        predict_kwargs: dict[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> None:
        self.name, self.n_samples = name, n_samples
        self.train_kwargs, self.predict_kwargs = train_kwargs or {}, predict_kwargs or {}
        self.model_kwargs = model_kwargs

    def fit_cells(self, cells: AnnData) -> None:
        """Train both stages on raw counts, with ``obs["time"]``."""
        self.cells = cells.copy()
        TrajectoryDiffusion.setup_anndata(self.cells, time_key="time")
        self.model = TrajectoryDiffusion(self.cells, **self.model_kwargs)
        self.model.train(**{"enable_progress_bar": False, "train_size": 1.0, **self.train_kwargs})

    def predict(self, time: float, n_obs: int, seed: int) -> AnnData:
        """Counts of ``n_obs`` cells at ``time``, drawn by their weights."""
        times = self.cells.obs["time"].to_numpy()
        start = self.cells[times == times[times < time].max()].copy()
        future = self.model.predict_trajectory(
            start, [time], n_samples=self.n_samples, seed=seed, **self.predict_kwargs
        )
        weight = future.obs["weight"].to_numpy(float)
        rows = np.random.default_rng(seed).choice(future.n_obs, n_obs, p=weight / weight.sum())
        return AnnData(future.X[rows], var=future.var[[]].copy())


class DiffviSpace:
    """:class:`~diffvi.model.SpatialDiffusion` as one of the spatial predictors.

    Parameters
    ----------
    name
        Its name in the table.
    n_samples
        Samples behind the mean.
    train_kwargs
        Passed to ``train``.
    **model_kwargs
        Passed to the model.

    Examples
    --------
    >>> from diffvi.datasets import simulate_tissue
    >>> cells = simulate_tissue(100, 20, seed=0)
    >>> method = DiffviSpace(n_latent=3, n_neighbors=4, train_kwargs={"max_epochs": 1, "max_epochs_diffusion": 1})
    >>> method.fit_cells(cells.obsm["spatial"], cells, genes=slice(5))
    >>> method.predict([[1.0, 2.0]]).shape, method.sample([[1.0, 2.0]], seed=0).shape
    ((1, 5), (1, 5))
    """

    def __init__(
        self, name: str = "diffvi", n_samples: int = 10, train_kwargs: dict[str, Any] | None = None, **model_kwargs: Any
    ) -> None:
        self.name, self.n_samples = name, n_samples
        self.train_kwargs, self.model_kwargs = train_kwargs or {}, model_kwargs

    def fit_cells(self, coordinates: np.ndarray, cells: AnnData, genes: Any) -> None:
        """Train both stages on raw counts of all genes; results are those of ``genes``."""
        self.genes = genes
        train = AnnData(cells.X.copy(), var=cells.var[[]].copy(), obsm={"spatial": np.asarray(coordinates)})
        SpatialDiffusion.setup_anndata(train, spatial_key="spatial")
        self.model = SpatialDiffusion(train, **self.model_kwargs)
        self.model.train(**{"enable_progress_bar": False, **self.train_kwargs})

    def predict(self, coordinates: np.ndarray) -> np.ndarray:
        """Expected log-normalised expression."""
        mean = self.model.generate_at_location(coordinates, n_samples=self.n_samples, return_mean=True, seed=0)
        return np.asarray(mean.X)[:, self.genes]

    def sample(self, coordinates: np.ndarray, seed: int) -> np.ndarray:
        """Log-normalised counts of one sample."""
        return log_normalise(self.model.generate_at_location(coordinates, seed=seed).X)[:, self.genes]
