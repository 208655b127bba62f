"""Each baseline against data for which the right answer is known."""

import mudata
import numpy as np
import pandas as pd
import pytest
import scvi
from anndata import AnnData
from scipy import sparse

from diffvi import InvalidInputError
from diffvi.benchmark import (
    IDW,
    PERTURBATION_BASELINES,
    TASKS,
    Additive,
    BilinearRidge,
    CopyNext,
    CopyPrevious,
    FourierRidge,
    GPSpace,
    KernelRidgeTranslation,
    KNNSpace,
    KNNTranslation,
    LatentShift,
    MatchingMean,
    MeanEffect,
    MOFATranslation,
    NeighbourSample,
    NoChange,
    Options,
    OTLinear,
    Pooled,
    RidgeTranslation,
    SCVIGaussianMixture,
    SCVIPosteriorPredictive,
    SCVIPrior,
    TotalVITranslation,
    UnbalancedOT,
    run_task,
    score_file,
)
from diffvi.benchmark._diffvi import DiffviSpace, DiffviTrajectory, DiffviTranslation
from diffvi.datasets import simulate_cells, simulate_tissue, simulate_trajectory
from diffvi.metrics import feature_correlation, log_normalise, wasserstein


@pytest.fixture
def short_training(monkeypatch):
    """scvi's own models, trained for a moment."""
    for cls in (scvi.model.SCVI, scvi.model.TOTALVI):
        train = cls.train
        monkeypatch.setattr(cls, "train", lambda self, train=train, **kw: train(self, max_epochs=3, **kw))


def _screen(seed=0, n_cells=150, n_genes=40, contexts=("x",)):
    """Singles a, b, c and the combination a+b, additive in log expression."""
    rng = np.random.default_rng(seed)
    changes = {name: np.where(rng.random(n_genes) < 0.3, rng.normal(0, 1, n_genes), 0) for name in "abc"}
    changes["a+b"] = changes["a"] + changes["b"]
    changes["control"] = np.zeros(n_genes)
    x, obs = [], []
    for context in contexts:
        base = rng.gamma(2, 4, n_genes)
        for name, change in changes.items():
            x.append(rng.poisson(np.broadcast_to(base * np.exp(change), (n_cells, n_genes))))
            obs += [{"perturbation": name, "cell_type": context}] * n_cells
    frame = pd.DataFrame(obs, index=[f"c{i}" for i in range(len(obs))])
    return AnnData(
        sparse.csr_matrix(np.concatenate(x)), obs=frame, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])
    )


def _delta(method, adata, name):
    control = adata[adata.obs["perturbation"] == "control"]
    return method.predict(control, name).mean(0) - log_normalise(control.X).mean(0)


def test_the_additive_baseline_adds_and_the_others_do_what_they_say():
    adata = _screen()
    train = adata[adata.obs["perturbation"] != "a+b"].copy()
    x = log_normalise(adata.X)
    names = adata.obs["perturbation"].to_numpy(str)
    effect = {n: x[names == n].mean(0) - x[names == "control"].mean(0) for n in ("a", "b", "c", "a+b")}
    made = {}
    for cls in (NoChange, MeanEffect, MatchingMean, Additive, BilinearRidge):
        method = cls()
        method.fit(train, "perturbation", "control", None)
        made[cls] = _delta(method, adata, "a+b")
    np.testing.assert_allclose(made[NoChange], 0, atol=1e-9)
    np.testing.assert_allclose(made[MeanEffect], (effect["a"] + effect["b"] + effect["c"]) / 3, atol=1e-9)
    np.testing.assert_allclose(made[MatchingMean], (effect["a"] + effect["b"]) / 2, atol=1e-9)
    np.testing.assert_allclose(made[Additive], effect["a"] + effect["b"], atol=1e-9)
    assert np.corrcoef(made[Additive], effect["a+b"])[0, 1] > 0.95
    # A gene that was not seen gets the mean effect, never silently nothing.
    method = Additive()
    method.fit(train, "perturbation", "control", None)
    np.testing.assert_allclose(_delta(method, adata, "z"), made[MeanEffect], atol=1e-9)


