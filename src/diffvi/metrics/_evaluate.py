from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.decomposition import PCA

from diffvi._exceptions import InvalidInputError

from ._classifiers import classifier_two_sample, label_agreement
from ._counts import (
    correlation_agreement,
    fold_change_agreement,
    library_size_ks,
    log_normalise,
    mean_variance_distance,
    zero_fraction_difference,
)
from ._distances import energy_distance, memorisation_ratio, mmd, precision_recall_coverage, wasserstein

BEST = {
    "rf_auc_genes": "0.5",
    "rf_auc_pca": "0.5",
    "mmd": "low",
    "energy_distance": "low",
    "w2": "low",
    "precision": "floor",
    "recall": "floor",
    "coverage": "floor",
    "library_size_ks": "low",
    "zero_fraction_difference": "low",
    "mean_variance_distance": "low",
    "correlation_agreement": "high",
    "fold_change_slope": "1",
    "fold_change_correlation": "high",
    "label_agreement": "floor",
    "memorisation_ratio": "1",
}
"""The scores and where they are best; "floor" means at the value that real cells reach."""


def evaluate_generation(
    real: AnnData,
    generated: AnnData,
    train: AnnData,
    labels_key: str | None = None,
    n_estimators: int = 300,
    seed: int = 0,
) -> pd.DataFrame:
    """Score generated cells against held-out real ones, beside the real-vs-real floor.

    The floor is what the training cells, drawn with the label counts of ``real``, score in the place of
    the generated ones: a copy of real data does that well, and no better is to be had.

    Parameters
    ----------
    real
        Held-out real cells, raw counts in ``X``.
    generated
        Generated cells with the same genes in the same order.
    train
        The cells that the generator was trained on.
    labels_key
        Column of ``obs`` with the label, in all three; without it the scores that need labels are left out.
    n_estimators
        Trees of the random forests.
    seed
        Seed of everything random.

    Returns
    -------
    One row a score, with the columns ``value``, ``floor`` and ``best``.

    Raises
    ------
    InvalidInputError
        If genes differ, or a set has fewer than 10 cells.
    """
    for name, cells in (("generated", generated), ("train", train)):
        if not real.var_names.equals(cells.var_names):
            raise InvalidInputError(f"`{name}` must have the genes of `real` in the same order.")
    for name, cells in (("real", real), ("generated", generated), ("train", train)):
        if cells.n_obs < 10:
            raise InvalidInputError(f"`{name}` has {cells.n_obs} cells; at least 10 are needed.")
        if labels_key is not None and labels_key not in cells.obs:
            raise InvalidInputError(f"`labels_key`: {name}.obs has no column {labels_key!r}.")
    rng = np.random.default_rng(seed)
    reference = train[_like(real, train, labels_key, rng)]
    value, floor = (_scores(real, cells, train, labels_key, n_estimators, seed) for cells in (generated, reference))
    floor["memorisation_ratio"] = 1.0  # a training cell is its own nearest one; held-out cells score 1
    if labels_key is not None:
        floor["label_agreement"] = label_agreement(
            train.X, train.obs[labels_key].to_numpy(str), real.X, real.obs[labels_key].to_numpy(str)
        )
    table = pd.DataFrame({"value": value, "floor": floor, "best": pd.Series(BEST)[list(value)]})
    return table.rename_axis("score")


def _like(real: AnnData, train: AnnData, labels_key: str | None, rng: np.random.Generator) -> np.ndarray:
    """Rows of ``train`` with the label counts of ``real``, without replacement as far as they go."""
    if labels_key is None:
        return rng.permutation(train.n_obs)[: real.n_obs]
    labels = train.obs[labels_key].to_numpy(str)
    rows = []
    for label, n in zip(*np.unique(real.obs[labels_key].to_numpy(str), return_counts=True), strict=True):
        rows.append(rng.permutation(np.flatnonzero(labels == label))[:n])
    return np.concatenate(rows)


def _scores(
    real: AnnData, cells: AnnData, train: AnnData, labels_key: str | None, n_estimators: int, seed: int
) -> dict[str, float]:
    x, y = log_normalise(real.X), log_normalise(cells.X)
    # One PCA over both sets, for the reason given in classifier_two_sample.
    pca = PCA(min(30, real.n_vars, real.n_obs), random_state=seed).fit(np.concatenate([x, y]))
    px, py, pt = pca.transform(x), pca.transform(y), pca.transform(log_normalise(train.X))
    precision, recall, coverage = precision_recall_coverage(px, py)
    scores = {
        "rf_auc_genes": classifier_two_sample(real.X, cells.X, "genes", n_estimators=n_estimators, seed=seed),
        "rf_auc_pca": classifier_two_sample(real.X, cells.X, "pca", n_estimators=n_estimators, seed=seed),
        "mmd": mmd(px, py),
        "energy_distance": energy_distance(px, py),
        "w2": wasserstein(px, py, seed=seed),
        "precision": precision,
        "recall": recall,
        "coverage": coverage,
        "library_size_ks": library_size_ks(real.X, cells.X),
        "zero_fraction_difference": zero_fraction_difference(real.X, cells.X),
        "mean_variance_distance": mean_variance_distance(real.X, cells.X),
        "correlation_agreement": correlation_agreement(real.X, cells.X),
    }
    if labels_key is not None:
        labels, cell_labels, train_labels = (a.obs[labels_key].to_numpy(str) for a in (real, cells, train))
        slope, correlation = fold_change_agreement(real.X, labels, cells.X, cell_labels)
        scores |= {
            "fold_change_slope": slope,
            "fold_change_correlation": correlation,
            "label_agreement": label_agreement(train.X, train_labels, cells.X, cell_labels),
        }
    return scores | {"memorisation_ratio": memorisation_ratio(pt, px, py)}
