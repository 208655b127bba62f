"""How many steps a sampler needs: distance to 100 steps of Heun from the same noise, in the prior's own units.

Run: python benchmarks/sampler_steps.py pbmc_facs_zheng2017.h5ad
"""

from __future__ import annotations

import sys
import warnings

import anndata as ad
import scvi
import torch

from diffvi.benchmark import split_cells
from diffvi.benchmark._demo import quiet_lightning
from diffvi.metrics import energy_distance
from diffvi.model import LatentDiffusionSCVI
from diffvi.process import get_sampler

STEPS = {"heun": (3, 4, 5, 6, 8, 10), "dpmpp_2m": (6, 8, 10, 12, 16, 20), "ddim": (10, 20, 40), "euler": (10, 20, 40)}


def main() -> None:
    warnings.filterwarnings("ignore")
    quiet_lightning()
    torch.set_num_threads(1)
    train, _ = split_cells(ad.read_h5ad(sys.argv[1]), "cell_type")
    scvi.settings.seed = 0
    LatentDiffusionSCVI.setup_anndata(train, labels_key="cell_type")
    model = LatentDiffusionSCVI(train)
    model.train(enable_progress_bar=False)
    prior, n = model.module.prior, 2000
    torch.manual_seed(0)
    codes = torch.randint(train.obs["cell_type"].nunique(), (n, 1)).float()
    start, other = torch.randn(n, prior.d), torch.randn(n, prior.d)

    def solve(x, name, steps):
        return prior.standardise(prior.sample(x, codes, get_sampler(name), steps))

    truth, second = solve(start, "heun", 100), solve(other, "heun", 100)
    print(f"energy distance of two exact samples: {energy_distance(truth.numpy(), second.numpy()):.4f}")
    print("| sampler | steps | evaluations | rms distance (s.d.) | energy distance |\n|---|---|---|---|---|")
    for name, counts in STEPS.items():
        for steps in counts:
            x = solve(start, name, steps)
            rms = (x - truth).square().mean().sqrt()
            energy = energy_distance(x.numpy(), second.numpy())
            print(f"| {name} | {steps} | {steps * (2 if name == 'heun' else 1)} | {rms:.3f} | {energy:.4f} |")


if __name__ == "__main__":
    main()
