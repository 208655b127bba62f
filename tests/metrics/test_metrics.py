"""Each way of being wrong must be caught by a score, and real cells must not."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from diffvi import InvalidInputError, metrics
from diffvi.datasets import simulate_cells


@pytest.fixture(scope="module")
def sets():
    whole = simulate_cells(1200, 60, n_types=3, mean_library=500, seed=3)
    return whole[:400].copy(), whole[400:800].copy(), whole[800:].copy()


def _like(cells, x):
    return AnnData(sparse.csr_matrix(x), obs=cells.obs.copy(), var=cells.var.copy())


def _wrong(kind, train, other):
    rng = np.random.default_rng(0)
    x = other.X.toarray()
    labels = other.obs["cell_type"].to_numpy(str)
    if kind == "smoothed":
        # The mean of each type, without any spread between its cells, at the cells' own libraries.
        means = {k: x[labels == k].mean(0) / x[labels == k].sum(1).mean() for k in np.unique(labels)}
        x = rng.poisson(x.sum(1, keepdims=True) * np.stack([means[k] for k in labels]))
    elif kind == "shuffled genes":
        x = np.stack([rng.permutation(column) for column in x.T], 1)
    elif kind == "one cell repeated":
        x = np.repeat(x[:1], len(x), 0)
    elif kind == "wrong library":
        x = rng.binomial(x.astype(int), 0.5)
    elif kind == "copy of training":
        return _like(train, train.X.toarray())
    elif kind == "wrong labels":
        cells = other.copy()
        cells.obs["cell_type"] = rng.permutation(labels)
        return cells
    return _like(other, x)


@pytest.fixture(scope="module")
def good(sets):
    train, real, other = sets
    return metrics.evaluate_generation(real, other, train, "cell_type", n_estimators=60)


def test_real_cells_score_at_the_floor(good):
    assert abs(good.loc["rf_auc_genes", "value"] - 0.5) < 0.06
    for name in ("recall", "coverage", "label_agreement", "correlation_agreement"):
        assert abs(good.loc[name, "value"] - good.loc[name, "floor"]) < 0.06, name
    assert abs(good.loc["energy_distance", "value"]) < 0.1
    assert abs(good.loc["mmd", "value"]) < 0.01
    assert 0.85 < good.loc["memorisation_ratio", "value"] < 1.15
    assert abs(good.loc["fold_change_slope", "value"] - 1) < 0.1


@pytest.mark.parametrize(
    ("kind", "score", "margin"),
    [
        ("smoothed", "rf_auc_genes", 0.1),
        ("smoothed", "mean_variance_distance", 0.02),
        ("shuffled genes", "rf_auc_genes", 0.3),
        ("shuffled genes", "correlation_agreement", -0.5),
        ("shuffled genes", "energy_distance", 0.2),
        ("one cell repeated", "recall", -0.5),
        ("one cell repeated", "coverage", -0.5),
        ("one cell repeated", "w2", 1.0),
        ("wrong library", "library_size_ks", 0.4),
        ("wrong library", "zero_fraction_difference", 0.05),
        ("copy of training", "memorisation_ratio", -0.9),
        ("wrong labels", "label_agreement", -0.4),
        ("wrong labels", "fold_change_slope", -0.6),
    ],
)
def test_every_failure_is_caught(sets, good, kind, score, margin):
    train, real, other = sets
    table = metrics.evaluate_generation(real, _wrong(kind, train, other), train, "cell_type", n_estimators=60)
    change = table.loc[score, "value"] - good.loc[score, "value"]
    assert change > margin if margin > 0 else change < margin


def test_distances_have_their_known_values():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 2))
    assert metrics.wasserstein(x, x + np.array([3.0, 4.0])) == pytest.approx(5.0, abs=1e-6)
    assert metrics.wasserstein(x, x + np.array([3.0, 4.0]), p=1) == pytest.approx(5.0, abs=1e-6)
    one, two = rng.normal(size=(2000, 1)), rng.normal(size=(2000, 1)) + 2
    # 2 E|X-Y| - 2 E|X-X'| for N(0,1) and N(2,1): E|N(m, 2)| in closed form.
    from scipy.stats import foldnorm

    s = np.sqrt(2)
    exact = 2 * foldnorm.mean(2 / s, scale=s) - 2 * foldnorm.mean(0, scale=s)
    assert metrics.energy_distance(one, two) == pytest.approx(exact, rel=0.08)


def test_bad_input_is_named(sets):
    train, real, other = sets
    with pytest.raises(InvalidInputError, match="`generated` must have the genes of `real`"):
        metrics.evaluate_generation(real, other[:, ::-1], train)
    with pytest.raises(InvalidInputError, match=r"`labels_key`: real.obs has no column 'kind'"):
        metrics.evaluate_generation(real, other, train, "kind")
    with pytest.raises(InvalidInputError, match="`generated` has 3 cells; at least 10"):
        metrics.evaluate_generation(real, other[:3], train)


def test_without_labels_the_scores_that_need_none_are_given(sets):
    train, real, other = sets
    table = metrics.evaluate_generation(real, other, train, n_estimators=10)
    assert isinstance(table, pd.DataFrame)
    assert "label_agreement" not in table.index
    assert table["value"].notna().all()
