import types
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy import sparse

from diffvi import InvalidInputError, NotTrainedError
from diffvi.datasets import simulate_tissue
from diffvi.metrics import energy_distance, feature_correlation, log_normalise, moran_i, variance_ratio
from diffvi.model import SpatialDiffusion
from diffvi.model._spatial_draws import _gaussian_map
from diffvi.module import BaggedTrees
from tests.conftest import QUIET

SMALL = {"n_hidden": 64, "n_latent": 5, "denoiser_kwargs": {"width": 32, "depth": 2}, "n_neighbors": 8}
FAST = {"plan_kwargs": {"lr": 3e-3, "dispersion_lr": 0.04}, "batch_size": 64, **QUIET}


class QuickSpatial(SpatialDiffusion):
    """With a short fit of the covariance."""

    KRIGING_STEPS = 60


def fit(adata, setup=None, epochs=(60, 25), **kwargs):
    scvi.settings.seed = 0
    torch.set_num_threads(1)
    QuickSpatial.setup_anndata(adata, **(setup or {}))
    model = QuickSpatial(adata, **{**SMALL, **kwargs})
    model.train(max_epochs=epochs[0], max_epochs_diffusion=epochs[1], **FAST)
    return model


class BriefSpatial(SpatialDiffusion):
    KRIGING_STEPS = 2


def brief(adata, setup=None, **kwargs):
    """A model that has run, for tests of form alone."""
    scvi.settings.seed = 0
    BriefSpatial.setup_anndata(adata, **(setup or {}))
    small = {
        "n_hidden": 16,
        "n_latent": 4,
        "denoiser_kwargs": {"width": 16, "depth": 1, "n_heads": 2},
        "n_neighbors": 5,
    }
    model = BriefSpatial(adata, **{**small, **kwargs})
    model.train(max_epochs=1, max_epochs_diffusion=1, **FAST)
    return model


@pytest.fixture(scope="session")
def tissue():
    """A simulated section with a known field, and a fifth of it to hide."""
    adata = simulate_tissue(900, 50, seed=0)
    adata.obs["hidden"] = np.random.default_rng(0).random(900) < 0.2
    return adata


@pytest.fixture(scope="session")
def mapped(tissue):
    """A model of what is not hidden; tests must not change it."""
    return fit(tissue[~tissue.obs["hidden"]].copy(), {"labels_key": "cell_type"})


@pytest.fixture(scope="session")
def sections():
    """A brief model of two sections with frames of their own."""
    adata = simulate_tissue(80, 20, n_sections=2, seed=1)
    adata.obsm["spatial"][80:] *= 100
    return brief(adata, {"section_key": "section", "batch_key": "section"})


@pytest.fixture(scope="session")
def block():
    """A brief model of a block of aligned planes."""
    adata = simulate_tissue(60, 20, n_sections=4, n_dims=3, seed=1)
    return brief(adata)


# ---------------------------------------------------------------- quality


def test_expected_expression_agrees_with_the_known_field(mapped, tissue):
    hidden = tissue[tissue.obs["hidden"]]
    mean = mapped.generate_at_location(hidden.obsm["spatial"], return_mean=True, seed=0)
    truth = np.log1p(1e4 * hidden.layers["expected"])
    ours = np.nanmean(feature_correlation(truth, mean.X))
    seen = tissue[~tissue.obs["hidden"]]
    distance = np.linalg.norm(hidden.obsm["spatial"][:, None] - seen.obsm["spatial"], axis=2)
    nearest = log_normalise(seen.X)[np.argsort(distance, axis=1)[:, :10]].mean(1)
    assert ours > np.nanmean(feature_correlation(truth, nearest))
    assert ours > 0.75


def test_one_sample_has_the_structure_and_the_spread_of_the_tissue(mapped, tissue):
    hidden = tissue[tissue.obs["hidden"]]
    where, real = hidden.obsm["spatial"], log_normalise(hidden.X)
    sample = log_normalise(mapped.generate_at_location(where, seed=0).X)
    mean = mapped.generate_at_location(where, return_mean=True, seed=0).X
    assert abs(moran_i(sample, where).mean() - moran_i(real, where).mean()) < 0.06
    assert moran_i(mean, where).mean() > moran_i(real, where).mean() + 0.2
    assert 0.75 < variance_ratio(real, sample) < 1.25
    assert energy_distance(sample, real) < 0.5 * energy_distance(mean, real)


