import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist
from scipy.special import gamma, kv

from diffvi.metrics import log_normalise
from diffvi.module import Frames, LocalKriging, RandomField, Surroundings, repeatable_share


def matern(distance, smoothness=1.5):
    """The textbook's formula, with a Bessel function."""
    scaled = np.sqrt(2 * smoothness) * np.maximum(distance, 1e-9)
    return 2 ** (1 - smoothness) / gamma(smoothness) * scaled**smoothness * kv(smoothness, scaled)


def kriging(ranges=(2.0,), amplitude=0.8, nugget=0.2, n_features=1, metric=None, micro=None, smoothness=1.5):
    return LocalKriging(
        np.log(np.array(ranges, np.float32)),
        np.full((n_features, len(ranges)), np.log(amplitude / len(ranges)), np.float32),
        np.full(n_features, np.log(nugget), np.float32),
        np.zeros((2, 2), np.float32) if metric is None else np.array(metric, np.float32),
        np.arange(n_features),
        smoothness,
        micro,
    )


@pytest.mark.parametrize("smoothness", [0.5, 1.5, 2.5])
def test_weights_are_those_of_simple_kriging(smoothness):
    rng = np.random.default_rng(0)
    x, near = rng.uniform(size=(1, 2)) * 4, rng.uniform(size=(1, 6, 2)) * 4
    model = kriging(smoothness=smoothness)
    weights, variance = model(x, near, np.ones((1, 6), bool))
    covariance = 0.8 * matern(cdist(near[0], near[0]) / 2, smoothness) + 0.2 * np.eye(6)
    towards = 0.8 * matern(cdist(near[0], x)[:, 0] / 2, smoothness)
    expected = np.linalg.solve(covariance, towards)
    np.testing.assert_allclose(weights[0, 0], expected, atol=1e-4)
    assert variance[0, 0] == pytest.approx(1 - expected @ towards, abs=1e-3)
    # Without neighbours nothing is known.
    np.testing.assert_allclose(model(x, near, np.zeros((1, 6), bool))[1][0], model.variance, rtol=1e-5)


def test_a_location_shares_with_its_spot_what_is_no_noise():
    rng = np.random.default_rng(0)
    x, near = rng.uniform(size=(1, 2)) * 4, rng.uniform(size=(1, 6, 2)) * 4
    inside = np.arange(6)[None] == 3
    weights, variance = kriging(micro=np.array([0.4]))(x, near, np.ones((1, 6), bool), inside)
    covariance = 0.8 * matern(cdist(near[0], near[0]) / 2) + 0.2 * np.eye(6)
    towards = 0.8 * matern(cdist(near[0], x)[:, 0] / 2) + 0.4 * 0.2 * inside[0]
    expected = np.linalg.solve(covariance, towards)
    np.testing.assert_allclose(weights[0, 0], expected, atol=1e-4)
    assert variance[0, 0] == pytest.approx(1 - expected @ towards, abs=1e-3)
    # Without a share of what a second measurement repeats, a spot is a neighbour like others.
    plain = kriging()
    args = x, near, np.ones((1, 6), bool)
    np.testing.assert_array_equal(plain(*args, inside)[0], plain(*args)[0])


def test_repeatable_share_is_the_correlation_of_two_measurements():
    rng = np.random.default_rng(0)
    frame, loading = np.repeat([0, 1], 1500), rng.normal(size=(2, 40))
    rates = 3 * np.exp(rng.normal(size=(3000, 2)) @ (loading * [[0.6], [0.3]]) + frame[:, None] * rng.normal(size=40))
    first, second = (log_normalise(rng.poisson(rates)) for _ in range(2))
    found = repeatable_share(sparse.csr_matrix(rng.poisson(rates).astype(np.float32)), frame, np.arange(6))
    means = np.stack([first[frame == f].mean(0) for f in (0, 1)])
    axes = np.linalg.svd(first[:1500] - means[0], full_matrices=False)[2][:6]
    a, b = ((x - means[frame])[1500:] @ axes.T for x in (first, second))
    true = np.array([np.corrcoef(a[:, j], b[:, j])[0, 1] for j in range(6)])
    np.testing.assert_allclose(found[:2], true[:2], atol=0.05)
    # Components are fitted to noise, too, which is not repeated.
    assert found[2:].max() < 0.25
    noise = sparse.csr_matrix(rng.poisson(3.0, size=(100, 400)).astype(np.float32))
    assert repeatable_share(noise, np.zeros(100, int), np.zeros(8, int)) < 0.2
    assert repeatable_share(noise[:40], np.zeros(40, int), np.zeros(8, int)) == 0


