import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from diffvi import InvalidInputError
from diffvi.process import _couplings, pair_sources

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(40, 3)), RNG.normal(size=(40, 3)) + 2


@pytest.mark.parametrize("solver", ["pot", "scipy"])
def test_equal_numbers_get_the_exact_assignment(solver, monkeypatch):
    if solver == "scipy":
        monkeypatch.setattr(_couplings, "_pot", lambda: None)
    rows = pair_sources(A, B)
    cost = cdist(A, B, "sqeuclidean")
    assert sorted(rows) == list(range(40))
    assert np.isclose(cost[rows, np.arange(40)].sum(), cost[linear_sum_assignment(cost)].sum())


@pytest.mark.parametrize("solver", ["pot", "scipy"])
@pytest.mark.parametrize(("n", "m"), [(40, 15), (15, 40), (1, 7), (7, 1)])
def test_unequal_numbers_use_sources_evenly_and_move_little(solver, n, m, monkeypatch):
    if solver == "scipy":
        monkeypatch.setattr(_couplings, "_pot", lambda: None)
    rows = pair_sources(A[:n], B[:m])
    assert rows.shape == (m,)
    assert rows.max() < n
    if n < m:
        counts = np.bincount(rows, minlength=n)
        assert counts.max() <= np.ceil(m / n) + 2
    move = ((A[rows] - B[:m]) ** 2).sum(1).mean()
    other = ((A[pair_sources(A[:n], B[:m], "random")] - B[:m]) ** 2).sum(1).mean()
    assert m == 1 or move <= other + 1e-9


def test_blocks_cover_every_cell(monkeypatch):
    monkeypatch.setattr(_couplings, "BLOCK", 8)
    rows = pair_sources(A, B)
    assert sorted(rows) == list(range(40))


def test_the_seed_decides_random_pairs():
    assert (pair_sources(A, B, "random", 1) == pair_sources(A, B, "random", 1)).all()
    assert (pair_sources(A, B, "random", 1) != pair_sources(A, B, "random", 2)).any()


def test_an_unknown_pairing_is_named():
    with pytest.raises(InvalidInputError, match="`pairing` must be one of 'ot', 'random'; got 'best'"):
        pair_sources(A, B, "best")


@pytest.mark.parametrize("pairing", ["ot", "random"])
def test_no_source_gets_a_sentence_and_no_target_nothing(pairing):
    with pytest.raises(InvalidInputError, match=r"`source` must have at least one row; got the shape \(0, 3\)"):
        pair_sources(A[:0], B, pairing)
    assert pair_sources(A, B[:0], pairing).shape == (0,)
