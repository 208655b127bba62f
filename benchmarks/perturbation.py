"""PerturbDiffusion and its parts on real perturbation data; see perturbation.md for the recorded tables.

    python benchmarks/perturbation.py kang kang_ifnb_muscat.h5ad [--arms default resample ...] [--json out.json]

Kang: each cell type held out in turn (its control cells kept, its stimulated cells removed). Expression is log-normalised to
the median library; E-distance in 30 principal components of real and control cells; variance R2 on the 50 most changed genes.
"""

from __future__ import annotations

import argparse
import json
import time

import anndata as ad
import numpy as np
import pandas as pd
import scvi
import torch
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.metrics import r2_score

from diffvi.metrics._counts import dense
from diffvi.metrics._perturbation import de_agreement
from diffvi.model import PerturbDiffusion

ARMS: dict[str, tuple[dict, dict]] = {
    "default": ({}, {}),
    "no diffusion": ({}, {"use_diffusion": False}),
    "no diffusion, no transfer gain": ({"transfer_gain": 1.0}, {"use_diffusion": False}),
    "no diffusion, mean effect in all cells": ({"n_neighbors": 0}, {"use_diffusion": False}),
    "no diffusion, rate offset": ({"rate_offset": True}, {"use_diffusion": False}),
    "head": ({"head_weight": 1.0}, {}),
    "head, no diffusion": ({"head_weight": 1.0}, {"use_diffusion": False}),
    "no measured effects": ({"additive": False, "head_weight": 1.0}, {}),
    "no population": ({"condition_on_population": False}, {}),
    "no shrinkage": ({"shrink": False}, {}),
    "random pairs": ({"pairing": "random"}, {}),
    "effects encoder": ({"perturbation_encoder": "effects"}, {}),
    "resample": ({}, {"decode": "resample"}),
    "resample, no diffusion": ({}, {"decode": "resample", "use_diffusion": False}),
}


def log_normalised(counts: np.ndarray, target: float) -> np.ndarray:
    return np.log1p(counts / np.maximum(counts.sum(1, keepdims=True), 1) * target)


def energy(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * cdist(a, b).mean() - cdist(a, a).mean() - cdist(b, b).mean())


def scores(real: np.ndarray, predicted: np.ndarray, control: np.ndarray, pca: PCA) -> dict[str, float]:
    effect, guess = real.mean(0) - control.mean(0), predicted.mean(0) - control.mean(0)
    top = np.argsort(-np.abs(effect))[:50]
    de = de_agreement(real, predicted, control)
    flat = np.ptp(guess) == 0
    return {
        "pearson_delta": 0.0 if flat else float(np.corrcoef(effect, guess)[0, 1]),
        "energy_distance": energy(pca.transform(real), pca.transform(predicted)),
        "variance_r2": float(r2_score(real.var(0)[top], predicted.var(0)[top])),
        "de_ratio": de.n_predicted / max(de.n_real, 1),
        "effect_norm_ratio": float(np.linalg.norm(guess) / np.linalg.norm(effect)),
    }


def arm(trained: PerturbDiffusion, **kwargs: object) -> PerturbDiffusion:
    """A model with the VAE of another, and its own stage 2."""
    model = PerturbDiffusion(trained.adata, **kwargs)
    state = {k: v for k, v in trained.module.state_dict().items() if not k.startswith("prior.")}
    model.module.load_state_dict(state, strict=False)
    model.module.eval()
    for name in ("train_indices_", "validation_indices_", "test_indices_"):
        setattr(model, name, getattr(trained, name))
    model.is_trained_, model.stages_ = True, {**model.stages_, "vae": trained.stages_["vae"]}
    model.train_diffusion(enable_progress_bar=False)
    return model


def kang(file: str, arms: list[str], seed: int) -> pd.DataFrame:
    cells = ad.read_h5ad(file)
    types, stimulated = cells.obs["cell_type"].to_numpy(str), (cells.obs["condition"] == "stim").to_numpy()
    counts = dense(cells.X)
    target = float(np.median(counts.sum(1)))
    x = log_normalised(counts, target)
    rows = []
    for held in np.unique(types):
        real, control = x[(types == held) & stimulated], x[(types == held) & ~stimulated]
        effects = [x[(types == t) & stimulated].mean(0) - x[(types == t) & ~stimulated].mean(0) for t in np.unique(types) if t != held]
        pca = PCA(30, random_state=0).fit(np.concatenate([control, real]))
        halves = np.array_split(np.random.default_rng(seed).permutation(len(real)), 2)
        for name, guess in {
            "no change": control,
            "mean effect": control + np.mean(effects, 0),
            "replicate (half of the cells for the other half)": None,
        }.items():
            found = scores(real[halves[0]], real[halves[1]], control, pca) if guess is None else scores(real, guess, control, pca)
            rows.append({"held_out": held, "method": name, **found})
        if not arms:
            continue
        train = cells[~((types == held) & stimulated)].copy()
        PerturbDiffusion.setup_anndata(train, "perturbation", "control", labels_key="cell_type")
        scvi.settings.seed = seed
        started = time.time()
        trained = PerturbDiffusion(train)
        trained.train_vae(train_size=1.0, enable_progress_bar=False)
        fitted: dict[str, PerturbDiffusion] = {}
        for name in arms:
            model_kwargs, predict_kwargs = ARMS[name]
            key = json.dumps(model_kwargs, sort_keys=True)
            if key not in fitted:
                fitted[key] = arm(trained, **model_kwargs)
            query = cells[(types == held) & ~stimulated].copy()
            fitted[key].predict_perturbation(query, "IFNB", seed=seed, **predict_kwargs)
            guess = log_normalised(dense(query.layers["perturbed"]), target)
            rows.append({"held_out": held, "method": name, **scores(real, guess, control, pca)})
        print(pd.DataFrame(rows).query("held_out == @held").round(3).to_string(), flush=True)
        print(held, f"{time.time() - started:.0f} s", flush=True)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["kang"])
    parser.add_argument("file")
    parser.add_argument("--arms", nargs="*", default=["default"], choices=list(ARMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", help="write every row here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = kang(args.file, args.arms, args.seed)
    if args.csv:
        table.to_csv(args.csv, index=False)
    print(table.drop(columns="held_out").groupby("method", sort=False).mean().round(3).to_string())


if __name__ == "__main__":
    main()
