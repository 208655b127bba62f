import numpy as np
import pytest
import torch

from diffvi.module import ORIGIN, LatentPrior
from diffvi.nn import Attribute
from diffvi.process import get_sampler

NAN = float("nan")


def _fit(prior, mean, sd, codes, steps=600, lr=3e-3):
    prior.fit_standardiser(mean, sd)
    optimizer = torch.optim.AdamW(prior.denoiser.parameters(), lr=lr)
    prior.train()
    for _ in range(steps):
        rows = torch.randint(len(mean), (256,))
        loss = prior.loss(mean[rows], sd[rows], codes[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        prior.update_ema()
    return prior.eval()


@pytest.fixture(scope="module")
def two_groups():
    """Two labelled groups at -3 and 3 (posterior s.d. 0.5), second dimension on another scale."""
    torch.manual_seed(0)
    label = torch.randint(2, (2000,))
    mean = torch.stack([6.0 * label - 3 + torch.randn(2000), 100 + 10 * torch.randn(2000)], 1)
    return mean, torch.tensor([0.5, 5.0]).expand(2000, 2), torch.stack([label.float(), mean[:, 1] / 10 - 10], 1)


@pytest.fixture(scope="module", params=["linear-velocity", "vp_cosine-noise", "vp_linear-data"])
def fitted(request, two_groups):
    process, prediction = request.param.split("-")
    torch.manual_seed(0)
    attributes = [Attribute("group", 2), Attribute("value")]
    prior = LatentPrior(2, attributes, "mlp", {"width": 64, "depth": 2}, process, prediction, ema_decay=0.99)
    return _fit(prior, *two_groups)


def _sample(prior, codes, n=4000, guidance=1.0, steps=40):
    torch.manual_seed(1)
    codes = torch.tensor([codes]).expand(n, 2)
    start = torch.randn(n, 2)
    sampler = "dpmpp_2m" if prior.prediction == "data" else "heun"  # as in generate()
    return prior.sample(start, codes, get_sampler(sampler), steps, guidance, noise=lambda: torch.randn(n, 2))


def test_samples_follow_the_conditions(fitted):
    for group, centre in ((0.0, -3.0), (1.0, 3.0)):
        u = _sample(fitted, [group, NAN])
        assert abs(u[:, 0].mean() - centre) < 0.3
        assert abs(u[:, 0].std() - (1 + 0.25) ** 0.5) < 0.25
        assert abs(u[:, 1].mean() - 100) < 2
    assert abs(_sample(fitted, [NAN, 1.5])[:, 1].mean() - 115) < 2


def test_without_conditions_samples_follow_the_marginal(fitted):
    u = _sample(fitted, [NAN, NAN])
    assert 0.4 < (u[:, 0] > 0).double().mean() < 0.6
    # The draws include the posterior's own spread, not only its means.
    assert abs(u[:, 1].std() - (100 + 25) ** 0.5) < 1.0


def test_log_prob_of_the_marginal_integrates_to_one(fitted):
    x, y = torch.linspace(-8, 8, 41), torch.linspace(50, 150, 41)
    grid = torch.cartesian_prod(x, y)
    log_prob = fitted.log_prob(grid, torch.full((len(grid), 2), NAN), 80)
    total = log_prob.exp().sum() * (x[1] - x[0]) * (y[1] - y[0])
    assert abs(total - 1) < 0.1


def test_guidance_of_one_is_the_conditional_estimate_and_of_zero_the_marginal_one(fitted):
    x, t = torch.randn(10, 2), torch.tensor(0.6)
    codes, null = torch.tensor([[1.0, 0.5]]).expand(10, 2), torch.full((10, 2), NAN)
    one, zero = fitted.estimate(x, t, codes), fitted.estimate(x, t, null)
    torch.testing.assert_close(fitted.estimate(x, t, codes, [1.0, 1.0]), one)
    torch.testing.assert_close(fitted.estimate(x, t, codes, 0.0), zero, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fitted.estimate(x, t, codes, 2.5), zero + 2.5 * (one - zero), atol=1e-4, rtol=1e-4)


def test_each_attribute_has_its_own_guidance_scale(fitted):
    x, t = torch.randn(10, 2), torch.tensor(0.6)
    both, first = torch.tensor([[1.0, 0.5]]).expand(10, 2), torch.tensor([[1.0, NAN]]).expand(10, 2)
    null = torch.full((10, 2), NAN)
    d = [fitted.estimate(x, t, c) for c in (null, first, both)]
    expected = d[0] + 3.0 * (d[1] - d[0]) + 0.5 * (d[2] - d[1])
    torch.testing.assert_close(fitted.estimate(x, t, both, [3.0, 0.5]), expected, atol=1e-4, rtol=1e-4)


def test_strong_guidance_narrows_and_stays_within_the_data(fitted):
    plain, strong = _sample(fitted, [1.0, NAN]), _sample(fitted, [1.0, NAN], guidance=7.5)
    assert torch.isfinite(strong).all()
    assert strong[:, 0].std() < plain[:, 0].std()
    assert ((fitted.standardise(strong) >= fitted.low - 0.1) & (fitted.standardise(strong) <= fitted.high + 0.1)).all()


def test_averaged_weights_are_sampled_from_and_follow_the_trained_ones(fitted):
    raw = dict(fitted.denoiser.named_parameters())
    for name, value in fitted.ema.module.named_parameters():
        assert not value.requires_grad
        assert (value - raw[name]).norm() < 0.5 * raw[name].norm() + 0.5
    assert int(fitted.ema.n_averaged) == 600


def test_evaluation_loss_is_reproducible_and_training_loss_is_not(fitted, two_groups):
    batch = [v[:100] for v in two_groups]
    fitted.eval()
    assert fitted.loss(*batch) == fitted.loss(*batch)
    fitted.train()
    assert fitted.loss(*batch) != fitted.loss(*batch)
    fitted.eval()


# ---------------------------------------------------------------- starting from a state


def moving_prior(head_weight=0.0):
    """Trained on states that are their origin, moved by 2 in the first dimension, with noise of 0.3."""
    torch.manual_seed(0)
    attributes = [Attribute("kind", 2), Attribute(ORIGIN, size=3, fixed=True)]
    prior = LatentPrior(
        3, attributes, denoiser="mlp", denoiser_kwargs={"width": 32, "depth": 2}, head_weight=head_weight
    )
    origin = 3 * torch.randn(2000, 3)
    mean = origin + torch.tensor([2.0, 0.0, 0.0]) + 0.3 * torch.randn(2000, 3)
    codes = torch.cat([torch.zeros(2000, 1), origin], 1)
    return _fit(prior, mean, torch.zeros_like(mean), codes, steps=400)


def test_a_state_to_start_from_is_moved_and_not_forgotten():
    prior = moving_prior()
    origin = torch.tensor([[5.0, -4.0, 1.0], [-5.0, 4.0, 0.0]]).repeat(300, 1)
    codes = torch.cat([torch.zeros(600, 1), origin], 1)
    states = prior.sample(torch.randn(600, 3), codes, get_sampler("heun"), 8)
    moved = states - origin
    torch.testing.assert_close(moved.mean(0), torch.tensor([2.0, 0.0, 0.0]), atol=0.2, rtol=0)
    assert (moved.std(0) - 0.3).abs().max() < 0.15
    near, far = (prior.log_prob(origin + torch.tensor([d, 0.0, 0.0]), codes, 8).mean() for d in (2.0, 5.0))
    assert near > far + 5
    torch.testing.assert_close(prior.mean(codes), origin)


def test_the_head_learns_the_mean_and_starts_at_the_origin():
    codes = torch.cat([torch.zeros(50, 1), torch.randn(50, 3)], 1)
    attributes = [Attribute("kind", 2), Attribute(ORIGIN, size=3, fixed=True)]
    fresh = LatentPrior(3, attributes, denoiser="mlp", head_weight=1.0)
    torch.testing.assert_close(fresh.mean(codes), codes[:, 1:])
    trained = moving_prior(head_weight=1.0)
    torch.testing.assert_close(
        (trained.mean(codes) - codes[:, 1:]).mean(0), torch.tensor([2.0, 0.0, 0.0]), atol=0.2, rtol=0
    )


def test_codes_without_an_origin_mean_that_none_is_given():
    prior = moving_prior()
    short = torch.zeros(4, 1)
    padded = torch.cat([short, torch.full((4, 3), float("nan"))], 1)
    x = torch.randn(4, 3)
    torch.testing.assert_close(
        prior.estimate(x, torch.tensor(0.5), short), prior.estimate(x, torch.tensor(0.5), padded)
    )


@pytest.mark.parametrize("one", [2, 2.0, np.float32(2), np.float64(2), np.int64(2)])
def test_guidance_may_be_any_number(one):
    prior = LatentPrior(2, [Attribute("group", 2)], "mlp", {"width": 16, "depth": 1}).eval()
    x, codes = torch.randn(3, 2), torch.tensor([[0.0], [1.0], [1.0]])
    torch.testing.assert_close(
        prior.estimate(x, torch.tensor(0.5), codes, one), prior.estimate(x, torch.tensor(0.5), codes, [2.0])
    )


def test_the_mean_is_predicted_once_for_a_sample(monkeypatch):
    prior = LatentPrior(2, [Attribute("group", 2)], "mlp", {"width": 16, "depth": 1}, head_weight=1.0).eval()
    calls, mean = [], LatentPrior.mean
    monkeypatch.setattr(LatentPrior, "mean", lambda self, codes: calls.append(1) or mean(self, codes))
    prior.sample(torch.randn(3, 2), torch.tensor([[0.0], [1.0], [1.0]]), get_sampler("heun"), 2)
    assert len(calls) == 1


def test_standardiser_of_some_rows_in_blocks(monkeypatch):
    torch.manual_seed(0)
    mean, sd, rows = 5 + 3 * torch.randn(100, 2), torch.rand(100, 2), torch.randperm(100)[:70]
    monkeypatch.setattr("diffvi.module._prior.STANDARDISER_ROWS", 9)
    prior = LatentPrior(2)
    prior.fit_standardiser(mean, sd, rows)
    chosen, spread = mean[rows], sd[rows]
    torch.testing.assert_close(prior.shift, chosen.mean(0))
    torch.testing.assert_close(prior.scale, (chosen.var(0, correction=0) + spread.square().mean(0)).sqrt())
    torch.testing.assert_close(prior.low, prior.standardise((chosen - 2 * spread).amin(0)) - 0.5)
    torch.testing.assert_close(prior.high, prior.standardise((chosen + 2 * spread).amax(0)) + 0.5)
