from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from diffvi._exceptions import InvalidInputError, positive_int, whole_number

from ._checks import check_column, check_genes, check_rows
from ._classifiers import classifier_scores, label_agreement, label_hits, silhouette
from ._counts import (
    correlation_agreement,
    fold_change_agreement,
    gene_wasserstein,
    library_size_ks,
    log_normalise,
    mean_variance_distance,
    zero_fraction_difference,
)
from ._distances import (
    energy_distance,
    manifold_scores,
    memorisation_ratio,
    mmd,
    nearest_neighbour_test,
    sliced_wasserstein,
    wasserstein,
)
from ._programs import gene_set_agreement
from ._resampling import Scores, half_sample_intervals

BEST = {
    "rf_auc_genes": "0.5",
    "rf_auc_pca": "0.5",
    "logistic_auc_genes": "0.5",
    "logistic_auc_pca": "0.5",
    "nn_accuracy_real": "0.5",
    "nn_accuracy_generated": "0.5",
    "mmd": "low",
    "energy_distance": "low",
    "w1": "low",
    "w2": "low",
    "sliced_w2": "low",
    "precision": "floor",
    "recall": "floor",
    "density": "floor",
    "coverage": "floor",
    "library_size_ks": "low",
    "zero_fraction_difference": "low",
    "mean_variance_distance": "low",
    "gene_wasserstein": "low",
    "correlation_agreement": "high",
    "gene_set_distance": "low",
    "fold_change_slope": "1",
    "fold_change_correlation": "high",
    "label_agreement": "floor",
    "train_on_generated": "high",
    "silhouette": "floor",
    "memorisation_ratio": "1",
}
"""The scores and where they are best; "floor" means at the value that real cells reach."""


