"""Scores that train a classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, silhouette_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from diffvi._exceptions import InvalidInputError, one_of, positive_int

from ._checks import check_length, check_matrices
from ._counts import Matrix, dense, log_normalise


def classifier_two_sample(
    real: Matrix,
    generated: Matrix,
    space: Literal["genes", "pca", "features"] = "genes",
    classifier: Literal["forest", "logistic"] = "forest",
    n_components: int = 50,
    n_estimators: int = 300,
    seed: int = 0,
) -> float:
    """Area under the ROC curve of a classifier that tells generated from real cells; 0.5 is best.

    Five-fold cross-validated (Lopez-Paz and Oquab 2017), on log-normalised counts unless told otherwise. The PCA is fitted on both sets
    together: one that is fitted on training cells alone tells two halves of real data apart.

    Parameters
    ----------
    real, generated
        Counts, cells by genes.
    space
        All genes, or the first principal components of the log-normalised counts; ``"features"`` takes the values as they
        are, such as ``log1p`` proteins.
    classifier
        A random forest, or logistic regression.
    n_components
        Number of components in PCA space.
    n_estimators
        Trees of the forest.
    seed
        Seed of folds and forest.

    Returns
    -------
    The area, in [0, 1]. Values a little below 0.5 are chance.

    Raises
    ------
    InvalidInputError
        If both sets have fewer than five cells or one has none, genes differ, or an argument is not allowed.

    Examples
    --------
    Two halves of one population cannot be told apart, cells at their mean can:

    >>> import diffvi
    >>> import numpy as np
    >>> counts = diffvi.datasets.simulate_cells(200, 20, seed=0).X.toarray()
    >>> real, other = counts[:100], counts[100:]
    >>> means = np.tile(other.mean(0), (100, 1))
    >>> [round(diffvi.metrics.classifier_two_sample(real, x, n_estimators=20), 1) for x in (other, means)]
    [0.5, 1.0]
    """
    y, p = classifier_scores(real, generated, space, classifier, n_components, n_estimators, seed)
    return float(roc_auc_score(y, p))


def classifier_scores(
    real: Matrix,
    generated: Matrix,
    space: str,
    classifier: str,
    n_components: int = 50,
    n_estimators: int = 300,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Origin (1 for generated) and out-of-fold probability of being generated, real cells first."""
    one_of("space", space, ("genes", "pca", "features"))
    one_of("classifier", classifier, ("forest", "logistic"))
    positive_int("n_components", n_components)
    positive_int("n_estimators", n_estimators)
    check_matrices(real=real, generated=generated)
    if max(real.shape[0], generated.shape[0]) < 5:
        raise InvalidInputError(
            f"`real` and `generated` have {real.shape[0]} and {generated.shape[0]} cells; one of them needs at least 5."
        )
    prepare: Callable[..., np.ndarray] = dense if space == "features" else log_normalise
    x = np.concatenate([prepare(real), prepare(generated)])
    y = np.repeat([0, 1], [real.shape[0], generated.shape[0]])
    if space == "pca":
        x = PCA(min(n_components, *x.shape), random_state=seed).fit_transform(x)
    if classifier == "forest":
        model = RandomForestClassifier(n_estimators, n_jobs=-1, random_state=seed)
    else:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return y, cross_val_predict(model, x, y, cv=folds, method="predict_proba")[:, 1]


def label_agreement(train: Matrix, train_labels: np.ndarray, cells: Matrix, labels: np.ndarray) -> float:
    """Share of cells whose label a logistic regression trained on other cells finds, in [0, 1].

    Trained on real cells and asked about generated ones, the best value is what it finds on held-out real cells;
    above it, the cells are too typical. Trained on generated cells and asked about real ones ("train on synthetic,
    test on real", Esteban et al. 2017), the best value is that of a classifier trained on real cells.

    Parameters
    ----------
    train, cells
        Counts to train on and to ask about, cells by genes, with the same genes; log-normalised here.
    train_labels, labels
        Label of each of their cells, ``(n_cells,)``.

    Returns
    -------
    The share; NaN where there is but one label to learn.

    Raises
    ------
    InvalidInputError
        If genes differ, a set is empty, or labels are not one for each cell.

    Examples
    --------
    >>> import diffvi
    >>> import numpy as np
    >>> cells = diffvi.datasets.simulate_cells(200, 20, seed=0)
    >>> counts, labels = cells.X, cells.obs["cell_type"].to_numpy(str)
    >>> diffvi.metrics.label_agreement(counts[:100], labels[:100], counts[100:], labels[100:])
    1.0
    >>> shuffled = np.random.default_rng(0).permutation(labels[100:])
    >>> round(diffvi.metrics.label_agreement(counts[:100], labels[:100], counts[100:], shuffled), 1)
    0.4
    """
    return float(label_hits(train, train_labels, cells, labels).mean())


def label_hits(train: Matrix, train_labels: np.ndarray, cells: Matrix, labels: np.ndarray) -> np.ndarray:
    """For each cell, 1 where the classifier finds its label, else 0; NaN where there is but one label to learn."""
    check_matrices(train=train, cells=cells)
    check_length("cells of `train`", train.shape[0], train_labels=train_labels)
    check_length("cells of `cells`", cells.shape[0], labels=labels)
    if len(np.unique(train_labels)) < 2:
        return np.full(len(labels), np.nan)
    model = LogisticRegression(C=0.1, max_iter=300).fit(log_normalise(train), train_labels)
    return (model.predict(log_normalise(cells)) == labels).astype(float)


def silhouette(cells: np.ndarray, labels: np.ndarray, max_cells: int = 5000, seed: int = 0) -> float:
    """Mean silhouette width of the labels, in [-1, 1] (Rousseeuw 1987); best at the value of real cells.

    ``cells`` are points, such as cells in PCA space. Above the value of real cells, types are
    separated more cleanly than in life; below, they run into each other.

    Parameters
    ----------
    cells
        Points, ``(n_cells, d)``.
    labels
        Label of each, ``(n_cells,)``.
    max_cells
        Most cells to score, drawn at random: all pairwise distances are needed.
    seed
        Seed of the draw.

    Returns
    -------
    The mean width; NaN with a single label, or with a label of its own for every cell.

    Raises
    ------
    InvalidInputError
        If labels are not one for each cell, or ``max_cells`` is not a whole number of at least 1.

    Examples
    --------
    One blob that is cut in two, and the same with its halves moved apart:

    >>> import diffvi
    >>> import numpy as np
    >>> points = np.random.default_rng(0).normal(size=(200, 3))
    >>> half = points[:, 0] > 0
    >>> apart = points + 8 * half[:, None]
    >>> round(diffvi.metrics.silhouette(points, half), 1), round(diffvi.metrics.silhouette(apart, half), 1)
    (0.2, 0.9)
    """
    positive_int("max_cells", max_cells)
    check_length("cells of `cells`", len(cells), labels=labels)
    n_labels = len(np.unique(labels))
    if not 1 < n_labels < len(labels):
        return float("nan")
    return float(silhouette_score(cells, labels, sample_size=min(max_cells, len(cells)), random_state=seed))