def test_intervals_hold_what_was_measured(mapped, tissue):
    hidden = tissue[tissue.obs["hidden"]]
    told = mapped.generate_at_location(hidden.obsm["spatial"], n_samples=40, return_mean=True, seed=0)
    real = log_normalise(hidden.X)
    inside = (real >= told.layers["lower"]) & (real <= told.layers["upper"])
    assert 0.83 < inside.mean() < 0.97
    assert (told.layers["sd"] >= 0).all()
    assert (told.layers["lower"] <= told.layers["upper"]).all()


def test_few_draws_tell_an_interval_that_holds_as_much_as_it_says(mapped, monkeypatch):
    rng = np.random.default_rng(0)
    tables = [{"X": rng.poisson(1000, (2000, 50))} for _ in range(31)]
    monkeypatch.setattr(mapped, "_expression", lambda mean, frame: mean)
    monkeypatch.setattr(mapped, "_corrected", lambda context: np.zeros((2000, 50)))
    monkeypatch.setattr(mapped, "mean_", {"share": 0.0})
    context = types.SimpleNamespace(frame=None)
    told = mapped._summary(context, None, None, iter(tables[1:]))
    new = log_normalise(tables[0]["X"])
    # Between the interpolated quantiles of 30 draws there would be 84 %.
    assert 0.89 < ((new >= told["lower"]) & (new <= told["upper"])).mean() < 0.91


def test_trees_add_what_kriging_leaves(sections, monkeypatch):
    rng, d = np.random.default_rng(0), int(sections.module.prior.d)
    observed, known = sections._own_observed(), np.exp(sections._kriging.log_amplitudes).sum(1)
    rows, kinds = rng.integers(len(observed.frame), size=4000), sections._kriging.kinds
    kriged = rng.normal(size=(4000, observed.values.shape[1])).astype(np.float32)
    # Not linear in the first component, and not alike everywhere.
    bent = kriged + (np.abs(kriged[:, d : d + 1]) + np.sign(observed.scaled[rows, :1])) * (np.arange(20 + d) >= d)
    whole = sections._kriging.variance
    left = np.sqrt(np.tile(whole - 0.5 * known[kinds], (4000, 1)))
    left[0] = np.sqrt(whole)
    context = types.SimpleNamespace(mean=kriged, sd=left, scaled=observed.scaled[rows], frame=observed.frame[rows])
    for name in ("correction_", "mean_"):
        monkeypatch.setattr(sections, name, None)
    cells = types.SimpleNamespace(values=bent, scaled=context.scaled, frame=context.frame)
    least = sections._fit_correction(cells, np.arange(4000), kriged[:, d:], sections._explained(context))
    np.testing.assert_allclose(least, 0.5 * (known[kinds] / whole)[d:].mean(), rtol=1e-4)

    def corrected(share):
        sections.mean_ = {"correction": share, "explained": least}
        return sections._corrected(context)

    error = [((corrected(share) - bent)[1:, d:] ** 2).mean() for share in (0.0, 0.5, 1.0)]
    assert error[1] < 0.5 * error[0]
    assert error[2] < 0.1 * error[0]
    np.testing.assert_array_equal(corrected(1.0)[:, :d], kriged[:, :d])
    # Where nothing is known they have nothing to go by.
    np.testing.assert_allclose(corrected(1.0)[0], kriged[0], atol=1e-5)
    # A model of before had none.
    sections.mean_ = {"share": 0.0}
    np.testing.assert_array_equal(sections._corrected(context), kriged)


@pytest.fixture(scope="session")
def corrected(tissue):
    """As ``mapped`` but trained briefly, with all of what its trees add."""
    model = brief(tissue[~tissue.obs["hidden"]].copy(), {"labels_key": "cell_type"})
    observed = model._own_observed()
    cells = np.arange(len(observed.frame))
    _, kriged, explained = model._told_around(
        observed, model._look_at(observed), cells, model._asked(None, observed.frame)
    )
    least = model._fit_correction(observed, cells, kriged, explained)
    model.mean_ = model.mean_ | {"share": 0.0, "correction": 1.0, "explained": least}
    return model


def test_trees_are_saved_and_used(corrected, tissue, tmp_path, monkeypatch):
    where = tissue.obsm["spatial"][:50]
    whole = corrected.generate_at_location(where, return_mean=True).X
    corrected.save(tmp_path / "model")
    loaded = BriefSpatial.load(tmp_path / "model", corrected.adata)
    np.testing.assert_allclose(loaded.generate_at_location(where, return_mean=True).X, whole, atol=1e-6)
    few = corrected.generate_at_location(where, return_mean=True, batch_size=7).X
    np.testing.assert_allclose(few, whole, atol=1e-5)
    monkeypatch.setattr(corrected, "mean_", corrected.mean_ | {"correction": 0.0})
    assert np.abs(corrected.generate_at_location(where, return_mean=True).X - whole).max() > 0.01


