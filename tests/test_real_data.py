"""The main job on real cells, small enough for every run; quality is measured by the benchmark commands."""

import anndata as ad
import mudata
import numpy as np
import pytest
from sklearn.decomposition import PCA

import diffvi
from diffvi.benchmark import IDW, GPSpace, IndependentNB, KernelRidgeTranslation, split_cells
from diffvi.benchmark._options import Options
from diffvi.benchmark._tasks import find_task
from diffvi.metrics import (
    classifier_two_sample,
    energy_distance,
    evaluate_generation,
    feature_correlation,
    interval_coverage,
    log_normalise,
    moran_i,
)
from tests.conftest import QUIET


def test_the_main_job_on_embedded_cells():
    adata = diffvi.datasets.pbmc68k()
    train, test = split_cells(adata, "cell_type", 0.3, n_top_genes=None)
    diffvi.model.LatentDiffusionSCVI.setup_anndata(train, labels_key="cell_type", batch_key="batch")
    model = diffvi.model.LatentDiffusionSCVI(train)
    model.train(max_epochs=150, max_epochs_diffusion=300, **QUIET)
    labels = test.obs["cell_type"].to_numpy(str)
    cells = model.generate(test.n_obs, {"cell_type": labels}, seed=0)
    table = evaluate_generation(test, cells, train, "cell_type")
    assert table.loc["rf_auc_genes", "value"] < 0.75
    assert table.loc["label_agreement", "value"] > 0.7
    assert table.loc["library_size_ks", "value"] < 0.15
    assert table.loc["memorisation_ratio", "value"] > 0.8


@pytest.mark.slow
def test_facs_sorted_pbmc_beat_the_independent_baseline(data_folder):
    adata = ad.read_h5ad(data_folder / "pbmc_facs_zheng2017.h5ad")
    train, test = split_cells(adata, "cell_type")
    labels = test.obs["cell_type"].to_numpy(str)
    baseline = IndependentNB()
    baseline.fit(train, "cell_type")
    diffvi.model.LatentDiffusionSCVI.setup_anndata(train, labels_key="cell_type")
    model = diffvi.model.LatentDiffusionSCVI(train)
    model.train(**QUIET)
    ours = classifier_two_sample(test.X, model.generate(test.n_obs, {"cell_type": labels}, seed=0).X)
    assert ours < 0.62
    assert ours < classifier_two_sample(test.X, baseline.generate(labels, 0).X) - 0.03


def test_two_batches_of_real_cells_can_be_asked_for_together(data_folder):
    adata = ad.read_h5ad(data_folder / "pbmc_2batches.h5ad")
    rng = np.random.default_rng(0)
    adata = adata[rng.permutation(adata.n_obs)[:800]].copy()
    adata = adata[:, np.argsort(-np.asarray(adata.X.sum(0)).ravel())[:300]].copy()
    adata = adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()
    model_class = diffvi.model.LatentDiffusionSCVI
    model_class.setup_anndata(adata, labels_key="cell_type", batch_key="batch")
    model = model_class(adata)
    model.train(max_epochs=60, max_epochs_diffusion=60, **QUIET)
    batch, kind = adata.obs["batch"].iloc[0], adata.obs["cell_type"].value_counts().index[0]
    cells = model.generate(200, {"batch": batch, "cell_type": kind}, seed=0)
    real = adata[(adata.obs["batch"] == batch) & (adata.obs["cell_type"] == kind)]
    a, b = (np.log1p(np.asarray(c.X.mean(0)).ravel()) for c in (real, cells))
    assert np.corrcoef(a, b)[0, 1] > 0.95


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_proteins_of_real_cells_are_predicted_as_well_as_by_kernel_ridge(data_folder):
    mdata = mudata.read_h5mu(data_folder / "pbmc10k_cite.h5mu")
    split = next(iter(find_task("translation").splits(mdata, Options(n_top_genes=300))))
    rna, protein = (part[:1200].copy() for part in split.train)
    test = [part[:500].copy() for part in split.test]
    cells = mudata.MuData({"rna": rna, "protein": protein})
    diffvi.model.TotalDiffusion.setup_mudata(cells)
    model = diffvi.model.TotalDiffusion(cells)
    model.train(max_epochs=40, max_epochs_diffusion=40, **QUIET)
    model.translate_rna_to_protein(test[0], seed=0)
    baseline = KernelRidgeTranslation()
    baseline.fit(rna, protein)
    truth = np.log1p(test[1].X)
    ours = feature_correlation(truth, test[0].obsm["protein_log1p"].to_numpy()).mean()
    assert ours > feature_correlation(truth, baseline.predict(test[0])).mean() - 0.01
    covered = interval_coverage(test[1].X, *(test[0].obsm[f"protein_{q}"].to_numpy() for q in ("q5", "q95")))
    assert 0.8 < covered < 0.97


