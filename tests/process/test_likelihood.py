import math

import pytest
import torch

from diffvi.process import PATHS, get_path, ode_log_prob

from .test_samplers import CENTRES, MEAN, SPREAD, VAR, WEIGHTS, gaussian, mixture


@pytest.mark.parametrize("name", PATHS)
def test_log_prob_of_a_gaussian(name):
    path = get_path(name)
    x = MEAN + VAR.sqrt() * torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = torch.distributions.Normal(MEAN, VAR.sqrt()).log_prob(x).sum(1)
    # The path ends at alpha = 0.0066, not 0: for a mean of 1.5 the standard normal there is off by about 0.03 nats.
    torch.testing.assert_close(ode_log_prob(gaussian(path), x, path.times(400), path), exact, atol=0.05, rtol=0)


def test_log_prob_of_a_mixture():
    path = get_path("vp_cosine")
    x = CENTRES.repeat(10, 1) + 0.5 * torch.randn(
        20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    d = (x[:, None] - CENTRES).square().sum(-1)
    exact = torch.logsumexp(WEIGHTS.log() - 0.5 * d / SPREAD, 1) - math.log(2 * math.pi * SPREAD)
    torch.testing.assert_close(ode_log_prob(mixture(path), x, path.times(400), path), exact, atol=0.03, rtol=0)
