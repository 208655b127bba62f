"""Training that is cut off, and training that cannot go on."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch import Callback

from diffvi import InvalidInputError, OutOfMemoryError, OutputFileError, TrainingError
from diffvi.datasets import simulate_cells, simulate_tissue
from diffvi.model import LatentDiffusionSCVI, SpatialDiffusion
from diffvi.module import LatentPrior
from tests.conftest import QUIET

SMALL = {"n_hidden": 16, "n_latent": 4, "denoiser_kwargs": {"width": 16, "depth": 1, "n_heads": 2}}
EPOCHS = {"max_epochs": 6, "max_epochs_diffusion": 6, "ckpt_every_n_epochs": 1, **QUIET}


def new(n_obs=120):
    adata = simulate_cells(n_obs, 20, n_types=2, mean_library=200)
    LatentDiffusionSCVI.setup_anndata(adata, labels_key="cell_type")
    return LatentDiffusionSCVI(adata, **SMALL)


class StopAt(Callback):
    """Cuts a stage off in the middle of an epoch."""

    def __init__(self, stage, epoch):
        self.stage, self.epoch = stage, epoch

    def on_train_batch_end(self, trainer, module, *args):
        if type(module).__name__.startswith(self.stage) and trainer.current_epoch == self.epoch:
            raise RuntimeError("power cut")


@pytest.mark.parametrize(("stage", "epoch", "first"), [("VAE", 3, 3), ("Diffusion", 4, 4), ("VAE", 0, 0)])
def test_training_goes_on_where_it_was_cut_off(tmp_path, stage, epoch, first):
    model = new()
    with pytest.raises(RuntimeError, match="power cut"):
        model.train(**EPOCHS, ckpt_path=tmp_path / "run", callbacks=[StopAt(stage, epoch)])
    split = model.train_indices

    started = []

    class Note(Callback):
        def on_train_epoch_start(self, trainer, module):
            started.append((type(module).__name__[:3], trainer.current_epoch))

    scvi.settings.seed = 7
    again = new()
    again.train(**EPOCHS, ckpt_path=tmp_path / "run", callbacks=[Note()])
    assert started[0] == (stage[:3], first)
    assert started[-1] == ("Dif", 5)
    # The other seed would have split the cells in another way.
    if split is not None:
        np.testing.assert_array_equal(np.sort(again.train_indices), np.sort(split))
    for name in ("elbo_train", "diffusion_loss_train"):
        curve = again.history[name]
        assert curve.index.tolist() == list(range(6))
        assert np.isfinite(curve.to_numpy(float)).all()
    assert {s["status"] for s in again.stages_.values()} == {"done"}
    # All is done: nothing is trained, and the model is the same.
    started.clear()
    third = new()
    third.train(**EPOCHS, ckpt_path=tmp_path / "run", callbacks=[Note()])
    assert started == []
    assert (third.generate(5, seed=0).X != again.generate(5, seed=0).X).nnz == 0
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["diffusion", "diffusion.json", "vae", "vae.json"]


def test_what_models_fit_after_training_is_kept_too(tmp_path):
    class Brief(SpatialDiffusion):
        KRIGING_STEPS = 2

    models = []
    for _ in range(2):
        adata = simulate_tissue(60, 15, seed=0)
        Brief.setup_anndata(adata)
        models.append(Brief(adata, n_neighbors=4, **SMALL))
        models[-1].train(max_epochs=1, max_epochs_diffusion=1, ckpt_path=tmp_path / "run", **QUIET)
    a, b = (m.generate_at_location([[3.0, 3.0]], return_mean=True).X for m in models)
    np.testing.assert_array_equal(a, b)


def test_the_second_stage_alone_goes_on_with_the_same_cells(tmp_path):
    first = new()
    first.train_vae(max_epochs=1, **QUIET)
    first.save(str(tmp_path / "model"))

    def loaded(seed):
        scvi.settings.seed = seed
        return LatentDiffusionSCVI.load(
            str(tmp_path / "model"), adata=simulate_cells(60, 20, n_types=2, mean_library=200)
        )

    model, asked = loaded(1), {"max_epochs": 4, "ckpt_path": tmp_path / "run", "ckpt_every_n_epochs": 1, **QUIET}
    with pytest.raises(RuntimeError, match="power cut"):
        model.train_diffusion(callbacks=[StopAt("Diffusion", 2)], **asked)
    table = model.training_table_["log_library"]
    again = loaded(2)
    again.train_diffusion(**asked)
    np.testing.assert_array_equal(again.training_table_["log_library"], table)


def test_other_labels_are_another_training(tmp_path):
    new().train(**EPOCHS, ckpt_path=tmp_path / "run")
    adata = simulate_cells(120, 20, n_types=2, mean_library=200)
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories(["x", "y"])
    LatentDiffusionSCVI.setup_anndata(adata, labels_key="cell_type")
    with pytest.raises(InvalidInputError, match="which differs in setup;"):
        LatentDiffusionSCVI(adata, **SMALL).train(**EPOCHS, ckpt_path=tmp_path / "run")
    adata = simulate_cells(120, 20, n_types=2, mean_library=200, seed=5)
    LatentDiffusionSCVI.setup_anndata(adata, labels_key="cell_type")
    with pytest.raises(InvalidInputError, match="which differs in counts;"):
        LatentDiffusionSCVI(adata, **SMALL).train(**EPOCHS, ckpt_path=tmp_path / "run")


def test_progress_of_another_training_is_refused(tmp_path):
    new().train(**EPOCHS, ckpt_path=tmp_path / "run")
    with pytest.raises(
        InvalidInputError, match="progress of another training of the vae stage, which differs in max_epochs;"
    ):
        new().train(**{**EPOCHS, "max_epochs": 7}, ckpt_path=tmp_path / "run")
    with pytest.raises(InvalidInputError, match="which differs in cells, counts;"):
        new(130).train(**EPOCHS, ckpt_path=tmp_path / "run")
    with pytest.raises(InvalidInputError, match="`ckpt_every_n_epochs` must be a whole number"):
        new().train(**{**EPOCHS, "ckpt_every_n_epochs": 0}, ckpt_path=tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputFileError, match="`ckpt_path`: cannot write to"):
        new().train(**EPOCHS, ckpt_path=tmp_path / "file")


SCRIPT = """
import logging, sys, warnings
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
import torch
torch.set_num_threads(1)
from tests.train.test_progress import new
model = new()
print("ready", flush=True)
model.train(max_epochs=25, max_epochs_diffusion=25, ckpt_path=sys.argv[1], ckpt_every_n_epochs=1, enable_progress_bar=False)
print("end", flush=True)
"""


def test_kills_at_any_moment_lose_one_epoch_at_most(tmp_path):
    folder, rng, ended = tmp_path / "run", np.random.default_rng(1), False
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE, text=True)
        assert any(line.strip() == "ready" for line in process.stdout)
        try:
            process.wait(timeout=float(rng.uniform(0.5, 2.5)))
            ended = "end" in process.stdout.read()
            break
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        for file in folder.glob("*.ckpt"):
            assert "state_dict" in torch.load(file, weights_only=True)
        for stage in ("vae", "diffusion"):
            if (folder / stage / "model.pt").exists():
                LatentDiffusionSCVI.load(str(folder / stage), adata=False)
    model = new()
    model.train(max_epochs=25, max_epochs_diffusion=25, ckpt_path=folder, ckpt_every_n_epochs=1, **QUIET)
    assert ended or len(model.history["elbo_train"]) == 25
    assert len(model.history["diffusion_loss_train"]) == 25


# ---------------------------------------------------------------- what stops training


def test_a_broken_loss_stops_and_keeps_good_weights(monkeypatch):
    model, loss, calls = new(), LatentPrior.loss, []

    def breaks(self, *args):
        calls.append(1)
        value = loss(self, *args)
        return value * float("nan") if self.training and len(calls) > 6 else value

    monkeypatch.setattr(LatentPrior, "loss", breaks)
    with pytest.raises(
        TrainingError,
        match=r"The loss of the diffusion stage became nan in epoch \d, on a batch whose largest values are .*'mean'",
    ):
        model.train(max_epochs=2, max_epochs_diffusion=20, check_val_every_n_epoch=100, **QUIET)
    assert all(v.isfinite().all() for v in model.module.state_dict().values() if isinstance(v, torch.Tensor))
    assert model.stages_["diffusion"]["status"] == "interrupted"
    monkeypatch.undo()
    assert model.generate(3, seed=0).n_obs == 3


def test_broken_weights_are_not_kept(tmp_path):
    class Break(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            if trainer.current_epoch == 2:
                with torch.no_grad():
                    next(module.module.parameters()).fill_(float("nan"))

    model = new()
    with pytest.raises(
        TrainingError,
        match=r"The loss of the vae stage became nan .* largest count is .* The model has the weights of the end of epoch 2",
    ):
        model.train_vae(max_epochs=6, batch_size=32, callbacks=[Break()], **QUIET)
    assert all(v.isfinite().all() for v in model.module.state_dict().values() if isinstance(v, torch.Tensor))


def test_short_memory_names_what_to_lower(trained, monkeypatch):
    def short(*args, **kwargs):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(LatentPrior, "loss", short)
    monkeypatch.setattr(LatentPrior, "sample", short)
    model = new()
    model.train_vae(max_epochs=1, **QUIET)
    with pytest.raises(OutOfMemoryError, match="The memory does not suffice for `batch_size=64`: lower it"):
        model.train_diffusion(max_epochs=1, batch_size=64, **QUIET)
    with pytest.raises(OutOfMemoryError, match="The memory does not suffice for `batch_size=500`: lower it"):
        trained.generate(5, seed=0, batch_size=500)
