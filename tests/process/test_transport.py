"""Unbalanced transport against POT, chains against what a Markov process asks for."""

import numpy as np
import pytest

from diffvi import InvalidInputError
from diffvi.process import Coupling, PathSampler, couple, estimate_growth, unbalanced_plan, walk

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(60, 4)), RNG.normal(size=(80, 4)) + 0.5
COST = ((A[:, None] - B) ** 2).sum(-1)


@pytest.mark.parametrize(
    ("entropy", "penalty", "target"),
    [(0.1, 1.0, np.inf), (0.05, 0.3, np.inf), (0.5, np.inf, np.inf), (0.05, 0.3, 0.1), (0.1, np.inf, 0.2)],
)
def test_plans_are_those_of_pot(entropy, penalty, target):
    ot = pytest.importorskip("ot")
    masses = RNG.dirichlet(np.full(60, 5.0)), np.full(80, 1 / 80)
    plan = unbalanced_plan(
        COST, masses[0], entropy, penalty, max_iterations=20_000, tolerance=1e-9, target_penalty=target
    )
    bounded = min(penalty, 1e7), min(target, 1e7)
    theirs = ot.unbalanced.sinkhorn_knopp_unbalanced(
        *masses, COST / COST.mean(), entropy, bounded, numItermax=50_000, stopThr=1e-14
    )
    np.testing.assert_allclose(plan, theirs, atol=2e-7)


def test_a_small_entropy_does_not_underflow_and_keeps_the_exact_marginal():
    plan = unbalanced_plan(COST * 1e3, entropy=1e-3, source_penalty=0.1)
    assert np.isfinite(plan).all()
    np.testing.assert_allclose(plan.sum(0), 1 / 80, rtol=1e-9)
    assert plan.sum(1).max() > 1.5 / 60
    free = unbalanced_plan(COST * 1e3, entropy=1e-3, source_penalty=0.1, target_penalty=0.1)
    assert np.isfinite(free).all()
    assert free.sum(0).max() > 1.5 * free.sum(0).min()


def _two_groups(shift):
    """Two groups of cells; the second triples its share while all move by ``shift``."""
    rng = np.random.default_rng(1)
    early = np.concatenate([rng.normal(size=(100, 3)) - 4, rng.normal(size=(100, 3)) + 4])
    late = np.concatenate([rng.normal(size=(50, 3)) - 4, rng.normal(size=(150, 3)) + 4])
    return early, late + np.array([shift, 0.0, 0.0])


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_growth_is_found_even_where_cells_move(shift):
    early, late = _two_groups(shift)
    growth = estimate_growth(early, late, source_penalty=1.0, n_updates=20, n_neighbors=30)
    np.testing.assert_allclose([growth[:100].mean(), growth[100:].mean()], [0.5, 1.5], atol=0.15)
    fewer = estimate_growth(early, late, source_penalty=1.0, n_updates=2, n_neighbors=30)
    assert growth[:100].mean() < fewer[:100].mean() < 1.0
    # Within a group all cells grow alike, those ahead no more than those behind.
    assert abs(np.corrcoef(np.log(growth[100:]), early[100:, 0])[0, 1]) < 0.6
    assert np.log(growth[100:]).std() < 0.2
    np.testing.assert_array_equal(estimate_growth(early, late, n_updates=0), 1)


def test_movement_is_not_taken_for_growth():
    rng = np.random.default_rng(0)
    early = rng.normal(size=(200, 3))
    late = rng.normal(size=(200, 3)) + np.array([1.0, 0.0, 0.0])
    assert np.log(estimate_growth(early, late, source_penalty=1.0, n_neighbors=60)).std() < 0.1
    # What plain unbalanced plans make of it.
    plain = estimate_growth(early, late, source_penalty=1.0, n_updates=1, n_neighbors=0)
    plan = unbalanced_plan(((early[:, None] - late) ** 2).sum(-1), entropy=0.05, source_penalty=1.0)
    np.testing.assert_allclose(plain, plan.sum(1) / plan.sum(1).mean(), rtol=1e-2)
    assert np.log(plain).std() > 0.2
    assert np.corrcoef(np.log(plain), early[:, 0])[0, 1] > 0.5


def test_couplings_keep_to_the_growth_that_is_given():
    early, late = _two_groups(0.0)
    given = np.repeat([0.5, 1.5], 100)
    coupling = couple(early, late, given)
    np.testing.assert_allclose(coupling.growth, given)
    # Each half has its descendants on its own side.
    assert (coupling.successors[100:] >= 50).mean() > 0.99
    assert (coupling.predecessors[50:] >= 100).mean() > 0.99
    assert (coupling.predecessors[:50] < 100).mean() > 0.99
    even = couple(early, late, n_growth_updates=0)
    np.testing.assert_array_equal(even.growth, 1)
    assert (even.successors[:100] >= 50).mean() > 0.3


