"""PerturbDiffusion and its parts on real perturbation data; see perturbation.md for the recorded tables.

    python benchmarks/perturbation.py kang kang_ifnb_muscat.h5ad [--arms default resample ...] [--inner] [--scgen] [--separate-controls] [--csv out.csv]

    python benchmarks/perturbation.py folds norman2019_k562_subset.h5ad
    python benchmarks/perturbation.py folds papalexi2021_thp1_subset.h5ad --context-key batch
    python benchmarks/perturbation.py folds papalexi2021_thp1_subset.h5ad --guide-key guide

    python benchmarks/perturbation.py simulator
    python benchmarks/perturbation.py cost papalexi2021_thp1_subset.h5ad

Folds: the splits and scores of `diffvi benchmark perturbation`; with `--guide-key` one guide of each gene is held out.
Kang: each cell type held out in turn (its control cells kept, its stimulated cells removed). Expression is log-normalised to
the median library; E-distance in 30 principal components of real and control cells; variance R2 on the 50 most changed genes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from itertools import combinations

import anndata as ad
import numpy as np
import pandas as pd
import scvi
import torch
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.metrics import r2_score

from diffvi._random import CellStreams
from diffvi.benchmark import Additive, LatentShift, MatchingMean, MeanEffect, NoChange
from diffvi.benchmark._options import Options
from diffvi.benchmark._tasks import Split, _perturbation_split, find_task
from diffvi.data import sample_counts
from diffvi.datasets import simulate_perturbations
from diffvi.metrics import log_normalise
from diffvi.metrics._counts import dense
from diffvi.metrics._perturbation import de_agreement
from diffvi.model import PerturbDiffusion

ARMS: dict[str, tuple[dict, dict]] = {
    "default": ({}, {}),
    "diffusion": ({}, {"use_diffusion": True}),
    "no diffusion": ({}, {"use_diffusion": False}),
    "perturbed library": ({}, {"library_size": "perturbed"}),
    "diffusion, perturbed library": ({}, {"use_diffusion": True, "library_size": "perturbed"}),
    "no diffusion, perturbed library": ({}, {"use_diffusion": False, "library_size": "perturbed"}),
    "no diffusion, no transfer gain": ({"transfer_gain": 1.0}, {"use_diffusion": False}),
    "no diffusion, mean effect in all cells": ({"n_neighbors": 0}, {"use_diffusion": False}),
    "no rate offset": ({"rate_offset": False}, {}),
    "no diffusion, no rate offset": ({"rate_offset": False}, {"use_diffusion": False}),
    "head": ({"head_weight": 1.0}, {}),
    "head, no diffusion": ({"head_weight": 1.0}, {"use_diffusion": False}),
    "no measured effects": ({"additive": False, "head_weight": 1.0}, {}),
    "no population": ({"condition_on_population": False}, {}),
    "no shrinkage": ({"shrink": False}, {}),
    "no diffusion, no shrinkage": ({"shrink": False}, {"use_diffusion": False}),
    "two steps": ({}, {"n_steps": 2}),
    "one step": ({}, {"n_steps": 1}),
    "pairs as they are": ({"n_smoothed": 1}, {}),
    "random pairs": ({"pairing": "random"}, {}),
    "effects encoder": ({"perturbation_encoder": "effects"}, {}),
    "resample": ({}, {"decode": "resample"}),
    "resample, no diffusion": ({}, {"decode": "resample", "use_diffusion": False}),
}


def log_normalised(counts: np.ndarray, target: float) -> np.ndarray:
    return np.log1p(counts / np.maximum(counts.sum(1, keepdims=True), 1) * target)


def energy(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * cdist(a, b).mean() - cdist(a, a).mean() - cdist(b, b).mean())


def scores(
    real: np.ndarray, predicted: np.ndarray, control: np.ndarray, pca: PCA, source: np.ndarray | None = None
) -> dict[str, float]:
    """Scores of a prediction that started from ``source``, or from the controls that real effects are counted from."""
    source = control if source is None else source
    effect, guess = real.mean(0) - control.mean(0), predicted.mean(0) - source.mean(0)
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


def arm(trained: PerturbDiffusion, max_epochs: int | None, **kwargs: object) -> PerturbDiffusion:
    """A model with the VAE of another, and its own stage 2."""
    model = PerturbDiffusion(trained.adata, **kwargs)
    state = {k: v for k, v in trained.module.state_dict().items() if not k.startswith("prior.")}
    model.module.load_state_dict(state, strict=False)
    model.module.eval()
    for name in ("train_indices_", "validation_indices_", "test_indices_"):
        setattr(model, name, getattr(trained, name))
    model.is_trained_, model.stages_ = True, {**model.stages_, "vae": trained.stages_["vae"]}
    model.train_diffusion(max_epochs=max_epochs, enable_progress_bar=False)
    return model


def latent_shift(train: ad.AnnData, control: ad.AnnData, target: float) -> np.ndarray:
    """Apply scGen's arithmetic on scVI with its defaults: expected expression, log-normalised to ``target``."""
    method = LatentShift()
    method.fit(train, "perturbation", "control", "cell_type")
    return np.log1p(np.expm1(method.predict(control, "IFNB")) * target / 1e4)


