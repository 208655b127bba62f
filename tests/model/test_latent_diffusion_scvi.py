import anndata as ad
import numpy as np
import pytest
import scvi
from scvi.model import SCVI

from diffvi import InvalidInputError, NotTrainedError
from diffvi.datasets import simulate_cells
from diffvi.metrics import classifier_two_sample, label_agreement
from diffvi.model import LatentDiffusionSCVI
from diffvi.process import PATHS, SAMPLERS
from tests.conftest import QUIET

SMALL = {"n_hidden": 16, "n_latent": 4, "denoiser_kwargs": {"width": 16, "depth": 1}}


def _share(cells, genes=slice(None)):
    x = np.asarray(cells.X.todense(), float)[:, genes]
    return (x / x.sum(1, keepdims=True)).mean(0)


def test_cells_of_each_type_look_like_that_type(trained):
    real = simulate_cells(600, 40, n_types=3, n_batches=2, mean_library=400, seed=1)
    labels = np.repeat(["type_0", "type_1", "type_2"], 150)
    cells = trained.generate(450, {"cell_type": labels}, seed=0)
    assert label_agreement(real.X, real.obs["cell_type"].to_numpy(str), cells.X, labels) > 0.9
    for label in np.unique(labels):
        r, g = real[real.obs["cell_type"] == label], cells[cells.obs["cell_type"] == label]
        assert np.corrcoef(_share(r), _share(g))[0, 1] > 0.98


def test_cells_are_hard_to_tell_from_real_ones_and_untrained_ones_are_not(trained):
    real = simulate_cells(600, 40, n_types=3, n_batches=2, mean_library=400, seed=1)
    cells = trained.generate(600, {"cell_type": real.obs["cell_type"], "batch": real.obs["batch"]}, seed=0)
    assert classifier_two_sample(real.X, cells.X) < 0.65
    shuffled = real.copy()
    x = shuffled.X.toarray()
    rng = np.random.default_rng(0)
    shuffled.X = np.stack([rng.permutation(column) for column in x.T], 1)
    assert classifier_two_sample(real.X, shuffled.X) > 0.8


def test_a_numeric_condition_moves_what_it_stands_for(trained):
    adata = trained.adata
    x, score = np.asarray(adata.X.todense()), adata.obs["score"].to_numpy()
    kind = (adata.obs["cell_type"] == "type_1").to_numpy()
    ends = np.quantile(score[kind], [0.1, 0.9])
    low, high = (trained.generate(300, {"cell_type": "type_1", "score": s}, seed=0) for s in ends)
    share = x[kind] / x[kind].sum(1, keepdims=True)
    slope = np.array([np.polyfit(score[kind], s, 1)[0] for s in share.T])
    assert np.corrcoef(slope, _share(high) - _share(low))[0, 1] > 0.6


def test_without_conditions_types_come_in_their_proportions(trained):
    cells = trained.generate(2000, seed=0)
    assert cells.obs["cell_type"].isna().all()
    assert cells.obs["batch"].notna().all(), "the decoder needs a batch, so every cell has one"
    adata = trained.adata
    real = adata.obs["cell_type"].value_counts(normalize=True)
    from sklearn.linear_model import LogisticRegression

    from diffvi.metrics import log_normalise

    fit = LogisticRegression(max_iter=500).fit(log_normalise(adata.X), adata.obs["cell_type"].astype(str))
    found = ad.AnnData(obs={"t": fit.predict(log_normalise(cells.X))}).obs["t"].value_counts(normalize=True)
    assert (found - real).abs().max() < 0.08


