"""SpatialDiffusion on osmFISH, STARmap and her2st, and on a simulator with a known field; see spatial.md for the recorded tables.

    python benchmarks/spatial.py locations DATA_FOLDER osmfish|starmap|her2st --mask random|disc [--distinct] [--seeds 0 1]
    python benchmarks/spatial.py resolution DATA_FOLDER her2st|starmap
    python benchmarks/spatial.py sections DATA_FOLDER [--centred]
    python benchmarks/spatial.py decoder DATA_FOLDER osmfish|starmap|her2st [--model-kwargs '{"n_latent": 10}'] [--kl-weight 1]
    python benchmarks/spatial.py simulated [--seeds 0 1]
    python benchmarks/spatial.py speed DATA_FOLDER

Masks hide a fifth of each section, at random or as a disc around its middle. What is hidden reaches no part of the training. Scores are those of
log-normalised expression (10,000 counts), within each section, averaged over sections; baselines are fitted in each section.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scvi
from scipy import sparse

from diffvi.benchmark._space_baselines import IDW, SPACE_BASELINES, GPSpace
from diffvi.datasets import simulate_tissue
from diffvi.metrics import evaluate_space, feature_correlation, log_normalise
from diffvi.model import SpatialDiffusion

FILES = {
    "osmfish": ("osmfish_somatosensory_cortex.h5ad", None),
    "starmap": ("starmap_mpfc.h5ad", "batch"),
    "her2st": ("her2st_breast_21sections.h5ad", "section"),
}


def tissue(folder: str, name: str, distinct: bool = False) -> tuple[ad.AnnData, str | None]:
    """The cells, and the column with their sections; ``distinct`` keeps one of the cells that share a location."""
    file, section_key = FILES[name]
    adata = ad.read_h5ad(Path(folder) / file)
    if distinct:
        adata = adata[np.sort(np.unique(adata.obsm["spatial"], axis=0, return_index=True)[1])].copy()
    return adata, section_key


def sections_of(adata: ad.AnnData, key: str | None) -> np.ndarray:
    """Name of the section of each cell."""
    return np.zeros(adata.n_obs).astype(str) if key is None else adata.obs[key].to_numpy(str)


def mask(coordinates: np.ndarray, sections: np.ndarray, kind: str, share: float = 0.2, seed: int = 0) -> np.ndarray:
    """Cells to hide in each section."""
    rng, hidden = np.random.default_rng(seed), np.zeros(len(sections), dtype=bool)
    for name in np.unique(sections):
        rows = np.flatnonzero(sections == name)
        n = round(share * len(rows))
        if kind == "random":
            hidden[rng.permutation(rows)[:n]] = True
        else:
            places = coordinates[rows]
            centre = places[np.linalg.norm(places - np.median(places, 0), axis=1).argmin()]
            hidden[rows[np.argsort(np.linalg.norm(places - centre, axis=1))[:n]]] = True
    return hidden


def trained(
    adata: ad.AnnData, section_key: str | None, options: argparse.Namespace, batch_key: str | None = None, **setup: Any
) -> tuple[SpatialDiffusion, float]:
    """A trained model, and the seconds that it took."""
    scvi.settings.seed = options.seed
    SpatialDiffusion.setup_anndata(adata, section_key=section_key, batch_key=batch_key, **setup)
    model = SpatialDiffusion(adata, **json.loads(options.model_kwargs))
    start = time.perf_counter()
    model.train(enable_progress_bar=False, accelerator="cpu", **json.loads(options.train_kwargs))
    return model, time.perf_counter() - start


def score(
    real: np.ndarray, mean: np.ndarray, sample: np.ndarray, coordinates: np.ndarray, sections: np.ndarray
) -> dict[str, float]:
    """Scores within sections, averaged over them."""
    tables = []
    for name in np.unique(sections):
        rows = sections == name
        table = evaluate_space(real[rows], mean[rows], sample[rows], coordinates[rows])
        tables.append({**table["value"], "moran_i_true": table.loc["moran_i_sample", "floor"]})
    return pd.DataFrame(tables).mean().to_dict()


def sampled(real: np.ndarray, samples: list[np.ndarray], where: np.ndarray, sections: np.ndarray) -> dict[str, float]:
    """Scores of single samples, averaged over several, and the standard deviation of their energy distance."""
    table = pd.DataFrame([score(real, sample, sample, where, sections) for sample in samples])
    names = ["moran_i_sample", "variance_ratio_sample", "energy_distance"]
    return table[names].mean().to_dict() | {"energy_sd": float(table["energy_distance"].std(ddof=0))}


def split_coverage(real: np.ndarray, many: ad.AnnData, n_samples: int, seed: int = 0) -> float:
    """Coverage of the 90 % interval of draws (those of one location together) where values that are equal are put in random order.

    A closed interval of counts that holds one zero holds all, and covers more than it says however well it is calibrated. This one
    covers nine tenths where truth and draws come from one distribution.
    """
    rng, below = np.random.default_rng(seed), np.empty(real.shape)
    for first in range(0, len(real), 100):
        rows = slice(first, first + 100)
        draws = log_normalise(many.X[first * n_samples : (first + 100) * n_samples])
        gap = draws.reshape(-1, n_samples, real.shape[1]) - real[rows, None]
        less, equal = (gap < -1e-5).sum(1), (np.abs(gap) <= 1e-5).sum(1)
        below[rows] = (less + rng.uniform(size=less.shape) * (equal + 1)) / (n_samples + 1)
    return float(((below >= 0.05) & (below <= 0.95)).mean())


def other_cells(
    values: np.ndarray, hidden: np.ndarray, sections: np.ndarray, held: np.ndarray, seed: int
) -> np.ndarray:
    """Real cells that were not hidden, of the same sections, drawn at random without regard to place."""
    rng, sample = np.random.default_rng(seed), np.empty((len(held), values.shape[1]))
    for name in np.unique(held):
        seen = np.flatnonzero(~hidden & (sections == name))
        sample[held == name] = values[rng.permutation(seen)[: (held == name).sum()]]
    return sample


def locations(options: argparse.Namespace) -> pd.DataFrame:
    """Held-out locations of a tissue."""
    adata, key = tissue(options.folder, options.tissue, options.distinct)
    sections, places = sections_of(adata, key), np.asarray(adata.obsm["spatial"], float)
    values = log_normalise(adata.X)
    hidden = mask(places, sections, options.mask, seed=options.seed)
    real, where, held = values[hidden], places[hidden], sections[hidden]
    rows = {}
    for make in SPACE_BASELINES:
        mean, samples = np.zeros_like(real), [np.zeros_like(real) for _ in range(options.samples)]
        for name in np.unique(sections):
            method, seen, asked = make(), ~hidden & (sections == name), held == name
            method.fit(places[seen], values[seen])
            mean[asked] = method.predict(where[asked])
            for seed, sample in enumerate(samples):
                sample[asked] = method.sample(where[asked], seed)
        rows[make.name] = score(real, mean, samples[0], where, held) | sampled(real, samples, where, held)
    others = [other_cells(values, hidden, sections, held, seed) for seed in range(options.samples)]
    rows["other cells of the section"] = sampled(real, others, where, held)
    model, seconds = trained(adata[~hidden].copy(), key, options, batch_key=key)
    asked_sections = None if key is None else held
    start = time.perf_counter()
    draw = model.generate_at_location(where, asked_sections, seed=0)
    took = time.perf_counter() - start
    expected = model.generate_at_location(where, asked_sections, n_samples=30, return_mean=True, seed=0)
    draws = [draw, *(model.generate_at_location(where, asked_sections, seed=i) for i in range(1, options.samples))]
    samples = [log_normalise(d.X) for d in draws]
    rows["SpatialDiffusion"] = score(real, np.asarray(expected.X), samples[0], where, held)
    rows["SpatialDiffusion"] |= sampled(real, samples, where, held)
    inside = (real >= expected.layers["lower"]) & (real <= expected.layers["upper"])
    # Quantiles of counts are often 0, and an interval that holds it holds most cells; so also of genes that are seen in most cells.
    frequent = (real > 0).mean(0) > 0.5
    many = model.generate_at_location(where, asked_sections, n_samples=30, seed=0)
    rows["SpatialDiffusion"] |= {
        "coverage": float(inside.mean()),
        "coverage_ties_split": split_coverage(real, many, 30),
        "coverage_frequent": float(inside[:, frequent].mean()) if frequent.any() else np.nan,
        "share": model.mean_["share"],
        "correction": model.mean_["correction"],
        "smoothness": model.kriging_["smoothness"],
        "train_s": seconds,
        "sample_ms": 1e3 * took / len(where),
    }
    return pd.DataFrame(rows).T


def decoder(options: argparse.Namespace) -> pd.DataFrame:
    """What the VAE alone loses: hidden cells encoded, drawn from their posteriors and decoded."""
    adata, key = tissue(options.folder, options.tissue)
    sections, places = sections_of(adata, key), np.asarray(adata.obsm["spatial"], float)
    hidden = mask(places, sections, options.mask, seed=options.seed)
    scvi.settings.seed = options.seed
    seen, held = adata[~hidden].copy(), adata[hidden].copy()
    SpatialDiffusion.setup_anndata(seen, section_key=key, batch_key=key)
    model = SpatialDiffusion(seen, **json.loads(options.model_kwargs))
    plan = {} if options.kl_weight is None else {"plan_kwargs": {"max_kl_weight": options.kl_weight}}
    model.train_vae(enable_progress_bar=False, accelerator="cpu", **plan)
    counts = model.posterior_predictive_sample(held)
    sample = log_normalise(counts.to_scipy_sparse() if hasattr(counts, "to_scipy_sparse") else counts)
    real = log_normalise(held.X)
    return pd.DataFrame({"posterior draws": score(real, sample, sample, places[hidden], sections[hidden])}).T


def binned(adata: ad.AnnData, sections: np.ndarray, width: float, seed: int = 0) -> tuple[ad.AnnData, ad.AnnData]:
    """Squares of ``width`` with half of the counts of the cells in them, and the cells with the other half."""
    rng = np.random.default_rng(seed)
    x = sparse.csr_matrix(adata.X)
    half = x.copy()
    half.data = rng.binomial(x.data.astype(int), 0.5).astype(np.float32)
    other = adata.copy()
    other.X = x - half
    squares = pd.Series(
        [
            f"{s}:{a}:{b}"
            for s, (a, b) in zip(sections, np.floor(adata.obsm["spatial"] / width).astype(int), strict=True)
        ]
    )
    code, names = pd.factorize(squares)
    graph = sparse.csr_matrix((np.ones(len(code)), (code, np.arange(len(code)))))
    counts = (graph @ half).tocsr()
    centre = (graph @ adata.obsm["spatial"]) / np.asarray(graph.sum(1))
    pooled = ad.AnnData(
        counts, obs=pd.DataFrame({"section": [n.split(":")[0] for n in names]}, index=names), var=adata.var
    )
    pooled.obsm["spatial"] = np.asarray(centre)
    full = np.asarray(counts.sum(1)).ravel() > 0
    keep = full[code]
    return pooled[full].copy(), other[keep].copy()


def resolution(options: argparse.Namespace) -> pd.DataFrame:
    """Cells or spots pooled into squares, and told apart again; counts are split so that no noise is shared."""
    adata, key = tissue(options.folder, options.tissue)
    sections = sections_of(adata, key)
    width = {"her2st": 2.0, "starmap": 500.0}[options.tissue]
    pooled, fine = binned(adata, sections, width, options.seed)
    fine = fine[np.asarray(fine.X.sum(1)).ravel() > 0].copy()
    held = sections_of(fine, key)
    real, where = log_normalise(fine.X), np.asarray(fine.obsm["spatial"], float)
    values, places, theirs = log_normalise(pooled.X), pooled.obsm["spatial"], pooled.obs["section"].to_numpy(str)
    predictions = {}
    for label, make in (("nearest", lambda: IDW(k=1)), ("IDW", IDW), ("GP", GPSpace)):
        predictions[label] = np.zeros_like(real)
        for name in np.unique(held):
            method = make()
            method.fit(places[theirs == name], values[theirs == name])
            predictions[label][held == name] = method.predict(where[held == name])
    model, seconds = trained(pooled, "section", options, batch_key="section")
    expected = model.generate_at_location(where, held, return_mean=True, seed=0)
    predictions["SpatialDiffusion, mean"] = np.asarray(expected.X)
    for method in ("diffusion", "kriging", "nearest"):
        result = model.super_resolution(None, where, held, method=method, n_samples=10, seed=0)
        predictions[f"super_resolution, {method}"] = log_normalise(result.layers["mean"])
    predictions["super_resolution, log_expression"] = result.layers["log_expression"]
    rows = {
        label: {
            "pearson": np.mean(
                [np.nanmean(feature_correlation(real[held == s], p[held == s])) for s in np.unique(held)]
            ),
            "cells": len(real),
            "squares": pooled.n_obs,
        }
        for label, p in predictions.items()
    }
    rows["SpatialDiffusion, mean"] |= {"train_s": seconds, "share": model.mean_["share"]}
    return pd.DataFrame(rows).T


def sections(options: argparse.Namespace) -> pd.DataFrame:
    """One section of each patient left out, and told from those beside it."""
    adata, _ = tissue(options.folder, "her2st")
    patients, planes = adata.obs["patient"].to_numpy(str), adata.obs["section"].to_numpy(str)
    places, z = np.asarray(adata.obsm["spatial3d"], float).copy(), adata.obs["z"].to_numpy(float)
    if options.centred:
        for plane in np.unique(planes):
            places[planes == plane, :2] -= places[planes == plane, :2].mean(0)
    adata.obsm["spatial"] = places
    values = log_normalise(adata.X)
    chosen = {}
    for patient in np.unique(patients):
        present = np.unique(z[patients == patient])
        if len(present) >= 3:
            chosen[patient] = present[len(present) // 2]
    hidden = np.array([chosen.get(p) == t for p, t in zip(patients, z, strict=True)])
    real, where = values[hidden], places[hidden]
    predictions = {name: np.zeros_like(real) for name in ("nearest section", "linear blend", "GP")}
    for patient, middle in chosen.items():
        asked, mine = patients[hidden] == patient, (patients == patient) & ~hidden
        levels = np.unique(z[mine])
        below, above = levels[levels < middle].max(), levels[levels > middle].min()
        copies = {}
        for level in (below, above):
            one = IDW(k=1)
            one.fit(places[mine & (z == level), :2], values[mine & (z == level)])
            copies[level] = one.predict(where[asked, :2])
        share = (middle - below) / (above - below)
        predictions["nearest section"][asked] = copies[below if share <= 0.5 else above]
        predictions["linear blend"][asked] = (1 - share) * copies[below] + share * copies[above]
        method = GPSpace()
        method.fit(places[mine], values[mine])
        predictions["GP"][asked] = method.predict(where[asked])
    model, seconds = trained(adata[~hidden].copy(), "patient", options, batch_key="patient")
    expected = model.generate_at_location(where, patients[hidden], return_mean=True, seed=0)
    predictions["SpatialDiffusion"] = np.asarray(expected.X)
    rows: dict[str, Any] = {}
    for label, p in predictions.items():
        by = {c: np.nanmean(feature_correlation(real[patients[hidden] == c], p[patients[hidden] == c])) for c in chosen}
        rows[label] = {"pearson": float(np.mean(list(by.values()))), **by}
    rows["SpatialDiffusion"] |= {"train_s": seconds, "share": model.mean_["share"]}
    return pd.DataFrame(rows).T


def simulated(options: argparse.Namespace) -> pd.DataFrame:
    """A known field: the expected expression at hidden places against the truth."""
    adata = simulate_tissue(2000, 100, seed=options.seed)
    places = adata.obsm["spatial"]
    rows = {}
    for kind in ("random", "disc"):
        hidden = mask(places, sections_of(adata, None), kind, seed=options.seed)
        values = log_normalise(adata.X)
        truth = np.log1p(1e4 * adata.layers["expected"][hidden])
        model, seconds = trained(adata[~hidden].copy(), None, options, labels_key="cell_type")
        expected = model.generate_at_location(places[hidden], n_samples=50, return_mean=True, seed=0)
        inside = (values[hidden] >= expected.layers["lower"]) & (values[hidden] <= expected.layers["upper"])
        row = {"ours": float(np.nanmean(feature_correlation(truth, np.asarray(expected.X))))}
        for make in SPACE_BASELINES[:-1]:
            method = make()
            method.fit(places[~hidden], values[~hidden])
            row[method.name] = float(np.nanmean(feature_correlation(truth, method.predict(places[hidden]))))
        many = model.generate_at_location(places[hidden], n_samples=50, seed=0)
        rows[kind] = {
            **row,
            "coverage": float(inside.mean()),
            "coverage_ties_split": split_coverage(values[hidden], many, 50),
            "correction": model.mean_["correction"],
            "smoothness": model.kriging_["smoothness"],
            "train_s": seconds,
        }
    return pd.DataFrame(rows).T


def speed(options: argparse.Namespace) -> pd.DataFrame:
    """Seconds and memory of 2,500 and of 10,000 new locations."""
    import resource

    adata, key = tissue(options.folder, "her2st")
    model, _ = trained(adata, key, options, batch_key=key)
    rng = np.random.default_rng(0)
    rows = {}
    for n in (2500, 10_000):
        which = rng.integers(adata.n_obs, size=n)
        where = adata.obsm["spatial"][which] + rng.uniform(-0.5, 0.5, (n, 2))
        start = time.perf_counter()
        model.generate_at_location(where, adata.obs[key].to_numpy(str)[which], seed=0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows[f"{n} locations"] = {"seconds": time.perf_counter() - start, "peak_gib": peak}
    return pd.DataFrame(rows).T


def main() -> None:
    """Run one of the benchmarks and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["locations", "decoder", "resolution", "sections", "simulated", "speed"])
    parser.add_argument("folder", nargs="?", help="folder with the data")
    parser.add_argument("tissue", nargs="?", choices=list(FILES))
    parser.add_argument("--mask", choices=["random", "disc"], default="random")
    parser.add_argument("--distinct", action="store_true", help="one cell for each location")
    parser.add_argument(
        "--centred", action="store_true", help="sections: the middle of each section in one place, for all methods"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--samples", type=int, default=10, help="locations: samples that scores of single ones are averaged over"
    )
    parser.add_argument("--model-kwargs", default="{}")
    parser.add_argument("--train-kwargs", default="{}")
    parser.add_argument("--kl-weight", type=float, help="decoder: weight of the prior of the VAE")
    parser.add_argument("--csv")
    options = parser.parse_args()
    run = {
        "locations": locations,
        "decoder": decoder,
        "resolution": resolution,
        "sections": sections,
        "simulated": simulated,
        "speed": speed,
    }
    tables = []
    for seed in options.seeds:
        options.seed = seed
        tables.append(run[options.what](options).assign(seed=seed))
        print(tables[-1].round(3).to_string(), flush=True)
    if options.csv:
        pd.concat(tables).to_csv(options.csv)


if __name__ == "__main__":
    main()
