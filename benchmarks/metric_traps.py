"""Which score catches which way of being wrong.

Run: python benchmarks/metric_traps.py [DATA.h5ad [LABELS_KEY]]   (without data: diffvi.datasets.pbmc68k)

Real cells are cut into three parts: training, held-out, and a third that is spoiled in a known way and scored as if it had
been generated. A score catches a failure (x) if it gets worse than the unspoiled third's by more than the width of that one's 95 %
interval, and clearly (bold) if by three times as much.
"""

from __future__ import annotations

import sys
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.model_selection import train_test_split

from diffvi.benchmark import split_cells
from diffvi.datasets import pbmc68k
from diffvi.metrics import evaluate_generation


def spoil(kind: str, cells: AnnData, train: AnnData, labels: np.ndarray) -> AnnData:
    rng = np.random.default_rng(0)
    x = cells.X.toarray()
    obs = cells.obs
    if kind == "smoothed (rank 30, Poisson noise)":
        # What a PCA distance cannot see: the low-rank part of the cells, drawn anew without their extra variance.
        share = x / x.sum(1, keepdims=True)
        svd = TruncatedSVD(30, random_state=0)
        low = np.maximum(svd.inverse_transform(svd.fit_transform(share)), 0)
        x = rng.poisson(low / low.sum(1, keepdims=True) * x.sum(1, keepdims=True))
    elif kind == "mean of each type, Poisson noise":
        means = {k: x[labels == k].sum(0) / x[labels == k].sum() for k in np.unique(labels)}
        x = rng.poisson(np.stack([means[k] for k in labels]) * x.sum(1, keepdims=True))
    elif kind == "genes shuffled within types":
        for k in np.unique(labels):
            rows = np.flatnonzero(labels == k)
            for j in range(x.shape[1]):
                x[rows, j] = x[rng.permutation(rows), j]
    elif kind == "one cell of each type repeated":
        x = np.stack([x[np.flatnonzero(labels == k)[0]] for k in labels])
    elif kind == "half of the library":
        x = rng.binomial(x.astype(int), 0.5)
    elif kind == "one type replaced by another":
        rare = pd.Series(labels).value_counts().index[2]
        other = pd.Series(labels).value_counts().index[0]
        for row in np.flatnonzero(labels == rare):
            x[row] = x[rng.choice(np.flatnonzero(labels == other))]
    elif kind == "labels permuted":
        obs = obs.assign(**{KEY: rng.permutation(labels)})
    elif kind == "copy of training cells":
        train_labels = train.obs[KEY].to_numpy(str)
        x = train.X.toarray()[[rng.choice(np.flatnonzero(train_labels == k)) for k in labels]]
    return AnnData(sparse.csr_matrix(x.astype(np.float32)), obs=obs.copy(), var=cells.var.copy())


KINDS = [
    "smoothed (rank 30, Poisson noise)",
    "mean of each type, Poisson noise",
    "genes shuffled within types",
    "one cell of each type repeated",
    "half of the library",
    "one type replaced by another",
    "labels permuted",
    "copy of training cells",
]
KEY = "cell_type"


def caught(good: pd.Series, value: float) -> str:
    width = good["high"] - good["low"]
    away = value - good["value"]
    if not np.isfinite(value) or abs(away) <= width:
        return ""
    target = {"0.5": 0.5, "1": 1.0, "low": -np.inf, "high": np.inf, "floor": good["value"]}[good["best"]]
    worse = {np.inf: away < 0, -np.inf: away > 0}.get(target, abs(value - target) > abs(good["value"] - target))
    return ("**" if abs(away) > 3 * width else "") + "x" + ("**" if abs(away) > 3 * width else "") if worse else ""


def main() -> None:
    global KEY
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    adata = ad.read_h5ad(sys.argv[1]) if len(sys.argv) > 1 else pbmc68k()
    KEY = sys.argv[2] if len(sys.argv) > 2 else KEY
    whole, real = split_cells(adata, KEY, 0.3)
    labels = whole.obs[KEY].to_numpy(str)
    a, b = train_test_split(np.arange(whole.n_obs), test_size=real.n_obs, stratify=labels, random_state=0)
    train, other = whole[a].copy(), whole[b].copy()
    good = evaluate_generation(real, other, train, KEY, n_estimators=200, floor=False)
    columns = {"real cells": [f"{v:.3f}" for v in good["value"]]}
    for kind in KINDS:
        cells = spoil(kind, other, train, other.obs[KEY].to_numpy(str))
        table = evaluate_generation(real, cells, train, KEY, n_estimators=200, n_resamples=0, floor=False)
        columns[kind] = [
            f"{table.loc[s, 'value']:.3f} {caught(good.loc[s], table.loc[s, 'value'])}" for s in good.index
        ]
        print(f"scored: {kind}", file=sys.stderr, flush=True)
    print("| score | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for i, score in enumerate(good.index):
        print(f"| {score} | " + " | ".join(values[i].strip() for values in columns.values()) + " |")


if __name__ == "__main__":
    main()