def test_absent_neighbours_count_for_nothing():
    rng = np.random.default_rng(0)
    x, near = rng.uniform(size=(3, 2)), rng.uniform(size=(3, 5, 2))
    present = np.array([[True] * 5, [True, True, False, False, False], [False] * 5])
    weights, variance = kriging()(x, near, present)
    few, _ = kriging()(x[1:2], near[1:2, :2], np.ones((1, 2), bool))
    np.testing.assert_allclose(weights[1, 0, :2], few[0, 0], atol=1e-5)
    assert (weights[1:, 0, 2:] == 0).all()
    assert variance[2, 0] == pytest.approx(1.0)


def test_a_cell_at_the_place_is_believed_as_far_as_the_nugget_allows():
    x = np.zeros((1, 2))
    weights, _ = kriging(nugget=1e-4, amplitude=1.0)(x, x[:, None], np.ones((1, 1), bool))
    assert weights.item() == pytest.approx(1.0, abs=1e-3)


def test_the_metric_stretches_space():
    x, present = np.zeros((1, 2)), np.ones((1, 1), bool)
    stretched = kriging(metric=[[1.0, 0.0], [0.0, -1.0]])
    along, _ = stretched(x, np.array([[[0.0, 1.0]]]), present)
    across, _ = stretched(x, np.array([[[1.0, 0.0]]]), present)
    assert along.item() > 1.5 * across.item()


def test_fit_finds_the_covariance_of_a_field():
    rng = np.random.default_rng(0)
    places = rng.uniform(size=(1500, 2)) * 40
    truth = kriging(ranges=(4.0,), amplitude=0.7, nugget=0.3, n_features=6)
    values = RandomField(truth, 6, seed=1)(places) + np.sqrt(0.3) * rng.normal(size=(1500, 6))
    rows, frame = np.arange(1500), np.zeros(1500, int)
    around = Surroundings(places, frame, rows, 12)(places, frame, rows)
    found = LocalKriging.fit(values.astype(np.float32), places, rows, around, n_steps=240, smoothness=1.5)
    lags = np.linspace(1.0, 8.0, 8)
    model = (matern(lags[:, None] / np.exp(found.log_ranges)) @ np.exp(found.log_amplitudes).T).mean(1)
    np.testing.assert_allclose(model, 0.7 * matern(lags / 4), atol=0.1)
    present, near = around >= 0, np.maximum(around, 0)
    weights, variance = found(places, places[near], present)
    error = values - np.einsum("njk,nkj->nj", weights, values[near] * present[..., None])
    np.testing.assert_allclose((error**2 / variance).mean(), 1.0, atol=0.1)


def test_fit_takes_the_smoothness_that_predicts_best():
    rng = np.random.default_rng(0)
    places, rows, frame = rng.uniform(size=(1500, 2)) * 40, np.arange(1500), np.zeros(1500, int)
    truth = kriging(ranges=(10.0,), amplitude=0.95, nugget=0.05, n_features=6, smoothness=2.5)
    values = RandomField(truth, 6, seed=1)(places) + np.sqrt(0.05) * rng.normal(size=(1500, 6))
    around = Surroundings(places, frame, rows, 8, 4)(places, frame, rows)
    given = values.astype(np.float32), places, rows, around
    found = LocalKriging.fit(*given, n_steps=80)
    fits = {nu: LocalKriging.fit(*given, n_steps=80, smoothness=nu) for nu in (0.5, 1.5, 2.5)}
    error = {nu: fit._error(*given, np.ones(6)) for nu, fit in fits.items()}
    assert found.smoothness == min(error, key=error.get) > 0.5
    assert error[found.smoothness] < 0.98 * error[0.5]


