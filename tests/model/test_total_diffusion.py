from __future__ import annotations

import warnings

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy import stats

from diffvi import InvalidInputError, NotTrainedError
from diffvi.datasets import simulate_cite
from diffvi.metrics import cross_correlation_agreement, interval_coverage
from diffvi.metrics._translation import feature_correlation
from diffvi.model import TotalDiffusion
from tests.conftest import QUIET

SMALL = {"n_hidden": 16, "n_latent": 4, "denoiser_kwargs": {"width": 16, "depth": 1, "n_heads": 2}}
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def _cite(n=1000, **kwargs):
    return simulate_cite(n, 40, 6, n_types=3, n_batches=2, mean_library=600, **{"seed": 3, **kwargs})


def _rows(mdata, rows):
    return mdata[mdata.obs_names[rows]].copy()


@pytest.fixture(scope="module")
def cells():
    return _cite()


@pytest.fixture(scope="module")
def model(cells):
    """Trained on the first 700 cells, of which the last 100 have no proteins and the first 20 lack one."""
    scvi.settings.seed = 0
    torch.set_num_threads(1)
    train = _rows(cells, slice(0, 700))
    rna, protein = train["rna"].copy(), train["protein"][:600].copy()
    protein.X[:20, 2] = np.nan
    partial = mudata.MuData({"rna": rna, "protein": protein})
    partial.obs = train.obs.copy()
    TotalDiffusion.setup_mudata(partial, labels_key="cell_type", batch_key="batch")
    model = TotalDiffusion(partial, n_hidden=64, n_latent=6, denoiser_kwargs={"depth": 2})
    model.train(
        max_epochs=150,
        max_epochs_diffusion=100,
        batch_size=64,
        train_size=0.85,
        validation_size=0.15,
        plan_kwargs={"lr": 4e-3, "dispersion_lr": 0.04},
        **QUIET,
    )
    return model


@pytest.fixture
def held_out(cells):
    return _rows(cells, slice(700, 1000))


def _rna(mdata):
    rna = mdata["rna"].copy()
    rna.obs = mdata.obs.copy()
    return rna


def _protein(mdata):
    protein = mdata["protein"].copy()
    protein.obs = mdata.obs.copy()
    return protein


# ---------------------------------------------------------------- RNA to protein


def test_proteins_of_new_cells_are_predicted_from_rna_alone(model, held_out):
    rna = _rna(held_out)
    assert model.translate_rna_to_protein(rna, n_samples=40, seed=0) is None
    truth = np.log1p(held_out["protein"].X)
    found = feature_correlation(truth, rna.obsm["protein_log1p"].to_numpy())
    constant = np.sqrt(((truth - truth.mean(0)) ** 2).mean())
    assert found.mean() > 0.7
    assert np.sqrt(((truth - rna.obsm["protein_log1p"].to_numpy()) ** 2).mean()) < 0.8 * constant
    for name in ("", "_std", "_log1p", "_q5", "_q95", "_foreground", "_counts"):
        table = rna.obsm[f"protein{name}"]
        assert list(table.columns) == list(held_out["protein"].var_names)
        assert not table.isna().any().any()
    assert np.issubdtype(rna.obsm["protein_counts"].to_numpy().dtype, np.integer)
    assert set(rna.uns["protein"]["units"]) == {k for k in rna.obsm if k.startswith("protein")}


def test_intervals_cover_held_out_proteins(model, held_out):
    rna = _rna(held_out)
    model.translate_rna_to_protein(rna, n_samples=60, quantiles=(0.05, 0.25, 0.75, 0.95), seed=0)
    truth = held_out["protein"].X
    for level, low, high in ((0.5, "q25", "q75"), (0.9, "q5", "q95")):
        covered = interval_coverage(truth, *(rna.obsm[f"protein_{q}"].to_numpy() for q in (low, high)))
        assert abs(covered - level) < 0.1, level


def test_a_cells_translation_depends_on_its_rna_and_the_seed_alone(model, held_out):
    whole, part = _rna(held_out), _rna(held_out)[50:70].copy()
    model.translate_rna_to_protein(whole, n_samples=5, seed=4)
    model.translate_rna_to_protein(part, n_samples=5, seed=4, batch_size=7)
    pd.testing.assert_frame_equal(whole.obsm["protein_counts"].iloc[50:70], part.obsm["protein_counts"])
    other = held_out.copy()
    other["protein"].X = other["protein"].X[::-1].copy()
    model.translate_rna_to_protein(other, n_samples=5, seed=4)
    pd.testing.assert_frame_equal(whole.obsm["protein_counts"], other["rna"].obsm["protein_counts"])
    again = model.translate_rna_to_protein(part, n_samples=5, seed=5, copy=True)
    assert not again.obsm["protein_counts"].equals(part.obsm["protein_counts"])


