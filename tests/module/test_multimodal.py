from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from scvi.distributions import NegativeBinomialMixture

from diffvi.module import KernelPath, LatentPrior, MultimodalVAE, ProteinFeatures, RNAFeatures
from diffvi.nn import Attribute


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return MultimodalVAE(12, 4, n_batch=2, n_labels=1, n_hidden=8, n_latent=3).eval()


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    x, y = rng.poisson(3.0, (6, 12)), rng.poisson(30.0, (6, 4)).astype(float)
    y[4], y[0, 1] = np.nan, np.nan
    batch = torch.tensor([0, 0, 0, 1, 1, 1]).view(-1, 1)
    return {
        "X": torch.tensor(x, dtype=torch.float32),
        "proteins": torch.tensor(y, dtype=torch.float32),
        "batch": batch,
        "labels": torch.zeros(6, 1, dtype=torch.long),
    }


def test_a_cell_is_encoded_from_what_it_has(vae, tensors):
    inputs = vae._get_inference_input(tensors)
    outputs = vae.inference(**inputs)
    q = {v: vae.posterior(v, tensors["X"], tensors["proteins"], tensors["batch"]) for v in ("both", "rna", "protein")}
    rows = [0, 1, 2, 3, 5]
    torch.testing.assert_close(outputs["qz"].loc[rows], q["both"].loc[rows])
    torch.testing.assert_close(outputs["qz"].loc[4], q["rna"].loc[4])
    alone = vae.inference(**inputs, view="protein")["qz"]
    torch.testing.assert_close(alone.loc[rows], q["protein"].loc[rows])
    torch.testing.assert_close(alone.loc[4], q["rna"].loc[4])


def test_a_missing_protein_is_not_a_zero(vae, tensors):
    zero = {**tensors, "proteins": tensors["proteins"].nan_to_num(0.0)}
    a, b = (vae.posterior("protein", None, t["proteins"], t["batch"]).loc for t in (tensors, zero))
    assert (a[0] != b[0]).any()
    torch.testing.assert_close(a[1], b[1])


def test_missing_proteins_take_no_part_in_the_likelihood(vae, tensors):
    torch.manual_seed(1)
    _, generative, losses = vae(tensors)
    py = generative["py_"]
    mixture = NegativeBinomialMixture(py["rate_back"], py["rate_fore"], py["r"], py["mixing"])
    y = tensors["proteins"]
    expected = [-mixture.log_prob(y.nan_to_num(0.0))[i][~y[i].isnan()].sum() for i in range(6)]
    torch.testing.assert_close(losses.reconstruction_loss["reconst_loss_protein"], torch.stack(expected))
    assert losses.kl_local["kl_div_back_pro"][4] == 0


def test_alignment_moves_the_encoders_of_one_modality_only(vae, tensors):
    vae.train()
    outputs = vae.inference(**vae._get_inference_input(tensors))
    paired = ~tensors["proteins"].isnan().all(1)
    loss = vae._alignment(outputs["posteriors"], paired)
    assert loss[4] == 0
    assert (loss[paired] > 0).all()
    loss.sum().backward()
    assert vae.encoder.z_mean_encoder.weight.grad is None
    assert vae.rna_encoder.mean_encoder.weight.grad.abs().sum() > 0
    assert vae.protein_encoder.mean_encoder.weight.grad.abs().sum() > 0


def test_modality_dropout_draws_the_view_of_a_cell(tensors):
    views = {}
    for dropout in (0.0, 1.0):
        torch.manual_seed(0)
        vae = MultimodalVAE(
            12, 4, n_batch=2, n_labels=1, n_hidden=8, n_latent=3, dropout_rate_encoder=0.0, modality_dropout=dropout
        )
        vae.train()
        outputs = vae.inference(**vae._get_inference_input(tensors))
        same = (outputs["qz"].loc == outputs["posteriors"]["both"].loc).all(1)
        views[dropout] = same[[0, 1, 2, 3, 5]]
    assert views[0.0].all()
    assert not views[1.0].any()


