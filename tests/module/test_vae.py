import inspect

import numpy as np
import pytest
import torch
from scvi.distributions import NegativeBinomial
from scvi.module import VAE

from diffvi.module import CountNegativeBinomial, CountVAE


def _parameters(shape, dtype=torch.float32):
    torch.manual_seed(0)
    mu = (torch.rand(30, 50) * 0.5).to(dtype).requires_grad_()
    theta = torch.logspace(-1, 2, 50).expand(shape).to(dtype).contiguous().requires_grad_()
    x = torch.poisson(torch.rand(30, 50) * 0.4).to(dtype)
    x[0, 0], x[1] = 1e5, 0.0
    return x, mu, theta


@pytest.mark.parametrize("shape", [(50,), (1, 50), (30, 50)], ids=["gene", "row", "gene-cell"])
def test_log_probability_and_gradients_are_those_of_scvi(shape):
    results = []
    for distribution, dtype in ((CountNegativeBinomial, torch.float32), (NegativeBinomial, torch.float64)):
        x, mu, theta = _parameters(shape, dtype)
        weight = torch.linspace(1, 2, 30, dtype=dtype)[:, None]
        log_prob = distribution(mu=mu, theta=theta).log_prob(x)
        (weight * log_prob).sum().backward()
        results.append([v.detach().double() for v in (log_prob, mu.grad, theta.grad)])
    assert (results[0][0] != 0).all()
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("theta", [1e-4, 1.0, 1e6, 1e8])
def test_extreme_dispersions_are_exact(theta):
    x, mu = torch.tensor([[3.0, 0.0, 1.0, 40.0] + 20 * [0.0]]), torch.full((1, 24), 2.0)
    exact = NegativeBinomial(mu=mu.double(), theta=torch.full((24,), min(theta, 1e6)).double()).log_prob(x.double())
    ours = CountNegativeBinomial(mu=mu, theta=torch.full((24,), theta)).log_prob(x)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=2e-3)


def test_scvi_still_knows_how_to_ask_for_expression_and_markers(trained):
    batches = trained.adata.obs["batch"].unique()
    one, other = (trained.get_normalized_expression(transform_batch=b, return_numpy=True) for b in batches)
    assert np.abs(one - other).max() > 0
    found = trained.differential_expression(groupby="cell_type", group1="type_0", group2="type_1", silent=True)
    assert len(found) == trained.adata.n_vars


def test_gradients_are_the_derivatives():
    x, mu, theta = _parameters((50,), torch.float64)
    x, mu, theta = x[2:5, :8], mu[2:5, :8].detach().requires_grad_(), theta[:8].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda m, t: CountNegativeBinomial(mu=m, theta=t).log_prob(x), (mu, theta))


def test_dense_counts_samples_and_half_precision_are_left_to_scvi_or_kept_exact():
    _, mu, theta = _parameters((50,))
    ours, theirs = (d(mu=mu, theta=theta) for d in (CountNegativeBinomial, NegativeBinomial))
    for x in (torch.ones(30, 50), torch.zeros(4, 30, 50)):
        torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), rtol=0, atol=0)
    half = CountNegativeBinomial(mu=mu.bfloat16(), theta=theta).log_prob(torch.zeros(30, 50))
    assert half.dtype == torch.float32
    assert torch.isfinite(half).all()
    with torch.inference_mode():
        assert ours.log_prob(torch.zeros(30, 50)).shape == (30, 50)


def test_weights_and_arguments_are_those_of_scvi():
    ours, theirs = (make(20, n_batch=2, gene_likelihood="nb") for make in (CountVAE, VAE))
    ours.load_state_dict(theirs.state_dict())
    assert inspect.signature(CountVAE) == inspect.signature(VAE)
    z, library, batch = torch.randn(3, 10), torch.zeros(3, 1), torch.zeros(3, 1, dtype=torch.long)
    one, other = (m.eval().generative(z, library, batch)["px"] for m in (ours, theirs))
    torch.testing.assert_close(one.mean, other.mean)
    assert type(one) is CountNegativeBinomial


def test_the_layer_of_zero_inflation_works_only_where_it_is_used():
    z = torch.randn(3, 128)
    for likelihood, works in (("nb", False), ("poisson", False), ("zinb", True)):
        layer = CountVAE(20, gene_likelihood=likelihood).decoder.px_dropout_decoder
        assert layer(z).shape == (3, 20)
        assert bool(layer(z).any()) is works


def test_training_sees_the_likelihood(cells):
    from diffvi.model import LatentDiffusionSCVI

    LatentDiffusionSCVI.setup_anndata(cells)
    module = LatentDiffusionSCVI(cells, n_hidden=8).module
    tensors = {"X": torch.tensor(np.asarray(cells.X[:5].todense(), dtype=np.float32))}
    tensors |= {k: torch.zeros(5, 1, dtype=torch.long) for k in ("batch", "labels")}
    assert type(module(tensors)[1]["px"]) is CountNegativeBinomial
