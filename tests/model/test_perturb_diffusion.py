import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy import stats

from diffvi import InvalidInputError, NotTrainedError
from diffvi.datasets import simulate_perturbations
from diffvi.metrics import de_agreement, energy_distance, log_normalise, variance_r2
from diffvi.model import PerturbDiffusion
from tests.conftest import QUIET

SMALL = {"n_hidden": 64, "n_latent": 6, "denoiser_kwargs": {"width": 32, "depth": 2}}
FAST = {"plan_kwargs": {"lr": 3e-3, "dispersion_lr": 0.04}, "batch_size": 64, **QUIET}


def fit(adata, setup=None, epochs=(60, 60), **kwargs):
    scvi.settings.seed = 0
    torch.set_num_threads(1)
    PerturbDiffusion.setup_anndata(adata, "perturbation", "control", **(setup or {}))
    model = PerturbDiffusion(adata, **{**SMALL, **kwargs})
    model.train(max_epochs=epochs[0], max_epochs_diffusion=epochs[1], **FAST)
    return model


@pytest.fixture(scope="session")
def whole():
    """Simulated cells, five singles and all pairs, two cell types."""
    return simulate_perturbations(1500, 40, n_perturbations=5, seed=3)


@pytest.fixture(scope="session")
def perturbed(whole):
    """A model that has never seen E, nor A+B, and whose embedding knows E; tests must not change it."""
    names = whole.obs["perturbation"].astype(str)
    train = whole[~(names.str.contains("E") | (names == "A+B"))].copy()
    setup = {"labels_key": "cell_type", "perturbation_embedding": "embedding"}
    return fit(train, setup)


@pytest.fixture
def control(whole):
    return whole[whole.obs["perturbation"] == "control"][:40].copy()


def predicted(model, cells, *args, **kwargs):
    return model.predict_perturbation(cells, *args, **{"seed": 0, "copy": True, **kwargs})


def same(a, b):
    return (a.layers["perturbed"] != b.layers["perturbed"]).nnz == 0


# ---------------------------------------------------------------- what must not change


@pytest.mark.parametrize("kwargs", [{}, {"use_diffusion": False}, {"n_samples": 3}])
def test_control_to_control_changes_nothing(perturbed, control, kwargs):
    got = predicted(perturbed, control, "control", **kwargs)
    assert (got.layers["perturbed"] != control.X.astype(int)).nnz == 0
    np.testing.assert_allclose(got.layers["perturbed_mean"], control.X.toarray(), atol=1e-4)
    assert not got.obsm["X_perturbed_delta"].any()
    assert (got.obs["perturbed_status"] == "control").all()


def test_the_order_of_the_parts_does_not_matter(perturbed, control):
    assert same(predicted(perturbed, control, "A+B"), predicted(perturbed, control, "B+A"))
    assert same(predicted(perturbed, control, "A"), predicted(perturbed, control, "control+A"))


def test_a_cells_result_depends_on_the_seed_and_on_no_other_cell(perturbed, control):
    every = predicted(perturbed, control, "A+B")
    assert same(every, predicted(perturbed, control, "A+B", batch_size=7))
    assert same(every[5:15], predicted(perturbed, control[5:15].copy(), "A+B"))
    assert same(every[::-1], predicted(perturbed, control[::-1].copy(), "A+B"))
    mixed = predicted(perturbed, control, ["A+B"] * 20 + ["C"] * 20)
    assert same(every[:20], mixed[:20])
    assert not same(every, predicted(perturbed, control, "A+B", seed=1))


def test_two_draws_differ_and_the_first_does_not_depend_on_how_many(perturbed, control):
    one, three = (predicted(perturbed, control, "A", n_samples=n) for n in (1, 3))
    assert same(one, three)
    assert not np.allclose(one.layers["perturbed_mean"], three.layers["perturbed_mean"])


# ---------------------------------------------------------------- what comes out


def test_results_are_where_the_docs_say(perturbed, control, tmp_path):
    assert perturbed.predict_perturbation(control, "A", seed=0, key_added="hit") is None
    assert control.layers["hit"].dtype == np.int32
    for name in ("hit_mean", "hit_std"):
        assert control.layers[name].shape == control.shape
    assert control.obsm["X_hit"].shape == control.obsm["X_hit_delta"].shape == (40, 6)
    source = control.uns["hit"]
    assert source["seed"] == 0
    assert source["status"] == {"seen": 40}
    assert set(source["units"]) == {"hit", "hit_mean", "hit_std", "X_hit", "X_hit_delta"}
    control.write_h5ad(tmp_path / "cells.h5ad")
    back = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert (back.layers["hit"] != control.layers["hit"]).nnz == 0


