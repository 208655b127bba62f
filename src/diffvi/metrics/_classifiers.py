"""Scores that train a classifier."""

from __future__ import annotations

from typing import Literal

import numpy as np
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ._counts import Matrix, log_normalise


def classifier_two_sample(
    real: Matrix,
    generated: Matrix,
    space: Literal["genes", "pca"] = "genes",
    classifier: Literal["forest", "logistic"] = "forest",
    n_components: int = 50,
    n_estimators: int = 300,
    seed: int = 0,
) -> float:
    """Area under the ROC curve of a classifier that tells generated from real cells; 0.5 is best.

    Five-fold cross-validated on log-normalised counts (Lopez-Paz and Oquab 2017). The PCA is fitted on both sets
    together: one that is fitted on training cells alone tells two halves of real data apart.

    Parameters
    ----------
    real, generated
        Counts, cells by genes.
    space
        All genes, or the first principal components.
    classifier
        A random forest, or logistic regression.
    n_components
        Number of components in PCA space.
    n_estimators
        Trees of the forest.
    seed
        Seed of folds and forest.
    """
    x = np.concatenate([log_normalise(real), log_normalise(generated)])
    y = np.repeat([0, 1], [real.shape[0], generated.shape[0]])
    if space == "pca":
        x = PCA(min(n_components, *x.shape), random_state=seed).fit_transform(x)
    if classifier == "forest":
        model = RandomForestClassifier(n_estimators, n_jobs=-1, random_state=seed)
    else:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return float(roc_auc_score(y, cross_val_predict(model, x, y, cv=folds, method="predict_proba")[:, 1]))


def label_agreement(train: Matrix, train_labels: np.ndarray, cells: Matrix, labels: np.ndarray) -> float:
    """Share of cells whose label a logistic regression trained on real cells finds, in [0, 1].

    The best value is what it finds on held-out real cells; above it, the cells are too typical.
    """
    if len(np.unique(train_labels)) < 2:
        return float("nan")
    model = LogisticRegression(C=0.1, max_iter=300).fit(log_normalise(train), train_labels)
    return float((model.predict(log_normalise(cells)) == labels).mean())
