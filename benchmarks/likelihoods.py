"""Which count likelihood fits a data set: marginal log likelihood of cells held out from the training cells.

Run: python benchmarks/likelihoods.py DATA.h5ad ...   (pbmc68k for the embedded cells)

The benchmark's training cells are split once more (65/35); nothing here sees the benchmark's held-out cells. Nats per cell, by
importance sampling with 200 samples under the VAE's own standard normal prior; higher is better.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import scvi
import torch

from diffvi.benchmark import split_cells
from diffvi.benchmark._demo import quiet_lightning
from diffvi.datasets import pbmc68k
from diffvi.model import LatentDiffusionSCVI


def main() -> None:
    warnings.filterwarnings("ignore")
    quiet_lightning()
    torch.set_num_threads(1)
    print("| data | nb | zinb | poisson |\n|---|---|---|---|")
    for path in sys.argv[1:]:
        adata = pbmc68k() if path == "pbmc68k" else ad.read_h5ad(path)
        outer, _ = split_cells(adata, "cell_type", n_top_genes=None)
        train, held_out = split_cells(outer, "cell_type", seed=100)
        figures = []
        for likelihood in ("nb", "zinb", "poisson"):
            scvi.settings.seed = 0
            cells = train.copy()
            LatentDiffusionSCVI.setup_anndata(cells, labels_key="cell_type")
            model = LatentDiffusionSCVI(cells, gene_likelihood=likelihood)
            model.train_vae(train_size=1.0, enable_progress_bar=False)
            figures.append(float(np.mean(model.get_marginal_ll(held_out.copy(), n_mc_samples=200))))
        print(f"| {Path(path).stem} | " + " | ".join(f"{v:.1f}" for v in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