def test_without_cells_the_models_own_controls_come_back_as_a_copy(perturbed):
    got = perturbed.predict_perturbation(perturbation="A", seed=0)
    assert (got.obs["perturbation"] == "control").all()
    assert "perturbed" not in perturbed.adata.layers


def test_the_library_stays_a_cells_own_and_resampling_can_change_it(perturbed, control):
    own = np.asarray(control.X.sum(1)).ravel()
    moved = np.asarray(predicted(perturbed, control, "A").layers["perturbed"].sum(1)).ravel()
    assert np.corrcoef(own, moved)[0, 1] > 0.8
    assert abs(moved.sum() / own.sum() - 1) < 0.1
    fresh = predicted(perturbed, control, "A", decode="resample", library_size=5000)
    assert abs(np.asarray(fresh.layers["perturbed"].sum(1)).mean() / 5000 - 1) < 0.1
    kept = predicted(perturbed, control, "control", decode="resample")
    assert (kept.layers["perturbed"] != control.X.astype(int)).nnz > 0


@pytest.mark.parametrize(
    ("name", "status", "least"),
    [("A", "seen", 0.9), ("C+D", "seen", 0.9), ("A+B", "combo_seen2", 0.85), ("A+E", "combo_seen1", 0.5)],
)  # fmt: skip
def test_effects_are_those_of_the_simulator(perturbed, whole, name, status, least):
    table = perturbed.get_perturbation_effect(name)
    assert (table["status"] == status).all()
    truth = whole.uns["log_ratio"][name].to_numpy()
    assert np.corrcoef(table["log_fold_change"], truth)[0, 1] > least
    assert ((truth >= table["low"]) & (truth <= table["high"])).mean() > 0.6


def test_predicted_cells_are_nearer_to_real_ones_than_control_cells(perturbed, whole):
    names = whole.obs["perturbation"]
    log = {n: np.log1p(whole[names == n].X.toarray()).mean(0) for n in ("control", "A+B")}
    got = np.log1p(predicted(perturbed, whole[names == "control"].copy(), "A+B").layers["perturbed"].toarray()).mean(0)
    assert np.linalg.norm(got - log["A+B"]) < 0.4 * np.linalg.norm(log["control"] - log["A+B"])


def test_an_embedding_tells_of_a_perturbation_that_was_never_seen(perturbed, control):
    """What it tells is tested with the process; here that it arrives, and that nothing is silently zero."""
    table = perturbed.get_perturbation_effect("E")
    assert (table["status"] == "unseen_embedded").all()
    assert np.abs(predicted(perturbed, control, "E").obsm["X_perturbed_delta"]).max() > 0.01


def test_less_is_known_of_what_was_not_seen(perturbed):
    table = perturbed.get_perturbation_effect(["A", "A+B", "E", "Z"], unseen="mean").groupby("perturbation")
    width = (table["high"].mean() - table["low"].mean()).to_dict()
    assert width["A"] < width["A+B"] < width["Z"]
    assert width["A"] < width["E"]
    doubt, noise = table["sd_epistemic"].mean(), table["sd_noise"].mean()
    assert doubt["A"] < doubt["A+B"] < doubt["Z"]
    assert (noise > 0).all()


def test_intervals_widen_with_the_level_and_groups_are_taken_apart(perturbed):
    narrow, wide = (perturbed.get_perturbation_effect("A", level=q) for q in (0.5, 0.95))
    assert ((wide["high"] - wide["low"]) > (narrow["high"] - narrow["low"])).all()
    grouped = perturbed.get_perturbation_effect("A", groupby="cell_type", genes=["gene_3"])
    assert grouped["group"].tolist() == ["type_0", "type_1"]
    assert grouped["gene"].tolist() == ["gene_3"] * 2


def test_a_screen_ranks_singles_and_all_pairs_and_streams(perturbed, tmp_path):
    table = perturbed.screen_perturbations(pairs=True, batch_size=4, path=tmp_path / "screen.csv", show_progress=False)
    assert len(table) == 5 + 10
    assert table["effect_norm"].is_monotonic_decreasing
    singles = table[~table["perturbation"].str.contains(r"\+")]
    assert singles["interaction"].isna().all()
    assert table.loc[table["perturbation"] == "A+B", "interaction"].item() > 0
    written = pd.read_csv(tmp_path / "screen.csv")
    assert sorted(written["perturbation"]) == sorted(table["perturbation"])
    np.testing.assert_allclose(
        written.set_index("perturbation")["effect_norm"].sort_index(),
        table.set_index("perturbation")["effect_norm"].sort_index(),
    )


