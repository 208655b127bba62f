"""The ends of the scale: many genes, many labels, other precisions, data that stays on the disk."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from anndata import AnnData
from scipy import sparse

from diffvi.datasets import simulate_cells
from diffvi.model import LatentDiffusionSCVI
from diffvi.module import LatentPrior
from diffvi.nn import Attribute
from diffvi.process import get_sampler
from tests.conftest import QUIET

SMALL = {"n_hidden": 8, "n_latent": 3, "denoiser_kwargs": {"width": 8, "depth": 1, "n_heads": 2}}
ONCE = {"max_epochs": 1, "max_epochs_diffusion": 1, **QUIET}


def test_sixty_thousand_genes():
    x = sparse.random(40, 60_000, 0.01, format="csr", rng=np.random.default_rng(0)).ceil().astype(np.float32)
    x[:, 0] = 1
    adata = AnnData(sparse.csr_matrix(x))
    LatentDiffusionSCVI.setup_anndata(adata)
    model = LatentDiffusionSCVI(adata, **SMALL)
    model.train(**ONCE)
    cells = model.generate(5, seed=0)
    assert cells.shape == (5, 60_000)
    np.testing.assert_allclose(cells.layers["normalized"].sum(1), 1, rtol=1e-3)


def test_five_thousand_labels():
    adata = simulate_cells(5_500, 5, n_types=2, mean_library=100)
    adata.obs["label"] = pd.Categorical([f"label {i % 5000}" for i in range(adata.n_obs)])
    LatentDiffusionSCVI.setup_anndata(adata, labels_key="label")
    model = LatentDiffusionSCVI(adata, **SMALL)
    model.train(**ONCE)
    wanted = [f"label {i}" for i in range(0, 5000, 50)]
    assert model.generate(100, {"label": wanted}, seed=0).obs["label"].tolist() == wanted


def test_libraries_from_one_to_a_million(trained):
    for size in (1.0, 1e6):
        cells = trained.generate(60, library_size=size, seed=0)
        total = np.asarray(cells.X.sum(1), dtype=float).mean()
        assert 0.5 * size < total < 2 * size
        assert np.isfinite(cells.layers["normalized"]).all()


@pytest.mark.parametrize("denoiser", ["dit", "mlp"])
def test_precisions_agree(denoiser):
    torch.manual_seed(0)
    prior = LatentPrior(6, [Attribute("label", 3)], denoiser, {"width": 32, "depth": 2})
    with torch.no_grad():
        # A denoiser as it starts gives zeros.
        for p in prior.parameters():
            p.add_(0.05 * torch.randn_like(p))
    start, codes = torch.randn(200, 6), torch.randint(3, (200, 1)).float()
    single = prior.sample(start, codes, get_sampler("heun"), 5)
    with torch.autocast("cpu", torch.bfloat16):
        half = prior.sample(start, codes, get_sampler("heun"), 5)
    double = prior.double().sample(start.double(), codes.double(), get_sampler("heun"), 5)
    assert double.dtype == torch.float64
    spread = float(double.std())
    assert float((single - double).abs().max()) < 1e-4 * spread
    assert 0 < float((half - double).abs().max()) < 0.05 * spread


def test_training_in_bfloat16():
    adata = simulate_cells(200, 20, n_types=2, mean_library=200)
    LatentDiffusionSCVI.setup_anndata(adata, labels_key="cell_type")
    model = LatentDiffusionSCVI(adata, **SMALL)
    model.train(max_epochs=3, max_epochs_diffusion=3, precision="bf16-mixed", **QUIET)
    assert np.isfinite(model.history["diffusion_loss_train"].to_numpy(float)).all()
    assert model.generate(5, seed=0).X.sum() > 0


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_data_on_disk_trains_as_in_memory(tmp_path, kind):
    adata = simulate_cells(150, 20, n_types=2, mean_library=200)
    if kind == "h5ad":
        adata.write_h5ad(tmp_path / "cells.h5ad")
        backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    else:
        adata.write_zarr(tmp_path / "cells.zarr")
        group = zarr.open_group(str(tmp_path / "cells.zarr"), mode="r")
        parts = {name: ad.io.read_elem(group[name]) for name in ("obs", "var")}
        backed = AnnData(ad.io.sparse_dataset(group["X"]), **parts)
    generated = []
    for data in (adata, backed):
        torch.manual_seed(0)
        np.random.seed(0)
        LatentDiffusionSCVI.setup_anndata(data, labels_key="cell_type")
        model = LatentDiffusionSCVI(data, **SMALL)
        model.train(**ONCE)
        generated.append(model.generate(20, seed=0))
        order = np.random.default_rng(0).permutation(150)
        np.testing.assert_allclose(
            model.get_prior_log_prob(indices=order), model.get_prior_log_prob()[order], rtol=1e-3, atol=1e-3
        )
    # Batches of backed data come sorted, so that sums round in another way.
    a, b = (cells.X.toarray() for cells in generated)
    assert np.corrcoef(a.mean(0), b.mean(0))[0, 1] > 0.99


def test_two_runs_are_identical():
    cells = []
    for _ in range(2):
        import scvi

        scvi.settings.seed = 3
        adata = simulate_cells(150, 20, n_types=2, mean_library=200)
        LatentDiffusionSCVI.setup_anndata(adata, labels_key="cell_type")
        model = LatentDiffusionSCVI(adata, **SMALL)
        model.train(max_epochs=2, max_epochs_diffusion=2, **QUIET)
        cells.append(model.generate(50, seed=0))
    assert (cells[0].X != cells[1].X).nnz == 0
    np.testing.assert_array_equal(cells[0].layers["normalized"], cells[1].layers["normalized"])
