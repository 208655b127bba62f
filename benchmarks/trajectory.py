"""TrajectoryDiffusion on embryonic worm neurons and on a simulator with known truth; see trajectory.md for the recorded tables.

    python benchmarks/trajectory.py worm worm_embryo_neurons.h5ad [--bins 1 2 3] [--csv out.csv]
    python benchmarks/trajectory.py last worm_embryo_neurons.h5ad
    python benchmarks/trajectory.py fates worm_embryo_neurons.h5ad
    python benchmarks/trajectory.py simulated [--seeds 0 1]

Time bins of the worm are numbered 0 to 7. Each inner bin is left out in turn (of VAE and diffusion) and predicted from the real cells of
the bin before. Everything is compared in principal components of the log-normalised 2,000 most variable genes (scanpy's
defaults, all cells: the components are the ruler, no method sees them). W1 is exact, on weighted cells; the
energy distance resamples them. The floor compares two halves of the left-out cells.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import anndata as ad
import numpy as np
import ot
import pandas as pd
import scanpy as sc
import scvi
import torch
from scipy.spatial.distance import cdist

from diffvi.benchmark._trajectory_baselines import OTLinear, UnbalancedOT
from diffvi.datasets import simulate_trajectory
from diffvi.metrics import energy_distance, resample_weighted
from diffvi.metrics._counts import dense
from diffvi.metrics._trajectory import fate_correlation
from diffvi.model import TrajectoryDiffusion

BINS = ["210-270", "270-330", "330-390", "390-450", "450-510", "510-580", "580-650", "> 650"]
DESCENDANTS = {"Neuroblast_ASG_AWA": {"ASG", "AWA"}, "ASG_AWA": {"ASG", "AWA"}, "ADL_parent": {"ADL"}}
"""Progenitors that are labelled in the data, and what they become."""


class Ruler:
    """The principal components in which populations are compared."""

    def __init__(self, adata: ad.AnnData) -> None:
        logged = adata.copy()
        sc.pp.normalize_total(logged, target_sum=1e4)
        sc.pp.log1p(logged)
        sc.pp.highly_variable_genes(logged, n_top_genes=2000)
        self.genes = logged.var["highly_variable"].to_numpy()
        logged = logged[:, self.genes].copy()
        sc.pp.pca(logged, n_comps=50)
        self.mean, self.axes = np.asarray(logged.X.mean(0)).ravel(), logged.varm["PCs"]
        self.points = logged.obsm["X_pca"]

    def __call__(self, counts: Any) -> np.ndarray:
        """Components of raw counts of all genes."""
        x = dense(counts)
        shares = x[:, self.genes] / np.maximum(x.sum(1, keepdims=True), 1) * 1e4
        return (np.log1p(shares) - self.mean) @ self.axes


def scores(predicted: np.ndarray, real: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """W1 and energy distance in 10 and in 50 components."""
    w = np.ones(len(predicted)) if weights is None else weights
    drawn = predicted if weights is None else resample_weighted(predicted, weights)
    out = {}
    for k in (10, 50):
        cost = cdist(predicted[:, :k], real[:, :k])
        out[f"w1_{k}"] = ot.emd2(w / w.sum(), np.full(len(real), 1 / len(real)), cost, numItermax=2_000_000)
        out[f"energy_{k}"] = energy_distance(drawn[:, :k], real[:, :k])
    return out


def worm(path: str) -> ad.AnnData:
    """The cells, with the number of their time bin in ``obs["bin"]``."""
    adata = ad.read_h5ad(path)
    adata.obs["bin"] = (
        adata.obs["embryo_time_bin"].astype(str).map({b: float(i) for i, b in enumerate(BINS)}).astype(float)
    )
    return adata


def trained(
    adata: ad.AnnData, options: argparse.Namespace, time_key: str, **setup: Any
) -> tuple[TrajectoryDiffusion, float]:
    """A trained model, and the seconds that it took."""
    scvi.settings.seed = options.seed
    cells = adata.copy()
    TrajectoryDiffusion.setup_anndata(cells, time_key=time_key, **setup)
    model = TrajectoryDiffusion(cells, **json.loads(options.model_kwargs))
    start = time.perf_counter()
    model.train(enable_progress_bar=False, accelerator="cpu", **{"train_size": 1.0, **json.loads(options.train_kwargs)})
    return model, time.perf_counter() - start


def predicted(
    model: TrajectoryDiffusion, cells: ad.AnnData, goal: float, ruler: Ruler, **kwargs: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights of the predicted population."""
    future = model.predict_trajectory(cells, [goal], seed=0, **kwargs)
    return ruler(future.X), future.obs["weight"].to_numpy()