def test_only_features_of_importance_choose_the_smoothness(monkeypatch):
    rng = np.random.default_rng(0)
    values, places = rng.normal(size=(60, 3)).astype(np.float32), rng.uniform(size=(60, 2)) * 8
    around = Surroundings(places, np.zeros(60, int), np.arange(60), 4, 2)(places, np.zeros(60, int), np.arange(60))
    given = values, places, np.arange(60), around, np.array([0, 1, 1])
    errors = {0.5: [3.0, 2.0, 9.0], 1.5: [2.0, 3.0, 9.0], 2.5: [4.0, 4.0, 0.0]}

    def error(self, values, scaled, targets, around, weight):
        assert (weight > 0).all()
        return float(np.average(errors[self.smoothness][: values.shape[1]], weights=weight))

    monkeypatch.setattr(LocalKriging, "_error", error)
    assert LocalKriging.fit(*given, n_steps=1, importance=np.array([1.0, 3.0, 0.0])).smoothness == 0.5
    assert LocalKriging.fit(*given, n_steps=1, importance=np.array([3.0, 1.0, 0.0])).smoothness == 1.5
    for importance in (None, np.zeros(3)):
        assert LocalKriging.fit(*given, n_steps=1, importance=importance).smoothness == 2.5


@pytest.mark.parametrize("smoothness", [0.5, 1.5, 2.5])
def test_random_field_has_the_covariance_it_stands_for(smoothness):
    places = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.0]])
    # Twice as fast along one axis as along the other.
    bent, stretch = np.log(2) / 2, np.sqrt([2.0, 0.5])
    truth = kriging(ranges=(1.0, 4.0), amplitude=0.8, smoothness=smoothness, metric=[[bent, 0.0], [0.0, -bent]])
    draws = np.stack([RandomField(truth, 1, seed, n_waves=64)(places)[:, 0] for seed in range(3000)])
    expected = sum(0.4 * matern(cdist(places * stretch, places * stretch) / r, smoothness) for r in (1, 4))
    np.testing.assert_allclose(draws.T @ draws / len(draws), expected, atol=0.06)
    np.testing.assert_allclose(draws[:, 0], draws[:, 4], atol=1e-5)


def test_surroundings_are_the_nearest_of_the_same_frame_and_never_itself():
    rng = np.random.default_rng(0)
    places, frame = rng.uniform(size=(120, 2)), np.repeat([0, 1], 60)
    rows = np.sort(rng.permutation(120)[:100])
    look = Surroundings(places, frame, rows, 5)
    found = look(places, frame, np.arange(120))
    assert found.shape == (120, look.size)
    for i in (0, 30, 119):
        mine = rows[(frame[rows] == frame[i]) & (rows != i)]
        nearest = mine[np.linalg.norm(places[mine] - places[i], axis=1).argsort()[:5]]
        assert found[i, :5].tolist() == nearest.tolist()
        there = found[i][found[i] >= 0]
        assert len(set(there)) == len(there)
        assert i not in there
        assert (frame[there] == frame[i]).all()
        assert set(there) <= set(rows)


def test_few_locations_leave_places_empty_and_an_unknown_frame_all():
    places = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    look = Surroundings(places, np.zeros(3, int), np.arange(3), 5)
    assert (look(places, np.zeros(3, int), np.arange(3)) >= 0).sum(1).tolist() == [2, 2, 2]
    assert (look(places, np.ones(3, int)) == -1).all()


def test_units_are_distances_between_neighbours_and_between_planes():
    grid = np.stack(np.meshgrid(np.arange(10), np.arange(10)), -1).reshape(-1, 2) * 50.0
    frames = Frames.fit(np.concatenate([grid, grid[:40] * 2]), np.repeat([0, 1], [100, 40]), ["a", "b"])
    np.testing.assert_allclose(frames.unit, [[50, 50], [100, 100]])
    block = np.concatenate([np.c_[grid, np.full(100, z)] for z in (0.0, 3.0, 6.0)])
    np.testing.assert_allclose(Frames.fit(block, np.zeros(300, int), [""]).unit, [[50, 50, 3]])
    # Cells that coincide say nothing of the distance.
    np.testing.assert_allclose(Frames.fit(np.repeat(grid, 2, axis=0), np.zeros(200, int), [""]).unit, [[50, 50]])
    assert np.abs(frames.scaled(grid, np.zeros(100, int)).mean(0)).max() < 1e-9