def test_foreground_probability_follows_the_truth(model, held_out):
    rna = _rna(held_out)
    model.translate_rna_to_protein(rna, seed=0)
    truth = held_out["protein"].layers["foreground"]
    values = rna.obsm["protein_foreground"].to_numpy()
    assert values.min() >= 0
    assert values.max() <= 1
    areas = [
        stats.mannwhitneyu(v[t == 1], v[t == 0]).statistic / (t.sum() * (1 - t).sum())
        for v, t in zip(values.T, truth.T, strict=True)
    ]
    assert np.mean(areas) > 0.75


def test_results_can_be_written_to_a_file(model, held_out, tmp_path):
    rna, protein = _rna(held_out), _protein(held_out)
    model.translate_rna_to_protein(rna, n_samples=3, seed=0)
    model.translate_protein_to_rna(protein, n_samples=3, seed=0)
    for name, adata, key in (("rna", rna, "protein_counts"), ("protein", protein, "rna_counts")):
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
        back = ad.read_h5ad(tmp_path / f"{name}.h5ad")
        assert (
            np.asarray(back.obsm[key] != adata.obsm[key]).sum()
            if name == "rna"
            else (back.obsm[key] != adata.obsm[key]).nnz
        ) == 0


# ---------------------------------------------------------------- protein to RNA


def test_rna_of_new_cells_is_predicted_from_proteins_alone(model, held_out):
    protein = _protein(held_out)
    protein.X[:10, 1] = np.nan
    model.translate_protein_to_rna(protein, seed=0)
    counts = held_out["rna"].X.toarray()
    truth = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    assert np.nanmean(feature_correlation(truth, protein.obsm["rna_log1p"])) > 0.25
    assert protein.obsm["rna_counts"].shape == counts.shape
    assert protein.obsm["rna_counts"].dtype == np.int32
    inside = interval_coverage(counts, protein.obsm["rna_q5"], protein.obsm["rna_q95"])
    assert 0.85 < inside < 1.0
    assert list(protein.uns["rna"]["features"]) == list(held_out["rna"].var_names)
    total = np.median(protein.obsm["rna"].sum(1)) / np.median(counts.sum(1))
    assert 0.8 < total < 1.25


# ---------------------------------------------------------------- missing proteins


def test_imputed_proteins_keep_what_was_measured(model):
    mdata = model.adata.copy()
    model.impute_proteins(mdata, seed=0, n_samples=5)
    rna = mdata["rna"]
    filled, missing = rna.obsm["protein_imputed"], rna.obsm["protein_imputed_missing"]
    assert not filled.isna().any().any()
    assert missing.to_numpy().sum() == 100 * 6 + 20
    measured = mdata["protein"].to_df()
    kept = ~missing.loc[measured.index]
    assert (filled.loc[measured.index][kept] == measured[kept]).to_numpy()[kept.to_numpy()].all()
    spread = rna.obsm["protein_imputed_std"].to_numpy()
    assert (spread[~missing.to_numpy()] == 0).all()
    assert (spread[600:] > 0).any(axis=1).all()


def test_nothing_is_imputed_where_all_was_measured(model, held_out, monkeypatch):
    monkeypatch.setattr(model, "_translate", None)
    model.impute_proteins(held_out)
    assert (held_out["rna"].obsm["protein_imputed"].to_numpy() == held_out["protein"].X).all()
    assert held_out["rna"].uns["protein_imputed"]["n_missing"] == 0


def test_a_cell_without_proteins_is_encoded_from_its_rna(model):
    latent = model.get_latent_representation()
    from_rna = model.get_latent_representation(modality="rna")
    np.testing.assert_allclose(latent[600:], from_rna[600:], atol=1e-5)
    assert np.abs(latent[:600] - from_rna[:600]).max() > 0.01


def test_the_encoders_of_one_modality_agree_with_that_of_both(model, held_out):
    TotalDiffusion.setup_mudata(held_out, labels_key="cell_type", batch_key="batch")
    both = model.get_latent_representation(held_out)
    spread = both - both.mean(0)
    for modality in ("rna", "protein"):
        mine = model.get_latent_representation(held_out, modality=modality)
        assert ((mine - both) ** 2).mean() < 0.7 * (spread**2).mean(), modality