def kang(
    file: str, arms: list[str], seed: int, inner: bool, max_epochs: int | None, scgen: bool, separate: bool
) -> pd.DataFrame:
    """Every cell type held out in turn; ``inner``: every two, which is where settings are chosen."""
    cells = ad.read_h5ad(file)
    types, stimulated = cells.obs["cell_type"].to_numpy(str), (cells.obs["condition"] == "stim").to_numpy()
    counts = dense(cells.X)
    target = float(np.median(counts.sum(1)))
    x = log_normalised(counts, target)
    known = np.unique(types)
    effect = {t: x[(types == t) & stimulated].mean(0) - x[(types == t) & ~stimulated].mean(0) for t in known}
    rows = []
    for held_out in combinations(known, 2 if inner else 1):
        train = cells[~(np.isin(types, held_out) & stimulated)].copy()
        fitted: dict[str, PerturbDiffusion] = {}
        if arms:
            PerturbDiffusion.setup_anndata(train, "perturbation", "control", labels_key="cell_type")
            scvi.settings.seed = seed
            trained = PerturbDiffusion(train)
            trained.train_vae(train_size=1.0, enable_progress_bar=False)
        for held in held_out:
            real = x[(types == held) & stimulated]
            before = np.flatnonzero((types == held) & ~stimulated)
            # Halves of the controls, one to start from and one to count real effects from, share no noise.
            first, second = (
                np.array_split(np.random.default_rng(seed).permutation(before), 2) if separate else (before,) * 2
            )
            source, control = x[first], x[second]
            pca = PCA(30, random_state=0).fit(np.concatenate([control, real]))
            halves = np.array_split(np.random.default_rng(seed).permutation(len(real)), 2)
            mean_effect = np.mean([e for t, e in effect.items() if t not in held_out], 0)
            found = {
                "no change": scores(real, source, control, pca, source),
                "mean effect": scores(real, source + mean_effect, control, pca, source),
                "replicate (half for half)": scores(real[halves[0]], real[halves[1]], control, pca, source),
            }
            if scgen:
                scvi.settings.seed = seed
                shifted = latent_shift(train, cells[first].copy(), target)
                found[LatentShift.name] = scores(real, shifted, control, pca, source)
            for name in arms:
                model_kwargs, predict_kwargs = ARMS[name]
                key = json.dumps(model_kwargs, sort_keys=True)
                if key not in fitted:
                    fitted[key] = arm(trained, max_epochs, **model_kwargs)
                query = cells[first].copy()
                fitted[key].predict_perturbation(query, "IFNB", seed=seed, **predict_kwargs)
                guess = log_normalised(dense(query.layers["perturbed"]), target)
                found[name] = scores(real, guess, control, pca, source)
            rows += [{"held_out": held, "method": name, **values} for name, values in found.items()]
            print(pd.DataFrame(rows[-len(found) :]).round(3).to_string(), flush=True)
    return pd.DataFrame(rows)


def guide_split(cells: ad.AnnData, key: str, options: Options) -> Iterator[Split]:
    """One guide of every gene that has two with ten cells or more is held out."""
    names, guides = cells.obs["perturbation"].to_numpy(str), cells.obs[key].to_numpy(str)
    sizes = pd.Series(guides).value_counts()
    held = []
    for name in np.unique(names[names != options.control]):
        mine = [g for g in np.unique(guides[names == name]) if sizes[g] >= 10]
        if len(mine) > 1:
            held.append(str(np.random.default_rng(options.seed).permutation(mine)[0]))
    here = np.isin(guides, held) | (names == options.control)
    fold = sorted(set(names[np.isin(guides, held)]))
    yield _perturbation_split(cells, names, here, [fold], "one guide of every gene held out", options)


