import numpy as np
import pytest
from sklearn.tree import ExtraTreeRegressor

from diffvi.module import BaggedTrees, _trees


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_arrays_predict_what_the_trees_predict(n_outputs, monkeypatch):
    fitted = []

    class Kept(ExtraTreeRegressor):
        def fit(self, x, y):
            fitted.append(super().fit(x, y))
            return self

    monkeypatch.setattr(_trees, "ExtraTreeRegressor", Kept)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4)).astype(np.float32)
    y = np.stack([x[:, 0] * x[:, 1], x[:, 2] ** 2, np.sign(x[:, 3])][:n_outputs], 1)
    asked = rng.normal(size=(2300, 4))
    trees = BaggedTrees.fit(x, y, np.arange(500), n_trees=7, min_samples_leaf=5, seed=3)
    expected = np.mean([one.predict(asked).reshape(len(asked), -1) for one in fitted], 0)
    np.testing.assert_allclose(trees(asked), expected, rtol=1e-5, atol=1e-6)
    assert len(fitted) == 7
    assert trees(asked[:0]).shape == (0, n_outputs)
    # The arrays alone are enough.
    np.testing.assert_array_equal(BaggedTrees(**vars(trees))(asked), trees(asked))


def test_fewer_groups_than_a_leaf_holds_give_their_mean():
    x, y = np.arange(12.0)[:, None], np.arange(12.0)[:, None]
    trees = BaggedTrees.fit(x, y, np.arange(12), n_trees=200)
    assert len(trees.feature) == len(trees.roots) == 200
    np.testing.assert_allclose(trees(x), np.full((12, 1), y.mean()), atol=0.5)


def test_noise_that_copies_share_is_not_learned():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(400), 15)
    x = rng.normal(size=(400, 3))[groups] + 0.01 * rng.normal(size=(6000, 3))
    y = rng.normal(size=(400, 1))[groups]

    def memory(groups):
        return np.corrcoef(BaggedTrees.fit(x, y, groups)(x)[:, 0], y[:, 0])[0, 1]

    # Told apart from other rows, copies fill the leaves.
    assert memory(np.arange(6000)) > 0.9
    assert memory(groups) < 0.65
    fresh = BaggedTrees.fit(x, y, groups)(rng.normal(size=(6000, 3)))
    assert fresh.std() < 0.25


def test_trees_of_many_groups_stay_small(monkeypatch):
    monkeypatch.setattr(_trees, "MAX_GROUPS", 100)
    x = np.random.default_rng(0).normal(size=(3000, 2))
    trees = BaggedTrees.fit(x, x, np.arange(3000), n_trees=10)
    assert len(trees.values) <= 10 * 100 / 8
