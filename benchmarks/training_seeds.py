"""How far the scores of generated cells vary from one training to the next, on the benchmark's split and held-out cells.

Run: python benchmarks/training_seeds.py pbmc_facs_zheng2017.h5ad [--seeds 0 1 2]
     python benchmarks/training_seeds.py pbmc_2batches.h5ad --batch-key batch

Nothing is chosen by these: they are the scores of the defaults.
"""

from __future__ import annotations

import anndata as ad
import pandas as pd
import scvi
from training_length import parser_of_trainings

from diffvi.benchmark import split_cells
from diffvi.metrics import evaluate_generation
from diffvi.model import LatentDiffusionSCVI

SCORES = ["rf_auc_genes", "rf_auc_pca", "precision", "recall", "density", "coverage", "label_agreement"]


def main() -> None:
    arguments = parser_of_trainings(__doc__, seeds=[0, 1, 2], draws=2).parse_args()
    train, test = split_cells(ad.read_h5ad(arguments.data), "cell_type")
    asked = {k: test.obs[k].tolist() for k in ("cell_type", arguments.batch_key) if k}
    rows = {}
    for seed in arguments.seeds:
        scvi.settings.seed = seed
        LatentDiffusionSCVI.setup_anndata(train, labels_key="cell_type", batch_key=arguments.batch_key)
        model = LatentDiffusionSCVI(train)
        model.train(train_size=1.0, enable_progress_bar=False)
        draws = [
            evaluate_generation(
                test, model.generate(test.n_obs, asked, seed=k), train, "cell_type", n_resamples=0, floor=False, seed=k
            )["value"]
            for k in range(arguments.draws)
        ]
        rows[seed] = pd.concat(draws, axis=1).mean(axis=1)[SCORES]
        print(seed, rows[seed].round(3).to_dict(), flush=True)
    print(pd.DataFrame(rows).T.agg(["mean", "std"]).round(3).to_string())


if __name__ == "__main__":
    main()
