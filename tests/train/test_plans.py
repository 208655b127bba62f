"""What the plans train, and what they refuse."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from scvi.module import VAE

from diffvi import InvalidInputError
from diffvi.datasets import simulate_cells
from diffvi.model import LatentDiffusionSCVI
from diffvi.module import LatentPrior
from diffvi.train import DiffusionTrainingPlan
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
