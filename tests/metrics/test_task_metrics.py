"""Scores of the other tasks: known values, and the traps that each must see."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from diffvi import InvalidInputError, metrics


def _perturbed(n_cells=120, n_genes=60, n_perturbations=4, seed=0):
    """Control and perturbed cells with known effects; even perturbations share a direction."""
    rng = np.random.default_rng(seed)
    base = rng.gamma(2, 3, n_genes)
    parts = {"control": base}
    for i in range(n_perturbations):
        change = np.zeros(n_genes)
        change[rng.permutation(n_genes)[:12]] = rng.choice([-1.2, 1.2], 12)
        parts[f"p{i}"] = base * np.exp(change)
    cells = []
    for name, rate in parts.items():
        x = rng.poisson(np.broadcast_to(rate, (n_cells, n_genes)))
        obs = pd.DataFrame({"perturbation": name}, index=[f"{name}_{i}" for i in range(n_cells)])
        cells.append(AnnData(sparse.csr_matrix(x), obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(n_genes)])))
    return ad.concat(cells)


def _mean(table, score, column="value"):
    return table.loc[table["score"] == score, column].mean()


@pytest.fixture(scope="module")
def perturbed():
    both = _perturbed(240)
    control = both[both.obs["perturbation"] == "control"].copy()
    treated = both[both.obs["perturbation"] != "control"].copy()
    rows = np.random.default_rng(1).permutation(treated.n_obs)
    return treated[rows[:480]].copy(), treated[rows[480:]].copy(), control


def test_a_replicate_scores_high_and_no_change_scores_zero(perturbed):
    real, replicate, control = perturbed
    good = metrics.evaluate_perturbation(real, replicate, control, "perturbation")
    assert set(good.columns) == {"perturbation", "score", "value", "floor", "best"}
    assert _mean(good, "pearson_delta") > 0.95
    assert _mean(good, "discrimination") == 1
    assert 0.9 < _mean(good, "effect_norm_ratio") < 1.1
    assert abs(_mean(good, "energy_distance")) < 0.1
    assert 0.6 < _mean(good, "de_ratio") < 1.6
    assert _mean(good, "de_overlap") > 0.8
    assert _mean(good, "variance_r2") > 0.3
    assert _mean(good, "pearson_delta", "floor") > 0.9
    unchanged = replicate.copy()
    unchanged.X = control.X[np.random.default_rng(0).integers(control.n_obs, size=unchanged.n_obs)]
    none = metrics.evaluate_perturbation(real, unchanged, control, "perturbation")
    assert abs(_mean(none, "pearson_delta")) < 0.35
    assert _mean(none, "effect_norm_ratio") < 0.4
    assert _mean(none, "de_ratio") < 0.2
    assert _mean(none, "energy_distance") > 0.3


def test_shuffled_perturbation_labels_cannot_be_told_apart(perturbed):
    real, replicate, control = perturbed
    wrong = replicate.copy()
    names = wrong.obs["perturbation"].to_numpy(str)
    wrong.obs["perturbation"] = pd.Series(names).map({"p0": "p1", "p1": "p2", "p2": "p3", "p3": "p0"}).to_numpy()
    table = metrics.evaluate_perturbation(real, wrong, control, "perturbation")
    assert _mean(table, "discrimination") < 0.6
    assert _mean(table, "pearson_delta_mean") < 0.1


def test_cells_collapsed_to_their_mean_fail_the_variance(perturbed):
    real, replicate, control = perturbed
    mean = {
        n: metrics.expression(replicate[replicate.obs["perturbation"] == n]).mean(0) for n in ("p0", "p1", "p2", "p3")
    }
    x = np.stack([mean[n] for n in replicate.obs["perturbation"]])
    flat = AnnData(x, obs=replicate.obs.copy(), var=replicate.var.copy(), uns={"log1p": {}})
    table = metrics.evaluate_perturbation(real, flat, control, "perturbation")
    assert _mean(table, "pearson_delta") > 0.9
    assert _mean(table, "variance_r2") < 0


def test_a_constant_prediction_discriminates_by_chance():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(9, 30))
    assert metrics.discrimination(real, np.tile(rng.normal(size=30), (9, 1))).mean() == pytest.approx(0.5)
    assert metrics.discrimination(real, np.zeros((9, 30))).mean() == pytest.approx(0.5)
    assert metrics.discrimination(real, real).tolist() == [1.0] * 9
    assert np.isnan(metrics.discrimination(real[:1], real[:1])).all()


def test_scales_of_the_simple_scores():
    control, real = np.zeros(4), np.array([1.0, -1, 0, 0])
    assert metrics.fold_change_nmae(real, control, control) == 1
    assert metrics.pearson_delta(real, control, control) == 0
    assert metrics.effect_norm_ratio(real, 0.5 * real, control) == pytest.approx(0.5)
    assert metrics.effect_distance(real, control) == pytest.approx(np.sqrt(2))
    assert metrics.scaled_score(0.75, 0.5, 1.0) == 0.5
    assert np.isnan(metrics.scaled_score(0.75, 1.0, 1.0))


def test_calibration_tells_honest_from_narrow_intervals():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=2000)
    honest = metrics.calibration_curve(truth, rng.normal(size=(200, 2000)))
    narrow = metrics.calibration_curve(truth, 0.3 * rng.normal(size=(200, 2000)))
    np.testing.assert_allclose(honest[:, 1], honest[:, 0], atol=0.04)
    few = metrics.calibration_curve(rng.normal(size=50_000), rng.normal(size=(19, 50_000)))
    np.testing.assert_allclose(few[:, 1], few[:, 0], atol=0.01)
    assert (narrow[:, 1] < narrow[:, 0]).all()
    assert metrics.interval_coverage(truth, truth - 1, truth + 1) == 1


def test_perturbation_input_is_checked(perturbed):
    real, replicate, control = perturbed
    some = replicate[replicate.obs["perturbation"] != "p0"].copy()
    with pytest.raises(InvalidInputError, match="'p0' has 1"):
        metrics.evaluate_perturbation(real, some, control, "perturbation")
    with pytest.raises(InvalidInputError, match=r"`perturbation_key`: real\.obs has no column"):
        metrics.evaluate_perturbation(real, replicate, control, "guide")
    with pytest.raises(InvalidInputError, match="`control` must have the genes"):
        metrics.evaluate_perturbation(real, replicate, control[:, ::-1], "perturbation")


def test_translation_scores():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(300, 3))
    predicted = np.stack([real[:, 0], np.zeros(300), np.exp(real[:, 2])], 1)
    table = metrics.evaluate_translation(real, predicted, ["same", "flat", "bent"], real - 1, real + 1)
    assert table.loc["same", "pearson"] == pytest.approx(1)
    assert table.loc["flat", "pearson"] == 0
    assert table.loc["bent", "spearman"] == pytest.approx(1)
    assert table.loc["bent", "pearson"] < 0.9
    assert table.loc["same", "rmse"] == 0
    assert (table["interval_coverage"] == 1).all()
    with pytest.raises(InvalidInputError, match=r"`predicted` has the shape \(300, 2\)"):
        metrics.evaluate_translation(real, predicted[:, :2])


def test_unpaired_modalities_are_seen_by_the_cross_correlation():
    rng = np.random.default_rng(0)
    state = rng.gamma(1, 1, (600, 3))
    rna = rng.poisson(state @ rng.gamma(1, 1, (3, 30)) + 1)
    protein = rng.poisson(state @ rng.gamma(1, 20, (3, 5)) + 5)
    a, b = slice(300), slice(300, 600)
    paired = metrics.cross_correlation_agreement(rna[a], protein[a], rna[b], protein[b])
    broken = metrics.cross_correlation_agreement(rna[a], protein[a], rna[b], protein[b][rng.permutation(300)])
    assert paired > 0.7
    assert broken < paired - 0.4
    two, one = np.repeat([0.0, 5.0], 200)[:, None] + rng.normal(size=(400, 1)) * 0.3, rng.normal(size=(4000, 1))
    assert metrics.bimodality(two)[0] > 0.9
    assert metrics.bimodality(one)[0] == pytest.approx(1 / 3, abs=0.04)


def test_trajectory_scores_tell_another_population_and_use_weights():
    rng = np.random.default_rng(0)
    real, same, other = rng.normal(size=(300, 5)), rng.normal(size=(300, 5)), rng.normal(size=(300, 5)) + 2
    good, bad = (metrics.evaluate_trajectory(real, p, n_resamples=5) for p in (same, other))
    for score in ("w1", "w2", "mmd", "energy_distance"):
        assert bad.loc[score, "value"] > good.loc[score, "high"], score
    assert good.loc["w1", "value"] < 1.1 * good.loc["w1", "floor"]
    mixed, weights = np.concatenate([same, other]), np.repeat([1.0, 0.0], 300)
    weighted = metrics.evaluate_trajectory(real, mixed, weights, np.repeat("a", 300), np.repeat(["a", "b"], 300), 5)
    assert weighted.loc["mmd", "value"] < 0.1 * bad.loc["mmd", "value"]
    assert weighted.loc["composition_distance", "value"] == 0
    assert metrics.composition_distance(["a", "b"], ["a", "a"]) == pytest.approx(0.5)


def test_fates():
    fates = np.array(["a", "a", "b", "b"])
    right = pd.DataFrame({"a": [0.9, 0.8, 0.1, 0.2], "b": [0.1, 0.2, 0.9, 0.8]})
    assert metrics.fate_auroc(fates, right) == 1
    assert metrics.fate_auroc(fates, right[["b", "a"]].set_axis(["a", "b"], axis=1)) == 0
    truth = np.eye(2)[[0, 0, 1, 1]]
    assert metrics.fate_correlation(truth, right.to_numpy()) > 0.95
    assert metrics.fate_correlation(truth, np.full((4, 2), 0.5)) == 0


def test_space_scores_see_smoothing_and_scrambling():
    rng = np.random.default_rng(0)
    coordinates = rng.random((500, 2))
    signal = np.sin(6 * coordinates) @ rng.normal(size=(2, 8))
    real = signal + rng.normal(size=signal.shape)
    smooth = metrics.evaluate_space(real, signal, signal, coordinates)
    scrambled = metrics.evaluate_space(real, signal, real[rng.permutation(500)], coordinates)
    faithful = metrics.evaluate_space(real, signal, signal + rng.normal(size=signal.shape), coordinates)
    assert smooth.loc["moran_i_sample", "value"] > smooth.loc["moran_i_sample", "floor"] + 0.2
    assert smooth.loc["variance_ratio_sample", "value"] < 0.8
    assert abs(scrambled.loc["moran_i_sample", "value"]) < 0.1
    assert abs(faithful.loc["moran_i_sample", "value"] - faithful.loc["moran_i_sample", "floor"]) < 0.08
    assert faithful.loc["energy_distance", "value"] < 0.3 * smooth.loc["energy_distance", "value"]
    line = np.arange(400.0)
    assert metrics.moran_i(line[:, None], np.stack([line, 0 * line], 1), k=2)[0] > 0.95
    assert np.isnan(metrics.moran_i(np.ones((400, 1)), np.stack([line, 0 * line], 1))[0])
    with pytest.raises(InvalidInputError, match="`sample` has the shape"):
        metrics.evaluate_space(real, real, real[:5], coordinates)


def test_controls_of_their_own_take_the_shared_noise_out_of_an_effect():
    """Nothing happens; cells that forget the controls they started from look right if judged by those same controls."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(2.0, 2.0, size=80)

    def cells(n, name):
        obs = pd.DataFrame({"p": [name] * n}, index=[f"{name}_{i}" for i in range(n)])
        return AnnData(rng.poisson(rate, size=(n, 80)).astype(float), obs=obs)

    real, predicted, control, source = cells(200, "A"), cells(200, "A"), cells(15, "c"), cells(15, "c")
    shared = metrics.evaluate_perturbation(real, predicted, control, "p")
    apart = metrics.evaluate_perturbation(real, predicted, control, "p", source=source)
    assert _mean(shared, "pearson_delta") > 0.6
    assert abs(_mean(apart, "pearson_delta")) < 0.3


def test_spatial_gene_agreement_asks_whether_the_same_genes_vary_in_space():
    rng = np.random.default_rng(0)
    places = rng.uniform(size=(300, 2))
    strength = np.linspace(0, 2, 12)
    real, again = (np.sin(5 * places[:, :1]) * strength + rng.normal(size=(300, 12)) for _ in range(2))
    assert metrics.spatial_gene_agreement(real, again, places) > 0.85
    assert metrics.spatial_gene_agreement(real, again[:, ::-1], places) < -0.8
    assert abs(metrics.spatial_gene_agreement(real, rng.permutation(real), places)) < 0.8
    assert np.isnan(metrics.spatial_gene_agreement(real, np.ones_like(real), places))