def test_cells_may_enter_that_have_no_ancestor():
    rng = np.random.default_rng(1)
    early = rng.normal(size=(200, 3)) + np.repeat([-4, 4], 100)[:, None]
    late = rng.normal(size=(150, 3)) + np.repeat([-4, 4, -4], 50)[:, None]
    late[100:, 1] += 12
    kept, free = (couple(early, late, n_growth_neighbors=30, target_penalty=p) for p in (np.inf, 0.1))
    # Somebody has to become them, and two groups that stay as they are have to grow and shrink for it.
    assert (kept.successors >= 100).mean() > 0.2
    assert kept.growth[100:].mean() / kept.growth[:100].mean() > 1.5
    assert (free.successors >= 100).mean() < 0.01
    assert (free.successors[:100] < 50).mean() > 0.99
    assert free.growth[100:].mean() / free.growth[:100].mean() == pytest.approx(1.0, abs=0.05)


def test_blocks_cover_every_cell_and_too_few_cells_for_them_are_refused():
    whole, blocks = couple(A, B, seed=3), couple(A, B, max_block=30, seed=3)
    assert blocks.successors.shape == (60, 32)
    assert blocks.predecessors.shape == (80, 32)
    assert len(set(blocks.successors.ravel())) > 60
    # A block sees a part of the cells, so that cells go a little further.
    length = [((A[:, None] - B[c.successors]) ** 2).sum(-1).mean() for c in (whole, blocks)]
    assert length[0] < length[1] < 0.7 * COST.mean()
    with pytest.raises(InvalidInputError, match="`max_block`: 2 and 80 cells cannot be cut into 8 blocks of 10"):
        couple(A[:2], B, max_block=10)


def _line(n_times=3, spread=0.2):
    """One cell a place: cells 0 and 1 of each time, 0 going to 0 and 1 to 1."""
    same = np.array([[0] * 8, [1] * 8])
    couplings = [Coupling(same, same, np.ones(2), spread) for _ in range(n_times - 1)]
    rows = [np.array([2 * k, 2 * k + 1]) for k in range(n_times)]
    return couplings, rows


def test_walks_follow_the_couplings_both_ways():
    couplings, _ = _line(4)
    rng = np.random.default_rng(0)
    assert walk(couplings, 1, np.array([0, 1]), False, rng).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert walk(couplings, 2, np.array([1]), True, rng).tolist() == [[1, 1, 1]]
    assert walk(couplings, 3, np.array([0]), False, rng).tolist() == [[0]]


@pytest.mark.parametrize("backward", [False, True])
def test_moves_lie_on_brownian_bridges_between_the_cells(backward):
    couplings, rows = _line()
    times = np.array([0.0, 1.0, 4.0])
    # Cell 0 moves along a line at the speed 1; cell 1 rests. The last column is the library.
    where = np.array([[0.0, 5.0], [9.0, 6.0], [1.0, 5.0], [9.0, 6.0], [4.0, 5.0], [9.0, 6.0]])
    sampler = PathSampler(times, rows, couplings, lambda r: where[r], lambda states, *_: states)
    moves = sampler.moves(200_000, backward, np.random.default_rng(0))
    ahead = moves.end - moves.begin
    assert ((ahead < 0) if backward else (ahead > 0)).all()
    first = where[moves.source, 0] < 9
    truth = np.where(first, moves.begin, 9.0)
    for place, when in ((moves.start, moves.begin), (moves.arrival, moves.end)):
        truth = np.where(first, when, 9.0)
        error = place[:, 0] - truth
        assert abs(error.mean()) < 0.01
        measured = np.isin(when, times)
        np.testing.assert_allclose(error[measured], 0, atol=1e-9)
        assert (place[:, 1] == np.where(first, 5.0, 6.0)).all()
        middle = np.abs(when - 2.5) < 0.15
        # Variance of a bridge in its middle: a quarter of the 0.2 of the whole gap.
        assert error[middle].var() == pytest.approx(0.05, rel=0.05)
    known = np.isin(moves.end, times)
    assert 0.4 < known.mean() < 0.6
    assert ((np.arange(6) // 2)[moves.target] == np.abs(moves.end[:, None] - times).argmin(1)).all()
    np.testing.assert_allclose(moves.arrival[known], where[moves.target[known]], atol=1e-9)


def test_short_and_long_moves_belong_to_one_process():
    """The covariance of two points of one bridge, which two independent bridges would not have."""
    couplings, rows = _line(2, spread=1.0)
    where = np.zeros((4, 2))
    sampler = PathSampler(np.array([0.0, 1.0]), rows, couplings, lambda r: where[r], lambda states, *_: states)
    moves = sampler.moves(200_000, False, np.random.default_rng(0))
    near = (np.abs(moves.begin - 0.3) < 0.05) & (np.abs(moves.end - 0.7) < 0.05)
    covariance = (moves.start[near, 0] * moves.arrival[near, 0]).mean()
    assert covariance == pytest.approx(0.3 * (1 - 0.7), rel=0.2)


def test_states_between_times_are_projected_and_measured_ones_are_not():
    couplings, rows = _line()
    seen = []

    def project(states, weight, direction):
        assert direction.shape == states.shape
        seen.append(weight)
        return states + weight[:, None]

    where = np.zeros((6, 2))
    sampler = PathSampler(np.array([0.0, 1.0, 2.0]), rows, couplings, lambda r: where[r], project)
    moves = sampler.moves(500, False, np.random.default_rng(0))
    weights = np.concatenate(seen)
    assert weights.min() == 0
    assert weights.max() <= 1
    measured = np.isin(moves.end, (0.0, 1.0, 2.0))
    assert (moves.arrival[measured] == 0).all()
    assert (np.abs(moves.arrival[~measured]) > 0).any()
