import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesRegressor

from diffvi.module import BaggedTrees


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_arrays_predict_what_the_forest_predicts(n_outputs):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4)).astype(np.float32)
    y = np.stack([x[:, 0] * x[:, 1], x[:, 2] ** 2, np.sign(x[:, 3])][:n_outputs], 1)
    asked = rng.normal(size=(2300, 4))
    forest = ExtraTreesRegressor(7, min_samples_leaf=5, bootstrap=True, random_state=3).fit(x, y)
    trees = BaggedTrees.fit(x, y, n_trees=7, min_samples_leaf=5, seed=3)
    np.testing.assert_allclose(trees(asked), forest.predict(asked).reshape(len(asked), -1), rtol=1e-5, atol=1e-6)
    assert trees(asked[:0]).shape == (0, n_outputs)
    # The arrays alone are enough.
    np.testing.assert_array_equal(BaggedTrees(**vars(trees))(asked), trees(asked))


def test_fewer_rows_than_a_leaf_holds_give_their_mean():
    x, y = np.arange(12.0)[:, None], np.arange(12.0)[:, None]
    trees = BaggedTrees.fit(x, y, n_trees=50)
    assert len(trees.feature) == len(trees.roots) == 50
    np.testing.assert_allclose(trees(x), np.full((12, 1), y.mean()), atol=0.5)