def test_generation_takes_perturbations_by_name(perturbed, whole):
    cells = perturbed.generate(300, {"perturbation": "C+D"}, seed=0)
    assert (cells.obs["perturbation"] == "C+D").all()
    names = whole.obs["perturbation"]
    log = {n: np.log1p(whole[names == n].X.toarray()).mean(0) for n in ("control", "C+D")}
    got = np.log1p(cells.X.toarray()).mean(0)
    assert np.linalg.norm(got - log["C+D"]) < 0.5 * np.linalg.norm(got - log["control"])


def test_differential_expression_of_observed_and_of_predicted_cells(perturbed, whole):
    seen = perturbed.differential_expression(perturbation="A", silent=True)
    assert (seen["cells"] == "observed").all()
    unseen = perturbed.differential_expression(perturbation="B+A", silent=True)
    assert (unseen["cells"] == "predicted").all()
    for table, name in ((seen, "A"), (unseen, "A+B")):
        truth = whole.uns["log_ratio"][name]
        change = np.log2(table["scale1"] / table["scale2"])
        assert np.corrcoef(change[truth.index], truth)[0, 1] > 0.7
    assert len(perturbed.differential_expression(groupby="cell_type", silent=True)) == 80


def test_a_loaded_model_predicts_the_same_with_and_without_data(perturbed, control, tmp_path):
    before = predicted(perturbed, control, "A+B")
    perturbed.save(str(tmp_path / "m"))
    loaded = PerturbDiffusion.load(str(tmp_path / "m"))
    table = loaded.get_perturbation_effect(["A+B", "E"])
    pd.testing.assert_frame_equal(table, perturbed.get_perturbation_effect(["A+B", "E"]))
    with pytest.raises(InvalidInputError, match="`adata`: the model was loaded without data"):
        loaded.predict_perturbation(perturbation="A")
    whole = PerturbDiffusion.load(str(tmp_path / "m"), adata=perturbed.adata.copy())
    assert same(before, predicted(whole, control, "A+B"))


# ---------------------------------------------------------------- the parts


@pytest.mark.parametrize(
    "kwargs",
    [
        {"additive": False},
        {"shrink": False},
        {"n_neighbors": 5},
        {"n_smoothed": 1},
        {"head_weight": 1.0},
        {"condition_on_population": False},
        {"rate_offset": False},
        {"pairing": "random"},
        {"perturbation_encoder": "effects"},
        {"gene_likelihood": "zinb"},
        {"gene_likelihood": "poisson"},
    ],
)
def test_every_part_can_be_switched(kwargs):
    adata = simulate_perturbations(200, 20, n_perturbations=3, seed=1)
    model = fit(adata, epochs=(2, 2), **kwargs)
    cells = adata[adata.obs["perturbation"] == "control"].copy()
    for decode in ("transport", "resample"):
        got = predicted(model, cells, "A+C", decode=decode)
        assert np.isfinite(got.layers["perturbed_mean"]).all()
    assert np.isfinite(model.get_perturbation_effect("A+C")["high"]).all()


def test_effects_reach_a_cell_type_that_was_never_seen_perturbed(whole):
    held = (whole.obs["cell_type"] == "type_1") & (whole.obs["perturbation"] != "control")
    model = fit(whole[~held].copy(), {"labels_key": "cell_type"}, epochs=(60, 10))
    control = whole[(whole.obs["cell_type"] == "type_1") & (whole.obs["perturbation"] == "control")].copy()
    real = whole[held & (whole.obs["perturbation"] == "A")]
    base, got, truth = (
        np.log1p(c / c.sum(1, keepdims=True) * 1000).mean(0)
        for c in (control.X.toarray(), predicted(model, control, "A").layers["perturbed"].toarray(), real.X.toarray())
    )
    assert np.corrcoef(got - base, truth - base)[0, 1] > 0.85