def test_library_sizes_follow_what_is_asked_for(trained):
    total = np.asarray(trained.adata.X.sum(1)).ravel()

    def sizes(n=400, **kwargs):
        return np.asarray(trained.generate(n, seed=0, **kwargs).X.sum(1)).ravel()

    # Drawing counts makes totals vary where the library does not; that is no part of the library's distribution.
    fixed = sizes(library_size=2000.0)
    noise = np.log(fixed).var()
    for kwargs in ({}, {"library_size": "empirical"}):
        made = np.log(sizes(600, conditions={"cell_type": trained.adata.obs["cell_type"]}, **kwargs))
        assert abs(made.mean() - np.log(total).mean()) < 0.08
        assert abs(np.sqrt(made.var() - noise) - np.log(total).std()) < 0.08
    assert abs(fixed.mean() - 2000) < 60
    assert fixed.std() < 0.5 * sizes(library_size="empirical").std() * 2000 / total.mean()
    asked = np.linspace(100, 4000, 400)
    ratio = sizes(library_size=asked) / asked
    assert abs(np.median(ratio) - 1) < 0.08
    assert abs(np.polyfit(np.log(asked), np.log(ratio), 1)[0]) < 0.05


def test_empirical_libraries_are_those_of_the_condition(trained):
    adata = trained.adata
    total = np.asarray(adata.X.sum(1)).ravel()
    for label in ("type_0", "type_1", "type_2"):
        cells = trained.generate(300, {"cell_type": label}, library_size="empirical", seed=0)
        real = total[(adata.obs["cell_type"] == label).to_numpy()]
        assert abs(np.log(np.asarray(cells.X.sum(1)).ravel()).mean() - np.log(real).mean()) < 0.08


def test_the_batch_asked_for_reaches_the_decoder(trained):
    adata = trained.adata
    kinds = np.repeat(["type_0", "type_1", "type_2"], 400)  # in equal numbers, so that only the batch differs

    def by_kind(cells):
        return np.mean([_share(cells[cells.obs["cell_type"] == kind]) for kind in np.unique(kinds)], 0)

    real = [by_kind(adata[adata.obs["batch"] == b]) for b in ("batch_0", "batch_1")]
    made = [by_kind(trained.generate(1200, {"batch": b, "cell_type": kinds}, seed=0)) for b in ("batch_0", "batch_1")]
    change, expected = np.log(made[1] / made[0]), np.log(real[1] / real[0])
    assert np.corrcoef(change, expected)[0, 1] > 0.9


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_makes_the_same_kind_of_cells(trained, sampler):
    adata = trained.adata
    cells = trained.generate(
        300, {"cell_type": "type_2"}, sampler=sampler, n_steps=100 if sampler == "ddpm" else None, seed=0
    )
    assert np.corrcoef(_share(adata[adata.obs["cell_type"] == "type_2"]), _share(cells))[0, 1] > 0.98
    assert cells.uns["diffvi"]["sampler"] == sampler


def test_strong_guidance_makes_sane_and_more_typical_cells(trained):
    from sklearn.linear_model import LogisticRegression

    from diffvi.metrics import log_normalise

    fit = LogisticRegression(max_iter=500).fit(
        log_normalise(trained.adata.X), trained.adata.obs["cell_type"].astype(str)
    )
    plain, strong = (trained.generate(300, {"cell_type": "type_0"}, s, seed=0) for s in (1.0, 7.5))
    certain = [fit.predict_log_proba(log_normalise(c.X))[:, 0].mean() for c in (plain, strong)]
    assert certain[1] > certain[0]
    assert strong.X.sum(1).max() < 5 * np.asarray(trained.adata.X.sum(1)).max()
    mixed = trained.generate(50, {"cell_type": "type_0", "batch": "batch_1"}, {"cell_type": 3.0, "batch": 0.5}, seed=0)
    assert mixed.uns["diffvi"]["guidance_scale"] == {"cell_type": 3.0, "batch": 0.5, "score": 1.0}


