"""What training, generation and scale cost, each beside a reference in the same run.

Run: python benchmarks/speed.py training DATA [--threads 1]     both stages beside `scvi.model.SCVI.train()` as it comes
     python benchmarks/speed.py profile DATA                    where a stage's time goes
     python benchmarks/speed.py steps DATA [--figures FOLDER]   quality and time of samplers with few evaluations, distilled ones too, and of guidance
     python benchmarks/speed.py memory                          peak memory of generation to disk, 10,000 to 200,000 cells
     python benchmarks/speed.py scale [--cells 100000 ...]      training on simulated cells in a file, memory and time
     python benchmarks/speed.py --help
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import pstats
import resource
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scanpy as sc
import scvi
import torch
from scipy import sparse

import diffvi
from diffvi._random import CellStreams
from diffvi.benchmark import split_cells
from diffvi.data import TrainingTable
from diffvi.metrics import classifier_two_sample, energy_distance, evaluate_generation
from diffvi.model import LatentDiffusionSCVI
from diffvi.process import get_sampler

QUIET = {"enable_progress_bar": False}


def facs(data: str, n_genes: int = 2000) -> ad.AnnData:
    adata = sc.read_h5ad(Path(data) / "pbmc_facs_zheng2017.h5ad")
    sc.pp.filter_genes(adata, min_cells=3)
    if adata.n_vars > n_genes:
        sc.pp.highly_variable_genes(adata, n_top_genes=n_genes, flavor="seurat_v3", subset=True)
    return adata


def labels_of(adata: ad.AnnData) -> str:
    return next(key for key in ("cell_type", "labels", "label") if key in adata.obs)


def training(arguments: argparse.Namespace) -> None:
    adata = facs(arguments.data)
    key = labels_of(adata)
    rows = {}

    def timed(name: str, f) -> None:
        scvi.settings.seed = 0
        torch.set_num_threads(arguments.threads)
        start = time.perf_counter()
        f()
        rows[name] = time.perf_counter() - start

    ours, theirs = adata.copy(), adata.copy()
    LatentDiffusionSCVI.setup_anndata(ours, labels_key=key)
    model = LatentDiffusionSCVI(ours)
    timed("diffvi, stage 1", lambda: model.train_vae(**QUIET))
    timed("diffvi, stage 2", lambda: model.train_diffusion(**QUIET))
    scvi.model.SCVI.setup_anndata(theirs)
    reference = scvi.model.SCVI(theirs)
    timed("scVI, 400 epochs", lambda: reference.train(max_epochs=400, **QUIET))
    both = rows["diffvi, stage 1"] + rows["diffvi, stage 2"]
    table = pd.DataFrame({"seconds": rows})
    table["ratio to scVI"] = table["seconds"] / rows["scVI, 400 epochs"]
    print(f"{adata.n_obs} cells x {adata.n_vars} genes, {arguments.threads} thread(s)")
    print(table.round(2).to_string())
    print(f"both stages / scVI: {both / rows['scVI, 400 epochs']:.2f}")


def profile(arguments: argparse.Namespace) -> None:
    adata = facs(arguments.data)
    LatentDiffusionSCVI.setup_anndata(adata, labels_key=labels_of(adata))
    torch.set_num_threads(arguments.threads)
    model = LatentDiffusionSCVI(adata)
    for stage, run in (("stage 1", model.train_vae), ("stage 2", model.train_diffusion)):
        run(max_epochs=1, **QUIET)
        profiler = cProfile.Profile()
        start = time.perf_counter()
        profiler.enable()
        run(max_epochs=10, **QUIET)
        profiler.disable()
        text = io.StringIO()
        pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(25)
        print(f"== {stage}: {time.perf_counter() - start:.1f} s for 10 epochs of {adata.n_obs} cells")
        print("\n".join(line[:140] for line in text.getvalue().splitlines()[6:]))


SAMPLERS = (("heun", 5), ("heun", 3), ("heun", 2), ("dpmpp_2m", 6), ("dpmpp_2m", 4), ("dpmpp_2m", 2), ("ddim", 2))


def steps(arguments: argparse.Namespace) -> None:
    """Each sampler from the same noise: how far from the exact solution, how real the cells, and how long it takes."""
    adata = ad.read_h5ad(Path(arguments.data) / "pbmc_facs_zheng2017.h5ad")
    train, test = split_cells(adata, "cell_type")
    scvi.settings.seed = 0
    torch.set_num_threads(arguments.threads)
    LatentDiffusionSCVI.setup_anndata(train, labels_key="cell_type")
    model = LatentDiffusionSCVI(train)
    model.train(**QUIET)
    prior = model.module.prior
    labels = test.obs["cell_type"].tolist()
    start = torch.randn(4000, prior.d)
    codes = torch.as_tensor(model._request_cells(4000, {"cell_type": (labels * 10)[:4000]}, seed=0).codes)
    truth = prior.standardise(prior.sample(start, codes, get_sampler("heun"), 50))
    second = prior.standardise(prior.sample(torch.randn(4000, prior.d), codes, get_sampler("heun"), 50))
    rows = []

    def score(name: str, n_steps: int, evaluations: int, extra: float = 0.0) -> None:
        network = prior.few_steps.denoiser if name == "distilled" else None
        sampler = get_sampler("ddim" if name == "distilled" else name)
        x = prior.standardise(prior.sample(start, codes, sampler, n_steps, network=network))
        asked = {"conditions": {"cell_type": labels}, "sampler": name, "n_steps": n_steps}
        auc = [classifier_two_sample(test.X, model.generate(len(labels), seed=s, **asked).X, seed=s) for s in range(3)]
        decoding = decoding_seconds(model, 8192)
        begin = time.perf_counter()
        model.generate(8192, sampler=name, n_steps=n_steps, seed=0)
        seconds = time.perf_counter() - begin
        rows.append(
            {
                "sampler": name,
                "steps": n_steps,
                "evaluations": evaluations,
                "rms": float((x - truth).square().mean().sqrt()),
                "energy": energy_distance(x.numpy(), second.numpy()),
                "RF AUC": np.mean(auc),
                "sd": np.std(auc),
                "generate 8,192": seconds,
                "over decoding": seconds / decoding,
                "distilling": extra,
            }
        )
        print(pd.DataFrame(rows).round(3).to_string(index=False), flush=True)

    floor = classifier_two_sample(test.X[::2], test.X[1::2])
    print(f"RF AUC of two halves of the test cells: {floor:.3f}")
    scales = guidance(model, train, test)
    print(scales.groupby("guidance_scale")[list(GUIDANCE_SCORES)].mean().round(3).to_string(), flush=True)
    for name, n_steps in SAMPLERS:
        score(name, n_steps, n_steps * (2 if name == "heun" else 1))
    for n_steps in (1, 2, 4):
        begin = time.perf_counter()
        model.distill(n_steps, show_progress=False)
        score("distilled", n_steps, n_steps, time.perf_counter() - begin)
    if arguments.figures:
        curves = pd.DataFrame(rows).rename(columns={"evaluations": "n_evaluations", "RF AUC": "rf_auc_genes"})
        folder = Path(arguments.figures)
        diffvi.pl.nfe_quality(curves, "rf_auc_genes", floor, show=False, save=folder / "nfe_quality.svg")
        diffvi.pl.guidance_diversity(scales, show=False, save=folder / "guidance_diversity.svg")


GUIDANCE_SCORES = ("rf_auc_genes", "label_agreement", "precision", "recall", "coverage")


def guidance(model: LatentDiffusionSCVI, train: ad.AnnData, test: ad.AnnData) -> pd.DataFrame:
    """What guidance by the label buys and costs, three draws a scale."""
    rows = []
    for scale in (0.5, 1.0, 1.25, 1.5, 2.0, 3.0):
        for seed in range(3):
            labels = test.obs["cell_type"].tolist()
            made = model.generate(len(labels), {"cell_type": labels}, guidance_scale=scale, seed=seed)
            scores = evaluate_generation(test, made, train, "cell_type", n_resamples=0, floor=False, seed=seed)["value"]
            rows.append({"guidance_scale": scale, **{name: scores[name] for name in GUIDANCE_SCORES}})
    return pd.DataFrame(rows)


def decoding_seconds(model: LatentDiffusionSCVI, n_obs: int) -> float:
    """Decoding and drawing counts of cells whose states are there."""
    table, state = TrainingTable(**model.training_table_), model.module.prior.shift.expand(2048, -1).clone()
    some = table.subset(np.zeros(2048, dtype=int))
    with torch.inference_mode():
        model._draw_cells(state, some, CellStreams(0, np.arange(2048)))
        begin = time.perf_counter()
        for first in range(0, n_obs, 2048):
            model._draw_cells(state, some, CellStreams(0, np.arange(first, first + 2048)))
    return time.perf_counter() - begin


def peak() -> float:
    """Largest memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Unmapped(threading.Thread):
    """Largest memory of this process that no file stands behind, GiB (Linux): pages of a file can be dropped and read again."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.gib = 0.0

    def run(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            self.gib = max(self.gib, int(status.split("RssAnon:")[1].split()[0]) / 2**20)
            time.sleep(0.02)


def in_process(name: str, **kwargs: object) -> dict[str, float]:
    """What a task of this file prints last, run in a process of its own so that peaks are its own."""
    out = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "task", name, json.dumps(kwargs)], capture_output=True, text=True
    )
    if out.returncode:
        raise RuntimeError(out.stderr[-2000:])
    return json.loads(out.stdout.strip().splitlines()[-1])


def small_model(folder: str) -> None:
    from diffvi.datasets import simulate_cells

    adata = simulate_cells(300, 2000, n_types=3, mean_library=1000)
    LatentDiffusionSCVI.setup_anndata(adata, labels_key="cell_type")
    model = LatentDiffusionSCVI(adata)
    model.train(max_epochs=1, max_epochs_diffusion=1, **QUIET)
    model.save(folder)


def memory(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        small_model(f"{folder}/model")
        rows = [
            {"cells": n, **in_process("stream", folder=folder, n_obs=n, threads=arguments.threads)}
            for n in arguments.cells or (10_000, 50_000, 200_000)
        ]
    print(pd.DataFrame(rows).round(3).to_string(index=False))


def stream(folder: str, n_obs: int, threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    model = LatentDiffusionSCVI.load(f"{folder}/model", adata=False)
    before, start = peak(), time.perf_counter()
    path = model.generate(n_obs, seed=0, path=f"{folder}/{n_obs}.zarr", layers=())
    seconds = time.perf_counter() - start
    size = sum(f.stat().st_size for f in Path(path).rglob("*") if f.is_file())
    return {"peak_gib": peak(), "before_gib": before, "seconds": seconds, "bytes_per_cell": size / n_obs}


def simulated_file(path: Path, n_obs: int, n_vars: int, density: float = 0.1, block: int = 20_000) -> None:
    """Cells of ten types in a CSR h5ad, written block by block."""
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.3, 1.0, (10, n_vars))
    rates *= density * n_vars / rates.sum(1, keepdims=True)
    kinds = rng.integers(10, size=n_obs)
    obs = pd.DataFrame({"cell_type": pd.Categorical([f"type_{k}" for k in kinds])}, index=np.arange(n_obs).astype(str))
    ad.AnnData(sparse.csr_matrix((n_obs, n_vars), dtype=np.float32), obs=obs).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        attributes = dict(file["X"].attrs)
        del file["X"]
        group = file.create_group("X")
        group.attrs.update(attributes)
        for name, dtype in (("data", "f4"), ("indices", "i4")):
            group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(1 << 20,))
        indptr = np.zeros(n_obs + 1, dtype=np.int64)
        for first in range(0, n_obs, block):
            x = sparse.csr_matrix(rng.poisson(rates[kinds[first : first + block]]).astype(np.float32))
            indptr[first + 1 : first + 1 + x.shape[0]] = indptr[first] + x.indptr[1:]
            for name, values in (("data", x.data), ("indices", x.indices)):
                data = group[name]
                data.resize(len(data) + len(values), axis=0)
                data[-len(values) :] = values
        group.create_dataset("indptr", data=indptr)


def scale(arguments: argparse.Namespace) -> None:
    rows = []
    for n in arguments.cells or (100_000, 300_000, 1_000_000):
        with tempfile.TemporaryDirectory() as folder:
            simulated_file(Path(folder) / "cells.h5ad", n, arguments.genes)
            size = (Path(folder) / "cells.h5ad").stat().st_size / 2**30
            rows.append({"cells": n, "file_gib": size, **in_process("fit", folder=folder, threads=arguments.threads)})
        print(pd.DataFrame(rows).round(2).to_string(index=False), flush=True)


def fit(folder: str, threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    adata = ad.read_h5ad(f"{folder}/cells.h5ad", backed="r")
    times = {}
    unmapped = Unmapped()
    unmapped.start()
    start = time.perf_counter()
    LatentDiffusionSCVI.setup_anndata(adata, labels_key="cell_type")
    model = LatentDiffusionSCVI(adata)
    times["setup_s"] = time.perf_counter() - start
    times["setup_gib"] = peak()
    for name, run in (("vae", model.train_vae), ("diffusion", model.train_diffusion)):
        start = time.perf_counter()
        run(max_epochs=1, batch_size=1024, **QUIET)
        times[f"{name}_s"] = time.perf_counter() - start
        times[f"{name}_gib"] = peak()
        times[f"{name}_unmapped_gib"] = unmapped.gib
    return times


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("training", "profile", "steps", "memory", "scale"):
        command = commands.add_parser(name)
        command.add_argument("--threads", type=int, default=1)
        if name in ("training", "profile", "steps"):
            command.add_argument("data", help="folder of real data")
            if name == "steps":
                command.add_argument("--figures", help="folder to draw the curves into")
        else:
            command.add_argument("--cells", type=int, nargs="*")
            command.add_argument("--genes", type=int, default=2000)
    task = commands.add_parser("task")
    task.add_argument("name")
    task.add_argument("kwargs", type=json.loads)
    arguments = parser.parse_args()
    if arguments.command == "task":
        print(json.dumps({"stream": stream, "fit": fit}[arguments.name](**arguments.kwargs)))
    else:
        commands_ = {"training": training, "profile": profile, "steps": steps, "memory": memory, "scale": scale}
        commands_[arguments.command](arguments)


if __name__ == "__main__":
    main()