def test_the_scale_of_the_additive_baseline_is_fitted_on_combinations():
    adata = _screen()
    method = Additive()
    method.fit(adata, "perturbation", "control", None)
    assert 0.5 < method.scale < 1.5
    assert method.scale != 1


def test_the_bilinear_baseline_learns_from_the_genes_that_are_targeted():
    adata = _screen()
    # Perturbations named after measured genes, each changing its own gene most.
    adata.obs["perturbation"] = adata.obs["perturbation"].map(
        {"a": "g0", "b": "g1", "c": "g2", "a+b": "g3", "control": "control"}
    )
    method = BilinearRidge()
    method.fit(adata, "perturbation", "control", None)
    known = np.corrcoef(_delta(method, adata, "g0"), method.effects["g0"])[0, 1]
    assert known > 0.5
    assert np.isfinite(_delta(method, adata, "g7")).all()


def test_the_perturbation_task_holds_out_combinations_and_contexts():
    adata = _screen()
    split = next(TASKS["perturbation"].splits(adata, Options(n_top_genes=None)))
    assert set(split.test.obs["perturbation"]) == {"a+b"}
    for train, fold in split.extra["folds"]:
        assert not set(fold) & set(train.obs["perturbation"])
        assert not set(split.extra["control"].obs_names) & set(train.obs_names)
    two = _screen(contexts=("x", "y"))
    splits = list(TASKS["perturbation"].splits(two, Options(context_key="cell_type", n_top_genes=None)))
    assert [s.name for s in splits] == ["x held out", "y held out"]
    train = splits[0].train
    assert set(train.obs.loc[train.obs["cell_type"] == "x", "perturbation"]) == {"control"}
    assert set(splits[0].test.obs["cell_type"]) == {"x"}
    with pytest.raises(InvalidInputError, match="`control`: no cell has the perturbation 'ctrl'"):
        next(TASKS["perturbation"].splits(adata, Options(control="ctrl")))


def test_the_perturbation_task_ranks_the_baselines(tmp_path):
    adata = _screen()
    methods = [cls() for cls in PERTURBATION_BASELINES if cls is not LatentShift]
    table = run_task("perturbation", adata, methods, Options(n_top_genes=None))
    delta = table[table["score"] == "pearson_delta"].set_index("method")["value"]
    assert delta["additive"] > 0.9
    assert delta["additive"] > delta["mean effect"] + 0.05
    assert delta["no change"] == pytest.approx(0, abs=1e-9)
    # The real cells, scored as if they came from another tool.
    adata[adata.obs["perturbation"] == "a+b"].write_h5ad(tmp_path / "oracle.h5ad")
    oracle = score_file("perturbation", tmp_path / "oracle.h5ad", adata, options=Options(n_top_genes=None))
    assert oracle.set_index("score").loc["pearson_delta", "value"] > 0.97


def test_names_of_combinations_are_canonical_and_leftovers_of_scanpy_are_ignored():
    adata = _screen()
    adata.obs["perturbation"] = adata.obs["perturbation"].replace({"a+b": "b+a", "c": "c+control"})
    adata.uns["log1p"] = {"base": None}
    table = run_task("perturbation", adata, [Additive(), NoChange()], Options(n_top_genes=None))
    value = table.set_index(["method", "score"])["value"]
    assert set(table["split"]) == {"combinations of seen perturbations"}
    assert value["additive", "pearson_delta"] > 0.9
    assert value["no change", "effect_norm_ratio"] == pytest.approx(0, abs=1e-9)


def test_a_reference_in_a_held_out_context_is_that_contexts():
    two = _screen(contexts=("x", "y"))
    table = run_task("perturbation", two, [NoChange()], Options(context_key="cell_type", n_top_genes=None))
    # No change is minus the mean effect when seen from the mean effect: it must not look good.
    assert table.set_index("score").loc["pearson_delta_mean", "value"].mean() < 0.6


def test_unseen_single_perturbations_are_held_out_in_folds():
    adata = _screen()
    adata = adata[adata.obs["perturbation"] != "a+b"].copy()
    table = run_task("perturbation", adata, [MeanEffect(), BilinearRidge()], Options(n_top_genes=None))
    assert set(table["split"]) == {"unseen perturbations"}
    value = table.set_index(["method", "score"])["value"]
    assert np.isfinite(value["mean effect", "pearson_delta_mean"])
    for split in TASKS["perturbation"].splits(adata, Options(n_top_genes=None)):
        for train, fold in split.extra["folds"]:
            assert not set(fold) & set(train.obs["perturbation"])