def test_zeros_are_data_and_a_panel_of_zeros_is_pointed_out():
    mdata = _cite(120)
    mdata["protein"].X[(mdata.obs["batch"] == "batch_0").to_numpy(), 3] = 0
    with pytest.warns(UserWarning, match="'protein_3' in batch 'batch_0'"):
        TotalDiffusion.setup_mudata(mdata, batch_key="batch")
    assert (mdata.obsm["_diffvi_proteins"] == mdata["protein"].X).all()


def test_missing_proteins_leave_loss_and_gradients_finite():
    mdata = _cite(60)
    mdata["protein"].X[:30, 0] = np.nan
    TotalDiffusion.setup_mudata(mdata)
    model = TotalDiffusion(mdata, **SMALL)
    loader = model._make_data_loader(mdata, batch_size=60)
    tensors = next(iter(loader))
    assert tensors["proteins"].isnan().any()
    model.module.train()
    loss = model.module(tensors)[2].loss
    assert torch.isfinite(loss)
    loss.backward()
    gradients = [p.grad for p in model.module.parameters() if p.grad is not None]
    assert len(gradients) > 10
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    # Of the learned stand-ins only that of the protein which is missing somewhere is learned.
    assert (model.module.missing_protein.grad != 0).tolist() == [True, False, False, False, False, False]


# ---------------------------------------------------------------- generation


def test_generated_modalities_belong_together(model, cells):
    generated = model.generate(700, seed=0)
    rna, protein = generated["rna"].X.toarray(), generated["protein"].X.toarray()
    real = (cells["rna"].X.toarray(), cells["protein"].X)
    together = cross_correlation_agreement(*real, rna, protein)
    order = np.random.default_rng(0).permutation(700)
    apart = cross_correlation_agreement(*real, rna, protein[order])
    assert together > 0.8
    assert apart < 0.4
    assert protein.dtype == np.int32
    ratio = np.median(protein.sum(1)) / np.median(real[1].sum(1))
    assert 0.75 < ratio < 1.33


def test_conditions_steer_both_modalities(model, cells):
    kinds = cells.obs["cell_type"].to_numpy()
    means = {k: np.log1p(cells["protein"].X[kinds == k]).mean(0) for k in np.unique(kinds)}
    for kind in means:
        generated = model.generate(150, {"cell_type": kind}, seed=1)
        found = np.log1p(generated["protein"].X.toarray()).mean(0)
        assert min(means, key=lambda k: ((means[k] - found) ** 2).sum()) == kind


# ---------------------------------------------------------------- what totalVI can do


def test_what_totalvi_can_do_works_with_missing_proteins(model):
    n = model.adata.n_obs
    foreground = model.get_protein_foreground_probability()
    assert foreground.shape == (n, 6)
    assert not foreground.isna().any().any()
    genes, proteins = model.get_normalized_expression(n_samples=2)
    assert genes.shape == (n, 40)
    assert not proteins.isna().any().any()
    kinds = model.adata.obs["cell_type"].to_numpy()
    table = model.differential_expression(idx1=kinds == "type_0", idx2=kinds == "type_1", silent=True)
    assert len(table) == 46
    assert np.isfinite(table["lfc_mean"]).all()


def test_the_rate_that_is_reported_is_the_one_that_was_trained(model):
    module = model.module
    with torch.no_grad():
        saved = module.log_per_batch_efficiency.clone()
        module.log_per_batch_efficiency[:, 1] = 1.0
    try:
        _, one = model.get_normalized_expression(transform_batch="batch_1", include_protein_background=True)
        with torch.no_grad():
            module.log_per_batch_efficiency[:, 1] = 0.0
        _, none = model.get_normalized_expression(transform_batch="batch_1", include_protein_background=True)
    finally:
        with torch.no_grad():
            module.log_per_batch_efficiency.copy_(saved)
    assert np.median(one.to_numpy() / none.to_numpy()) == pytest.approx(np.e, rel=0.1)


