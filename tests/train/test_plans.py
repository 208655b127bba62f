"""What the plans train, and what they refuse."""

import copy

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from lightning.pytorch import Callback, Trainer
from scvi.module import VAE
from scvi.train import TrainingPlan

from diffvi import InvalidInputError
from diffvi.datasets import simulate_cells
from diffvi.model import LatentDiffusionSCVI
from diffvi.module import LatentPrior
from diffvi.train import DiffusionTrainingPlan, VAETrainingPlan
from diffvi.train._plans import adamw
from tests.conftest import QUIET


class Watch(Callback):
    """Keeps the weights of the classifier of labels as they start and end."""

    def on_train_start(self, trainer, module):
        self.first = copy.deepcopy(module.label_classifier.state_dict())

    def on_train_end(self, trainer, module):
        self.last = module.label_classifier.state_dict()


@pytest.mark.parametrize(
    "plan_kwargs",
    [
        {},
        {"reduce_lr_on_plateau": True, "lr_min": 1e-5},
        {"optimizer": "Custom", "optimizer_creator": lambda parameters: torch.optim.SGD(parameters, lr=1e-3)},
    ],
)
def test_the_classifier_of_labels_is_trained_by_every_optimiser(plan_kwargs):
    adata = simulate_cells(60, 12, n_types=2, mean_library=200)
    LatentDiffusionSCVI.setup_anndata(adata, labels_key="cell_type")
    model = LatentDiffusionSCVI(adata, n_hidden=8, n_latent=3)
    watch = Watch()
    model.train_vae(max_epochs=2, plan_kwargs=plan_kwargs, callbacks=[watch], **QUIET)
    assert all((watch.first[name] != watch.last[name]).any() for name in ("weight", "bias"))


def plan(**kwargs):
    vae = VAE(10, n_latent=3)
    vae.prior = LatentPrior(4, denoiser_kwargs={"width": 16, "depth": 1, "n_heads": 2})
    return DiffusionTrainingPlan(vae, **kwargs)


def test_the_epsilon_of_the_diffusion_stage_may_be_given():
    assert plan().eps == 1e-8
    assert plan(eps=1e-6).eps == 1e-6


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"reduce_lr_on_plateau": True}, "`reduce_lr_on_plateau` must be False in the diffusion stage, .*; got True"),
        ({"optimizer": "Custom"}, "`optimizer` must be 'AdamW' in the diffusion stage, .*; got 'Custom'"),
    ],
)
def test_what_the_diffusion_stage_does_not_have_is_refused(kwargs, message):
    with pytest.raises(InvalidInputError, match=message):
        plan(**kwargs)
    plan(reduce_lr_on_plateau=False)


def _trained(**kwargs):
    scvi.settings.seed = 0
    adata = simulate_cells(120, 12, n_types=2, mean_library=200)
    LatentDiffusionSCVI.setup_anndata(adata, labels_key="cell_type")
    model = LatentDiffusionSCVI(adata, n_hidden=8, n_latent=3)
    model.train(max_epochs=3, max_epochs_diffusion=3, batch_size=32, check_val_every_n_epoch=1, **kwargs, **QUIET)
    return model


def test_metrics_that_are_handed_on_once_an_epoch_are_those_of_every_batch(monkeypatch):
    ours = _trained().history_
    monkeypatch.setattr(VAETrainingPlan, "log_dict", TrainingPlan.log_dict)
    every_batch = _trained().history_
    assert ours.keys() == every_batch.keys()
    assert {"elbo_train", "reconstruction_loss_train", "kl_local_train", "elbo_validation"} <= ours.keys()
    for name, values in ours.items():
        pd.testing.assert_frame_equal(values, every_batch[name])


def test_compiled_stages_learn_the_same_and_leave_a_plain_model():
    compiled = {"compile": True, "compile_kwargs": {"backend": "eager"}}
    plain, other = _trained(), _trained(plan_kwargs=dict(compiled), diffusion_plan_kwargs=dict(compiled))
    for name in ("elbo_train", "diffusion_loss_train"):
        np.testing.assert_allclose(*(m.history_[name].to_numpy(float) for m in (other, plain)), rtol=1e-4)
    state = other.module.state_dict()
    assert list(state) == list(plain.module.state_dict())
    assert (copy.deepcopy(other).generate(5, seed=0).X != plain.generate(5, seed=0).X).nnz <= 1


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("bf16-mixed", False)])
def test_the_fused_update_is_left_out_where_gradients_could_not_be_clipped(precision, fused):
    trainer = Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False)
    assert adamw([torch.nn.Parameter(torch.zeros(1))], trainer, lr=0.1).defaults["fused"] is fused