def test_log_prob_is_lower_for_cells_that_are_out_of_place(trained):
    adata = trained.adata[:200].copy()
    own = trained.get_prior_log_prob(adata)
    wrong = adata.copy()
    kinds = adata.obs["cell_type"].cat.categories
    wrong.obs["cell_type"] = kinds[(adata.obs["cell_type"].cat.codes + 1) % 3].astype("category")
    assert np.median(own - trained.get_prior_log_prob(wrong)) > 2
    doublets = adata.copy()
    doublets.X = adata.X + adata.X[np.random.default_rng(0).permutation(200)]
    own = trained.get_prior_log_prob(adata, use_conditions=False)
    assert np.median(own) > np.median(trained.get_prior_log_prob(doublets, use_conditions=False)) + 1


def test_log_prob_keeps_the_order_of_indices_also_for_backed_data(trained, tmp_path):
    whole = trained.get_prior_log_prob()
    rows = np.array([50, 3, 400, 3, 7])
    np.testing.assert_allclose(trained.get_prior_log_prob(indices=rows), whole[rows], rtol=1e-4, atol=1e-3)
    trained.adata.copy().write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r+")
    np.testing.assert_allclose(trained.get_prior_log_prob(backed, indices=rows), whole[rows], rtol=1e-4, atol=1e-3)


def test_denoising_brings_cells_closer_to_the_truth(trained):
    truth = simulate_cells(600, 40, n_types=3, n_batches=2, mean_library=400, seed=1)
    share = truth.layers["rate"] / truth.layers["rate"].sum(1, keepdims=True)
    adata = trained.adata.copy()
    assert trained.denoise(adata) is None

    def error(x):
        return np.median(np.abs(np.log((x / x.sum(1, keepdims=True) + 1e-4) / (share + 1e-4))))

    denoised = error(adata.layers["denoised"])
    assert denoised < 0.6 * error(adata.X.toarray())
    # The library is the cell's own.
    ratio = adata.layers["denoised"].sum(1) / np.asarray(adata.X.sum(1)).ravel()
    np.testing.assert_allclose(ratio, 1, rtol=1e-3)
    harder = trained.denoise(adata, noise_level=2.0, key_added="hard", copy=True)
    kind = (adata.obs["cell_type"] == "type_0").to_numpy()
    assert harder.obsm["X_hard"][kind].std(0).mean() < 0.8 * adata.obsm["X_denoised"][kind].std(0).mean()
    with pytest.raises(InvalidInputError, match="`noise_level` must be None or a positive number; got -1"):
        trained.denoise(adata, noise_level=-1)


def test_dispersions_are_fitted_by_their_own_learning_rate():
    error = {}
    for rate in (0.02, 1e-6):
        adata = simulate_cells(800, 30, n_types=2, mean_library=3000, dispersion=1.0, seed=0)
        LatentDiffusionSCVI.setup_anndata(adata, labels_key="cell_type")
        model = LatentDiffusionSCVI(adata, n_hidden=64, n_latent=5)
        assert (model.module.px_r == 2).all()
        model.train_vae(max_epochs=60, batch_size=64, plan_kwargs={"dispersion_lr": rate}, **QUIET)
        error[rate] = np.median(np.abs(model.module.px_r.detach().numpy()))
    assert error[0.02] < 0.3
    assert error[1e-6] > 1.5


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
@pytest.mark.parametrize("denoiser", ["dit", "mlp"])
def test_likelihoods_and_denoisers_train_and_generate(cells, likelihood, denoiser):
    LatentDiffusionSCVI.setup_anndata(cells, labels_key="cell_type")
    model = LatentDiffusionSCVI(cells, n_hidden=16, n_latent=4, gene_likelihood=likelihood, denoiser=denoiser)
    model.train(
        max_epochs=40,
        max_epochs_diffusion=40,
        batch_size=32,
        batch_size_diffusion=32,
        plan_kwargs={"lr": 5e-3},
        **QUIET,
    )
    made = model.generate(300, {"cell_type": cells.obs["cell_type"]}, seed=0)
    assert np.corrcoef(_share(cells), _share(made))[0, 1] > 0.9