def test_a_trained_totalvi_keeps_its_latents():
    mdata = _cite(150)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scvi.model.TOTALVI.setup_mudata(mdata, modalities={"rna_layer": "rna", "protein_layer": "protein"})
        source = scvi.model.TOTALVI(mdata, n_latent=5, n_hidden=16, empirical_protein_background_prior=False)
        source.train(max_epochs=3, **QUIET)
    before = source.get_latent_representation()
    model = TotalDiffusion.from_totalvi_model(source, labels_key="cell_type", denoiser_kwargs=SMALL["denoiser_kwargs"])
    np.testing.assert_allclose(model.get_latent_representation(), before, atol=1e-5)
    decoder = {k: v.clone() for k, v in model.module.decoder.state_dict().items()}
    encoder = model.module.rna_encoder.mean_encoder.weight.clone()
    model.train(max_epochs=2, max_epochs_diffusion=2, **QUIET)
    np.testing.assert_allclose(model.get_latent_representation(), before, atol=1e-5)
    after = model.module.decoder.state_dict()
    assert all(torch.equal(after[k], v) for k, v in decoder.items() if "num_batches" not in k and "running" not in k)
    assert not torch.equal(model.module.rna_encoder.mean_encoder.weight, encoder)
    assert model.generate(3, {"cell_type": "type_0"}, seed=0).n_obs == 3
    model.translate_rna_to_protein(seed=0, n_samples=2)
    with pytest.raises(InvalidInputError, match="must be a TOTALVI model"):
        TotalDiffusion.from_totalvi_model(model)
    with pytest.raises(NotTrainedError):
        TotalDiffusion.from_totalvi_model(scvi.model.TOTALVI(mdata))


# ---------------------------------------------------------------- queries


def test_a_query_of_rna_alone_gets_proteins(model, held_out, tmp_path):
    model.save(str(tmp_path / "m"))
    reference = model.generate(200, {"batch": "batch_0"}, seed=0)["protein"].X.toarray()
    query = mudata.MuData({"rna": held_out["rna"].copy()})
    query.obs = held_out.obs.copy()
    query.obs["batch"] = "new"
    surgery = TotalDiffusion.load_query_data(query, str(tmp_path / "m"))
    surgery.train(max_epochs=5, max_epochs_diffusion=20, **QUIET)
    surgery.impute_proteins(query, seed=0, n_samples=10)
    found = query["rna"].obsm["protein_imputed"]
    assert not found.isna().any().any()
    truth = np.log1p(held_out["protein"].X)
    assert feature_correlation(truth, np.log1p(found.to_numpy())).mean() > 0.6
    again = surgery.generate(200, {"batch": "batch_0"}, seed=0)["protein"].X.toarray()
    assert np.abs(np.log1p(again).mean(0) - np.log1p(reference).mean(0)).max() < 0.6
    assert surgery.generate(5, {"batch": "new"}, seed=0).n_obs == 5


def test_translations_survive_saving(model, held_out, tmp_path):
    rna = _rna(held_out)[:30].copy()
    model.translate_rna_to_protein(rna, n_samples=3, seed=0)
    model.save(str(tmp_path / "m"))
    loaded = TotalDiffusion.load(str(tmp_path / "m"))
    again = _rna(held_out)[:30].copy()
    loaded.translate_rna_to_protein(again, n_samples=3, seed=0)
    pd.testing.assert_frame_equal(rna.obsm["protein_counts"], again.obsm["protein_counts"])
    with pytest.raises(InvalidInputError, match="loaded without data"):
        loaded.translate_rna_to_protein()


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    "options",
    [
        {"gene_likelihood": "zinb"},
        {"gene_dispersion": "gene-batch", "protein_dispersion": "protein-batch"},
        {"gene_dispersion": "gene-label", "protein_dispersion": "protein-label"},
        {"latent_distribution": "ln"},
        {"denoiser": "mlp", "denoiser_kwargs": {"width": 16}, "process": "vp_cosine", "prediction": "noise"},
        {"use_batch_norm": "both", "use_layer_norm": "none", "encode_covariates": False},
        {"alignment_weight": 0.0, "modality_dropout": 0.0, "protein_weight": 1.0, "normalize_encoder_input": True},
    ],
    ids=lambda options: next(iter(options.values())) if isinstance(options, dict) else None,
)
def test_every_option_is_trained_and_sampled(options):
    mdata = _cite(120)
    mdata.obs["donor"] = pd.Categorical(np.where(np.arange(120) % 2, "a", "b"))
    TotalDiffusion.setup_mudata(
        mdata,
        labels_key="cell_type",
        batch_key="batch",
        categorical_covariate_keys=["donor"],
        continuous_covariate_keys=["score"],
    )
    model = TotalDiffusion(mdata, **{**SMALL, **options})
    model.train(max_epochs=2, max_epochs_diffusion=2, **QUIET)
    cells = model.generate(5, {"cell_type": "type_1"}, seed=0)
    assert np.isfinite(cells["rna"].layers["normalized"]).all()
    rna, protein = _rna(mdata), _protein(mdata)
    model.translate_rna_to_protein(rna, seed=0, n_samples=2, use_conditions=True)
    model.translate_protein_to_rna(protein, seed=0, n_samples=2)
    assert np.isfinite(rna.obsm["protein"]).all().all()
    assert np.isfinite(protein.obsm["rna"]).all()
    del rna.obs["donor"]
    with pytest.raises(InvalidInputError, match="no column 'donor', a covariate"):
        model.translate_rna_to_protein(rna)


