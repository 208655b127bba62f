"""TotalDiffusion on CITE-seq data, beside simple baselines and totalVI; see multimodal.md for the recorded tables.

    python benchmarks/multimodal.py cite pbmc10k_cite.h5mu [--no-totalvi] [--model DIR] [--csv out.csv]
    python benchmarks/multimodal.py decoder pbmc10k_cite.h5mu --model DIR
    python benchmarks/multimodal.py query pbmc10k_cite.h5mu pbmc5k_rna_only.h5ad [--model DIR]

The split is that of `diffvi benchmark translation --test-size 0.3`: random, 2,000 genes chosen on the training cells. CRPS is
twice the mean pinball loss over 39 levels, on log1p counts; CLR is a cell's log1p counts less their mean. The forest of
the two-sample test (300 trees, five folds) sees log-normalised genes, log1p proteins, or both.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import scvi
import torch
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

from diffvi._random import CellStreams
from diffvi.benchmark._options import Options
from diffvi.benchmark._tasks import find_task
from diffvi.benchmark._translation_baselines import KernelRidgeTranslation, TotalVITranslation
from diffvi.data import sample_counts
from diffvi.metrics import classifier_two_sample, cross_correlation_agreement, log_normalise
from diffvi.metrics._counts import dense
from diffvi.metrics._translation import feature_correlation, feature_rmse
from diffvi.model import LatentDiffusionSCVI, TotalDiffusion

LEVELS = np.arange(1, 40) / 40
MARKERS = {"CD3": ["CD3D", "CD3E"], "CD19": ["MS4A1", "CD79A"], "CD14": ["CD14", "LYZ"], "CD8a": ["CD8A", "CD8B"]}


def split(path: str, seed: int) -> tuple[Any, Any]:
    """Training and test cells, each RNA and protein."""
    task = find_task("translation")
    part = next(iter(task.splits(mudata.read_h5mu(path), Options(test_size=0.3, n_top_genes=2000, seed=seed))))
    return part.train, part.test


def trained(train: Any, model_kwargs: dict[str, Any], train_kwargs: dict[str, Any]) -> tuple[TotalDiffusion, float]:
    """A trained model, and the seconds that it took."""
    mdata = mudata.MuData({"rna": train[0].copy(), "protein": train[1].copy()})
    TotalDiffusion.setup_mudata(mdata)
    model = TotalDiffusion(mdata, **model_kwargs)
    start = time.perf_counter()
    model.train(enable_progress_bar=False, **train_kwargs)
    return model, time.perf_counter() - start


def clr(logged: np.ndarray) -> np.ndarray:
    return logged - logged.mean(1, keepdims=True)


def means(name: str, truth: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    return {
        "method": name,
        "pearson": np.nanmean(feature_correlation(truth, predicted)),
        "pearson_clr": np.nanmean(feature_correlation(clr(truth), clr(predicted))),
        "rmse": feature_rmse(truth, predicted).mean(),
    }


def pinball(truth: np.ndarray, quantiles: np.ndarray) -> float:
    """CRPS from the quantiles at LEVELS, ``(levels, cells, features)``."""
    error = truth - quantiles
    return float(2 * np.maximum(LEVELS[:, None, None] * error, (LEVELS - 1)[:, None, None] * error).mean())


def rna_to_protein(model: TotalDiffusion, train: Any, test: Any, totalvi: bool) -> list[dict[str, Any]]:
    truth = np.log1p(dense(test[1].X))
    ridge = KernelRidgeTranslation()
    ridge.fit(*train)
    predicted = ridge.predict(test[0])
    target = np.log1p(dense(train[1].X))
    features = ridge.pca.transform(log_normalise(train[0].X)) / ridge.scale
    scaled = ridge.proteins.transform(target)
    held = cross_val_predict(KernelRidge(kernel="rbf", **ridge.model.best_params_), features, scaled, cv=5)
    sd = (target - ridge.proteins.inverse_transform(held)).std(0)
    gaussian = predicted + sd * stats.norm.ppf(LEVELS)[:, None, None]
    rows = [{**means("kernel ridge", truth, predicted), "crps": pinball(truth, gaussian)}]
    if totalvi:
        baseline = TotalVITranslation()
        baseline.fit(*train)
        rows.append(means("totalVI", truth, baseline.predict(test[0])))
    cells = test[0].copy()
    start = time.perf_counter()
    model.translate_rna_to_protein(cells, n_samples=100, quantiles=LEVELS, seed=0)
    quantiles = np.stack([np.log1p(cells.obsm[f"protein_q{100 * q:g}"].to_numpy()) for q in LEVELS])
    ours = {**means("diffvi", truth, cells.obsm["protein_log1p"].to_numpy()), "crps": pinball(truth, quantiles)}
    for level in (0.5, 0.8, 0.9):
        low, high = (round(40 * p) - 1 for p in ((1 - level) / 2, (1 + level) / 2))
        covered = ((truth >= quantiles[low]) & (truth <= quantiles[high])).mean(0)
        ours[f"coverage_{100 * level:.0f}"] = np.median(covered)
        ours[f"coverage_{100 * level:.0f}_worst"] = covered[np.abs(covered - level).argmax()]
    path = model.path_weights_
    rows.append({**ours, "seconds": time.perf_counter() - start, "path_weight": path["rna"]})
    for name, weight in (("diffvi, draws alone", 0.0), ("diffvi, path alone", 1.0)):
        model.path_weights_ = {**path, "rna": weight}
        model.translate_rna_to_protein(cells, seed=0)
        rows.append(means(name, truth, cells.obsm["protein_log1p"].to_numpy()))
    model.path_weights_ = path
    return rows


def protein_to_rna(model: TotalDiffusion, train: Any, test: Any) -> list[dict[str, Any]]:
    truth, target = log_normalise(test[0].X), log_normalise(train[0].X)
    scaler = StandardScaler().fit(np.log1p(dense(train[1].X)))
    x, y = (scaler.transform(np.log1p(dense(part[1].X))) for part in (train, test))
    clusters = KMeans(15, n_init=3, random_state=0).fit(x)
    centres = np.stack([target[clusters.labels_ == k].mean(0) for k in range(15)])
    grid = {"gamma": [0.01, 0.03, 0.1], "alpha": [1.0, 3.0, 10.0]}
    predictions = {
        "kernel ridge": GridSearchCV(KernelRidge(kernel="rbf"), grid, cv=3).fit(x, target).predict(y),
        "kNN": KNeighborsRegressor(40).fit(x, target).predict(y),
        "cluster mean": centres[clusters.predict(y)],
    }
    cells = test[1].copy()
    start = time.perf_counter()
    model.translate_protein_to_rna(cells, seed=0)
    seconds = time.perf_counter() - start
    predictions["diffvi"] = cells.obsm["rna_log1p"]
    rows = [
        {"method": n, "pearson": np.nanmean(feature_correlation(truth, p)), "rmse": feature_rmse(truth, p).mean()}
        for n, p in predictions.items()
    ]
    rows[-1] |= {"seconds": seconds, "path_weight": model.path_weights_["protein"]}
    weights = model.path_weights_
    model.path_weights_ = {**weights, "protein": 0.0}
    model.translate_protein_to_rna(cells, seed=0)
    model.path_weights_ = weights
    rows.append(
        {"method": "diffvi, draws alone", "pearson": np.nanmean(feature_correlation(truth, cells.obsm["rna_log1p"]))}
    )
    return rows


def joint(model: TotalDiffusion, train: Any, test: Any) -> list[dict[str, Any]]:
    """Two-sample tests and agreement of the gene-protein block; independent: the modalities of two generated cells."""
    n = test[0].n_obs
    cells = model.generate(n, seed=0)
    rng = np.random.default_rng(0)
    order = rng.permutation(n)
    other = rng.choice(train[0].n_obs, n, replace=False)
    pairs = {
        "diffvi": (cells["rna"].X, cells["protein"].X),
        "diffvi, independent": (cells["rna"].X, cells["protein"].X[order]),
        "real training cells": (train[0].X[other], train[1].X[other]),
    }
    rows = []
    real = (test[0].X, dense(test[1].X))
    genes = log_normalise(real[0])
    for name, (rna, protein) in pairs.items():
        protein = dense(protein)
        x, y = log_normalise(rna), np.log1p(protein)
        rows.append(
            {
                "cells": name,
                "forest_rna": classifier_two_sample(genes, x, space="features"),
                "forest_protein": classifier_two_sample(np.log1p(real[1]), y, space="features"),
                "forest_joint": classifier_two_sample(
                    np.hstack([genes, np.log1p(real[1])]), np.hstack([x, y]), space="features"
                ),
                "block_agreement": cross_correlation_agreement(dense(real[0]), real[1], dense(rna), protein),
                "library_ks": stats.ks_2samp(dense(real[0]).sum(1), dense(rna).sum(1)).statistic,
                "protein_total_ks": stats.ks_2samp(real[1].sum(1), protein.sum(1)).statistic,
            }
        )
    return rows


def decoder(path: str, seed: int, folder: str) -> None:
    """How well the RNA of test cells is told from their own reconstruction, by a saved model and by LatentDiffusionSCVI."""
    train, test = split(path, seed)
    genes, library = test[0].X, torch.as_tensor(dense(test[0].X).sum(1, keepdims=True), dtype=torch.float32)
    vae = TotalDiffusion.load(folder).module
    batch = torch.zeros(len(library), 1, dtype=torch.long)
    x, y = (torch.as_tensor(dense(part.X), dtype=torch.float32) for part in test)
    with torch.inference_mode():
        z = vae.posterior("both", x, y, batch).sample()
        outputs = vae.generative(
            z=vae.encoder.z_transformation(z), library_gene=library, batch_index=batch, label=batch
        )
        counts = sample_counts(vae.likelihoods(outputs["px_"], outputs["py_"])[0], CellStreams(seed, range(len(x))))
    print(f"TotalDiffusion, through its VAE: {classifier_two_sample(genes, counts):.3f}", flush=True)
    cells = train[0].copy()
    LatentDiffusionSCVI.setup_anndata(cells)
    model = LatentDiffusionSCVI(cells)
    model.train(enable_progress_bar=False)
    through = model.posterior_predictive_sample(test[0].copy()).to_scipy_sparse()
    print(f"LatentDiffusionSCVI, through its VAE: {classifier_two_sample(genes, through):.3f}")
    generated = model.generate(test[0].n_obs, seed=seed).X
    print(f"LatentDiffusionSCVI, generated: {classifier_two_sample(genes, generated):.3f}")


def query(path: str, other: str, seed: int, folder: str | None) -> None:
    """A batch without proteins: imputed by the model of `cite`, or by one with a batch, before and after surgery."""
    train, _ = split(path, seed)
    whole = ad.read_h5ad(other)
    new = whole[:, train[0].var_names].copy()
    new.obs = pd.DataFrame({"batch": "pbmc5k"}, index=new.obs_names)
    measured = mudata.read_h5mu(path)["rna"][train[0].obs_names]
    if folder:
        TotalDiffusion.load(folder).impute_proteins(new, seed=0)
        report_markers("as they are", new.obsm["protein_imputed"], whole, measured, train[1])
        return
    rna, protein = (part.copy() for part in train)
    rna.obs = pd.DataFrame({"batch": "pbmc10k"}, index=rna.obs_names)
    protein.obs = pd.DataFrame(index=protein.obs_names)
    reference = mudata.MuData({"rna": rna, "protein": protein})
    TotalDiffusion.setup_mudata(reference, batch_key="batch")
    model = TotalDiffusion(reference)
    model.train(enable_progress_bar=False)
    model.impute_proteins(new, seed=0, transform_batch="pbmc10k")
    report_markers("as the reference's batch", new.obsm["protein_imputed"], whole, measured, train[1])
    cells = mudata.MuData({"rna": new})
    surgery = TotalDiffusion.load_query_data(cells, model)
    surgery.train(max_epochs=50, max_epochs_diffusion=30, enable_progress_bar=False)
    surgery.impute_proteins(cells, seed=0)
    report_markers("after surgery", cells["rna"].obsm["protein_imputed"], whole, measured, train[1])


def report_markers(
    name: str, imputed: pd.DataFrame, cells: ad.AnnData, measured: ad.AnnData, protein: ad.AnnData
) -> None:
    """Correlation of imputed proteins with their genes, beside that of measured ones."""
    print(f"{name}: {imputed.shape[0]} cells, {int(imputed.isna().sum().sum())} NaN")
    expression, real = (pd.DataFrame(log_normalise(c.X), columns=c.var_names) for c in (cells, measured))
    known = pd.DataFrame(np.log1p(dense(protein.X)), columns=protein.var_names)
    for p, genes in MARKERS.items():
        for gene in (g for g in genes if g in expression):
            found = np.corrcoef(expression[gene], np.log1p(imputed[p]))[0, 1]
            print(f"  {p} / {gene}: {found:.3f} (measured: {np.corrcoef(real[gene], known[p])[0, 1]:.3f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    cite = commands.add_parser("cite", help="translation and joint generation")
    cite.add_argument("data", help="MuData with rna and protein")
    cite.add_argument("--no-totalvi", action="store_true", help="leave out the slow baseline")
    cite.add_argument("--model", help="folder to load the model from, or to save it to")
    cite.add_argument("--model-kwargs", type=json.loads, default={}, help="as JSON, such as '{\"n_latent\": 10}'")
    cite.add_argument("--train-kwargs", type=json.loads, default={}, help="as JSON")
    cite.add_argument("--csv", help="prefix of the tables to write")
    asked = commands.add_parser("query", help="a batch without proteins")
    asked.add_argument("data")
    asked.add_argument("query")
    asked.add_argument(
        "--model", help="folder of a model that `cite` has saved; without it a new one is trained, and surgery done"
    )
    inside = commands.add_parser("decoder", help="how much of the RNA's distance is the decoder's")
    inside.add_argument("data")
    inside.add_argument("--model", required=True, help="folder of a model that `cite` has saved")
    for part in (cite, asked, inside):
        part.add_argument("--seed", type=int, default=0)
        part.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    scvi.settings.seed = arguments.seed
    pd.set_option("display.width", 250, "display.max_columns", 30)
    if arguments.command == "decoder":
        decoder(arguments.data, arguments.seed, arguments.model)
        return
    if arguments.command == "query":
        query(arguments.data, arguments.query, arguments.seed, arguments.model)
        return
    train, test = split(arguments.data, arguments.seed)
    if arguments.model and Path(arguments.model).exists():
        mdata = mudata.MuData({"rna": train[0].copy(), "protein": train[1].copy()})
        model = TotalDiffusion.load(arguments.model, adata=mdata)
    else:
        model, seconds = trained(train, arguments.model_kwargs, arguments.train_kwargs)
        print(f"training: {seconds:.0f} s on {arguments.threads} thread(s)", flush=True)
        if arguments.model:
            model.save(arguments.model)
    tables = {
        "joint": lambda: joint(model, train, test),
        "protein_to_rna": lambda: protein_to_rna(model, train, test),
        "rna_to_protein": lambda: rna_to_protein(model, train, test, not arguments.no_totalvi),
    }
    for name, make in tables.items():
        table = pd.DataFrame(make())
        print(f"\n{name}\n{table.round(4).to_string(index=False)}", flush=True)
        if arguments.csv:
            table.to_csv(f"{arguments.csv}_{name}.csv", index=False)


if __name__ == "__main__":
    main()