def test_what_trees_add_fades_away_from_the_tissue(corrected, monkeypatch):
    places = corrected.adata.obsm["spatial"]
    where = places.mean(0) + np.array([0, 2, 6, 15])[:, None] * places.std(0)
    whole = corrected.generate_at_location(where, return_mean=True).X
    monkeypatch.setattr(corrected, "mean_", corrected.mean_ | {"correction": 0.0})
    added = np.abs(corrected.generate_at_location(where, return_mean=True).X - whole).max(1)
    assert added[0] > 0.01
    assert added[3] < 0.2 * added[:2].max()


def test_trees_that_predict_validation_cells_worse_are_left_out(monkeypatch):
    fitted = BaggedTrees.fit

    def wrong(x, y, groups):
        trees = fitted(x, y, groups, n_trees=3)
        trees.values = trees.values + 5
        return trees

    monkeypatch.setattr(BaggedTrees, "fit", wrong)
    model = brief(simulate_tissue(300, 20, seed=0))
    assert model.mean_["correction"] == 0
    assert model.correction_ is None


def test_trees_that_predict_validation_cells_better_are_used(monkeypatch):
    class Perfect(BriefSpatial):
        def _fit_correction(self, observed, *examples):
            super()._fit_correction(observed, *examples)
            return 1e-6

        def _corrected(self, context):
            share, d = self.mean_["correction"], int(self.module.prior.d)
            mean, rows = context.mean.copy(), self._left[1]
            if share and len(rows) == len(mean):
                mean[:, d:] += share * (self._left[0].values[rows] - mean)[:, d:]
            return mean

        def _finish_diffusion(self):
            self._left = self._left_to_fit[0], self._left_to_fit[3]
            super()._finish_diffusion()

    adata = simulate_tissue(300, 20, seed=0)
    Perfect.setup_anndata(adata)
    model = Perfect(adata, n_hidden=16, n_latent=4, n_neighbors=5)
    model.train(max_epochs=1, max_epochs_diffusion=1, **FAST)
    assert model.mean_["correction"] == 1
    assert model.correction_ is not None


def test_far_away_nothing_is_known_but_what_is_usual(mapped, tissue):
    with pytest.warns(UserWarning, match=r"`coordinates`: 1 of 2 locations are further from the tissue than ten times"):
        cells = mapped.generate_at_location([[15.0, 15.0], [5e4, 0.0]], seed=0)
    assert cells.obs["far_outside"].tolist() == [False, True]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mean = mapped.generate_at_location([[5e4, 0.0]], return_mean=True).X[0]
    usual = log_normalise(tissue[~tissue.obs["hidden"]].X).mean(0)
    np.testing.assert_allclose(mean, usual, atol=0.1)


def test_draws_of_near_places_agree_more_than_those_of_far_ones(mapped):
    pairs = np.array([[3.0, 3.0], [3.05, 3.0], [25.0, 25.0]])
    state = mapped.generate_at_location(pairs, n_samples=150, seed=0).obsm["X_latent"].reshape(3, 150, -1)
    state = state - state.mean(1, keepdims=True)

    def agreement(a, b):
        return np.mean([np.corrcoef(state[a, :, j], state[b, :, j])[0, 1] for j in range(state.shape[2])])

    assert agreement(0, 1) > agreement(0, 2) + 0.02
    assert abs(agreement(0, 2)) < 0.1


def test_a_condition_guides_what_is_drawn(mapped):
    where = np.random.default_rng(1).uniform(2, 28, (150, 2))
    shares = {}
    labels = mapped.adata.obs["cell_type"].to_numpy(str)
    known = mapped.get_latent_representation()
    for kind in ("type_0", "type_1"):
        cells = mapped.generate_at_location(where, conditions={"cell_type": kind}, guidance_scale=2.0, seed=0)
        assert set(cells.obs["cell_type"]) == {kind}
        near = np.linalg.norm(cells.obsm["X_latent"][:, None] - known, axis=2).argmin(1)
        shares[kind] = (labels[near] == kind).mean()
    assert min(shares.values()) > 0.6


# ---------------------------------------------------------------- form


def test_results_do_not_depend_on_the_batch_size(mapped):
    where = [[float(i), 4.0] for i in range(7)]
    a, b = (mapped.generate_at_location(where, n_samples=2, seed=3, batch_size=size) for size in (2048, 3))
    np.testing.assert_allclose(a.obsm["X_latent"], b.obsm["X_latent"], atol=1e-4)
    assert a.obs["sample"].tolist() == [0, 1] * 7
    np.testing.assert_allclose(a.obsm["spatial"], np.repeat(where, 2, axis=0))
    assert (a.X != mapped.generate_at_location(where, n_samples=2, seed=4).X).nnz > 0
    means = [mapped.generate_at_location(where, return_mean=True, batch_size=size).X for size in (2048, 3)]
    np.testing.assert_allclose(*means, atol=1e-4)