def test_an_observed_library_is_needed():
    mdata = _cite(60)
    TotalDiffusion.setup_mudata(mdata)
    with pytest.raises(InvalidInputError, match="`use_observed_lib_size` must be True"):
        TotalDiffusion(mdata, use_observed_lib_size=False)


# ---------------------------------------------------------------- proteins in obsm


def _in_obsm(mdata, as_frame=True):
    adata = mdata["rna"].copy()
    adata.obs = mdata.obs.copy()
    counts = mdata["protein"].to_df()
    counts.iloc[-30:] = np.nan
    adata.obsm["adt"] = counts if as_frame else counts.to_numpy()
    return adata


@pytest.mark.parametrize("as_frame", [True, False])
def test_an_anndata_with_proteins_in_obsm_will_do(as_frame):
    adata = _in_obsm(_cite(120), as_frame)
    adata.uns["names"] = [f"p{i}" for i in range(6)]
    names = None if as_frame else "names"
    TotalDiffusion.setup_anndata(adata, "adt", protein_names_uns_key=names, batch_key="batch")
    model = TotalDiffusion(adata, **SMALL)
    model.train(max_epochs=2, max_epochs_diffusion=2, **QUIET)
    expected = [f"protein_{i}" for i in range(6)] if as_frame else adata.uns["names"]
    model.impute_proteins(seed=0, n_samples=2)
    assert list(adata.obsm["protein_imputed"].columns) == expected
    assert adata.obsm["protein_imputed_missing"].to_numpy().sum() == 30 * 6
    rna = adata.copy()
    del rna.obsm["adt"]
    model.translate_rna_to_protein(rna, seed=0, n_samples=2)
    assert not rna.obsm["protein"].isna().any().any()
    assert model.get_latent_representation(rna).shape == (120, 4)
    model.translate_protein_to_rna(adata[:50].copy(), seed=0, n_samples=2)
    cells = model.generate(4, seed=0)
    assert list(cells["protein"].var_names) == expected


def test_names_of_proteins_have_to_fit():
    adata = _in_obsm(_cite(60), as_frame=False)
    adata.uns["names"] = ["a", "b"]
    with pytest.raises(InvalidInputError, match=r"adata.uns\['names'\] has 2 names for the 6 proteins"):
        TotalDiffusion.setup_anndata(adata, "adt", protein_names_uns_key="names")
    with pytest.raises(InvalidInputError, match=r"adata.uns has no 'other'"):
        TotalDiffusion.setup_anndata(adata, "adt", protein_names_uns_key="other")
    adata.obsm["adt"] = pd.DataFrame(adata.obsm["adt"], index=adata.obs_names, columns=list("aabcde"))
    with pytest.raises(InvalidInputError, match="several proteins called 'a'"):
        TotalDiffusion.setup_anndata(adata, "adt")


# ---------------------------------------------------------------- bad input


def _swap(mdata):
    TotalDiffusion.setup_mudata(mdata, modalities={"rna_layer": "protein", "protein_layer": "rna"})


def _without(modality):
    def change(mdata):
        rows = {"rna": slice(0, 60), "protein": slice(None)} if modality == "rna" else {}
        parts = {m: mdata[m][rows.get(m, slice(None))].copy() for m in mdata.mod}
        TotalDiffusion.setup_mudata(mudata.MuData(parts))

    return change


def _values(column, value, rows=slice(None)):
    def change(mdata):
        mdata["protein"].X[rows, column] = value
        TotalDiffusion.setup_mudata(mdata)

    return change


def _empty(mdata):
    TotalDiffusion.setup_mudata(mudata.MuData({"rna": mdata["rna"].copy(), "protein": mdata["protein"][:, :0].copy()}))


