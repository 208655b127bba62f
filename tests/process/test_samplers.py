"""Samplers against a Gaussian and a mixture whose expected data are known in closed form."""

import numpy as np
import pytest
import torch

from diffvi import InvalidInputError
from diffvi.process import PATHS, SAMPLERS, get_path, get_sampler

MEAN = torch.tensor([1.5, -0.5, 0.0], dtype=torch.float64)
VAR = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
ORDER = {"euler": 1, "ddim": 1, "heun": 2, "dpmpp_2m": 2}


def gaussian(path):
    """Expected data given a noisy state, for data from N(MEAN, VAR)."""

    def denoise(x, t):
        a, s = path.alpha(t), path.sigma(t)
        return MEAN + VAR * a / (a**2 * VAR + s**2) * (x - a * MEAN)

    return denoise


def gaussian_flow(path, x, t, s):
    """The exact probability flow of that Gaussian from time t to time s."""
    sd = [torch.sqrt(path.alpha(u) ** 2 * VAR + path.sigma(u) ** 2) for u in (t, s)]
    return path.alpha(s) * MEAN + sd[1] / sd[0] * (x - path.alpha(t) * MEAN)


CENTRES = torch.tensor([[-2.0, 0.0], [2.0, 1.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
SPREAD = 0.25


def mixture(path):
    """Expected data for a mixture of two round Gaussians."""

    def denoise(x, t):
        a, s = path.alpha(t), path.sigma(t)
        total = a**2 * SPREAD + s**2
        d = x[:, None] - a * CENTRES
        share = torch.softmax(WEIGHTS.log() - 0.5 * d.square().sum(-1) / total, dim=1)
        return (share[..., None] * (CENTRES + SPREAD * a / total * d)).sum(1)

    return denoise


@pytest.mark.parametrize("path_name", PATHS)
@pytest.mark.parametrize("name", ORDER)
def test_order_of_convergence_on_a_gaussian(name, path_name):
    path, sampler = get_path(path_name), get_sampler(name)
    x = torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = []
    for n in (40, 80, 160):
        times = torch.linspace(0.9, 0.1, n + 1, dtype=torch.float64)
        exact = gaussian_flow(path, x, times[0], times[-1])
        errors.append((sampler(gaussian(path), x, times, path) - exact).abs().mean().item())
    slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert np.all(np.abs(slopes - ORDER[name]) < 0.25), (slopes, errors)


@pytest.mark.parametrize("path_name", PATHS)
@pytest.mark.parametrize("name", ORDER)
def test_order_of_convergence_on_a_mixture(name, path_name):
    path, sampler = get_path(path_name), get_sampler(name)
    x = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def solve(f, n):
        return f(mixture(path), x, torch.linspace(0.9, 0.1, n + 1, dtype=torch.float64), path)

    truth = solve(get_sampler("heun"), 4000)
    errors = [(solve(sampler, n) - truth).abs().mean().item() for n in (100, 200, 400)]
    slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert np.all(np.abs(slopes - ORDER[name]) < 0.3), (slopes, errors)


def test_second_order_samplers_beat_first_order_ones_at_equal_cost():
    path = get_path("linear")
    x = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    truth = get_sampler("heun")(mixture(path), x, path.times(3000), path)
    error = {
        name: (get_sampler(name)(mixture(path), x, path.times(16 if name != "heun" else 8), path) - truth).abs().mean()
        for name in ORDER
    }
    assert error["dpmpp_2m"] < 0.5 * error["ddim"]
    assert error["heun"] < 0.5 * error["euler"]


@pytest.mark.parametrize("path_name", PATHS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_of_a_mixture_have_its_weights_centres_and_spread(name, path_name):
    path, n = get_path(path_name), 20_000
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    steps = {"ddpm": 300, "euler": 200, "ddim": 200}.get(name, 40)

    def noise():
        return torch.randn(n, 2, dtype=torch.float64, generator=generator)

    y = get_sampler(name)(mixture(path), x, path.times(steps), path, noise)
    right = y[:, 0] > 0
    assert abs(right.double().mean() - 0.7) < 0.02
    for side, centre in ((~right, CENTRES[0]), (right, CENTRES[1])):
        torch.testing.assert_close(y[side].mean(0), centre, atol=0.03, rtol=0)
        torch.testing.assert_close(y[side].var(0), torch.full((2,), SPREAD, dtype=torch.float64), atol=0.03, rtol=0)


def test_ddim_and_dpmpp_are_exact_in_one_step_for_a_point():
    path, point = get_path("vp_cosine"), torch.tensor([[0.7, -1.0]])
    for name in ("ddim", "dpmpp_2m"):
        x = get_sampler(name)(lambda x, t: point.expand_as(x), torch.randn(5, 2), path.times(1), path)
        torch.testing.assert_close(x, point.expand(5, 2), atol=0.01, rtol=0)


def test_ancestral_sampling_asks_for_noise():
    path = get_path("linear")
    with pytest.raises(ValueError, match="stochastic"):
        get_sampler("ddpm")(mixture(path), torch.zeros(2, 2, dtype=torch.float64), path.times(2), path)


def test_unknown_sampler():
    with pytest.raises(InvalidInputError, match="`sampler` must be one of"):
        get_sampler("plms")