def test_predicted_cells_vary_as_real_ones_and_not_only_in_the_mean(perturbed, whole):
    names = whole.obs["perturbation"]
    control = whole[names == "control"].copy()
    got = log_normalise(predicted(perturbed, control, "A+B").layers["perturbed"])
    real, base = log_normalise(whole[names == "A+B"].X), log_normalise(control.X)
    assert variance_r2(real, got, base, 30) > 0
    de = de_agreement(real, got, base)
    assert 0.5 < de.n_predicted / de.n_real < 2
    assert energy_distance(real, got) < 0.2 * energy_distance(real, base)


def test_responders_and_non_responders_stay_two_groups():
    """Half of the cells respond: predicted cells have two modes, as real ones have, and not one at the mean."""
    adata = simulate_perturbations(1000, 40, n_perturbations=1, n_types=1, responders=0.5, strength=2.0, seed=5)
    model = fit(adata, epochs=(80, 400), denoiser_kwargs={"width": 64, "depth": 3})
    names = adata.obs["perturbation"].to_numpy(str)
    cells, z = adata[names == "control"].copy(), model.get_latent_representation()
    base = z[names == "control"].mean(0)
    axis = z[(names == "A") & adata.obs["responder"]].mean(0) - base

    def along(latent):
        return (latent - base) @ axis / (axis @ axis)

    def valley(values):
        """Cells between the groups, over those at them; 1 and more is a single group."""
        density = stats.gaussian_kde(values, 0.2)
        return density(0.5)[0] / min(density(0.0)[0], density(1.0)[0])

    real = along(z[names == "A"])
    drawn = np.concatenate([along(predicted(model, cells, "A", seed=s).obsm["X_perturbed"]) for s in range(3)])
    mean = along(predicted(model, cells, "A", use_diffusion=False).obsm["X_perturbed"])
    assert valley(real) < 0.6
    assert valley(drawn) < 0.75
    assert valley(mean) > 1
    assert 0.3 < (drawn > 0.5).mean() < 0.7
    assert stats.wasserstein_distance(drawn, real) < 0.5 * stats.wasserstein_distance(mean, real)


def test_the_dose_curve_is_met_at_doses_that_were_not_measured():
    doses = [0.1, 1.0, 10.0]
    adata = simulate_perturbations(1500, 40, n_perturbations=2, n_types=1, doses=doses, seed=4)
    model = fit(adata, {"dose_key": "dose"}, epochs=(60, 10))
    norms = []
    for dose in (0.3, 3.0):
        table = model.get_perturbation_effect(["A", "B"], dose=dose)
        assert (table["status"] == "unseen_dose").all()
        for name, rows in table.groupby("perturbation"):
            truth = adata.uns["log_ratio"][f"{name} at {dose:g}"].to_numpy()
            assert np.corrcoef(rows["log_fold_change"], truth)[0, 1] > 0.85
            norms.append(np.linalg.norm(rows["log_fold_change"]) / np.linalg.norm(truth))
    assert min(norms) > 0.6
    assert max(norms) < 1.5
    control = adata[adata.obs["perturbation"] == "control"].copy()
    got = predicted(model, control, "A", dose=0.0)
    assert (got.layers["perturbed"] != control.X.astype(int)).nnz == 0
    cells = model.generate(5, {"perturbation": "A", "dose": 3.0}, seed=0)
    np.testing.assert_allclose(cells.obs["dose"], 3.0, rtol=1e-4)


def test_shuffled_labels_leave_no_effect(whole):
    """With labels that mean nothing the predicted effects are a fraction of the real ones, and all alike."""
    adata = whole.copy()
    adata.obs["perturbation"] = np.random.default_rng(0).permutation(adata.obs["perturbation"].to_numpy(str))
    shuffled = fit(adata, epochs=(60, 5)).get_perturbation_effect(["A", "B", "C"])
    norms = shuffled.groupby("perturbation")["effect_norm"].first()
    truth = np.linalg.norm(whole.uns["log_ratio"][["A", "B", "C"]].to_numpy(), axis=0)
    assert (norms.to_numpy() < 0.35 * truth).all()