def test_a_file_with_other_genes_is_refused_and_one_in_another_order_is_read_by_name(tmp_path):
    adata, options = _screen(), Options(n_top_genes=None)
    oracle = adata[adata.obs["perturbation"] == "a+b"]
    other = oracle[:, list(adata.var_names[::-1])].copy()
    other.obs["perturbation"] = "b+a"
    other.write_h5ad(tmp_path / "reversed.h5ad")
    oracle.copy().write_h5ad(tmp_path / "plain.h5ad")
    tables = [score_file("perturbation", tmp_path / f"{n}.h5ad", adata, options=options) for n in ("reversed", "plain")]
    found = [table.set_index("score").loc["effect_distance", "value"] for table in tables]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    # What is left of the distance of the real cells to themselves is the noise of two halves of the controls.
    assert found[0] < 3
    oracle[:, :9].copy().write_h5ad(tmp_path / "few.h5ad")
    with pytest.raises(InvalidInputError, match="lacks 31 of 40 genes"):
        score_file("perturbation", tmp_path / "few.h5ad", adata, options=options)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (
            ["early", "middle", "late"],
            "an ordered category, as the order of the times is not to be guessed; got 'early'",
        ),
        (["day 1, well 1", "day 1, well 2", "day 2"], "got 'day 1, well 2'"),
        ([0.0, np.nan, 2.0], "is missing for 100 cells"),
    ],
)
def test_times_are_not_guessed(times, message):
    adata = simulate_cells(300, 10, seed=0)
    adata.obs["time"] = np.repeat(times, 100)
    with pytest.raises(InvalidInputError, match=message):
        run_task("trajectory", adata, [CopyPrevious()])


def test_times_are_numbers_or_ranks():
    adata = simulate_cells(400, 10, seed=0)
    options = Options(n_top_genes=None)
    adata.obs["time"] = pd.Categorical(np.repeat(["0", "2", "10", "20"], 100))
    assert [s.extra["time"] for s in TASKS["trajectory"].splits(adata, options)] == [2, 10]
    adata.obs["time"] = np.repeat(["day-10", "day-2", "day-5", "day-20"], 100)
    assert [s.extra["time"] for s in TASKS["trajectory"].splits(adata, options)] == [5, 10]
    days = pd.Categorical(
        np.repeat(["day2", "day5", "day10", "day20"], 100), ["day2", "day5", "day10", "day20"], ordered=True
    )
    adata.obs["time"] = days
    assert [s.extra["time"] for s in TASKS["trajectory"].splits(adata, options)] == [1, 2]


def test_scgens_arithmetic_shifts_a_held_out_context(short_training):
    adata = _screen(contexts=("x", "y"))
    method = LatentShift()
    method.fit(adata, "perturbation", "control", "cell_type")
    control = adata[(adata.obs["perturbation"] == "control") & (adata.obs["cell_type"] == "x")].copy()
    made = method.predict(control, "a+c")
    assert made.shape == control.shape
    assert np.isfinite(made).all()
    assert not np.allclose(made, method.predict(control, "b"))


@pytest.fixture(scope="module")
def cite():
    rng = np.random.default_rng(0)
    rna = simulate_cells(300, 60, n_types=3, mean_library=600, seed=0)
    state = np.log1p(rna.X.toarray()[:, :4])
    protein = rng.poisson(np.exp(1 + state))
    names = pd.DataFrame(index=[f"protein{i}" for i in range(4)])
    return mudata.MuData({"rna": rna, "prot": AnnData(sparse.csr_matrix(protein), obs=rna.obs[[]].copy(), var=names)})