def test_mean_alone_has_no_spread(mapped):
    told = mapped.generate_at_location([[4.0, 4.0]], n_samples=3, return_mean=True, seed=0)
    assert not any(told.layers)  # anndata 0.13 lists X as None
    assert told.uns["log1p"] == {"base": None}


def test_imputing_does_not_look_at_what_it_fills_in(mapped, tissue):
    region = tissue.copy()
    region.obs["gone"] = np.linalg.norm(region.obsm["spatial"] - 15, axis=1) < 4
    gone = region.obs["gone"].to_numpy()
    mapped.impute_region(region, "gone", n_samples=12, seed=0)
    other = tissue.copy()
    # A region with other counts, and none in some cells, comes out the same.
    other.X = sparse.diags((~gone).astype(np.float32)).tocsr() @ other.X
    again = mapped.impute_region(other, gone, n_samples=12, seed=0, copy=True)
    for name in ("mean", "sd", "sample"):
        layer, same = (a.layers[f"imputed_{name}"][gone] for a in (region, again))
        if name == "sample":
            assert (layer != same).nnz == 0
            assert (region.layers["imputed_sample"][~gone] != tissue.X[~gone]).nnz == 0
        else:
            np.testing.assert_allclose(layer, same, atol=1e-4)
    assert "imputed_mean" not in other.layers
    np.testing.assert_allclose(region.layers["imputed_mean"][~gone], log_normalise(tissue.X)[~gone], atol=1e-5)
    assert (region.layers["imputed_sd"][gone] > 0).mean() > 0.9
    assert region.uns["imputed"]["n_imputed"] == gone.sum()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("nowhere", "`mask`: adata.obs has no column 'nowhere'"),
        (None, "`mask` must hold True or False for each of the 900 cells, .* got None"),
        (np.zeros(900, bool), "`mask` hides 0 of 900 cells; some must be hidden and some seen"),
        (np.ones(5, bool), r"`mask` must hold True or False for each of the 900 cells, .* got shape \(5,\)"),
    ],
)
def test_bad_masks_get_a_sentence(mapped, tissue, mask, message):
    with pytest.raises(InvalidInputError, match=message):
        mapped.impute_region(tissue, mask)


@pytest.mark.parametrize("method", ["diffusion", "kriging", "nearest"])
def test_locations_sum_to_their_spot(mapped, method):
    spots = mapped.adata[:40].copy()
    offsets = np.array([[0.1, 0.1], [-0.1, 0.1], [0.1, -0.1]])
    where = (spots.obsm["spatial"][:, None] + offsets).reshape(-1, 2)
    fine = mapped.super_resolution(spots, where, method=method, n_samples=2, seed=0)
    assert fine.obs["spot"].tolist() == np.repeat(spots.obs_names, 3).tolist()
    counts = spots.X.toarray()
    np.testing.assert_array_equal(fine.X.toarray().reshape(40, 3, -1).sum(1), counts)
    np.testing.assert_allclose(fine.layers["mean"].reshape(40, 3, -1).sum(1), counts, rtol=1e-4)
    parts = fine.layers["mean"].reshape(40, 3, -1).std(1)[counts > 5]
    assert (parts < 1e-4).all() if method == "nearest" else (parts > 0).mean() > 0.9


def test_a_spot_tells_what_a_second_measurement_of_it_would_find(mapped, monkeypatch):
    spots, rng = mapped.adata.copy(), np.random.default_rng(0)
    first = spots.X.copy()
    first.data = rng.binomial(first.data.astype(int), 0.5).astype(np.float32)
    second, where = log_normalise(spots.X - first), spots.obsm["spatial"] + 0.01
    spots.X = first

    def score():
        fine = mapped.super_resolution(spots, where, method="nearest", seed=0)
        return np.nanmean(feature_correlation(second, fine.layers["log_expression"]))

    informed, nearest = score(), np.nanmean(feature_correlation(second, log_normalise(first)))
    # Without the share that is no noise the spot is one neighbour of many.
    monkeypatch.setitem(mapped.kriging_, "micro", None)
    assert informed > score() + 0.01
    assert informed > nearest + 0.05