def couplings(before: np.ndarray, after: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Half way between coupled cells, with their weights, in 10 components for the coupling."""
    out: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    cost = cdist(before[:, :10], after[:, :10], "sqeuclidean")
    for method in (OTLinear(), UnbalancedOT()):
        plan = method.plan(cost)
        rows, columns = np.nonzero(plan > plan.max() * 1e-3)
        out[method.name] = 0.5 * before[rows] + 0.5 * after[columns], plan[rows, columns]
        if isinstance(method, OTLinear):
            share = plan / plan.sum(1, keepdims=True)
            out[f"{method.name}, barycentric"] = 0.5 * before + 0.5 * share @ after, plan.sum(1)
    return out


def command_worm(options: argparse.Namespace) -> None:
    """Leave out each inner bin."""
    adata = worm(options.path)
    ruler, times, rows = Ruler(adata), adata.obs["bin"].to_numpy(), []

    def add(bin_: int, method: str, values: dict[str, float]) -> None:
        rows.append({"bin": bin_, "method": method, **values})

    for left_out in options.bins:
        before, here, after = (ruler.points[times == left_out + i] for i in (-1, 0, 1))
        halves = np.array_split(np.random.default_rng(0).permutation(len(here)), 2)
        add(left_out, "real-vs-real floor", scores(here[halves[0]], here[halves[1]]))
        add(left_out, "copy previous", scores(before, here))
        add(left_out, "copy next", scores(after, here))
        add(left_out, "pooled", scores(np.concatenate([before, after]), here))
        for name, (points, weights) in couplings(before, after).items():
            add(left_out, name, scores(points, here, weights))
        model, seconds = trained(adata[times != left_out], options, "bin")
        cells = adata[times == left_out - 1].copy()
        for n_samples in (1, 10):
            for decode in ("transport", "resample"):
                points, weights = predicted(model, cells, left_out, ruler, n_samples=n_samples, decode=decode)
                add(left_out, f"TrajectoryDiffusion, {decode}, {n_samples} sample(s)", scores(points, here, weights))
                if n_samples == 10 and decode == "transport":
                    add(left_out, "the same without weights", scores(points, here))
        points = ruler(model.interpolate(left_out, 10 * len(here), seed=0).X)
        add(left_out, "interpolate()", scores(points, here))
        later = adata[times == left_out + 1].copy()
        points, _ = predicted(model, later, left_out, ruler, n_samples=10, backward=True)
        add(left_out, "backward from the next bin", scores(points, here))
        rows[-1]["seconds"] = seconds
        print(f"bin {left_out}: trained in {seconds:.0f} s", flush=True)
        print(
            pd.DataFrame(rows).query("bin == @left_out").drop(columns="bin").round(3).to_string(index=False), flush=True
        )
    table = pd.DataFrame(rows)
    print(table.groupby("method", sort=False).mean(numeric_only=True).drop(columns="bin").round(3).to_string())
    if options.csv:
        table.to_csv(options.csv, index=False)


def command_last(options: argparse.Namespace) -> None:
    """Leave out the last bin and extrapolate to it."""
    adata = worm(options.path)
    ruler, times = Ruler(adata), adata.obs["bin"].to_numpy()
    here, cells = ruler.points[times == 7], adata[times == 6].copy()
    model, seconds = trained(adata[times != 7], options, "bin")
    rows = {"copy last": scores(ruler.points[times == 6], here)}
    for n_samples in (1, 10):
        points, weights = predicted(model, cells, 7, ruler, n_samples=n_samples)
        rows[f"TrajectoryDiffusion, {n_samples} sample(s)"] = scores(points, here, weights)
    halves = np.array_split(np.random.default_rng(0).permutation(len(here)), 2)
    rows["real-vs-real floor"] = scores(here[halves[0]], here[halves[1]])
    print(f"trained in {seconds:.0f} s")
    print(pd.DataFrame(rows).T.round(3).to_string())


def command_fates(options: argparse.Namespace) -> None:
    """Fates of labelled progenitors, read off where all of their descendants are present."""
    adata = worm(options.path)
    model, seconds = trained(adata, options, "bin", labels_key="cell_type")
    print(f"trained in {seconds:.0f} s")
    types = adata.obs["cell_type"].astype(str).to_numpy()
    for at in (5.0, 6.0):
        fates = model.get_fate_probabilities(n_samples=50, time=at)["probability"]
        shares = adata.obs.loc[adata.obs["bin"] == at, "cell_type"].value_counts(normalize=True)
        for progenitor, descendants in DESCENDANTS.items():
            cells = (types == progenitor) & (adata.obs["bin"].to_numpy() < at)
            right = sorted(descendants & set(fates.columns))
            mean = fates.loc[cells, right].sum(1)
            print(
                f"bin {at:g}: {progenitor} ({cells.sum()} cells) -> {right}: {mean.mean():.3f}, right in {(mean > 0.5).mean():.3f} of the cells; "
                f"share of these types among all cells {shares.reindex(right).sum():.3f}"
            )
    print(model.get_branch_points(n_samples=50, time=5.0).drop(columns="latent").round(2).to_string())


def expected_calibration_error(probability: np.ndarray, outcome: np.ndarray, n_bins: int = 10) -> float:
    """Mean distance of predicted and observed frequencies over bins of equal width, weighted by their cells."""
    number = np.minimum((probability * n_bins).astype(int), n_bins - 1)
    gaps = [
        abs(probability[number == b].mean() - outcome[number == b].mean()) * (number == b).mean()
        for b in np.unique(number)
    ]
    return float(np.sum(gaps))


def command_simulated(options: argparse.Namespace) -> None:
    """Known branching, growth and unequal gaps."""
    rows = []
    for seed in options.seeds:
        adata = simulate_trajectory(500, seed=seed)
        model, seconds = trained(adata, options, "time", labels_key="fate")
        obs = adata.obs
        fates = model.get_fate_probabilities(n_samples=50)["probability"]
        up = (fates["up"] / (fates["up"] + fates["down"]).clip(lower=1e-9)).to_numpy()
        truth, early = obs["fate_probability"].to_numpy(), obs["time"].to_numpy() < 4.0
        near = early & (truth > 0.05) & (truth < 0.95)
        growing = early & (obs["time"].to_numpy() > 1.2)
        rates, true_rates = model.get_growth_rates(), obs["growth_rate"].to_numpy()
        population = [model.get_latent_representation(adata[obs["time"] == t].copy()) for t in (0.0, 4.0)]
        cells = adata[obs["time"] == 0].copy()
        futures = {
            "jump": model.predict_trajectory(cells, [4.0], autoregressive=False, seed=1),
            "measured": model.predict_trajectory(cells, [1.0, 1.5, 2.5, 4.0], seed=1),
            "small": model.predict_trajectory(cells, np.arange(1, 17) / 4, seed=1),
            "other": model.predict_trajectory(cells, [1.0, 1.5, 2.5, 4.0], seed=2),
        }
        ends = {n: f[f.obs["time"] == 4.0] for n, f in futures.items()}

        def distance(a: str, b: str, ends: dict[str, Any] = ends) -> float:
            x, y = (ends[n] for n in (a, b))
            w, v = (e.obs["weight"].to_numpy() / e.obs["weight"].sum() for e in (x, y))
            return float(ot.emd2(w, v, cdist(x.obsm["X_latent"], y.obsm["X_latent"]), numItermax=2_000_000))

        travelled = float(
            np.linalg.norm(ends["measured"].obsm["X_latent"] - model.get_latent_representation(cells), axis=1).mean()
        )
        upper = [float(np.average(np.isin(e.obs["fate"], ["up"]), weights=e.obs["weight"])) for e in ends.values()]
        rows.append(
            {
                "seed": seed,
                "fate r, near": np.corrcoef(up[near], truth[near])[0, 1],
                "fate r, all": fate_correlation(truth[early], up[early]),
                "ECE": expected_calibration_error(up[early], (obs["outcome"] == "up").to_numpy()[early]),
                "ECE of the truth": expected_calibration_error(
                    truth[early], (obs["outcome"] == "up").to_numpy()[early]
                ),
                "growth r": np.corrcoef(rates[growing], true_rates[growing])[0, 1],
                "travelled": travelled,
                "W1 two seeds": distance("measured", "other"),
                "gap of the jump / travelled": (distance("jump", "other") - distance("measured", "other")) / travelled,
                "gap of 16 steps / travelled": (distance("small", "other") - distance("measured", "other")) / travelled,
                "upper, jump": upper[0],
                "upper, measured": upper[1],
                "upper, real": float((obs["fate"] == "up").to_numpy()[~early].mean()),
                "W1 to real": float(
                    ot.emd2(
                        ends["measured"].obs["weight"].to_numpy() / ends["measured"].obs["weight"].sum(),
                        np.full(len(population[1]), 1 / len(population[1])),
                        cdist(ends["measured"].obsm["X_latent"], population[1]),
                        numItermax=2_000_000,
                    )
                ),
                "seconds": seconds,
            }
        )
        print(pd.Series(rows[-1]).round(3).to_string(), flush=True)
    print(pd.DataFrame(rows).mean().round(3).to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function in (
        ("worm", command_worm),
        ("last", command_last),
        ("fates", command_fates),
        ("simulated", command_simulated),
    ):
        command = commands.add_parser(name, help=function.__doc__)
        command.set_defaults(function=function)
        if name == "simulated":
            command.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
        else:
            command.add_argument("path")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--threads", type=int, default=1)
        command.add_argument("--model-kwargs", default="{}", help="JSON")
        command.add_argument("--train-kwargs", default="{}", help="JSON")
        if name == "worm":
            command.add_argument("--bins", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
            command.add_argument("--csv")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.function(options)


if __name__ == "__main__":
    main()
