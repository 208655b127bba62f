from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
import scvi
import torch
from anndata import AnnData
from sklearn.model_selection import train_test_split

from diffvi._exceptions import InvalidInputError
from diffvi.metrics import evaluate_generation
from diffvi.model import LatentDiffusionSCVI

from ._baselines import Generator


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
    **model_kwargs
        Passed to the model.
    """

    def __init__(
        self,
        name: str = "diffvi",
        train_kwargs: dict[str, Any] | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> None:
        self.name = name
        self.train_kwargs, self.generate_kwargs = train_kwargs or {}, generate_kwargs or {}
        self.model_kwargs = model_kwargs

    def fit(self, train: AnnData, labels_key: str) -> None:
        """Train both stages."""
        self.labels_key = labels_key
        train = train.copy()
        LatentDiffusionSCVI.setup_anndata(train, labels_key=labels_key)
        self.model = LatentDiffusionSCVI(train, **self.model_kwargs)
        self.model.train(**{"enable_progress_bar": False, **self.train_kwargs})

    def generate(self, labels: np.ndarray, seed: int) -> AnnData:
        """Generate a cell for every label."""
        return self.model.generate(len(labels), {self.labels_key: labels}, seed=seed, **self.generate_kwargs)


def split_cells(
    adata: AnnData, labels_key: str, test_size: float = 0.35, n_top_genes: int | None = 2000, seed: int = 0
) -> tuple[AnnData, AnnData]:
    """Stratified split into training and held-out cells, over the genes most variable in the training cells.

    Parameters
    ----------
    adata
        Raw counts in ``X``.
    labels_key
        Column of ``obs`` to stratify by.
    test_size
        Share of held-out cells.
    n_top_genes
        Genes to keep, by ``seurat_v3`` on the training cells alone; ``None`` for all.
    seed
        Seed of the split.
    """
    if labels_key not in adata.obs:
        raise InvalidInputError(f"`labels_key`: adata.obs has no column {labels_key!r}.")
    rows = train_test_split(
        np.arange(adata.n_obs), test_size=test_size, stratify=adata.obs[labels_key], random_state=seed
    )
    train, test = (adata[r].copy() for r in rows)
    if n_top_genes is not None and n_top_genes < adata.n_vars:
        sc.pp.highly_variable_genes(train, n_top_genes=n_top_genes, flavor="seurat_v3")
        kept = train.var["highly_variable"].to_numpy()
        train, test = train[:, kept].copy(), test[:, kept].copy()
        # Scanpy's compiled kernels leave torch's OpenMP pool at all cores, whatever torch was told.
        torch.set_num_threads(torch.get_num_threads())
    some = np.asarray(test.X.sum(1)).ravel() > 0
    return train[np.asarray(train.X.sum(1)).ravel() > 0].copy(), test[some].copy()


def run_generation(
    train: AnnData,
    test: AnnData,
    labels_key: str,
    methods: Sequence[Generator],
    n_draws: int = 3,
    seed: int = 0,
    progress: Callable[[str], None] = lambda message: None,
) -> pd.DataFrame:
    """Fit each method on ``train``, generate ``n_draws`` times with the labels of ``test``, and score.

    Returns
    -------
    Tidy table with the columns ``method``, ``draw``, ``score``, ``value``, ``floor``; the scores include
    ``fit_seconds``, ``generate_seconds_per_10000`` and ``peak_memory_mb`` (of the process so far).
    """
    labels = test.obs[labels_key].to_numpy(str)
    tables = []
    for method in methods:
        scvi.settings.seed = seed
        progress(f"{method.name}: fitting")
        start = time.perf_counter()
        method.fit(train, labels_key)
        fit_seconds = time.perf_counter() - start
        for draw in range(n_draws):
            progress(f"{method.name}: draw {draw + 1} of {n_draws}")
            start = time.perf_counter()
            cells = method.generate(labels, seed + draw)
            seconds = (time.perf_counter() - start) * 1e4 / len(labels)
            table = evaluate_generation(test, cells, train, labels_key, seed=seed + draw)[["value", "floor"]]
            table.loc["fit_seconds", "value"] = fit_seconds
            table.loc["generate_seconds_per_10000", "value"] = seconds
            table.loc["peak_memory_mb", "value"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            tables.append(table.reset_index().assign(method=method.name, draw=draw))
    return pd.concat(tables, ignore_index=True)[["method", "draw", "score", "value", "floor"]]