@pytest.mark.parametrize("process", PATHS)
@pytest.mark.parametrize("prediction", ["velocity", "noise", "data"])
def test_processes_and_predictions_train_and_generate(trained, process, prediction):
    adata = trained.adata.copy()
    LatentDiffusionSCVI.setup_anndata(adata, labels_key="cell_type", batch_key="batch")
    model = LatentDiffusionSCVI(
        adata, n_hidden=64, n_latent=5, denoiser="mlp", process=process, prediction=prediction, ema_decay=0.99
    )
    state = {k: v for k, v in trained.module.state_dict().items() if not k.startswith("prior.")}
    model.module.load_state_dict(state, strict=False)
    model.stages_ = {**model.stages_, "vae": {"status": "done", "epochs": 1}}
    model.train_diffusion(max_epochs=400, batch_size=128, **QUIET)
    latent = trained.get_latent_representation(give_mean=False)
    # Ten times the cells, so that the difference is that of the distributions and not of two small samples.
    made = model.generate(6000, {"cell_type": np.tile(trained.adata.obs["cell_type"], 10)}, seed=0)
    for label in ("type_0", "type_1", "type_2"):
        a = latent[(trained.adata.obs["cell_type"] == label).to_numpy()]
        b = made.obsm["X_latent"][(made.obs["cell_type"] == label).to_numpy()]
        assert np.abs(a.mean(0) - b.mean(0)).max() < 0.35
        assert np.abs(np.log(a.std(0) / b.std(0))).mean() < 0.35


@pytest.mark.parametrize(
    ("setup", "init"),
    [
        ({"batch_key": "batch"}, {"dispersion": "gene-batch"}),
        ({"labels_key": "cell_type"}, {"dispersion": "gene-label"}),
        ({"batch_key": "batch"}, {"dispersion": "gene-cell"}),
        ({"size_factor_key": "size"}, {}),
        (
            {"categorical_covariate_keys": ["batch"], "continuous_covariate_keys": ["score"]},
            {"encode_covariates": True},
        ),
        ({"batch_key": "batch"}, {"use_observed_lib_size": False}),
        ({"batch_key": "batch"}, {"batch_representation": "embedding"}),
        ({"labels_key": "cell_type"}, {"latent_distribution": "ln", "n_layers": 2}),
        ({}, {}),
    ],
)
def test_every_setup_of_scvi_trains_and_generates(cells, setup, init, tmp_path):
    cells.obs["size"] = np.asarray(cells.X.sum(1)).ravel() / 400
    LatentDiffusionSCVI.setup_anndata(cells, **setup)
    model = LatentDiffusionSCVI(cells, **{**SMALL, **init})
    model.train(max_epochs=5, max_epochs_diffusion=5, **QUIET)
    made = model.generate(20, seed=0)
    assert (made.layers["normalized"] >= 0).all()
    assert made.X.sum() > 0
    model.save(str(tmp_path / "m"))
    needs_data = not init.get("use_observed_lib_size", True)
    if needs_data:
        with pytest.raises(InvalidInputError, match="needs its data to be loaded"):
            LatentDiffusionSCVI.load(str(tmp_path / "m"))
    loaded = LatentDiffusionSCVI.load(str(tmp_path / "m"), adata=cells if needs_data else None)
    assert (loaded.generate(20, seed=0).X != made.X).nnz == 0


def test_starting_from_a_trained_scvi(cells):
    cells.obs["stage"] = np.where(cells.obs["score"] > 0, "late", "early")
    SCVI.setup_anndata(cells, batch_key="batch", labels_key="cell_type")
    source = SCVI(cells, n_latent=4, n_hidden=16)
    with pytest.raises(NotTrainedError, match="SCVI model is not trained"):
        LatentDiffusionSCVI.from_scvi_model(source)
    source.train(max_epochs=3, **QUIET)
    latent = source.get_latent_representation()
    model = LatentDiffusionSCVI.from_scvi_model(source, condition_keys=["stage"], denoiser="mlp")
    np.testing.assert_allclose(model.get_latent_representation(), latent, rtol=1e-5)
    np.testing.assert_array_equal(model.train_indices, source.train_indices)
    model.train_diffusion(max_epochs=3, **QUIET)
    assert model.generate(5, {"stage": "late", "cell_type": "type_0"}, seed=0).n_obs == 5
    np.testing.assert_allclose(model.get_latent_representation(), latent, rtol=1e-5)
    with pytest.raises(InvalidInputError, match="`scvi_model` must be a SCVI model"):
        LatentDiffusionSCVI.from_scvi_model("model")