def test_an_indicator_matrix_and_contexts_of_ones_own():
    adata = simulate_perturbations(200, 20, n_perturbations=2, seed=1)
    names = adata.obs["perturbation"].astype(str)
    adata.obsm["hot"] = pd.DataFrame({p: names.str.contains(p).astype(int) for p in "AB"}, index=adata.obs_names)
    del adata.obs["perturbation"]
    adata.obs["plate"] = np.where(np.arange(200) < 100, 101, 107)
    scvi.settings.seed = 0
    PerturbDiffusion.setup_anndata(adata, "hot", labels_key="cell_type", context_keys=["plate"])
    model = PerturbDiffusion(adata, **SMALL)
    model.train(max_epochs=2, max_epochs_diffusion=2, **FAST)
    assert set(model.get_perturbation_effect()["perturbation"]) == {"A", "B", "A+B"}
    assert sorted(model.control_means_) == [(0,), (1,)]
    got = model.predict_perturbation(perturbation="A+B", seed=0, guidance_scale=2.0)
    assert np.isfinite(got.layers["perturbed_mean"]).all()
    assert (model.generate(3, {"hot": "B+A"}, seed=0).obs["hot"] == "A+B").all()


def test_an_scvi_model_gets_perturbations(whole):
    adata = whole.copy()
    scvi.model.SCVI.setup_anndata(adata, labels_key="cell_type")
    vae = scvi.model.SCVI(adata)
    vae.train(max_epochs=3, **QUIET)
    model = PerturbDiffusion.from_scvi_model(vae, "perturbation", "control", denoiser_kwargs={"width": 16, "depth": 1})
    model.train_diffusion(max_epochs=2, **QUIET)
    assert model.get_perturbation_effect("A+B")["status"].iloc[0] == "seen"
    with pytest.raises(InvalidInputError, match="`scvi_model` must be a SCVI model"):
        PerturbDiffusion.from_scvi_model(None, "perturbation")


def test_a_query_adds_perturbations_and_keeps_those_of_the_reference(whole):
    names = whole.obs["perturbation"].astype(str)
    reference = whole[names.isin(["control", "A", "B"])].copy()
    query = whole[names.isin(["control", "C"])].copy()
    model = fit(reference, {"batch_key": "cell_type"}, epochs=(20, 20))
    before = model.get_perturbation_effect("A")["log_fold_change"].to_numpy()
    new = PerturbDiffusion.load_query_data(query, model)
    new.train(max_epochs=5, max_epochs_diffusion=5, plan_kwargs={"weight_decay": 0.0}, **QUIET)
    after = new.get_perturbation_effect(["A", "C"])
    assert after["status"].unique().tolist() == ["seen"]
    assert len(new.controls_["state"]) > len(model.controls_["state"])
    assert np.corrcoef(before, after.query("perturbation == 'A'")["log_fold_change"])[0, 1] > 0.9


# ---------------------------------------------------------------- what is refused


def test_nothing_is_predicted_before_training(whole, control):
    adata = whole.copy()
    PerturbDiffusion.setup_anndata(adata, "perturbation", "control")
    model = PerturbDiffusion(adata, **SMALL)
    for call in (lambda: model.predict_perturbation(control, "A"), lambda: model.get_perturbation_effect("A"), lambda: model.screen_perturbations()):  # fmt: skip
        with pytest.raises(NotTrainedError, match="diffusion stage"):
            call()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"perturbation": "Z"}, r"`perturbation`: 'Z' was not seen in training and has no embedding"),
        ({"perturbation": "A+Z"}, r"'Z' was not seen"),
        ({"perturbation": ""}, r"`perturbation` must name a perturbation; got ''"),
        ({"perturbation": ["A", "B"]}, r"`perturbation` has 2 values for 40 cells"),
        ({"perturbation": "A", "decode": "magic"}, r"`decode` must be one of 'transport', 'resample'; got 'magic'"),
        ({"perturbation": "A", "n_samples": 0}, r"`n_samples` must be a whole number of at least 1; got 0"),
        ({"perturbation": "A", "dose": 3.0}, r"`dose`: the model was set up without `dose_key`; got 3.0"),
        ({"perturbation": "A", "dose": -1.0}, r"`dose` must be a number of at least 0; got -1.0"),
        ({"perturbation": "A", "library_size": 100.0}, r"`library_size` needs `decode=\"resample\"`"),
        ({"perturbation": "A", "unseen": "zero"}, r"`unseen` must be one of None, 'mean'; got 'zero'"),
        ({"perturbation": "A", "sampler": "best"}, r"`sampler` must be one of"),
        ({"perturbation": "A", "guidance_scale": -1.0}, r"`guidance_scale`"),
    ],
)
def test_bad_arguments_of_a_prediction_get_a_sentence(perturbed, control, kwargs, message):
    with pytest.raises(InvalidInputError, match=message):
        perturbed.predict_perturbation(control, **kwargs)
    assert "perturbed" not in control.layers