def test_rates_hold_the_efficiency_of_the_batch(vae, tensors):
    with torch.no_grad():
        vae.log_per_batch_efficiency[:, 1] = 1.0
    z = torch.zeros(6, 3)
    args = {"z": z, "library_gene": torch.ones(6, 1), "batch_index": tensors["batch"], "label": tensors["labels"]}
    py = vae.generative(**args)["py_"]
    torch.testing.assert_close(
        py["background"][3] / py["back_alpha"][3].exp(), torch.full((4,), np.e, dtype=torch.float32)
    )
    torch.testing.assert_close(py["background"][0], py["back_alpha"][0].exp())


def test_protein_state_is_rounded_back_to_the_counts(vae, tensors):
    args = {
        "z": torch.zeros(6, 3),
        "library_gene": torch.ones(6, 1),
        "batch_index": tensors["batch"],
        "label": tensors["labels"],
    }
    py = vae.generative(**args)["py_"]
    y = torch.tensor([[0.0, 1.0, 30.0, 4000.0]] * 5 + [[float("nan")] * 4])
    mean, sd = vae.protein_state(py, y)
    assert torch.equal(vae.protein_counts(mean[:5]), y[:5])
    noisy = vae.protein_counts(mean + sd * torch.randn(2000, 6, 4))
    assert (noisy[:, :5] == y[:5]).float().mean() > 0.94
    assert torch.isfinite(mean[5]).all()
    assert (sd[5] > sd[0]).all()


def test_a_kernel_path_learns_a_function_and_predicts_its_own_cells_honestly():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3400, 3))
    truth = np.c_[np.sin(2 * x[:, 0]), x[:, 1] * x[:, 2]]
    noise = 0.5 * rng.normal(size=truth.shape)
    path, held = KernelPath.fit(x[:400], (truth + noise)[:400])
    new = path(x[400:])
    assert all(np.corrcoef(new[:, j], truth[400:, j])[0, 1] > 0.8 for j in range(2))
    of_new = np.mean((new - (truth + noise)[400:]) ** 2)
    of_own = np.mean((held - (truth + noise)[:400]) ** 2)
    fitted = np.mean((path(x[:400]) - (truth + noise)[:400]) ** 2)
    assert of_own == pytest.approx(of_new, rel=0.25)
    assert fitted < 0.9 * of_own
    assert path(x[:0]).shape == (0, 2)


def test_rna_features_do_not_depend_on_the_other_cells():
    counts = sparse.csr_matrix(np.random.default_rng(0).poisson(2.0, (80, 30)))
    features = RNAFeatures.fit(counts, n_components=5)
    np.testing.assert_allclose(features(counts)[10:15], features(counts[10:15]), atol=1e-5)
    assert features(counts).shape == (80, 6)


def test_a_missing_protein_is_at_its_mean():
    counts = np.random.default_rng(0).poisson(20.0, (50, 3)).astype(float)
    counts[0, 1] = np.nan
    features = ProteinFeatures.fit(counts)
    assert features(counts)[0, 1] == 0
    assert np.abs(features(counts)[1:, 1]).min() > 0


@pytest.mark.filterwarnings("error")
def test_a_protein_that_no_cell_has_says_nothing():
    counts = np.random.default_rng(0).poisson(20.0, (50, 3)).astype(float)
    whole = ProteinFeatures.fit(counts)
    lacking = counts.copy()
    lacking[:, 1] = np.nan
    features = ProteinFeatures.fit(lacking)
    assert np.isfinite(features.mean).all()
    np.testing.assert_array_equal(features(counts)[:, [0, 2]], whole(counts)[:, [0, 2]])
    assert (features(counts)[:, 1] == 0).all()
    assert np.isnan(lacking[:, 1]).all()


def test_noise_of_an_attribute_is_added_where_it_is_given():
    attributes = [Attribute("kind", 3), Attribute("seen", size=2, fixed=True, noise=1.0)]
    prior = LatentPrior(4, attributes, denoiser_kwargs={"width": 16, "depth": 1, "n_heads": 2})
    codes = torch.tensor([[1.0, 0.5, 0.5], [0.0, float("nan"), float("nan")]])
    noisy = prior.with_noise(codes)
    assert torch.equal(noisy[:, 0], codes[:, 0])
    assert (noisy[0, 1:] != codes[0, 1:]).all()
    assert noisy[1, 1:].isnan().all()
    assert torch.equal(codes[0], torch.tensor([1.0, 0.5, 0.5]))
    assert torch.equal(prior.with_noise(codes[:, :1]), codes[:, :1])