def test_what_scvi_can_do_still_works(trained):
    adata = trained.adata
    assert np.isfinite(float(trained.get_elbo()))
    assert np.isfinite(float(trained.get_marginal_ll(n_mc_samples=3)))
    assert trained.posterior_predictive_sample(indices=[0, 1]).shape == (2, 40)
    assert trained.get_normalized_expression(n_samples=2).shape == adata.shape
    found = trained.differential_expression(
        groupby="cell_type", group1="type_0", group2="type_1", mode="change", silent=True
    )
    assert found.shape[0] == 40
    x = adata.X.toarray()
    change = np.log2(
        (x[adata.obs["cell_type"] == "type_0"].mean(0) + 0.1) / (x[adata.obs["cell_type"] == "type_1"].mean(0) + 0.1)
    )
    assert np.corrcoef(found.loc[adata.var_names, "lfc_mean"], change)[0, 1] > 0.7
    with pytest.raises(InvalidInputError, match=r'`weights` must be "uniform"; got "importance"'):
        trained.get_normalized_expression(n_samples=2, weights="importance")


def test_criticism_runs(trained):
    adata = trained.adata.copy()
    adata.X = adata.X.toarray()  # scvi's check of the counts fails on scipy's sparse matrices
    ppc = scvi.criticism.PosteriorPredictiveCheck(adata, {"diffvi": trained}, n_samples=2)
    ppc.zero_fraction()
    zeros = ppc.metrics["zero_fraction"]
    assert np.corrcoef(zeros["diffvi"], zeros["Raw"])[0, 1] > 0.9


def test_minified_data_keep_generation_and_latents(trained, tmp_path):
    trained.save(str(tmp_path / "m"))
    model = LatentDiffusionSCVI.load(str(tmp_path / "m"), adata=trained.adata.copy())
    mean, var = model.get_latent_representation(return_dist=True)
    model.adata.obsm["X_latent_qzm"], model.adata.obsm["X_latent_qzv"] = mean, var
    model.minify_adata()
    assert (model.generate(10, seed=0).X != trained.generate(10, seed=0).X).nnz == 0
    np.testing.assert_allclose(model.get_latent_representation(), mean, rtol=1e-5)
    np.testing.assert_allclose(model.get_prior_log_prob(), trained.get_prior_log_prob(), rtol=1e-3, atol=1e-2)
    model.save(str(tmp_path / "mini"), save_anndata=True)
    loaded = LatentDiffusionSCVI.load(str(tmp_path / "mini"))
    assert (loaded.generate(10, seed=0).X != trained.generate(10, seed=0).X).nnz == 0


