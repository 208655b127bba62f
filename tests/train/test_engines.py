"""Training on several processes (Lightning DDP), and in search of hyperparameters (Ray Tune)."""

import json
import subprocess
import sys

import numpy as np
import pytest

from diffvi.datasets import simulate_cells
from diffvi.model import LatentDiffusionSCVI

SCRIPT = """
import json, logging, sys, warnings
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
import scvi, torch
torch.set_num_threads(1)
from diffvi.datasets import simulate_cells
from diffvi.model import LatentDiffusionSCVI

if __name__ == "__main__":
    n, folder = int(sys.argv[1]), sys.argv[2]
    scvi.settings.seed = 0
    adata = simulate_cells(600, 40, n_types=3, mean_library=400, seed=1)
    LatentDiffusionSCVI.setup_anndata(adata, labels_key="cell_type")
    model = LatentDiffusionSCVI(adata, n_hidden=64, n_latent=5)
    many = {"strategy": "ddp_find_unused_parameters_true", "devices": n} if n > 1 else {}
    model.train(
        max_epochs=30, max_epochs_diffusion=30, batch_size=64 // n, batch_size_diffusion=64 // n, accelerator="cpu",
        enable_progress_bar=False, ckpt_path=f"{folder}/run", **many,
    )
    if n == 1 or torch.distributed.get_rank() == 0:
        model.save(f"{folder}/model")
        curves = {name: [float(v) for v in table.iloc[:, 0]] for name, table in model.history.items()}
        json.dump(curves, open(f"{folder}/history.json", "w"))
"""


def test_two_processes_train_what_one_trains(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    curves, models = {}, {}
    for n in (1, 2):
        folder = tmp_path / str(n)
        folder.mkdir()
        subprocess.run([sys.executable, str(tmp_path / "script.py"), str(n), str(folder)], check=True, timeout=150)
        curves[n] = json.loads((folder / "history.json").read_text())
        models[n] = LatentDiffusionSCVI.load(str(folder / "model"), adata=False)
    assert curves[1].keys() == curves[2].keys()
    for name, tolerance in (("elbo_train", 0.02), ("elbo_validation", 0.05), ("diffusion_loss_train", 0.15)):
        a, b = (np.mean(curves[n][name][-10:]) for n in (1, 2))
        assert len(curves[1][name]) == len(curves[2][name]) == 30
        assert abs(a - b) < tolerance * a
    np.testing.assert_array_equal(np.sort(models[1].train_indices), np.sort(models[2].train_indices))
    a, b = (m.generate(400, seed=0).X.toarray() for m in models.values())
    assert np.corrcoef(a.mean(0), b.mean(0))[0, 1] > 0.98
    assert abs(np.log(a.sum(1).mean() / b.sum(1).mean())) < 0.1


@pytest.mark.slow
def test_autotune_reports_the_second_stage(tmp_path):
    tune = pytest.importorskip("ray.tune", reason="`pip install diffvi[tune]`")
    pytest.importorskip("hyperopt", reason="`pip install diffvi[tune]`")
    import ray
    from scvi.autotune import run_autotune

    adata = simulate_cells(200, 20, n_types=2, mean_library=200)
    LatentDiffusionSCVI.setup_anndata(adata, labels_key="cell_type")
    space = {
        "model_params": {"n_latent": tune.choice([3, 5]), "n_hidden": 16},
        "train_params": {"max_epochs": 2, "max_epochs_diffusion": 3},
    }
    try:
        found = run_autotune(
            LatentDiffusionSCVI, adata, "diffusion_loss_validation", "min", space, 2, searcher="random", seed=0,
            resources={"cpu": 1}, logging_dir=str(tmp_path),
        )  # fmt: skip
        scores = found.result_grid.get_dataframe()["diffusion_loss_validation"]
    finally:
        ray.shutdown()
    assert len(scores) == 2
    assert np.isfinite(scores).all()
