"""Training on cells that a data module of scvi-tools brings."""

from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch import LightningDataModule

from diffvi import InvalidInputError
from diffvi.datasets import simulate_cells, simulate_tissue
from diffvi.model import LatentDiffusionSCVI, SpatialDiffusion, TrajectoryDiffusion
from tests.conftest import QUIET


class Cells(LightningDataModule):
    """As those of scvi-tools: minibatches with codes of its own, in an order of its own."""

    unlabeled_category = "Unknown"

    def __init__(self, adata, n_val=20):
        super().__init__()
        self.x = torch.tensor(adata.X.toarray(), dtype=torch.float32)
        self.batch_labels = np.array(sorted(set(adata.obs["batch"]), reverse=True))
        self.labels_mapping = np.array([*sorted(set(adata.obs["cell_type"]), reverse=True), "Unknown"])
        self.batch = torch.tensor([list(self.batch_labels).index(b) for b in adata.obs["batch"]])
        self.labels = torch.tensor([list(self.labels_mapping).index(b) for b in adata.obs["cell_type"]])
        self.n_obs, self.n_vars, self.n_batch, self.n_val = *adata.shape, len(self.batch_labels), n_val
        self.batch_size = 32

    def train_dataloader(self):
        return torch.utils.data.DataLoader(range(self.n_val, len(self.x)), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(range(self.n_val), batch_size=self.batch_size)

    def on_before_batch_transfer(self, rows, dataloader_idx):
        return {"X": self.x[rows], "batch": self.batch[rows][:, None], "labels": self.labels[rows][:, None]}


@pytest.fixture(scope="module")
def many():
    """300 cells of three types in two batches."""
    return simulate_cells(300, 30, n_types=3, n_batches=2, mean_library=300, seed=1)


def _model(adata, **setup):
    scvi.settings.seed = 0
    LatentDiffusionSCVI.setup_anndata(adata, **({"labels_key": "cell_type", "batch_key": "batch"} | setup))
    return LatentDiffusionSCVI(adata, n_hidden=32, n_latent=4, denoiser="mlp")


def test_a_model_of_a_sample_trains_on_the_cells_of_a_data_module(many, tmp_path):
    sample = many[:40].copy()
    model = _model(sample)
    model.train(max_epochs=60, max_epochs_diffusion=100, datamodule=Cells(many), plan_kwargs={"lr": 5e-3}, **QUIET)
    assert {"elbo_train", "elbo_validation", "diffusion_loss_validation"} <= model.history_.keys()
    assert len(model.training_table_["batch"]) == 280
    assert sorted(np.unique(model.training_table_["codes"][:, 0], return_counts=True)[1]) == sorted(
        many.obs["cell_type"][20:].value_counts()
    )
    # Its codes are in another order than the model's: types would be swapped if they were not translated.
    made = model.generate(300, {"cell_type": many.obs["cell_type"]}, seed=0)
    means = [
        [
            np.asarray(a[(a.obs["cell_type"] == t).to_numpy()].X.mean(0)).ravel()
            for t in sorted(set(many.obs["cell_type"]))
        ]
        for a in (many, made)
    ]
    nearest = [int(np.argmin([np.abs(g - r).sum() for r in means[0]])) for g in means[1]]
    assert nearest == [0, 1, 2]
    model.save(str(tmp_path / "model"))
    again = LatentDiffusionSCVI.load(str(tmp_path / "model"), adata=sample)
    assert (again.generate(5, seed=1).X != model.generate(5, seed=1).X).nnz == 0


def test_cells_without_a_label_have_no_condition(many):
    cells = Cells(many)
    cells.labels[30:50] = len(cells.labels_mapping) - 1
    cells.labels[50:60] = -1
    model = _model(many.copy())
    model.train(max_epochs=1, max_epochs_diffusion=1, datamodule=cells, **QUIET)
    assert int(np.isnan(model.training_table_["codes"][:, 0]).sum()) == 30
    assert not np.isnan(model.training_table_["codes"][:, 1]).any()


def test_progress_is_kept_and_found_again(many, tmp_path):
    for _ in range(2):
        model = _model(many[:40].copy())
        cells = Cells(many)
        model.train(max_epochs=2, max_epochs_diffusion=2, datamodule=cells, ckpt_path=tmp_path / "run", **QUIET)
    with pytest.raises(InvalidInputError, match="progress of another training"):
        _model(many[:40].copy()).train(max_epochs=2, max_epochs_diffusion=2, ckpt_path=tmp_path / "run", **QUIET)
    with pytest.raises(InvalidInputError, match="progress of another training"):
        model.train_diffusion(max_epochs=2, ckpt_path=tmp_path / "run", **QUIET)
    assert len(model.history_["elbo_train"]) == 2


def test_names_are_those_behind_the_codes_whatever_their_order(many):
    """An encoder says what codes mean; and a category without a cell is one for scvi alone."""
    cells, sample = Cells(many), many[:40].copy()
    cells.batch_encoder = SimpleNamespace(classes_=cells.batch_labels)
    cells.batch_labels = cells.batch_labels[::-1]
    sample.obs["batch"] = sample.obs["batch"].astype("category").cat.set_categories(["aaa", "batch_0", "batch_1"])
    model = _model(sample)
    model.train(max_epochs=1, max_epochs_diffusion=1, datamodule=cells, **QUIET)
    codes, scvi_codes = model.training_table_["codes"][:, 1], model.training_table_["batch"]
    assert [int((codes == i).sum()) for i in (0, 1)] == [(many.obs["batch"][20:] == f"batch_{i}").sum() for i in (0, 1)]
    np.testing.assert_array_equal(scvi_codes, codes + 1)


class Endless(torch.utils.data.IterableDataset):
    """Rows without a length."""

    def __iter__(self):
        return iter(range(20, 300))


def test_without_validation_and_lengths(many):
    class Bare(Cells):
        val_dataloader = LightningDataModule.val_dataloader

        def train_dataloader(self):
            return torch.utils.data.DataLoader(Endless(), batch_size=32)

    cells = Bare(many)
    del cells.n_val
    model = _model(many[:40].copy())
    model.train(max_epochs=1, max_epochs_diffusion=1, datamodule=cells, **QUIET)
    assert len(model.training_table_["batch"]) == 280
    assert "elbo_validation" not in model.history_


def _spoilt(many, **values):
    cells = Cells(many)
    for name, value in values.items():
        setattr(cells, name, value)
    return cells


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_vars": 31}, "has 31 genes, and the model has 30"),
        ({"batch_labels": np.array(["batch_1", "elsewhere"])}, "that the model knows .*got 'elsewhere'"),
        ({"labels_mapping": []}, "`labels_mapping` must name values of 'cell_type'"),
        ({"var_names": list("ba") + [str(i) for i in range(28)]}, "gene 0 is 'b' and not"),
        ({"batch": torch.full((300,), 7)}, r"must have as many 'batch' codes from 0 to 1; got 32 of them, 7"),
        ({"batch": torch.full((300,), -1)}, r"'batch' codes from 0 to 1; got 32 of them, -1"),
        ({"labels": torch.full((300,), -2)}, r"'labels' codes from -1 to 3; got 32 of them, -2"),
        ({"train_dataloader": list}, "gives no cell to train on"),
        ({"n_obs": 100}, "more cells than the 100"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(many, values, message):
    model = _model(many[:40].copy())
    with pytest.raises(InvalidInputError, match=message):
        model.train(max_epochs=1, max_epochs_diffusion=1, datamodule=_spoilt(many, **values), **QUIET)


def test_what_a_data_module_does_not_tell_is_refused(many):
    sample = many[:40].copy()
    model = _model(sample, condition_keys=["score"])
    with pytest.raises(InvalidInputError, match="also needs 'score'"):
        model.train(max_epochs=1, datamodule=Cells(many), **QUIET)
    sample.obs["time"] = np.repeat([0.0, 1.0], 20)
    TrajectoryDiffusion.setup_anndata(sample, time_key="time", labels_key="cell_type")
    with pytest.raises(InvalidInputError, match="`datamodule`"):
        TrajectoryDiffusion(sample).train(max_epochs=1, datamodule=Cells(many), **QUIET)
    SpatialDiffusion.setup_anndata(tissue := simulate_tissue(60, 30, seed=0), labels_key=None)
    with pytest.raises(InvalidInputError, match="`datamodule`: SpatialDiffusion learns from more"):
        SpatialDiffusion(tissue).train(max_epochs=1, datamodule=Cells(many), **QUIET)
    with pytest.raises(InvalidInputError, match="also needs 'extra_categorical_covs'"):
        _model(sample, categorical_covariate_keys=["cell_type"]).train(max_epochs=1, datamodule=Cells(many), **QUIET)
    with pytest.raises(InvalidInputError, match="`strategy='ddp'`: with `datamodule`"):
        _model(sample).train(max_epochs=1, datamodule=Cells(many), strategy="ddp", **QUIET)
    with pytest.raises(InvalidInputError, match=r"has no `n_obs`"):
        _model(many[:40].copy()).train(max_epochs=1, datamodule=LightningDataModule(), **QUIET)
    with pytest.raises(InvalidInputError, match=r"`train_size=0.5` .*: Cells has its own split"):
        _model(many[:40].copy()).train(max_epochs=1, train_size=0.5, datamodule=Cells(many), **QUIET)


def test_annbatch(many, tmp_path):
    annbatch = pytest.importorskip("annbatch", reason="annbatch needs Python 3.12")
    AnnbatchDataModule = getattr(pytest.importorskip("scvi.dataloaders"), "AnnbatchDataModule", None)
    if AnnbatchDataModule is None:
        pytest.skip("scvi-tools 1.4 has no data module of annbatch")

    for i, rows in enumerate((slice(0, 150), slice(150, 300))):
        many[rows].copy().write_zarr(tmp_path / f"{i}.zarr")
    loader = annbatch.Loader(chunk_size=10, preload_nchunks=4, batch_size=20, preload_to_gpu=False)
    loader.add_adatas([ad.read_zarr(tmp_path / f"{i}.zarr") for i in range(2)])
    cells = AnnbatchDataModule(
        loader, batch_key="batch", label_key="cell_type", chunk_size=10, preload_nchunks=4, preload_to_gpu=False
    )
    model = _model(many[:40].copy())
    model.train(max_epochs=2, max_epochs_diffusion=2, datamodule=cells, **QUIET)
    assert len(model.training_table_["batch"]) == 270
    assert "elbo_validation" in model.history_