def test_scarches_surgery_adds_a_batch_and_keeps_the_latents_of_the_reference(trained, tmp_path):
    trained.save(str(tmp_path / "m"))
    query = simulate_cells(200, 40, n_types=3, n_batches=1, mean_library=400, seed=1)
    query.obs["batch"] = "new"
    query.obs["cell_type"] = "new type"
    model = LatentDiffusionSCVI.load_query_data(query, str(tmp_path / "m"))
    assert "new" in model.vocabulary.entries["batch"]["categories"]
    model.train(max_epochs=3, max_epochs_diffusion=20, plan_kwargs={"weight_decay": 0.0}, **QUIET)
    assert model.generate(5, {"batch": "new", "cell_type": "new type"}, seed=0).n_obs == 5
    reference = trained.adata[:50].copy()
    np.testing.assert_allclose(
        model.get_latent_representation(reference),
        trained.get_latent_representation(indices=np.arange(50)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_prior_of_a_query_does_not_forget_the_reference(trained, tmp_path):
    from diffvi.metrics import energy_distance

    trained.save(str(tmp_path / "m"))
    query = simulate_cells(150, 40, n_types=1, n_batches=1, mean_library=400, seed=1)
    query.obs["batch"] = "new"
    query.obs["cell_type"] = "new type"
    asked = trained.adata.obs[["cell_type", "batch"]].iloc[:300]
    conditions = {name: asked[name].astype(str).to_numpy() for name in asked}
    before = trained.generate(300, conditions, seed=1).obsm["X_latent"]
    apart = {}
    for replay in (True, False):
        scvi.settings.seed = 0
        model = LatentDiffusionSCVI.load_query_data(query.copy(), str(tmp_path / "m"))
        assert len(model.replay_["state"]) == len(model.replay_["codes"])
        if not replay:
            model.replay_ = None
        model.train(max_epochs=1, max_epochs_diffusion=150, plan_kwargs={"weight_decay": 0.0}, **QUIET)
        if replay:
            model.save(str(tmp_path / "query"))
            again = LatentDiffusionSCVI.load(str(tmp_path / "query"), query.copy())
            np.testing.assert_array_equal(again.replay_["state"], model.replay_["state"])
        made = model.generate(300, conditions, seed=2)
        assert (made.obs["batch"].astype(str) == conditions["batch"]).all()
        apart[replay] = energy_distance(before, made.obsm["X_latent"])
    assert apart[True] < 0.25 * apart[False]
    free = LatentDiffusionSCVI.load_query_data(query.copy(), str(tmp_path / "m"), unfrozen=True)
    assert free.replay_ is None


def test_best_checkpoint_is_loaded_at_the_end(cells, tmp_path):
    LatentDiffusionSCVI.setup_anndata(cells, labels_key="cell_type")
    model = LatentDiffusionSCVI(cells, **SMALL)
    model.train_vae(max_epochs=5, **QUIET)
    from scvi.train import SaveCheckpoint

    keep = SaveCheckpoint(str(tmp_path / "ck"), monitor="diffusion_loss_validation", load_best_on_end=True)
    model.train_diffusion(max_epochs=12, callbacks=[keep], **QUIET)
    best = model.history["diffusion_loss_validation"].to_numpy(float).min()
    assert float(keep.best_model_score) == pytest.approx(best)
    assert model.stages_["diffusion"]["status"] == "done"
    assert model.generate(3, seed=0).n_obs == 3
    reloaded = LatentDiffusionSCVI.load(keep.best_model_path, adata=cells)
    for (name, a), b in zip(model.module.state_dict().items(), reloaded.module.state_dict().values(), strict=True):
        assert (a == b).all(), name


def test_early_stopping_stops_the_second_stage(cells):
    LatentDiffusionSCVI.setup_anndata(cells, labels_key="cell_type")
    model = LatentDiffusionSCVI(cells, **SMALL)
    model.train_vae(max_epochs=2, **QUIET)
    model.train_diffusion(
        max_epochs=200, early_stopping=True, early_stopping_patience=2, early_stopping_min_delta=10.0, **QUIET
    )
    assert 0 < model.stages_["diffusion"]["epochs"] < 20


def test_a_tensorboard_logger_gets_both_stages(cells, tmp_path):
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    LatentDiffusionSCVI.setup_anndata(cells)
    model = LatentDiffusionSCVI(cells, **SMALL)
    logger = TensorBoardLogger(str(tmp_path))
    model.train(max_epochs=1, max_epochs_diffusion=1, logger=logger, **QUIET)
    assert list(tmp_path.rglob("events*"))
    model.train_diffusion(max_epochs=1, logger=CSVLogger(str(tmp_path / "csv")), **QUIET)
    assert "diffusion_loss_train" in next((tmp_path / "csv").rglob("metrics.csv")).read_text()


def test_training_twice_trains_again(cells):
    LatentDiffusionSCVI.setup_anndata(cells, labels_key="cell_type")
    model = LatentDiffusionSCVI(cells, **SMALL)
    for _ in range(2):
        model.train(max_epochs=3, max_epochs_diffusion=3, **QUIET)
    assert len(model.history["diffusion_loss_train"]) == 6
    assert model.history["diffusion_loss_train"].index.tolist() == list(range(6))
    assert len(model.history["elbo_train"]) == 6


def test_two_trainings_with_one_seed_are_identical(cells):
    made = []
    for _ in range(2):
        scvi.settings.seed = 7
        adata = cells.copy()
        LatentDiffusionSCVI.setup_anndata(adata, labels_key="cell_type")
        model = LatentDiffusionSCVI(adata, **SMALL)
        model.train(max_epochs=2, max_epochs_diffusion=2, **QUIET)
        made.append(model.generate(10, seed=0).X)
    assert (made[0] != made[1]).nnz == 0


def test_training_without_data_is_refused(trained, tmp_path):
    trained.save(str(tmp_path / "m"))
    model = LatentDiffusionSCVI.load(str(tmp_path / "m"))
    with pytest.raises(InvalidInputError, match="Training needs data"):
        model.train_diffusion()


@pytest.mark.parametrize(
    "split",
    [
        {"train_size": 1.0},
        {"train_size": 0.9, "validation_size": 0.0},
        {"datasplitter_kwargs": {"external_indexing": [np.arange(300), np.array([], int), np.array([], int)]}},
    ],
)
def test_training_without_validation_cells(cells, split):
    LatentDiffusionSCVI.setup_anndata(cells, labels_key="cell_type")
    model = LatentDiffusionSCVI(cells, **SMALL)
    model.train(max_epochs=2, max_epochs_diffusion=2, **split, **QUIET)
    assert "diffusion_loss_validation" not in model.history
    assert len(model.training_table_["batch"]) == len(model.train_indices) >= 270
    assert model.generate(3, seed=0).n_obs == 3


def test_the_classifier_of_stage_one_keeps_types_apart_and_ignores_cells_without_a_label():
    from sklearn.metrics import silhouette_score

    adata = simulate_cells(400, 40, n_types=4, mean_library=60, seed=2)
    truth = adata.obs["cell_type"].to_numpy(str)
    widths = {}
    for ratio in (0.0, 30.0):
        scvi.settings.seed = 0
        some = adata.copy()
        # Wrong labels would be learned; missing ones must not be.
        some.obs["cell_type"] = some.obs["cell_type"].astype(object)
        some.obs.iloc[::4, some.obs.columns.get_loc("cell_type")] = np.nan
        LatentDiffusionSCVI.setup_anndata(some, labels_key="cell_type")
        model = LatentDiffusionSCVI(some, n_hidden=32, n_latent=4)
        model.train_vae(max_epochs=40, batch_size=64, plan_kwargs={"lr": 4e-3, "classification_ratio": ratio}, **QUIET)
        known = some.obs["cell_type"].notna().to_numpy()
        widths[ratio] = silhouette_score(model.get_latent_representation()[known], truth[known])
        assert not any("label_classifier" in name for name in model.module.state_dict())
    assert widths[30.0] > widths[0.0] + 0.1


@pytest.mark.parametrize("method", ["annotate", "denoise", "get_prior_log_prob"])
def test_a_model_without_data_asks_for_cells(trained, tmp_path, method):
    trained.save(str(tmp_path / "model"))
    loaded = LatentDiffusionSCVI.load(str(tmp_path / "model"), adata=False)
    with pytest.raises(InvalidInputError, match="`adata`: the model was loaded without data; give the cells"):
        getattr(loaded, method)()
    assert loaded.get_prior_log_prob(trained.adata[:5].copy(), n_steps=2).shape == (5,)