def _reordered(mdata):
    parts = {"protein": mdata["protein"].copy(), "rna": mdata["rna"][::-1].copy()}
    TotalDiffusion.setup_mudata(mudata.MuData(parts))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_swap, "seem to be swapped"),
        (_without("rna"), r"60 of 120 cells have no RNA"),
        (_values(1, np.nan), r"The proteins 'protein_1' were measured in no cell"),
        (_values(slice(None), np.nan), "measured in no cell: all values are NaN"),
        (_values(1, 0.5, slice(0, 1)), r"mdata\['protein'\].X holds values that are not whole numbers \(such as 0.5\)"),
        (_values(1, -1, slice(0, 1)), "holds negative values"),
        (_values(1, np.inf, slice(0, 1)), "holds infinite values"),
        (_empty, r"mdata\['protein'\] is empty"),
        (_reordered, "in another order"),
        (lambda m: TotalDiffusion.setup_mudata(m["rna"]), "`mdata` must be a MuData; got AnnData"),
        (lambda m: TotalDiffusion.setup_mudata(m, batch_key="nope"), "no column 'nope' in mdata.obs"),
        (lambda m: TotalDiffusion.setup_mudata(m, modalities={"rna": "rna"}), "`modalities` must have the keys"),
        (lambda m: TotalDiffusion.setup_mudata(m, modalities={"rna_layer": "atac"}), "there is no modality 'atac'"),
        (lambda m: TotalDiffusion.setup_mudata(m, protein_layer="raw"), "`protein_layer`: .* has no 'raw'"),
        (lambda m: TotalDiffusion.setup_anndata(m["rna"], "protein"), "`protein_expression_obsm_key`"),
    ],
)
def test_bad_data_get_a_sentence(change, message):
    mdata = _cite(120)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InvalidInputError, match=message):
            change(mdata)


def test_bad_arguments_of_translations_get_a_sentence(model, held_out):
    rna, protein = _rna(held_out), _protein(held_out)
    for call, message in (
        (lambda: model.translate_rna_to_protein(rna, n_samples=0), "`n_samples`"),
        (lambda: model.translate_rna_to_protein(rna, quantiles=[1.5]), "`quantiles` must lie between 0 and 1"),
        (lambda: model.translate_rna_to_protein(rna, transform_batch="nope"), "`transform_batch` must be one of"),
        (lambda: model.translate_rna_to_protein(protein), "holds proteins where RNA is needed"),
        (lambda: model.translate_rna_to_protein(rna[:, :10].copy()), "lacks 30 of the model's 40 genes"),
        (lambda: model.translate_protein_to_rna(rna), "holds none of the model's proteins"),
        (lambda: model.translate_rna_to_protein(mudata.MuData({"protein": protein})), "has no modality 'rna'"),
        (lambda: model.get_latent_representation(modality="atac"), "`modality` must be one of"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            call()
    del rna.obs["batch"]
    with pytest.raises(InvalidInputError, match="name a batch, of 'batch_0', 'batch_1'"):
        model.translate_rna_to_protein(rna)
    model.translate_rna_to_protein(rna, n_samples=2, transform_batch="batch_0", seed=0)
    protein.var_names = [f"other_{i}" if i else "protein_0" for i in range(6)]
    with pytest.raises(InvalidInputError, match=r"'other_1', .* are not in the model's panel"):
        model.translate_protein_to_rna(protein)
    protein = _protein(held_out)
    protein.X[:4] = np.nan
    with pytest.raises(InvalidInputError, match="No protein was measured in 4 of 300 cells"):
        model.translate_protein_to_rna(protein)
    assert not [k for k in protein.obsm if k.startswith("rna")]


def test_surgery_from_the_folder_of_a_distilled_model(tmp_path):
    mdata = simulate_cite(80, 12, 3, seed=0)
    TotalDiffusion.setup_mudata(mdata, batch_key="batch", modalities={"rna_layer": "rna", "protein_layer": "protein"})
    model = TotalDiffusion(mdata, n_latent=2, n_hidden=8)
    model.train(max_epochs=1, max_epochs_diffusion=1, enable_progress_bar=False)
    model.distill(n_steps=1, n_updates=2, show_progress=False)
    model.save(str(tmp_path / "model"))
    query = mdata[:30].copy()
    query.obs["batch"] = "new"
    updated = TotalDiffusion.load_query_data(query, str(tmp_path / "model"))
    assert updated.module.prior.few_steps is None
    names = TotalDiffusion.load(str(tmp_path / "model"), adata=False).get_var_names()
    assert {name: list(values) for name, values in names.items()} == {
        name: list(part.var_names) for name, part in mdata.mod.items()
    }
