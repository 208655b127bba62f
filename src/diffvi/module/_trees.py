"""Bagged regression trees as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.tree import ExtraTreeRegressor

IN_BAG = 0.63
"""Share of the groups that a tree sees, as of rows in a bootstrap sample."""
MAX_GROUPS = 2500
"""Groups that a tree sees, at most; bounds its size."""
ROWS = 1000
"""Rows that are predicted at a time: the values that each tree gives them are in memory."""


@dataclass
class BaggedTrees:
    """Extremely randomised trees (Geurts et al. 2006), each on a part of the groups (Breiman 1996), fitted by scikit-learn.

    Rows of one group, such as one cell seen in several ways, share their noise: a tree sees one of them, drawn at random, so that what a leaf averages over is
    independent.

    They are kept as arrays, so that what is saved with a model can be read by any version of scikit-learn.

    Parameters
    ----------
    feature, threshold
        Column that a node asks for, -1 in a leaf, and the value above which it sends a row to the right, ``(n_nodes,)`` each.
    children
        Nodes on the left and on the right, ``(n_nodes, 2)``; of a leaf its row of ``values``, twice.
    roots
        First node of each tree, ``(n_trees,)``.
    values
        What a leaf predicts, ``(n_leaves, n_outputs)``.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.module import BaggedTrees
    >>> x = np.random.default_rng(0).uniform(-1, 1, (2000, 2))
    >>> y = np.stack([x[:, 0] ** 2, np.sign(x[:, 1])], 1)
    >>> trees = BaggedTrees.fit(x, y, np.arange(2000), n_trees=20)
    >>> predicted = trees(np.array([[0.0, 0.9], [0.9, -0.9]]))
    >>> bool(np.abs(predicted - [[0.0, 1.0], [0.81, -1.0]]).max() < 0.2)
    True
    """

    feature: np.ndarray
    threshold: np.ndarray
    children: np.ndarray
    roots: np.ndarray
    values: np.ndarray

    @classmethod
    def fit(
        cls,
        x: np.ndarray,
        y: np.ndarray,
        groups: np.ndarray,
        n_trees: int = 200,
        min_samples_leaf: int = 8,
        seed: int = 0,
    ) -> BaggedTrees:
        """Fit the trees, each of which may ask for any column.

        Parameters
        ----------
        x, y
            Features ``(n, n_features)`` and what is predicted, ``(n, n_outputs)``.
        groups
            Number of the group of each row, ``(n,)``.
        n_trees, min_samples_leaf
            How many trees, and groups that a leaf holds at least.
        seed
            Seed of what each tree sees and of its splits.

        Returns
        -------
        The fitted trees, with which :meth:`__call__` predicts.
        """
        rng = np.random.default_rng(seed)
        names, group = np.unique(groups, return_inverse=True)
        seen, one = min(MAX_GROUPS, max(1, round(IN_BAG * len(names)))), np.empty(len(names), dtype=int)
        trees = []
        for _ in range(n_trees):
            order = rng.permutation(len(x))
            one[group[order]] = order
            rows = one[rng.permutation(len(names))[:seen]]
            tree = ExtraTreeRegressor(
                max_features=None, min_samples_leaf=min_samples_leaf, random_state=int(rng.integers(2**31))
            )
            trees.append(tree.fit(x[rows], y[rows]).tree_)
        sizes = [tree.node_count for tree in trees]
        roots = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        feature = np.concatenate([tree.feature for tree in trees])
        children = np.concatenate(
            [
                np.stack([tree.children_left, tree.children_right], 1) + root
                for tree, root in zip(trees, roots, strict=True)
            ]
        )
        leaf = feature < 0
        children[leaf] = np.arange(leaf.sum())[:, None]
        return cls(
            np.where(leaf, -1, feature).astype(np.int32),
            np.concatenate([tree.threshold for tree in trees]),
            children.astype(np.int32),
            roots,
            np.concatenate([tree.value[:, :, 0] for tree in trees])[leaf].astype(np.float32),
        )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Mean over the trees, ``(n, n_outputs)``.

        Parameters
        ----------
        x
            Features, ``(n, n_features)``.
        """
        # As scikit-learn compares them.
        x = np.asarray(x, np.float32)
        out = np.empty((len(x), self.values.shape[1]), np.float32)
        for first in range(0, len(x), ROWS):
            rows = x[first : first + ROWS]
            node = np.tile(self.roots, (len(rows), 1))
            while (inner := self.feature[node] >= 0).any():
                right = np.take_along_axis(rows, np.maximum(self.feature[node], 0), 1) > self.threshold[node]
                node = np.where(inner, self.children[node, right.astype(int)], node)
            out[first : first + ROWS] = self.values[self.children[node, 0]].mean(1)
        return out