def test_finer_locations_do_not_depend_on_the_batch_size(mapped):
    spots = mapped.adata[:12].copy()
    where = np.concatenate([spots.obsm["spatial"] + 0.1, spots.obsm["spatial"] - 0.1])
    a, b = (mapped.super_resolution(spots, where, n_samples=2, seed=0, batch_size=size) for size in (2048, 5))
    np.testing.assert_allclose(a.layers["mean"], b.layers["mean"], atol=1e-3)
    np.testing.assert_allclose(a.layers["log_expression"], b.layers["log_expression"], atol=1e-4)
    assert (a.obs["spot"] == b.obs["spot"]).all()


def test_what_is_far_is_in_no_spot(mapped):
    spots, where = mapped.adata[:12].copy(), np.array([[5e4, 0.0], [3.0, 3.0]])
    with pytest.warns(UserWarning, match="1 of 2 locations are further from the tissue"):
        fine = mapped.super_resolution(spots, where, method="kriging", seed=0)
    with pytest.warns(UserWarning, match="1 of 2 locations"):
        request = mapped._request(where, np.zeros(2, int), None, 1.0, None, None, 0)
    plain = mapped._at(mapped._observed_of(spots), request, n_samples=1, return_mean=True, batch_size=10)
    assert fine.obs["far_outside"].tolist() == [True, False]
    difference = np.abs(fine.layers["log_expression"] - plain.X).max(1)
    assert difference[0] < 1e-5 < difference[1]


def test_a_spot_is_seen_where_many_share_its_location(mapped):
    adata = mapped.adata[np.r_[np.zeros(60, int), 1:30]].copy()
    adata.obs_names = [f"cell_{i}" for i in range(adata.n_obs)]
    observed = mapped._observed_of(adata)
    request = mapped._request(adata.obsm["spatial"][:1], np.zeros(1, int), None, 1.0, None, None, 0)
    spot = np.array([59])
    around, _, _ = mapped._around(observed, mapped._look_at(observed), request, np.array([0]), spot)
    assert (around.rows == 59).sum() == 1


def test_training_from_the_disk(tmp_path):
    adata = simulate_tissue(60, 10, seed=0)
    adata.write_h5ad(tmp_path / "tissue.h5ad")
    backed = ad.read_h5ad(tmp_path / "tissue.h5ad", backed="r")
    a, b = (brief(x) for x in (adata, backed))
    for name, values in a.kriging_.items():
        np.testing.assert_allclose(values, b.kriging_[name], atol=1e-5)
    assert a.kriging_["micro"].shape == a.kriging_["log_nuggets"].shape


def test_the_share_of_the_network_is_chosen_without_what_a_location_does_not_know(monkeypatch):
    seen = []

    def expected(self, context, codes, table):
        seen.append((codes, table.codes, context))
        return np.zeros((len(codes), self.adata.n_vars), np.float32)

    monkeypatch.setattr(BriefSpatial, "_expected", expected)
    adata = simulate_tissue(150, 10, n_sections=2, seed=0)
    model = brief(adata, {"labels_key": "cell_type", "section_key": "section"})
    (codes, told, context) = seen[0]
    label, section = (model.vocabulary.columns[k].start for k in ("cell_type", "section"))
    assert len(codes) >= 20
    assert np.isnan(codes[:, label]).all()
    np.testing.assert_array_equal(codes[:, section], context.frame)
    # The decoder is told the type of the nearest cell, which is often another than that of the cell itself.
    labels = adata.obs["cell_type"].cat.codes.to_numpy()
    np.testing.assert_array_equal(told[:, label], labels[context.rows[:, 0]])
    assert (told[:, label] != labels[model.validation_indices]).any()


def test_a_handful_of_cells():
    model = brief(simulate_tissue(10, 10, seed=0))
    assert (model.kriging_["micro"] == 0).all()
    BriefSpatial.setup_anndata(model.adata)
    alone = BriefSpatial(model.adata, n_hidden=16, n_latent=4, n_neighbors=5)
    alone.train(max_epochs=1, max_epochs_diffusion=1, train_size=0.1, **FAST)
    assert np.isfinite(alone.generate_at_location([[1.0, 2.0]], return_mean=True).X).all()