@pytest.mark.parametrize("cls", [RidgeTranslation, KNNTranslation, KernelRidgeTranslation, MOFATranslation])
def test_regressions_predict_proteins_of_held_out_cells(cite, cls, capfd):
    if cls is MOFATranslation:
        pytest.importorskip("mofapy2")
    split = next(TASKS["translation"].splits(cite, Options(n_top_genes=None)))
    method = cls()
    method.fit(*split.train)
    assert capfd.readouterr().out == ""
    predicted = method.predict(split.test[0])
    truth = np.log1p(split.test[1].X.toarray())
    assert feature_correlation(truth, predicted).mean() > 0.25
    # A cell's prediction does not depend on the others.
    np.testing.assert_allclose(method.predict(split.test[0][:5]), predicted[:5], rtol=1e-5)


def test_totalvi_is_a_translation_baseline(cite, short_training):
    split = next(TASKS["translation"].splits(cite, Options(n_top_genes=None)))
    method = TotalVITranslation()
    method.fit(*split.train)
    predicted = method.predict(split.test[0])
    assert predicted.shape == split.test[1].shape
    assert (predicted >= 0).all()


def test_our_model_is_one_of_the_translators(cite):
    split = next(TASKS["translation"].splits(cite, Options(n_top_genes=None)))
    small = {"n_hidden": 16, "n_latent": 4, "denoiser_kwargs": {"width": 16, "depth": 1, "n_heads": 2}}
    short = {"max_epochs": 30, "max_epochs_diffusion": 5}
    method = DiffviTranslation(train_kwargs=short, translate_kwargs={"n_samples": 10}, **small)
    method.fit(*split.train)
    predicted = method.predict(split.test[0])
    truth = np.log1p(split.test[1].X.toarray())
    assert feature_correlation(truth, predicted).mean() > 0.25
    np.testing.assert_allclose(method.predict(split.test[0][:5]), predicted[:5], rtol=1e-4)
    assert "diffvi" in [m.name for m in TASKS["translation"].methods(Options())]


def test_the_translation_task_needs_two_modalities(cite, tmp_path):
    table = run_task("translation", cite, [RidgeTranslation()], Options(n_top_genes=None))
    assert set(table["score"]) >= {"pearson", "spearman", "rmse"}
    with pytest.raises(InvalidInputError, match="needs a MuData"):
        run_task("translation", cite.mod["rna"], [RidgeTranslation()])
    split = next(TASKS["translation"].splits(cite, Options(n_top_genes=None)))
    np.save(tmp_path / "truth.npy", np.log1p(split.test[1].X.toarray()))
    oracle = score_file("translation", tmp_path / "truth.npy", cite, options=Options(n_top_genes=None))
    assert oracle.set_index("score").loc["pearson", "value"] == pytest.approx(1)


def _moving(n=200):
    """A population that moves from 0 to 4 along one axis and grows a second branch late."""
    rng = np.random.default_rng(0)
    points = {float(t): rng.normal(size=(n, 2)) * 0.3 + np.array([t, 0.0]) for t in (0, 1, 2, 3, 4)}
    return points


def test_optimal_transport_interpolates_what_copies_do_not():
    pytest.importorskip("ot")
    points = _moving()
    truth = points.pop(2.0)
    w1 = {}
    for cls in (CopyPrevious, CopyNext, Pooled, OTLinear, UnbalancedOT):
        method = cls()
        method.fit(points)
        w1[cls] = wasserstein(truth, method.predict(2.0, 200, 0), p=1)
        assert method.around(2.0) == (1.0, 3.0)
    for cls in (OTLinear, UnbalancedOT):
        assert w1[cls] < 0.3 * w1[CopyPrevious]
        assert w1[cls] < 0.5 * w1[Pooled]
    assert w1[CopyNext] == pytest.approx(1, abs=0.2)


def test_the_trajectory_task_leaves_out_each_time_between():
    adata = simulate_cells(300, 30, n_types=3, seed=0)
    adata.obs["time"] = np.repeat([0.0, 1.0, 5.0], 100)
    table = run_task("trajectory", adata, [CopyPrevious(), Pooled()], Options(draws=1, n_top_genes=None))
    assert set(table["split"]) == {"time 1 left out"}
    assert set(table["score"]) >= {"w1", "w2", "mmd", "energy_distance"}
    adata.obs["time"] = np.repeat([0.0, 1.0], 150)
    with pytest.raises(InvalidInputError, match="has 2 times; at least 3"):
        run_task("trajectory", adata, [CopyPrevious()])


