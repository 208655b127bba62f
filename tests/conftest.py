"""Tiny data and models that the tests share."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import pytest
import scvi
import torch
from anndata import AnnData

from diffvi.datasets import simulate_cells
from diffvi.model import LatentDiffusionSCVI

for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
    logging.getLogger(name).setLevel(logging.ERROR)

QUIET = {"enable_progress_bar": False}


@pytest.fixture(autouse=True)
def _same_start():
    scvi.settings.seed = 0
    # Scanpy's compiled kernels leave torch's OpenMP pool at all cores, so this is for every test.
    torch.set_num_threads(1)


@pytest.fixture
def cells() -> AnnData:
    """A fresh copy of simulated cells: 300 x 40, three types, two batches, one numeric attribute."""
    return simulate_cells(300, 40, n_types=3, n_batches=2, mean_library=400, seed=1)


@pytest.fixture(scope="session")
def trained() -> LatentDiffusionSCVI:
    """A briefly but properly trained model on simulated cells; tests must not change it."""
    scvi.settings.seed = 0
    torch.set_num_threads(1)
    adata = simulate_cells(600, 40, n_types=3, n_batches=2, mean_library=400, seed=1)
    LatentDiffusionSCVI.setup_anndata(adata, labels_key="cell_type", batch_key="batch", condition_keys=["score"])
    model = LatentDiffusionSCVI(adata, n_hidden=64, n_latent=5, denoiser_kwargs={"depth": 2})
    model.train(
        max_epochs=150,
        max_epochs_diffusion=300,
        batch_size=64,
        batch_size_diffusion=128,
        plan_kwargs={"lr": 4e-3, "dispersion_lr": 0.04},
        **QUIET,
    )
    return model


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of real data named by DIFFVI_DATA; skips where it is not set."""
    folder = os.environ.get("DIFFVI_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DIFFVI_DATA does not name a folder of real data")
    return Path(folder)
