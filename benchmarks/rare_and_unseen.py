"""Two hard cases: a type of which 20 cells are known, and a pair of type and batch that was never seen.

Run: python benchmarks/rare_and_unseen.py rare pbmc_facs_zheng2017.h5ad
     python benchmarks/rare_and_unseen.py unseen pbmc_2batches.h5ad

rare: the rarest type (of those with at least 60 held-out cells) keeps 20 training cells; cells of it are generated and compared
with held-out ones, beside a bootstrap of the 20 and the floor (all training cells that the type had).
unseen: every cell of one type in one batch is held out; it is generated from its two conditions, each seen elsewhere, and compared
with the held-out cells, beside real cells of the type in the other batch, and of the batch's other types.
"""

from __future__ import annotations

import sys
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import scvi
import torch

from diffvi.benchmark import split_cells
from diffvi.benchmark._demo import quiet_lightning
from diffvi.benchmark._splits import most_variable
from diffvi.metrics import evaluate_generation, label_agreement
from diffvi.model import LatentDiffusionSCVI

SCORES = [
    "rf_auc_genes",
    "rf_auc_pca",
    "energy_distance",
    "recall",
    "coverage",
    "library_size_ks",
    "gene_wasserstein",
    "correlation_agreement",
    "memorisation_ratio",
]


def report(real, sets, train) -> None:
    """One column a set of cells, scored against the real ones."""
    columns = {}
    for name, cells in sets.items():
        table = evaluate_generation(real, cells, train, n_resamples=0, floor=False)
        columns[f"{name} ({cells.n_obs})"] = table["value"]
    print("| score | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for score in SCORES:
        print(f"| {score} | " + " | ".join(f"{c[score]:.3f}" for c in columns.values()) + " |", flush=True)


def fit(train, **keys) -> LatentDiffusionSCVI:
    scvi.settings.seed = 0
    LatentDiffusionSCVI.setup_anndata(train, **keys)
    model = LatentDiffusionSCVI(train)
    model.train(train_size=1.0, enable_progress_bar=False)
    return model


def rare(adata) -> None:
    train, test = split_cells(adata, "cell_type")
    counts = test.obs["cell_type"].value_counts()
    kind = counts[counts >= 60].index[-1]
    rng = np.random.default_rng(0)
    of_kind = np.flatnonzero(train.obs["cell_type"] == kind)
    kept = rng.permutation(of_kind)[:20]
    few = train[np.setdiff1d(np.arange(train.n_obs), np.setdiff1d(of_kind, kept))].copy()
    real = test[test.obs["cell_type"] == kind].copy()
    model = fit(few, labels_key="cell_type")
    n = real.n_obs
    sets = {
        "diffvi": model.generate(n, {"cell_type": kind}, seed=0),
        "diffvi, guidance 1.5": model.generate(n, {"cell_type": kind}, seed=0, guidance_scale=1.5),
        "bootstrap of 20 cells": train[rng.choice(kept, n)].copy(),
        "floor: all training cells": train[of_kind[:n]].copy(),
    }
    for name, cells in sets.items():
        cells.obs_names_make_unique()
        labels = np.repeat(kind, cells.n_obs)
        print(
            f"{name}: label agreement {label_agreement(train.X, train.obs['cell_type'].to_numpy(str), cells.X, labels):.3f}"
        )
    print(f"\n{kind}: 20 training cells, {n} held out\n")
    report(real, sets, few)


def unseen(adata) -> None:
    sizes = pd.crosstab(adata.obs["cell_type"], adata.obs["batch"])
    kind = sizes.min(1).sort_values().index[-2]
    batch = sizes.columns[-1]
    other = next(name for name in sizes.columns if name != batch)
    held = ((adata.obs["cell_type"] == kind) & (adata.obs["batch"] == batch)).to_numpy()
    train, real = adata[~held].copy(), adata[held].copy()
    genes = most_variable(train, 2000)
    train, real = train[:, genes].copy(), real[:, genes].copy()
    model = fit(train, labels_key="cell_type", batch_key="batch")
    n = min(real.n_obs // 2, 600)
    rng = np.random.default_rng(0)
    halves = np.array_split(rng.permutation(real.n_obs)[: 2 * n], 2)
    here = (train.obs["batch"] == batch).to_numpy()
    same = (train.obs["cell_type"] == kind).to_numpy()

    def some(mask):
        rows = np.flatnonzero(mask)
        return train[rng.permutation(rows)[:n]].copy()

    sets = {
        "diffvi": model.generate(n, {"cell_type": kind, "batch": batch}, seed=0),
        f"real {kind}, {other}": some(same & (train.obs["batch"] == other).to_numpy()),
        f"real other types, {batch}": some(here & ~same),
        "floor: half of the held-out cells": real[halves[1]].copy(),
    }
    print(f"{kind} in {batch}: {real.n_obs} cells held out, {same.sum()} of the type in {other} seen\n")
    report(real[halves[0]].copy(), sets, train)


def main() -> None:
    warnings.filterwarnings("ignore")
    quiet_lightning()
    torch.set_num_threads(1)
    {"rare": rare, "unseen": unseen}[sys.argv[1]](ad.read_h5ad(sys.argv[2]))


if __name__ == "__main__":
    main()