def test_a_time_that_was_left_out_is_predicted_better_than_by_its_neighbours(data_folder):
    adata = ad.read_h5ad(data_folder / "worm_embryo_neurons.h5ad")
    order = ["210-270", "270-330", "330-390", "390-450", "450-510", "510-580", "580-650", "> 650"]
    adata.obs["bin"] = (
        adata.obs["embryo_time_bin"].astype(str).map(dict(zip(order, np.arange(8.0), strict=True))).astype(float)
    )
    adata = adata[:, np.argsort(-np.asarray(adata.X.sum(0)).ravel())[:300]].copy()
    adata = adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()
    time = adata.obs["bin"].to_numpy()
    train = adata[(time >= 2) & (time <= 5) & (time != 4)].copy()
    diffvi.model.TrajectoryDiffusion.setup_anndata(train, "bin", labels_key="cell_type")
    model = diffvi.model.TrajectoryDiffusion(train)
    model.train(max_epochs=50, max_epochs_diffusion=12, **QUIET)
    future = model.predict_trajectory(adata[time == 3].copy(), [4.0], seed=0)
    logged = {t: log_normalise(adata.X[time == t]) for t in (3, 4, 5)}
    pca = PCA(10, random_state=0).fit(np.concatenate([logged[3], logged[5]]))
    points = {t: pca.transform(x) for t, x in logged.items()}
    ours = energy_distance(pca.transform(log_normalise(future.X)), points[4])
    assert ours < 0.8 * min(energy_distance(points[t], points[4]) for t in (3, 5))


def test_locations_that_were_left_out_are_predicted_better_than_by_smoothers(data_folder):
    adata = ad.read_h5ad(data_folder / "starmap_mpfc.h5ad")
    adata = adata[adata.obs["batch"].astype(str) != "2"].copy()
    sections, places = adata.obs["batch"].to_numpy(str), np.asarray(adata.obsm["spatial"], float)
    hidden = np.random.default_rng(0).random(adata.n_obs) < 0.2
    train = adata[~hidden].copy()
    diffvi.model.SpatialDiffusion.setup_anndata(train, section_key="batch", batch_key="batch")
    model = diffvi.model.SpatialDiffusion(train)
    model.train(max_epochs=60, max_epochs_diffusion=6, **QUIET)
    mean = model.generate_at_location(places[hidden], sections[hidden], return_mean=True).X
    sample = log_normalise(model.generate_at_location(places[hidden], sections[hidden], seed=0).X)
    values = log_normalise(adata.X)
    for section in ("0", "1"):
        seen, asked, held = ~hidden & (sections == section), sections[hidden] == section, hidden & (sections == section)
        ours = np.nanmean(feature_correlation(values[held], mean[asked]))
        for baseline in (IDW(), GPSpace()):
            baseline.fit(places[seen], values[seen])
            assert ours > np.nanmean(feature_correlation(values[held], baseline.predict(places[held]))) - 0.005
        real = moran_i(values[held], places[held])
        assert abs(np.nanmean(moran_i(sample[asked], places[held])) - np.nanmean(real)) < 0.05
