"""Few steps instead of many."""

import numpy as np
import pytest
import torch

from diffvi import InvalidInputError, NotTrainedError
from diffvi.model import LatentDiffusionSCVI
from diffvi.module import LatentPrior, distil
from diffvi.nn import Attribute
from diffvi.process import get_sampler
from tests.conftest import QUIET


def rms(a, b):
    return float((a - b).square().mean().sqrt())


@pytest.mark.parametrize("process", ["linear", "vp_cosine"])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_the_student_arrives_where_the_teacher_does(process, n_steps):
    torch.manual_seed(0)
    prior = LatentPrior(2, [Attribute("label", 2)], denoiser_kwargs={"width": 32, "depth": 2}, process=process)
    labels = torch.randint(2, (2000, 1)).float()
    data = torch.randn(2000, 2) * 0.3 + torch.where(labels > 0, 2.0, -2.0)
    prior.fit_standardiser(data, torch.zeros_like(data))
    optimizer = torch.optim.Adam(prior.denoiser.parameters(), 3e-3)
    for _ in range(400):
        rows = torch.randint(2000, (128,))
        loss = prior.loss(data[rows], torch.zeros(128, 2), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        prior.update_ema()
    prior.eval()
    few = distil(prior, labels, n_steps, range(300), 256, 2e-3, seed=0)
    start, codes = torch.randn(500, 2), torch.randint(2, (500, 1)).float()
    truth = prior.sample(start, codes, get_sampler("heun"), 30)
    student = prior.sample(start, codes, get_sampler("ddim"), n_steps, network=few.denoiser)
    plain = prior.sample(start, codes, get_sampler("ddim"), n_steps)
    assert rms(student, truth) < 0.4 * rms(plain, truth)
    assert ((student[:, 0] > 0) == (codes[:, 0] > 0)).float().mean() > 0.97


def test_the_seed_decides_the_student_even_of_a_prior_with_dropout():
    prior = LatentPrior(2, [Attribute("label", 2)], "mlp", {"width": 16, "depth": 1, "dropout": 0.5})
    # Networks start at zero, which no dropout changes.
    torch.nn.init.normal_(prior.ema.module.backbone.out.weight)
    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        made.append(distil(prior, torch.tensor([[0.0], [1.0]]), 2, range(3), 8, 1e-2, seed=0).state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_distilled_models_generate_are_saved_and_forget(trained, tmp_path):
    trained.save(str(tmp_path / "plain"))
    model = LatentDiffusionSCVI.load(str(tmp_path / "plain"), adata=trained.adata.copy())
    with pytest.raises(InvalidInputError, match=r'`sampler`: "distilled" needs `model.distill\(\)` first'):
        model.generate(3, sampler="distilled")
    model.distill(n_steps=2, n_updates=150, batch_size=256, show_progress=False)
    asked = {"conditions": {"cell_type": "type_1"}, "sampler": "distilled", "seed": 0}
    cells = model.generate(200, **asked)
    assert cells.uns["diffvi"]["n_steps"] == 2
    usual = model.generate(200, {"cell_type": "type_1"}, seed=0)
    # The same noise goes to nearly the same cells.
    near = [np.corrcoef(a, b)[0, 1] for a, b in zip(cells.obsm["X_latent"].T, usual.obsm["X_latent"].T, strict=True)]
    assert np.mean(near) > 0.9
    model.save(str(tmp_path / "distilled"))
    loaded = LatentDiffusionSCVI.load(str(tmp_path / "distilled"), adata=False)
    assert (loaded.generate(200, **asked).X != cells.X).nnz == 0
    # A query's prior is trained further, so surgery leaves behind what was distilled; the reference keeps it.
    for reference in (model, str(tmp_path / "distilled")):
        query = trained.adata[:60].copy()
        query.obs["batch"] = "new"
        updated = LatentDiffusionSCVI.load_query_data(query, reference)
        assert updated.module.prior.few_steps is None
    assert (model.generate(200, **asked).X != cells.X).nnz == 0
    for change, message in (
        ({"n_steps": 5}, "`n_steps` must be None or 2"),
        ({"guidance_scale": 2.0}, "`guidance_scale` must be 1"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            model.generate(3, **asked, **change)
    model.train_diffusion(max_epochs=1, **QUIET)
    assert model.module.prior.few_steps is None


def test_bad_arguments_get_a_sentence(trained):
    for kwargs, message in (
        ({"n_steps": 0}, "`n_steps` must be a whole number of at least 1"),
        ({"n_updates": "many"}, "`n_updates` must be a whole number"),
        ({"lr": -1}, "`lr` must be between 0 and 1"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            trained.distill(**kwargs)
    LatentDiffusionSCVI.setup_anndata(adata := trained.adata.copy())
    with pytest.raises(NotTrainedError, match="diffusion stage"):
        LatentDiffusionSCVI(adata).distill()