def test_the_mean_effect_is_there_for_those_who_ask(perturbed, control):
    got = predicted(perturbed, control, "Z", unseen="mean")
    assert (got.obs["perturbed_status"] == "unseen_no_information").all()
    assert np.abs(got.obsm["X_perturbed_delta"]).max() > 0


def test_perturbed_cells_are_no_controls(perturbed, whole):
    with pytest.raises(InvalidInputError, match=r"`adata`: \d+ of 1500 cells are perturbed already"):
        perturbed.predict_perturbation(whole.copy(), "A")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"level": 1.0}, "`level` must lie between 0 and 1; got 1.0"),
        ({"groupby": "nope"}, "`groupby` must be one of 'cell_type'; got 'nope'"),
        ({"genes": ["nope"]}, "`genes` must be one of"),
        ({"perturbations": []}, "`perturbations` is empty"),
        ({"perturbations": ["A", "B"], "dose": [1.0]}, "`dose` has 1 values for 2 perturbations"),
        ({"perturbations": ["Z"]}, "'Z' was not seen in training"),
    ],
)
def test_bad_arguments_of_an_effect_get_a_sentence(perturbed, kwargs, message):
    with pytest.raises(InvalidInputError, match=message):
        perturbed.get_perturbation_effect(**{"perturbations": "A", **kwargs})


def broken(how):
    adata = simulate_perturbations(120, 10, n_perturbations=2, seed=0)
    obs = adata.obs
    obs["perturbation"] = obs["perturbation"].astype(str)
    setup = {"perturbation_key": "perturbation", "control": "control"}
    if how == "no control":
        adata = adata[obs["perturbation"] != "control"].copy()
    elif how == "wrong name":
        setup["control"] = "ctrl"
    elif how == "only control":
        adata = adata[obs["perturbation"] == "control"].copy()
    elif how == "one cell":
        obs.loc["cell_0", "perturbation"] = "lonely"
    elif how == "context":
        setup["batch_key"] = "batch"
        obs["batch"] = np.where(obs["perturbation"] == "control", "first", "second")
    elif how == "missing":
        obs.loc["cell_0", "perturbation"] = np.nan
    elif how == "dose":
        setup["dose_key"] = "dose"
        obs["dose"] = 1.0
        obs.loc["cell_0", "dose"] = -2.0
    elif how == "dose NaN":
        setup["dose_key"] = "dose"
        obs["dose"] = np.nan
    elif how == "embedding":
        setup["perturbation_embedding"] = adata.uns["embedding"].drop(index="B")
    elif how == "embedding key":
        setup["perturbation_embedding"] = "nope"
    elif how == "column":
        setup["perturbation_key"] = "nope"
    return adata, setup


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no control", r"`control`: no cell has the perturbation 'control'; 'perturbation' has 'A'"),
        ("wrong name", r"`control`: no cell has the perturbation 'ctrl'"),
        ("only control", r"`perturbation_key`: all cells are control cells"),
        ("one cell", r"`perturbation_key`: 'lonely' has a single cell"),
        ("context", r"`control`: no control cells in the context 'second' \(batch\); .*`context_keys`"),
        ("missing", r"`perturbation_key`: 'perturbation' has no value \(NaN\) for 1 of 120 cells"),
        ("dose", r"`dose_key`: .* 1 cells have others, such as -2.0"),
        ("dose NaN", r"`dose_key`: .* such as nan"),
        ("embedding", r"`perturbation_embedding` has no row for 'B'"),
        ("embedding key", r"`perturbation_embedding`: neither adata.varm nor adata.uns has 'nope'"),
        ("column", r"`perturbation_key`: neither adata.obs nor adata.obsm has 'nope'"),
    ],
)
def test_bad_data_get_a_sentence(how, message):
    adata, setup = broken(how)
    with pytest.raises(InvalidInputError, match=message):
        PerturbDiffusion.setup_anndata(adata, **setup)


def test_differential_expression_of_a_perturbation_needs_the_second_stage():
    adata = simulate_perturbations(120, 10, n_perturbations=2, seed=0)
    PerturbDiffusion.setup_anndata(adata, perturbation_key="perturbation")
    model = PerturbDiffusion(adata, n_hidden=8, n_latent=2)
    model.train_vae(max_epochs=1, **QUIET)
    with pytest.raises(NotTrainedError, match="diffusion"):
        model.differential_expression(perturbation="A")