def test_what_draws_are_off_by_is_put_right(tmp_path, monkeypatch):
    adata = simulate_tissue(400, 20, seed=0)
    model = brief(adata)
    places = adata.obsm["spatial"] + 0.01
    prior, latent = model.module.prior, model.get_latent_representation(return_dist=True)
    sd = np.sqrt(latent[0].var(0) + latent[1].mean(0))

    def off():
        drawn = model.generate_at_location(places, n_samples=8, seed=0).obsm["X_latent"]
        return np.abs(drawn.mean(0) - latent[0].mean(0)) / sd, np.abs(drawn.std(0) / sd - 1)

    before, sample = off(), prior.sample
    turn = torch.eye(prior.d) + 0.5 * torch.ones(prior.d, prior.d).triu(1)
    monkeypatch.setattr(prior, "sample", lambda *args, **kwargs: 1.5 * sample(*args, **kwargs) @ turn + prior.scale)
    assert (off()[0] > 0.5).all()
    assert (off()[1] > 0.3).all()
    observed = model._own_observed()
    cells = np.arange(len(observed.frame))
    model._match_moments(observed, model._look_at(observed), cells)
    for biased, unbiased in zip(off(), before, strict=True):
        np.testing.assert_allclose(biased, unbiased, atol=0.08)
    model.save(tmp_path / "model")
    loaded = BriefSpatial.load(tmp_path / "model", adata)
    for name, values in model.moments_.items():
        np.testing.assert_array_equal(loaded.moments_[name], values)
    # Of a handful of cells nothing is concluded.
    held = model.moments_
    model._match_moments(observed, model._look_at(observed), cells[:50])
    assert model.moments_ is held


def test_the_map_between_gaussians_takes_one_covariance_to_the_other():
    rng = np.random.default_rng(0)
    one, other = (np.cov(rng.normal(size=(4, 50)) * rng.uniform(0.5, 2, (4, 1))) for _ in range(2))
    matrix = _gaussian_map(one, other)
    np.testing.assert_allclose(matrix @ one @ matrix.T, other, atol=1e-8)
    # Of all maps that do, the one of least effort is symmetric and positive.
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-8)
    assert (np.linalg.eigvalsh(matrix) > 0).all()
    np.testing.assert_allclose(_gaussian_map(one, one), np.eye(4), atol=1e-8)


@pytest.mark.parametrize(("n_genes", "n_latent"), [(4, 2), (33, 11), (70, 20)])
def test_few_genes_get_few_dimensions(n_genes, n_latent, tmp_path):
    adata = simulate_tissue(60, n_genes, seed=0)
    model = brief(adata, n_latent=None)
    assert model.module.n_latent == n_latent
    model.save(tmp_path / "model")
    for loaded in (BriefSpatial.load(tmp_path / "model", adata), BriefSpatial.load(tmp_path / "model")):
        assert loaded.module.n_latent == n_latent
    assert brief(adata, n_latent=3).module.n_latent == 3


def test_coordinates_are_where_scanpy_looks_for_them():
    adata = simulate_tissue(60, 10, seed=0)
    adata.obsm["place"] = adata.obsm.pop("spatial")
    cells = brief(adata, {"spatial_key": "place"}).generate_at_location([[1.0, 2.0]], seed=0)
    assert cells.obsm["spatial"].tolist() == cells.obsm["place"].tolist() == [[1.0, 2.0]]


def test_minified_data_has_nothing_to_krige():
    adata = simulate_tissue(60, 10, seed=0)
    model = brief(adata)
    model.adata.obsm["mean"], model.adata.obsm["var"] = model.get_latent_representation(return_dist=True)
    model.minify_adata(use_latent_qzm_key="mean", use_latent_qzv_key="var")
    shift = model.module.prior.shift.clone()
    for call in (lambda: model.train_diffusion(max_epochs=1), model.get_niche_representation):
        with pytest.raises(InvalidInputError, match="`adata` is minified and holds no counts, which kriging needs"):
            call()
    assert (model.module.prior.shift == shift).all()
    assert model.generate_at_location([[1.0, 2.0]], seed=0).n_obs == 1


def test_sections_have_frames_of_their_own(sections):
    places = sections.adata.obsm["spatial"]
    cells = sections.generate_at_location(places[:3], ["section_0"] * 3, seed=0)
    assert set(cells.obs["section"]) == {"section_0"}
    observed = sections._own_observed()
    frame = sections._sections_of(["section_1"] * 4, 4)
    from diffvi.module import Frames, Surroundings

    scaled = Frames(**sections.frames_).scaled(places[80:84], frame)
    look = Surroundings(observed.scaled, observed.frame, np.arange(len(observed.frame)), 5)
    near = look(scaled, frame)
    assert set(observed.frame[near[near >= 0]]) == {1}
    # In the units of its own frame a section is like the other.
    assert (
        np.abs(
            np.ptp(observed.scaled[observed.frame == 0], 0) / np.ptp(observed.scaled[observed.frame == 1], 0) - 1
        ).max()
        < 0.5
    )
    with pytest.raises(InvalidInputError, match=r"`section` must name one of the model's sections, .* got None"):
        sections.generate_at_location(places[:3])
    with pytest.raises(InvalidInputError, match=r"`section` must name .* got 'section_9'"):
        sections.generate_at_location(places[:3], "section_9")
    with pytest.raises(InvalidInputError, match="`section` has 2 values for 3 locations"):
        sections.generate_at_location(places[:3], ["section_0", "section_1"])