def evaluate_generation(
    real: AnnData,
    generated: AnnData,
    train: AnnData,
    labels_key: str | None = None,
    gene_sets: Mapping[str, Sequence[str]] | None = None,
    n_estimators: int = 300,
    n_resamples: int = 20,
    max_cells: int = 5000,
    floor: bool = True,
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
    gene_sets
        Gene names of pathways or programs; adds ``gene_set_distance``, the mean over sets of the distance of
        :func:`gene_set_agreement`.
    n_estimators
        Trees of the random forests.
    n_resamples
        Random halves of the cells for the 95 % intervals; 0 for none. They are for the cells at hand and do not
        cover what another training run would change. Classifiers are not trained again for them.
    max_cells
        Larger sets are cut to this many cells at random, at least 10: many scores need all pairwise distances.
    floor
        Score the floor too, which takes as long again; missing where ``train`` has no 10 cells of the labels.
    seed
        Seed of everything random.

    Returns
    -------
    One row a score, with the columns ``value``, ``low`` and ``high`` (95 % interval), ``floor`` and ``best``.

    Raises
    ------
    InvalidInputError
        If genes differ, a set has fewer than 10 cells, a column is missing, a number is too small, or as
        :func:`gene_set_agreement`.

    Examples
    --------
    >>> import diffvi
    >>> cells = diffvi.datasets.simulate_cells(300, 20, seed=0)
    >>> train, real, made = cells[:100], cells[100:200], cells[200:]
    >>> table = diffvi.metrics.evaluate_generation(real, made, train, n_estimators=10, n_resamples=0)
    >>> list(table.columns)
    ['value', 'low', 'high', 'floor', 'best']
    >>> bool(table.loc["recall", "value"] > 0.5)
    True
    """
    check_genes(real, generated=generated, train=train)
    check_rows(10, real=real, generated=generated, train=train)
    check_column("labels_key", labels_key, real=real, generated=generated, train=train)
    whole_number("max_cells", max_cells, 10)
    whole_number("n_resamples", n_resamples, 0)
    positive_int("n_estimators", n_estimators)
    rng = np.random.default_rng(seed)
    # `uns` may tell of a past in which `X` was something else; here it holds raw counts.
    real, generated, train = (AnnData(c.X, obs=c.obs, var=c.var[[]]) for c in (real, generated, train))
    real, generated = (cells[np.sort(rng.permutation(cells.n_obs)[:max_cells])] for cells in (real, generated))
    if gene_sets:
        gene_set_agreement(real, generated, gene_sets)  # raises before the classifiers are trained
    pair = _Pair(real, generated, train, labels_key, gene_sets, n_estimators, seed)
    table = half_sample_intervals(pair, real.n_obs, generated.n_obs, n_resamples, seed)
    table["floor"] = np.nan
    if floor and len(rows := like(real, train, labels_key, rng)) >= 10:
        reference = train[rows]
        pair = _Pair(real, reference, train, labels_key, gene_sets, n_estimators, seed)
        table["floor"] = pd.Series(pair(np.arange(real.n_obs), np.arange(reference.n_obs)))
        table.loc["memorisation_ratio", "floor"] = 1.0  # a training cell is its own nearest one; held-out ones score 1
        if labels_key is not None:
            labels = [cells.obs[labels_key].to_numpy(str) for cells in (train, real)]
            table.loc["label_agreement", "floor"] = label_agreement(train.X, labels[0], real.X, labels[1])
    table["best"] = pd.Series(BEST)
    return table.rename_axis("score")


def like(real: AnnData, train: AnnData, labels_key: str | None, rng: np.random.Generator) -> np.ndarray:
    """Rows of ``train`` with the label counts of ``real``, without replacement as far as they go."""
    if labels_key is None:
        return rng.permutation(train.n_obs)[: real.n_obs]
    labels = train.obs[labels_key].to_numpy(str)
    rows = []
    for label, n in zip(*np.unique(real.obs[labels_key].to_numpy(str), return_counts=True), strict=True):
        rows.append(rng.permutation(np.flatnonzero(labels == label))[:n])
    return np.concatenate(rows)


class _Pair:
    """What scoring two sets of cells needs once; calling it scores any rows of them."""

    def __init__(
        self,
        real: AnnData,
        cells: AnnData,
        train: AnnData,
        labels_key: str | None,
        gene_sets: Mapping[str, Sequence[str]] | None,
        n_estimators: int,
        seed: int,
    ) -> None:
        self.real, self.cells, self.labels_key, self.gene_sets, self.seed = real, cells, labels_key, gene_sets, seed
        x, y = log_normalise(real.X), log_normalise(cells.X)
        # One PCA over both sets, for the reason given in classifier_two_sample.
        pca = PCA(min(30, real.n_vars, real.n_obs), random_state=seed).fit(np.concatenate([x, y]))
        self.points = pca.transform(x), pca.transform(y)
        self.train_points = pca.transform(log_normalise(train.X))
        self.origins = {
            f"{short}_auc_{space}": classifier_scores(
                real.X, cells.X, space, classifier, n_estimators=n_estimators, seed=seed
            )
            for short, classifier in (("rf", "forest"), ("logistic", "logistic"))
            for space in ("genes", "pca")
        }
        if labels_key is not None:
            self.labels = tuple(a.obs[labels_key].to_numpy(str) for a in (real, cells))
            train_labels = train.obs[labels_key].to_numpy(str)
            self.found = label_hits(train.X, train_labels, cells.X, self.labels[1])
            self.found_by_generated = label_hits(cells.X, self.labels[1], real.X, self.labels[0])

    def __call__(self, r: np.ndarray, g: np.ndarray) -> Scores:
        px, py = self.points[0][r], self.points[1][g]
        real, cells = self.real.X[r], self.cells.X[g]
        both = np.concatenate([r, len(self.points[0]) + g])
        nn_real, nn_generated = nearest_neighbour_test(px, py)
        scores = {name: float(roc_auc_score(y[both], p[both])) for name, (y, p) in self.origins.items()}
        scores |= {
            "nn_accuracy_real": nn_real,
            "nn_accuracy_generated": nn_generated,
            "mmd": mmd(px, py),
            "energy_distance": energy_distance(px, py),
            "w1": wasserstein(px, py, p=1, seed=self.seed),
            "w2": wasserstein(px, py, p=2, seed=self.seed),
            "sliced_w2": sliced_wasserstein(px, py, seed=self.seed),
            **manifold_scores(px, py)._asdict(),
            "library_size_ks": library_size_ks(real, cells),
            "zero_fraction_difference": zero_fraction_difference(real, cells),
            "mean_variance_distance": mean_variance_distance(real, cells),
            "gene_wasserstein": gene_wasserstein(real, cells),
            "correlation_agreement": correlation_agreement(real, cells),
        }
        if self.gene_sets:
            # In a half, or for the floor, a small panel may have no control genes though the whole sets have some.
            with contextlib.suppress(InvalidInputError):
                activity = gene_set_agreement(self.real[r], self.cells[g], self.gene_sets)
                scores["gene_set_distance"] = float(activity["distance"].mean())
        if self.labels_key is not None:
            slope, correlation = fold_change_agreement(real, self.labels[0][r], cells, self.labels[1][g])
            scores |= {
                "fold_change_slope": slope,
                "fold_change_correlation": correlation,
                "label_agreement": float(self.found[g].mean()),
                "train_on_generated": float(self.found_by_generated[r].mean()),
                "silhouette": silhouette(py, self.labels[1][g]),
            }
        return scores | {"memorisation_ratio": memorisation_ratio(self.train_points, px, py)}