def folds(
    file: str,
    arms: list[str],
    seed: int,
    context_key: str | None,
    guide_key: str | None,
    max_epochs: int | None,
    draws: int,
) -> pd.DataFrame:
    cells, task = ad.read_h5ad(file), find_task("perturbation")
    options = Options(context_key=context_key, seed=seed)
    splits = guide_split(cells, guide_key, options) if guide_key else task.splits(cells, options)
    rows = []

    def score(name: str, answer: ad.AnnData, split: Split) -> None:
        table = task.score(answer, split, options, seed).assign(method=name, held_out=split.name)
        rows.append(table)
        print(split.name, name, table.set_index("score")["value"].round(3).to_dict(), flush=True)

    for split in splits:
        for method in (NoChange(), MatchingMean(), Additive(), MeanEffect()):
            score(method.name, task.draw(method, split, options, seed)[0], split)
        control = split.extra["source"]
        copies = ad.concat([control] * draws, keys=[str(i) for i in range(draws)], index_unique="-")
        parts: dict[str, list[tuple[str, np.ndarray]]] = {name: [] for name in arms}
        for train, fold in split.extra["folds"]:
            train = train.copy()
            PerturbDiffusion.setup_anndata(train, "perturbation", "control", labels_key=context_key)
            scvi.settings.seed = seed
            started = time.time()
            trained = PerturbDiffusion(train)
            trained.train_vae(train_size=1.0, enable_progress_bar=False)
            fitted: dict[str, PerturbDiffusion] = {}
            for name in arms:
                model_kwargs, predict_kwargs = ARMS[name]
                key = json.dumps(model_kwargs, sort_keys=True)
                if key not in fitted:
                    fitted[key] = arm(trained, max_epochs, **model_kwargs)
                for perturbation in fold:
                    query = copies.copy()
                    fitted[key].predict_perturbation(query, perturbation, unseen="mean", seed=seed, **predict_kwargs)
                    parts[name].append((perturbation, log_normalise(query.layers["perturbed"])))
            for model in fitted.values():
                fit = f"shares of the offset {model.offset_shares_}, of the library {model.library_shares_}, gain by spread {model.spread_gain_}"
                print(f"fold of {len(fold)}: {time.time() - started:.0f} s, {fit}", flush=True)
        for name, found in parts.items():
            obs = pd.DataFrame({"perturbation": np.repeat([n for n, _ in found], [len(x) for _, x in found])})
            answer = ad.AnnData(np.concatenate([x for _, x in found]), obs=obs.set_index(obs.index.astype(str)))
            answer.var_names, answer.uns["log1p"] = control.var_names, {"base": None}
            score(name, answer, split)
    table = pd.concat(rows)
    wide = table.pivot_table(index=["held_out", "method"], columns="score", values="value", sort=False)
    floor = table.pivot_table(index="held_out", columns="score", values="floor", sort=False)
    floor.index = pd.MultiIndex.from_product([floor.index, ["replicate"]], names=wide.index.names)
    return pd.concat([wide, floor]).reset_index()


def simulator(arms: list[str], seed: int) -> pd.DataFrame:
    """Coverage of 90 % intervals, and error, on held-out conditions of known truth, by kind of world and status."""
    rows = []
    for world in ("additive", "sub-additive", "epistatic"):
        whole = simulate_perturbations(4500, 60, n_perturbations=9, interaction=world, seed=seed)
        names = whole.obs["perturbation"].astype(str)
        pairs = [n for n in whole.uns["log_ratio"] if "+" in n]
        unseen = {"H", "I"}
        known = [p for p in pairs if not unseen & set(p.split("+"))]
        held = set(np.random.default_rng(seed).permutation(known)[:8]) | unseen
        held |= {p for p in pairs if unseen & set(p.split("+"))}
        train = whole[~names.isin(held)].copy()
        for embedding in ("embedding", None):
            PerturbDiffusion.setup_anndata(
                train, "perturbation", "control", labels_key="cell_type", perturbation_embedding=embedding
            )
            scvi.settings.seed = seed
            model = PerturbDiffusion(train, **ARMS[arms[0]][0])
            model.train(max_epochs_diffusion=2, train_size=1.0, enable_progress_bar=False)
            asked = sorted(unseen) if embedding is None else sorted(set(names) - {"control"})
            table = model.get_perturbation_effect(asked, unseen="mean")
            for name, found in table.groupby("perturbation"):
                truth = whole.uns["log_ratio"][name].to_numpy()
                guess = found["log_fold_change"].to_numpy()
                row = {
                    "world": world,
                    "perturbation": name,
                    "status": found["status"].iloc[0],
                    "pearson": np.corrcoef(truth, guess)[0, 1],
                    "relative_error": np.linalg.norm(guess - truth) / np.linalg.norm(truth),
                    "coverage_90": ((truth >= found["low"]) & (truth <= found["high"])).mean(),
                }
                if "+" in name:
                    parts = [whole.uns["log_ratio"][p].to_numpy() for p in name.split("+")]
                    total = np.sum(parts, axis=0)
                    ours = [
                        table.loc[table["perturbation"] == p, "log_fold_change"].to_numpy() for p in name.split("+")
                    ]
                    mine = np.sum(ours, axis=0)
                    sign = (truth @ total / (total @ total) - 1, guess @ mine / (mine @ mine) - 1)
                    row["interaction_sign"] = float(np.sign(sign[0]) == np.sign(sign[1]))
                rows.append(row)
        print(
            world,
            pd.DataFrame(rows).query("world == @world").groupby("status").mean(numeric_only=True).round(3).to_string(),
            flush=True,
        )
    return pd.DataFrame(rows)


