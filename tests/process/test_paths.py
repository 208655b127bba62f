import pytest
import torch

from diffvi import InvalidInputError
from diffvi.process import PATHS, get_path

T = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)


@pytest.mark.parametrize("name", PATHS)
def test_derivatives_agree_with_finite_differences(name):
    path, h = get_path(name), 1e-5
    for f, df in ((path.alpha, path.alpha_dot), (path.sigma, path.sigma_dot)):
        torch.testing.assert_close((f(T + h) - f(T - h)) / (2 * h), df(T), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", PATHS)
def test_ends_are_data_and_noise(name):
    path = get_path(name)
    start, end = path.times(10)[0], path.times(10)[-1]
    assert path.alpha(end) > 0.99
    assert path.sigma(end) < 0.02
    assert path.alpha(start) < 0.01
    assert path.sigma(start) > 0.99


@pytest.mark.parametrize("name", ["vp_cosine", "vp_linear"])
def test_variance_is_preserved(name):
    path = get_path(name)
    torch.testing.assert_close(path.alpha(T) ** 2 + path.sigma(T) ** 2, torch.ones_like(T))


def test_linear_vp_is_the_ddpm_schedule_of_1000_steps():
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha = torch.cumprod(1 - beta, 0).sqrt()
    t = (torch.arange(1000, dtype=torch.float64) + 1) / 1000
    assert (get_path("vp_linear").alpha(t) - alpha).abs().max() < 2e-3


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("prediction", ["velocity", "noise", "data"])
def test_target_and_data_estimate_invert_each_other(name, prediction):
    path = get_path(name)
    x0, noise = torch.randn(2, len(T), 3, dtype=torch.float64)
    target = path.target(prediction, x0, noise, T)
    torch.testing.assert_close(path.data_from(prediction, target, path.diffuse(x0, noise, T), T), x0)


@pytest.mark.parametrize("name", PATHS)
def test_velocity_target_is_the_direction_of_the_drift(name):
    path = get_path(name)
    x0, noise = torch.randn(2, len(T), 3, dtype=torch.float64)
    drift = path.drift(x0, path.diffuse(x0, noise, T), T)
    velocity = path.target("velocity", x0, noise, T)
    cosine = torch.nn.functional.cosine_similarity(drift, velocity)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


@pytest.mark.parametrize("name", PATHS)
def test_time_of_noise_inverts_the_noise_to_signal_ratio(name):
    path = get_path(name)
    ratio = path.sigma(T) / path.alpha(T)
    torch.testing.assert_close(path.time_of_noise(ratio), T, rtol=1e-4, atol=1e-4)


def test_random_times_fill_every_stratum_once():
    path = get_path("linear")
    t = path.random_times(50).sort().values
    strata = ((t - path.margin) / (1 - 2 * path.margin) * 50).floor()
    assert strata.tolist() == list(range(50))


def test_unknown_path_is_named_with_the_known_ones():
    with pytest.raises(
        InvalidInputError, match=r"`process` must be one of 'linear'.*got 'liner'.*Did you mean 'linear'"
    ):
        get_path("liner")


@pytest.mark.parametrize("name", PATHS)
def test_times_of_noise_are_where_the_ratios_are(name):
    for dtype in (torch.float32, torch.float64):
        t = get_path(name).time_of_noise(torch.ones(2, device="meta", dtype=dtype))
        assert (t.device.type, t.dtype, t.shape) == ("meta", dtype, (2,))
