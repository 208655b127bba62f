import numpy as np
import pytest
import torch
from scvi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial

from diffvi._random import CellStreams
from diffvi.data import sample_counts

N = 20_000
MU, THETA = torch.tensor([0.05, 2.0, 50.0]), torch.tensor([0.3, 1.0, 8.0])


@pytest.mark.parametrize("kind", ["nb", "zinb", "poisson"])
def test_counts_have_the_mean_and_variance_of_the_distribution(kind):
    mu = MU.expand(N, 3)
    logits = torch.tensor([0.0, -1.0, -2.0]).expand(N, 3)
    px, mean, var = {
        "nb": (NegativeBinomial(mu=mu, theta=THETA), MU, MU + MU**2 / THETA),
        "poisson": (Poisson(rate=mu), MU, MU),
        "zinb": (
            ZeroInflatedNegativeBinomial(mu=mu, theta=THETA, zi_logits=logits),
            MU * (1 - torch.sigmoid(logits[0])),
            None,
        ),
    }[kind]
    if var is None:
        p, full = torch.sigmoid(logits[0]), MU + MU**2 / THETA
        var = (1 - p) * (full + MU**2) - mean**2
    x = sample_counts(px, CellStreams(0, np.arange(N)))
    assert x.dtype == np.int32
    assert x.min() >= 0
    x = x.toarray()
    np.testing.assert_allclose(x.mean(0), mean, rtol=0.06)
    np.testing.assert_allclose(x.var(0), var, rtol=0.12)


def test_a_cell_depends_on_its_own_stream_only():
    px = NegativeBinomial(mu=MU.expand(10, 3), theta=THETA)
    whole = sample_counts(px, CellStreams(3, np.arange(10))).toarray()
    part = sample_counts(NegativeBinomial(mu=MU.expand(4, 3), theta=THETA), CellStreams(3, np.arange(6, 10))).toarray()
    np.testing.assert_array_equal(whole[6:], part)
    other = sample_counts(px, CellStreams(4, np.arange(10))).toarray()
    assert (whole != other).any()


def test_streams_of_different_cells_are_uncorrelated():
    noise = CellStreams(0, np.arange(2)).normal(50_000).numpy()
    assert abs(np.corrcoef(noise)[0, 1]) < 0.02
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01


@pytest.mark.parametrize(("mu", "theta"), [(1e3, 1e-3), (10.0, 1e-4), (1e4, 0.1), (1e6, 2.0), (0.01, 1e-4), (3.0, 1e9)])
def test_extreme_dispersions(mu, theta):
    n = 2_000_000
    px = NegativeBinomial(mu=torch.full((2000, 1000), mu), theta=torch.full((1000,), theta))
    counts = sample_counts(px, CellStreams(0, np.arange(2000)))
    sd = np.sqrt((mu + mu**2 / theta) / n)
    assert abs(counts.sum(dtype=float) / n - mu) < 4 * sd
    zero = (1 + mu / theta) ** -theta
    assert abs(1 - counts.nnz / n - zero) < 4 * np.sqrt(zero * (1 - zero) / n)


def test_matrices_are_canonical_and_may_be_empty():
    px = NegativeBinomial(mu=torch.rand(50, 80) * 4, theta=torch.full((80,), 0.5))
    counts = sample_counts(px, CellStreams(0, np.arange(50)))
    assert counts.has_canonical_format
    assert (counts.data > 0).all()
    none = NegativeBinomial(mu=torch.rand(0, 80), theta=torch.full((80,), 0.5))
    assert sample_counts(none, CellStreams(0, [])).shape == (0, 80)


def test_huge_rates_do_not_overflow():
    px = Poisson(rate=torch.tensor([[1e30, 1.0]]))
    x = sample_counts(px, CellStreams(0, [0]))
    assert 0 < x[0, 0] <= 2e7