def test_a_plane_between_measured_ones(block):
    plane = block.reconstruct_section(1.5, n_samples=2, seed=0)
    assert plane.n_obs == 120
    assert (plane.obsm["spatial"][:, 2] == 1.5).all()
    chosen = block.reconstruct_section(2.0, coordinates=[[1.0, 1.0], [2.0, 3.0]], return_mean=True)
    assert chosen.shape == (2, 20)
    masks = list(
        block._masked(block._own_observed().scaled, np.zeros(240, int), np.arange(240), np.random.default_rng(0))
    )
    z = block.adata.obsm["spatial"][:, 2]
    whole = [hidden for _, hidden in masks if any((hidden == (z == level)).all() for level in range(4))]
    assert len(whole) >= len(masks) // 3


def test_planes_need_three_dimensions(mapped):
    with pytest.raises(InvalidInputError, match="`z`: the model's coordinates have 2 dimensions"):
        mapped.reconstruct_section(1.0)


def test_niches_tell_what_is_around(mapped, tissue):
    niche = mapped.get_niche_representation(n_neighbors=10)
    assert niche.shape == (mapped.adata.n_obs, 10)
    field = mapped.adata.obsm["field"]
    latent = mapped.get_latent_representation()

    def told(x):
        x = np.c_[x, np.ones(len(x))]
        left = field - x @ np.linalg.lstsq(x, field, rcond=None)[0]
        return 1 - left.var() / field.var()

    assert told(niche) > told(latent) + 0.03


def test_annotate_denoise_and_generate_work_as_in_other_models(mapped, tissue):
    cells = mapped.adata[:20].copy()
    mapped.annotate(cells)
    assert np.isfinite(cells.obs["diffvi_log_prob"]).all()
    assert mapped.generate(5, {"cell_type": "type_1"}, seed=0).n_obs == 5
    assert "denoised" in mapped.denoise(cells, copy=True).layers


def test_saved_models_work_without_data(mapped, tmp_path):
    mapped.save(str(tmp_path / "model"))
    loaded = QuickSpatial.load(str(tmp_path / "model"))
    where = [[3.0, 4.0], [10.0, 2.0]]
    a, b = (m.generate_at_location(where, n_samples=2, seed=0) for m in (mapped, loaded))
    assert (a.X != b.X).nnz == 0
    np.testing.assert_allclose(
        *(m.generate_at_location(where, return_mean=True).X for m in (mapped, loaded)), atol=1e-5
    )
    for call in (loaded.impute_region, loaded.get_niche_representation, lambda: loaded.super_resolution(None, where)):
        with pytest.raises(InvalidInputError, match="`adata`: the model was loaded without data"):
            call()


def test_from_scvi_model(tissue):
    adata = tissue[:200].copy()
    scvi.model.SCVI.setup_anndata(adata)
    vae = scvi.model.SCVI(adata, n_hidden=16, n_latent=4)
    vae.train(max_epochs=1, **QUIET)
    model = BriefSpatial.from_scvi_model(vae, denoiser_kwargs={"width": 16, "depth": 1, "n_heads": 2}, n_neighbors=4)
    model.train_diffusion(max_epochs=1, **QUIET)
    assert model.generate_at_location([[1.0, 1.0]], seed=0).n_obs == 1


def test_query_sections_are_added_by_surgery(sections):
    query = simulate_tissue(60, 20, seed=5)
    query.obs["section"] = pd.Categorical(["new"] * 60)
    model = BriefSpatial.load_query_data(query, sections)
    model.train(max_epochs=1, max_epochs_diffusion=1, **FAST)
    cells = model.generate_at_location(query.obsm["spatial"][:4], "new", seed=0)
    assert set(cells.obs["section"]) == {"new"}