def test_space_baselines_interpolate_a_smooth_field_and_sampling_keeps_its_noise():
    rng = np.random.default_rng(0)
    coordinates = rng.random((500, 2)) * 100
    field = np.sin(coordinates / 15) @ rng.choice([-1.0, 1.0], (2, 6))
    values = field + 0.3 * rng.normal(size=field.shape)
    train, test = slice(0, 350), slice(350, 500)
    for method in (KNNSpace(), IDW(), GPSpace(), FourierRidge(), NeighbourSample()):
        method.fit(coordinates[train], values[train])
        mean, sample = method.predict(coordinates[test]), method.sample(coordinates[test], 0)
        assert feature_correlation(field[test], mean).mean() > 0.9, method.name
        if isinstance(method, NeighbourSample):
            assert (sample[:, None, 0] == values[train][None, :, 0]).any(1).all()
            assert sample.var() > mean.var()
        elif isinstance(method, GPSpace):
            # A draw has the noise of the measurement about the field, not the smoother's.
            assert np.std(sample - field[test]) == pytest.approx(0.3, rel=0.4)
        else:
            np.testing.assert_array_equal(sample, mean)
        method.fit(coordinates[train], values[train, :1])
        assert method.predict(coordinates[test]).shape == (150, 1), method.name


def test_the_space_task_holds_out_random_locations_and_a_disc():
    adata = simulate_cells(300, 20, seed=0)
    adata.obsm["spatial"] = np.random.default_rng(0).random((300, 2))
    options = Options(draws=1, test_size=0.2)
    table = run_task("space", adata, [KNNSpace(), NeighbourSample()], options)
    assert set(table["split"]) == {"random locations", "disc"}
    for split in TASKS["space"].splits(adata, options):
        assert len(split.test[0]) == 60
        assert len(split.train[0]) == 240
    del adata.obsm["spatial"]
    with pytest.raises(InvalidInputError, match=r"`spatial_key`: adata.obsm has no 'spatial'"):
        run_task("space", adata, [KNNSpace()])


@pytest.mark.parametrize("cls", [SCVIPrior, SCVIGaussianMixture, SCVIPosteriorPredictive])
def test_scvi_baselines_make_counts_for_the_labels(cls, short_training):
    adata = simulate_cells(200, 15, n_types=3, seed=0)
    labels = adata.obs["cell_type"].to_numpy(str)[:80]
    method = cls()
    method.fit(adata, "cell_type")
    cells = method.generate(labels, 0)
    assert (cells.obs["cell_type"] == labels).all()
    assert (cells.X.data >= 0).all()
    assert (cells.X.data == cells.X.data.round()).all()
    assert (method.generate(labels, 0).X != cells.X).nnz == 0
    assert (method.generate(labels, 1).X != cells.X).nnz > 0


def test_our_models_answer_in_time_and_in_space():
    brief = {"max_epochs": 2, "max_epochs_diffusion": 2}
    cells = simulate_trajectory(60, 30, times=(0.0, 1.0, 2.0), seed=0)
    options = Options(draws=1, n_top_genes=20, n_components=3)
    assert TASKS["trajectory"].methods(options)[0].name == "diffvi"
    table = run_task("trajectory", cells, [DiffviTrajectory(train_kwargs=brief)], options).set_index("score")["value"]
    assert np.isfinite(table["w1"])
    tissue = simulate_tissue(150, 30, seed=0)
    assert TASKS["space"].methods(options)[0].name == "diffvi"
    table = run_task("space", tissue, [DiffviSpace(n_latent=3, n_neighbors=4, train_kwargs=brief)], options)
    assert set(table["split"]) == {"random locations", "disc"}
    assert np.isfinite(table.loc[table["score"] == "pearson", "value"]).all()
    # What is held out reaches no method.
    for split in (*TASKS["space"].splits(tissue, options), *TASKS["trajectory"].splits(cells, options)):
        assert split.extra["cells"].n_obs == (tissue if "genes" in split.extra else cells).n_obs - len(
            split.test[0] if "genes" in split.extra else split.test
        )