def cost(file: str) -> pd.DataFrame:
    """Seconds of training, and of predicting 10,000 cells over decoding and sampling as many; one thread."""
    cells = ad.read_h5ad(file)
    PerturbDiffusion.setup_anndata(cells, "perturbation", "control")
    model = PerturbDiffusion(cells)
    started = time.time()
    model.train(enable_progress_bar=False)
    rows = [{"what": "training both stages", "seconds": time.time() - started, "ratio": float("nan")}]
    names = cells.obs["perturbation"]
    picked = np.random.default_rng(0).choice(np.flatnonzero(names == "control"), 10_000)
    query = cells[picked].copy()
    query.obs_names = [f"cell_{i}" for i in range(query.n_obs)]
    target = str(names[names != "control"].iloc[0])
    latents, table = model._latent_data(query)
    state = torch.as_tensor(latents.mean, dtype=torch.float32)

    def decode() -> None:
        for start in range(0, len(state), 2048):
            here = np.arange(start, min(start + 2048, len(state)))
            with torch.inference_mode():
                sample_counts(model._decode(state[here], table.subset(here)), CellStreams(0, here))

    calls = {
        "decoding and sampling counts": decode,
        "predict_perturbation": lambda: model.predict_perturbation(query, target, seed=0),
        "with diffusion": lambda: model.predict_perturbation(query, target, seed=0, use_diffusion=True),
        "without diffusion": lambda: model.predict_perturbation(query, target, seed=0, use_diffusion=False),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(4):
        for name, call in calls.items():
            started = time.time()
            call()
            times[name].append(time.time() - started)
    least = {name: min(found) for name, found in times.items()}
    base = least["decoding and sampling counts"]
    return pd.DataFrame(rows + [{"what": n, "seconds": t, "ratio": t / base} for n, t in least.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["kang", "folds", "simulator", "cost"])
    parser.add_argument("file", nargs="?")
    parser.add_argument("--arms", nargs="*", default=["default"], choices=list(ARMS))
    parser.add_argument("--inner", action="store_true", help="kang: hold out two types at a time, to choose settings")
    parser.add_argument("--scgen", action="store_true", help="kang: scGen's latent shift on scVI, too")
    parser.add_argument(
        "--separate-controls", action="store_true", help="kang: other controls to start from than to score by"
    )
    parser.add_argument("--max-epochs-diffusion", type=int, help="epochs of stage 2; the model's default if not given")
    parser.add_argument(
        "--draws",
        type=int,
        default=1,
        help="folds: predictions of every control cell; mean effects then have less noise, energy distances mean nothing as cells come several times",
    )
    parser.add_argument("--context-key")
    parser.add_argument("--guide-key")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", help="write every row here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.task == "kang":
        table = kang(
            args.file, args.arms, args.seed, args.inner, args.max_epochs_diffusion, args.scgen, args.separate_controls
        )
    elif args.task == "simulator":
        table = simulator(args.arms, args.seed)
    elif args.task == "cost":
        table = cost(args.file)
    else:
        table = folds(
            args.file,
            args.arms,
            args.seed,
            args.context_key,
            args.guide_key,
            args.max_epochs_diffusion,
            args.draws,
        )
    if args.csv:
        table.to_csv(args.csv, index=False)
    by = {"kang": ["method"], "folds": ["held_out", "method"], "simulator": ["world", "status"], "cost": ["what"]}[
        args.task
    ]
    print(table.groupby(by, sort=False).mean(numeric_only=True).round(3).to_string())


if __name__ == "__main__":
    main()
