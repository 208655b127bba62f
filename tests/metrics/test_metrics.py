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
    return metrics.evaluate_generation(real, other, train, "cell_type", n_estimators=60, n_resamples=10)


def test_real_cells_score_at_the_floor(good):
    assert abs(good.loc["rf_auc_genes", "value"] - 0.5) < 0.06
    for name in ("recall", "coverage", "label_agreement", "correlation_agreement"):
        assert abs(good.loc[name, "value"] - good.loc[name, "floor"]) < 0.06, name
    assert abs(good.loc["energy_distance", "value"]) < 0.1
    assert abs(good.loc["mmd", "value"]) < 0.01
    assert 0.85 < good.loc["memorisation_ratio", "value"] < 1.15
    assert abs(good.loc["fold_change_slope", "value"] - 1) < 0.1


@pytest.fixture(scope="module")
def wrong(sets):
    train, real, other = sets
    tables = {}

    def scored(kind):
        if kind not in tables:
            cells = _wrong(kind, train, other)
            tables[kind] = metrics.evaluate_generation(
                real, cells, train, "cell_type", n_estimators=60, n_resamples=0, floor=False
            )
        return tables[kind]

    return scored


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
        ("one cell repeated", "nn_accuracy_generated", 0.3),
        ("one cell repeated", "train_on_generated", -0.2),
        ("wrong library", "library_size_ks", 0.4),
        ("wrong library", "zero_fraction_difference", 0.05),
        ("copy of training", "memorisation_ratio", -0.9),
        ("smoothed", "gene_wasserstein", 0.01),
        ("shuffled genes", "silhouette", -0.05),
        ("shuffled genes", "sliced_w2", 0.2),
        ("wrong library", "gene_wasserstein", 0.05),
        ("wrong labels", "label_agreement", -0.4),
        ("wrong labels", "fold_change_slope", -0.6),
    ],
)
def test_every_failure_is_caught(wrong, good, kind, score, margin):
    change = wrong(kind).loc[score, "value"] - good.loc[score, "value"]
    assert change > margin if margin > 0 else change < margin


def test_a_smoothed_copy_passes_principal_components_and_fails_gene_space(wrong, good):
    # The trap of the field: what only looks at a latent space cannot see count noise.
    table = wrong("smoothed")
    assert table.loc["rf_auc_genes", "value"] > good.loc["rf_auc_genes", "value"] + 0.1


def test_intervals_hold_the_value_and_what_another_sample_scores(sets, good):
    train, real, other = sets
    whole = good.dropna(subset=["low"])
    assert (whole["low"] <= whole["value"]).all()
    assert (whole["high"] >= whole["value"]).all()
    # Another 400 cells of the same distribution in the place of the generated ones.
    again = metrics.evaluate_generation(real, train, other, "cell_type", n_estimators=60, n_resamples=0, floor=False)
    inside = (again["value"] > whole["low"] - whole["high"] + whole["value"]) & (
        again["value"] < whole["high"] - whole["low"] + whole["value"]
    )
    assert inside.mean() > 0.85


def test_half_sample_intervals_have_the_width_of_the_standard_error():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=1000), rng.normal(size=2000)
    table = metrics.half_sample_intervals(lambda r, g: {"d": x[r].mean() - y[g].mean()}, 1000, 2000, 400)
    error = (table["high"] - table["low"]).iloc[0] / 2 / 1.96
    assert error == pytest.approx(np.sqrt(1 / 1000 + 1 / 2000), rel=0.12)


def test_gene_sets_tell_a_silent_program(sets):
    _, real, other = sets
    genes = list(real.var_names[:15])
    fine = metrics.gene_set_agreement(real, other, {"program": genes}, "cell_type")
    silent = other.copy()
    x = silent.X.toarray()
    x[:, :15] = 0
    silent.X = sparse.csr_matrix(x)
    bad = metrics.gene_set_agreement(real, silent, {"program": genes}, "cell_type")
    assert fine.loc["program", "distance"] < 0.3
    assert bad.loc["program", "distance"] > 1
    assert bad.loc["program", "shift"] < -1
    assert fine.loc["program", "label_correlation"] > 0.9
    with pytest.raises(InvalidInputError, match="none of the 1 genes of 'empty'"):
        metrics.gene_set_agreement(real, other, {"empty": ["nope"]})
    table = metrics.evaluate_generation(
        real, silent, other, gene_sets={"program": genes}, n_estimators=5, n_resamples=0
    )
    assert table.loc["gene_set_distance", "value"] > table.loc["gene_set_distance", "floor"] + 0.5


def test_distances_of_sets_of_unequal_size():
    pytest.importorskip("ot")
    x = np.arange(6.0)[:, None]
    assert metrics.wasserstein(x, x[::2], p=1) == pytest.approx(0.5)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4000, 3)), rng.normal(size=(3000, 3)) + np.array([2.0, 0, 0])
    # Of two normals with the same covariance the sliced distance is |shift| / sqrt(dimension).
    assert metrics.sliced_wasserstein(a, b, n_projections=2000) == pytest.approx(2 / np.sqrt(3), rel=0.05)


def test_nearest_neighbours_tell_too_typical_cells():
    rng = np.random.default_rng(0)
    real, same, typical = (rng.normal(size=(500, 20)) * s for s in (1, 1, 0.5))
    for accuracy in metrics.nearest_neighbour_test(real, same):
        assert abs(accuracy - 0.5) < 0.08
    on_real, on_generated = metrics.nearest_neighbour_test(real, typical)
    assert on_generated > 0.9
    assert on_real < 0.35
    copies = metrics.nearest_neighbour_test(real, real.copy())
    assert max(copies) == 0.0


def test_density_counts_how_typical_cells_are():
    rng = np.random.default_rng(0)
    real, same, typical = (rng.normal(size=(600, 5)) * s for s in (1, 1, 0.4))
    fine, tight = metrics.manifold_scores(real, same), metrics.manifold_scores(real, typical)
    assert abs(fine.density - 1) < 0.15
    assert tight.density > fine.density + 0.2
    assert tight.recall < 0.3 < fine.recall


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
    table = metrics.evaluate_generation(real, other, train, n_estimators=10, n_resamples=0)
    assert isinstance(table, pd.DataFrame)
    assert "label_agreement" not in table.index
    assert table["value"].notna().all()
    assert table["floor"].notna().all()