def test_hidden_cells_reach_nothing(tissue):
    """What the test split holds changes no number of the model."""
    models = []
    for change in (False, True):
        adata = tissue[:300].copy()
        test = np.arange(250, 300)
        if change:
            adata.X = sparse.diags(np.where(np.arange(300) < 250, 1.0, 2.0).astype(np.float32)).tocsr() @ adata.X
            adata.obsm["spatial"][test] += 7
        scvi.settings.seed = 0
        BriefSpatial.setup_anndata(adata)
        model = BriefSpatial(adata, n_hidden=16, n_latent=4, denoiser_kwargs={"width": 16, "depth": 1, "n_heads": 2})
        split = {"external_indexing": [np.arange(220), np.arange(220, 250), test]}
        model.train(max_epochs=2, max_epochs_diffusion=2, datasplitter_kwargs=split, **FAST)
        models.append(model)
    a, b = (m.generate_at_location([[5.0, 5.0], [9.0, 3.0]], n_samples=12, return_mean=True, seed=0) for m in models)
    np.testing.assert_allclose(a.X, b.X, atol=1e-5)
    np.testing.assert_allclose(a.layers["sd"], b.layers["sd"], atol=1e-5)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.obsm.pop("spatial"), "`spatial_key`: adata.obsm has no 'spatial'; it has"),
        (
            lambda a: a.obsm.update(spatial=np.ones((60, 4))),
            r"must have a row for each location and 2 or 3 columns; got the shape \(60, 4\)",
        ),
        (lambda a: a.obsm["spatial"].__setitem__((3, 0), np.nan), "has NaN or infinite values for 1 of 60 locations"),
        (lambda a: a.obsm.update(spatial=np.full((60, 2), "x")), "must hold numbers"),
        (
            lambda a: a.obs.__setitem__("section", ["a"] * 55 + ["b"] * 5),
            r"the sections 'b' have fewer than 10 locations",
        ),
        (
            lambda a: a.obs.__setitem__("section", ["a"] * 59 + [None]),
            r"adata.obs\['section'\] has no value \(NaN\) for 1 of 60",
        ),
    ],
)
def test_bad_coordinates_get_a_sentence(change, message):
    adata = simulate_tissue(60, 10, seed=0)
    change(adata)
    with pytest.raises(InvalidInputError, match=message):
        SpatialDiffusion.setup_anndata(adata, section_key="section")


def test_shared_locations_are_pointed_out():
    adata = simulate_tissue(60, 10, seed=0)
    adata.obsm["spatial"][1] = adata.obsm["spatial"][0]
    with pytest.warns(UserWarning, match="2 of 60 cells share their location with another cell"):
        SpatialDiffusion.setup_anndata(adata)
    adata.obsm["spatial"][:30] = adata.obsm["spatial"][30:]
    del adata.obs["section"]
    with pytest.warns(UserWarning, match="name the column that tells them apart with `section_key`"):
        SpatialDiffusion.setup_anndata(adata)


def test_sections_on_one_another_are_pointed_out():
    adata = simulate_tissue(60, 10, n_sections=2, seed=0)
    with pytest.warns(
        UserWarning, match="`section_key` is not given, but the groups of adata.obs\\['section'\\] lie on one another"
    ):
        SpatialDiffusion.setup_anndata(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SpatialDiffusion.setup_anndata(adata, section_key="section")


@pytest.mark.parametrize(
    ("coordinates", "message"),
    [
        (
            [[1.0, 2.0, 3.0]],
            r"`coordinates` must have a row for each location and 2 columns, as the model's have; got the shape \(1, 3\)",
        ),
        ([1.0, 2.0], r"got the shape \(2,\)"),
        (np.empty((0, 2)), "`coordinates` must have at least one location; got none"),
        ([[np.nan, 2.0]], "`coordinates` has NaN or infinite values for 1 of 1 locations"),
        ([["a", "b"]], "`coordinates` must hold numbers"),
    ],
)
def test_bad_locations_get_a_sentence(mapped, coordinates, message):
    with pytest.raises(InvalidInputError, match=message):
        mapped.generate_at_location(coordinates)


def test_other_bad_arguments_get_a_sentence(mapped, tissue):
    where = [[1.0, 1.0]]
    for kwargs, message in (
        ({"section": "a"}, "`section`: the model has no `section_key`; got 'a'"),
        ({"n_samples": 0}, "`n_samples` must be a whole number of at least 1"),
        ({"conditions": {"cell_type": "none"}}, "unknown value 'none'"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            mapped.generate_at_location(where, **kwargs)
    with pytest.raises(
        InvalidInputError, match="`method` must be one of 'diffusion', 'kriging', 'nearest'; got 'magic'"
    ):
        mapped.super_resolution(None, where, method="magic")
    with pytest.raises(InvalidInputError, match="`n_neighbors` must be a whole number"):
        QuickSpatial(mapped.adata, n_neighbors=0)
    adata = tissue[:50].copy()
    SpatialDiffusion.setup_anndata(adata)
    with pytest.raises(NotTrainedError, match="diffusion stage"):
        SpatialDiffusion(adata).generate_at_location(where)
