"""How low can the AUC be with so few training cells, even for a model whose form is exactly right?

Run: python benchmarks/estimation_limit.py pbmc_facs_zheng2017.h5ad

Cells are simulated from independent negative binomials per label (profiles and library sizes of the real cells, inverse
dispersion 10). The generator is that same model with every label's profile estimated from the simulated training cells: nothing
but sampling error separates it from the truth. "Oracle" generates from the true profiles.
"""

from __future__ import annotations

import sys
import warnings

import anndata as ad
import numpy as np
import torch

from diffvi.benchmark import split_cells
from diffvi.metrics import classifier_two_sample


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    train, test = split_cells(ad.read_h5ad(sys.argv[1]), "cell_type")
    x, labels = train.X.toarray(), train.obs["cell_type"].to_numpy(str)
    wanted = test.obs["cell_type"].to_numpy(str)
    names = np.unique(labels)
    library = {k: x[labels == k].sum(1) for k in names}
    everything = x.sum(0) / x.sum()
    # A tenth of the mean profile, so that no share is exactly zero.
    truth = {k: 0.9 * x[labels == k].sum(0) / x[labels == k].sum() + 0.1 * everything for k in names}

    def draw(kinds: np.ndarray, profiles: dict, rng: np.random.Generator, theta: float = 10.0) -> np.ndarray:
        counts = np.zeros((len(kinds), x.shape[1]))
        for k in names:
            rows = np.flatnonzero(kinds == k)
            mean = rng.choice(library[k], len(rows))[:, None] * profiles[k]
            counts[rows] = rng.poisson(rng.gamma(theta, mean / theta))
        return counts

    print("| training cells | profiles estimated, RF AUC | oracle, RF AUC |\n|---|---|---|")
    for n in (train.n_obs, 4 * train.n_obs):
        scores = []
        for seed in range(2):
            rng = np.random.default_rng(seed)
            kinds = rng.choice(labels, n)
            known, held_out = draw(kinds, truth, rng), draw(wanted, truth, rng)
            estimated = {k: known[kinds == k].sum(0) / known[kinds == k].sum() for k in names}
            made = [draw(wanted, profiles, rng) for profiles in (estimated, truth)]
            scores.append([classifier_two_sample(held_out, cells, seed=seed) for cells in made])
        mean, spread = np.mean(scores, 0), np.std(scores, 0)
        print(f"| {n} | {mean[0]:.3f} ± {spread[0]:.3f} | {mean[1]:.3f} ± {spread[1]:.3f} |", flush=True)


if __name__ == "__main__":
    main()
