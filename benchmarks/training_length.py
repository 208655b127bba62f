"""How many steps a stage needs, on cells held out from the *training* cells: nothing here sees the benchmark's held-out cells.

Run: python benchmarks/training_length.py pbmc_facs_zheng2017.h5ad
     python benchmarks/training_length.py pbmc_2batches.h5ad --batch-key batch

Stage 1: random-forest AUC of counts decoded from the posteriors of training cells, of validation cells that are encoded and
re-sampled (``ppc``), label agreement, and the reconstruction error of the validation cells (nats a cell). Stage 2, on the VAE of
the first number of steps: RF AUC and label agreement of generated cells, and the diffusion loss of the validation cells.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import scvi
import torch
from generation_remedies import resample

from diffvi.benchmark import split_cells
from diffvi.benchmark._demo import quiet_lightning
from diffvi.metrics import classifier_two_sample, label_agreement
from diffvi.model import LatentDiffusionSCVI
from diffvi.model._training_length import epochs_for

QUIET = {"enable_progress_bar": False}


def matched(rng: np.random.Generator, have: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Rows of ``have`` with the label counts of ``wanted``."""
    counts = zip(*np.unique(wanted, return_counts=True), strict=True)
    return np.concatenate([rng.choice(np.flatnonzero(have == label), n, replace=False) for label, n in counts])


def parser_of_trainings(description: str | None, seeds: list[int], draws: int) -> argparse.ArgumentParser:
    """Arguments of a benchmark of several trainings, which run quietly on one thread."""
    warnings.filterwarnings("ignore")
    quiet_lightning()
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--batch-key")
    parser.add_argument("--seeds", type=int, nargs="*", default=seeds)
    parser.add_argument("--draws", type=int, default=draws)
    return parser


def main() -> None:
    parser = parser_of_trainings(__doc__, seeds=[0, 1], draws=3)
    parser.add_argument("--vae-steps", type=int, nargs="*", default=[5000, 3500, 2500])
    parser.add_argument("--diffusion-steps", type=int, nargs="*", default=[5000, 3500, 2500, 1500])
    arguments = parser.parse_args()
    outer, _ = split_cells(ad.read_h5ad(arguments.data), "cell_type", n_top_genes=None)
    train, validation = split_cells(outer, "cell_type", seed=100)
    labels, train_labels = (a.obs["cell_type"].to_numpy(str) for a in (validation, train))
    asked = {k: validation.obs[k].tolist() for k in ("cell_type", arguments.batch_key) if k}
    print(f"{train.n_obs} cells to train on, {validation.n_obs} to validate", flush=True)
    rows = []

    def record(**row: object) -> None:
        rows.append(row)
        print(pd.DataFrame([row]).round(4).to_csv(index=False, header=len(rows) == 1), end="", flush=True)

    def score(counts: object, its_labels: np.ndarray, draw: int) -> tuple[float, float]:
        agreement = label_agreement(train.X, train_labels, counts, its_labels)
        return classifier_two_sample(validation.X, counts, seed=draw), agreement

    for seed in arguments.seeds:
        first = None
        for n_steps in arguments.vae_steps:
            scvi.settings.seed = seed
            adata = train.copy()
            LatentDiffusionSCVI.setup_anndata(adata, labels_key="cell_type", batch_key=arguments.batch_key)
            model = LatentDiffusionSCVI(adata)
            begin = time.perf_counter()
            model.train_vae(train_size=1.0, max_epochs=epochs_for(n_steps, adata.n_obs, 128, most=1000), **QUIET)
            seconds = time.perf_counter() - begin
            first = first or model
            latents, table = model._latent_data()
            scores = []
            for draw in range(arguments.draws):
                chosen = matched(np.random.default_rng(draw), train_labels, labels)
                scores.append(score(resample(model, latents, table, chosen, draw), train_labels[chosen], draw))
            held_out = resample(model, *model._latent_data(validation.copy()), np.arange(validation.n_obs), 0)
            auc, agreement = np.mean(scores, 0)
            record(
                stage=1,
                seed=seed,
                steps=n_steps,
                rf_auc=auc,
                agreement=agreement,
                ppc=classifier_two_sample(validation.X, held_out),
                loss=-float(model.get_reconstruction_error(validation.copy())["reconstruction_loss"]),
                seconds=seconds,
            )
        assert first is not None
        held, _ = first._latent_data(validation.copy())
        for n_steps in arguments.diffusion_steps:
            scvi.settings.seed = seed
            begin = time.perf_counter()
            first.train_diffusion(max_epochs=epochs_for(n_steps, train.n_obs, 256, most=1000), **QUIET)
            seconds = time.perf_counter() - begin
            prior = first.module.prior.eval()
            tensors = [torch.as_tensor(v, dtype=torch.float32) for v in (held.mean, held.scale, held.codes)]
            with torch.no_grad():
                loss = float(prior.loss(*(v.repeat(5, 1) for v in tensors)))
            scores = []
            for draw in range(arguments.draws):
                made = first.generate(validation.n_obs, conditions=asked, seed=draw)
                scores.append(score(made.X, labels, draw))
            auc, agreement = np.mean(scores, 0)
            record(
                stage=2,
                seed=seed,
                steps=n_steps,
                rf_auc=auc,
                agreement=agreement,
                ppc=math.nan,
                loss=loss,
                seconds=seconds,
            )
    table = pd.DataFrame(rows).groupby(["stage", "steps"]).agg(["mean", "std"]).drop(columns="seed")
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
