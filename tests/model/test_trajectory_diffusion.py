import sys
import types

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy import sparse
from scipy.spatial.distance import cdist

from diffvi import InvalidInputError, NotTrainedError
from diffvi.datasets import simulate_trajectory
from diffvi.metrics import energy_distance
from diffvi.model import TrajectoryDiffusion
from diffvi.model._trajectory_analysis import _choice_entropy, _crossings, _weighted_mean
from diffvi.process import couple
from tests.conftest import QUIET

SMALL = {"n_hidden": 64, "n_latent": 5, "denoiser_kwargs": {"width": 32, "depth": 2}}
FAST = {"plan_kwargs": {"lr": 3e-3, "dispersion_lr": 0.04}, "batch_size": 64, **QUIET}
TIMES = (0.0, 1.0, 1.5, 2.5, 4.0)


def fit(adata, setup=None, epochs=(50, 30), **kwargs):
    scvi.settings.seed = 0
    torch.set_num_threads(1)
    TrajectoryDiffusion.setup_anndata(adata, **{"time_key": "time", "labels_key": "fate", **(setup or {})})
    model = TrajectoryDiffusion(adata, **{**SMALL, **kwargs})
    model.train(max_epochs=epochs[0], max_epochs_diffusion=epochs[1], **FAST)
    return model


def brief(adata, setup=None, **kwargs):
    """A model that has run, for tests of form alone."""
    return fit(
        adata, setup, (1, 1), **{"n_hidden": 16, "denoiser_kwargs": {"width": 16, "depth": 1, "n_heads": 2}, **kwargs}
    )


@pytest.fixture(scope="session")
def course():
    """Simulated cells: branching, growth, unequal gaps."""
    return simulate_trajectory(250, 60, TIMES, seed=0)


@pytest.fixture(scope="session")
def moving(course):
    """A model of them; tests must not change it."""
    return fit(course.copy(), n_growth_neighbors=80, source_penalty=0.1, entropy=0.1)


@pytest.fixture
def early(course):
    return course[course.obs["time"] == 0][:30].copy()


def _upper(fate, weight):
    """Share of the upper branch among the cells that have chosen."""
    up, down = (weight[(fate == name).to_numpy()].sum() for name in ("up", "down"))
    return up / (up + down)


def close(a, b):
    """Equal up to the rounding errors of single precision, which rarely change a count."""
    rows = np.asarray((a.X != b.X).sum(1)).ravel() == 0
    return rows.mean() > 0.9 and np.allclose(a.obsm["X_latent"], b.obsm["X_latent"], atol=2e-3)


def same(a, b):
    return (a.X != b.X).nnz == 0 and np.allclose(a.obsm["X_latent"], b.obsm["X_latent"], atol=2e-4)


# ---------------------------------------------------------------- the simulator


def test_the_simulator_is_what_it_says(course):
    obs = course.obs
    assert obs["time"].value_counts().to_dict() == dict.fromkeys(TIMES, 250)
    late = obs[obs["time"] == 4.0]
    # The true probability of a cell at the last time is where it is; earlier it agrees with the outcomes.
    assert ((late["fate_probability"] > 0.5) == (late["outcome"] == "up")).all()
    bins = pd.cut(obs["fate_probability"], [0, 0.2, 0.4, 0.6, 0.8, 1], include_lowest=True)
    found = obs.groupby(bins, observed=True).agg({"fate_probability": "mean", "outcome": lambda v: (v == "up").mean()})
    np.testing.assert_allclose(found["fate_probability"], found["outcome"], atol=0.12)
    # Growth makes the upper branch win, and without it the branches are even.
    assert (late["outcome"] == "up").mean() > 0.75
    even = simulate_trajectory(400, 10, (0, 4), growth=0.0, seed=1).obs
    assert (even.loc[even["time"] == 4, "outcome"] == "up").mean() == pytest.approx(0.5, abs=0.07)
    assert not even["growth_rate"].any()
    with pytest.raises(InvalidInputError, match="`times` must ascend"):
        simulate_trajectory(10, 10, (0, 2, 1))


# ---------------------------------------------------------------- predictions


def test_predictions_have_the_documented_form(moving, early, tmp_path):
    future = moving.predict_trajectory(early, [2.5, 1.0], n_samples=2, seed=0)
    assert future.shape == (30 * 2 * 2, 60)
    assert future.obs["start_cell"].tolist()[:5] == [early.obs_names[0]] * 4 + [early.obs_names[1]]
    assert future.obs["sample"].tolist()[:4] == [0, 0, 1, 1]
    assert future.obs["time"].tolist()[:4] == [1.0, 2.5, 1.0, 2.5]
    assert (future.obs["weight"] > 0).all()
    assert set(future.obs["fate"]) <= {"up", "down", "progenitor"}
    assert future.X.dtype == np.int32
    np.testing.assert_allclose(future.layers["normalized"].sum(1), 1, rtol=1e-4)
    assert future.uns["diffvi"]["seed"] == 0
    assert moving.predict_trajectory(early[:2].copy(), seed=0).obs["time"].tolist() == 2 * [1.0, 1.5, 2.5, 4.0]
    with pytest.raises(
        InvalidInputError, match="`time_points`: no time was measured after 4, when the last of the cells"
    ):
        moving.predict_trajectory(seed=0)
    future.write_h5ad(tmp_path / "future.h5ad")
    assert same(ad.read_h5ad(tmp_path / "future.h5ad"), future)


@pytest.mark.parametrize("decode", ["transport", "resample"])
def test_predicted_populations_are_those_that_were_measured(moving, course, decode):
    start = course[course.obs["time"] == 1.5].copy()
    future = moving.predict_trajectory(start, [2.5, 4.0], n_samples=2, decode=decode, seed=0)
    for time in (2.5, 4.0):
        there, real = future[future.obs["time"] == time], course[course.obs["time"] == time]
        weight = there.obs["weight"].to_numpy()
        share, truth = (_upper(c.obs["fate"], w) for c, w in ((there, weight), (real, np.ones(real.n_obs))))
        assert share == pytest.approx(truth, abs=0.12)
        logged = [np.log1p(x.X.toarray() / x.X.sum(1) * 1e3) for x in (there, real, start)]
        assert energy_distance(logged[0], logged[1]) < 0.35 * energy_distance(logged[2], logged[1])
    # Growth is what the weights are for: without them the fast branch would be too small.
    unweighted = _upper(there.obs["fate"], np.ones(there.n_obs))
    assert unweighted < share
    assert abs(unweighted - truth) > abs(share - truth)


def test_a_cells_future_depends_on_the_seed_and_on_no_other_cell(moving, course, early):
    every = moving.predict_trajectory(early, [1.0, 2.5], n_samples=2, seed=0)
    assert close(every, moving.predict_trajectory(early, [1.0, 2.5], n_samples=2, seed=0, batch_size=7))
    assert close(every[:20], moving.predict_trajectory(early[:5].copy(), [1.0, 2.5], n_samples=2, seed=0))
    assert not close(every, moving.predict_trajectory(early, [1.0, 2.5], n_samples=2, seed=1))
    # Cells of other times beside them change nothing either.
    mixed = course[[*course.obs_names.get_indexer(early.obs_names[:5]), 260, 261, 600]].copy()
    both = moving.predict_trajectory(mixed, [1.0, 2.5], n_samples=2, backward=True, seed=0)
    assert close(every[:20], both[:20])


def test_a_time_that_is_now_is_the_cell_itself(moving, early):
    now = moving.predict_trajectory(early, [0.0, 1.0], seed=0)
    latent = moving.get_latent_representation(early)
    moved = np.linalg.norm(now.obsm["X_latent"].reshape(30, 2, -1) - latent[:, None], axis=2)
    # The draw from the posterior is all that is between them.
    assert moved[:, 0].mean() < 0.7 * moved[:, 1].mean()
    np.testing.assert_allclose(now.obs["weight"][::2], 1)


def test_one_jump_and_many_steps_agree(moving, early, course):
    cells = course[course.obs["time"] == 0].copy()
    jump = moving.predict_trajectory(cells, [4.0], autoregressive=False, seed=0)
    steps = moving.predict_trajectory(cells, np.arange(1, 9) / 2, seed=1)
    last = steps[steps.obs["time"] == 4.0]
    travelled = np.linalg.norm(last.obsm["X_latent"] - moving.get_latent_representation(cells), axis=1).mean()
    a, b = jump.obsm["X_latent"], last.obsm["X_latent"]
    assert np.sqrt(max(energy_distance(a, b), 0) / cdist(a, b).mean()) < 0.25
    assert np.linalg.norm(a.mean(0) - b.mean(0)) < 0.2 * travelled


def test_ancestors_are_where_cells_came_from(moving, course):
    late = course[course.obs["time"] == 4.0][:100].copy()
    with pytest.raises(
        InvalidInputError, match="`time_points`: 1 is before the time of cells that start at 4; pass `backward=True`"
    ):
        moving.predict_trajectory(late, [1.0], seed=0)
    back = moving.predict_trajectory(late, [0.0, 2.5], backward=True, seed=0)
    assert (back.obs["weight"] == 1).all()
    first = back[back.obs["time"] == 0.0].obsm["X_latent"]
    z = {t: moving.get_latent_representation(course[course.obs["time"] == t].copy()) for t in (0.0, 4.0)}
    assert energy_distance(first, z[0.0]) < 0.1 * energy_distance(z[4.0], z[0.0])
    # A lineage does not change sides on the way back once the branches are apart.
    middle = back[back.obs["time"] == 2.5].obs["fate"].to_numpy()
    sides = late.obs["fate"].to_numpy()
    assert (middle[sides == "down"] == "up").mean() < 0.2


def test_conditions_guide_the_arrivals(moving, early):
    down = moving.predict_trajectory(early, [4.0], n_samples=4, conditions={"fate": "down"}, seed=0)
    free = moving.predict_trajectory(early, [4.0], n_samples=4, seed=0)
    assert (down.obs["fate"] == "down").mean() > max(0.8, (free.obs["fate"] == "down").mean() + 0.2)
    for time in (2.5, 3.0, 4.0):
        free, only = (moving.interpolate(time, 100, c, seed=0).obs["fate"] for c in (None, {"fate": "down"}))
        assert (only == "down").mean() > (free == "down").mean() + 0.2
    with pytest.raises(InvalidInputError, match="`conditions`: the time, 'time', is given by"):
        moving.predict_trajectory(early, [4.0], conditions={"time": 4.0})


def test_beyond_the_last_time_cells_slow_down_and_spread(moving, course):
    late = course[course.obs["time"] == 4.0].copy()
    with pytest.warns(UserWarning, match=r"100 is beyond the measured times \(0 to 4\): this is an extrapolation"):
        far = moving.predict_trajectory(late, [4.5, 5.5, 10.0, 100.0], autoregressive=False, seed=0)
    latent = moving.get_latent_representation(late)
    spread, mean = [], []
    for time in (4.5, 5.5, 10.0, 100.0):
        z = far[far.obs["time"] == time].obsm["X_latent"]
        mean.append(np.linalg.norm(z.mean(0) - latent.mean(0)))
        spread.append(z.var(0).sum())
    assert spread[1:] == sorted(spread[1:])
    assert spread[3] > 3 * spread[0]
    gap = np.linalg.norm(
        latent.mean(0) - moving.get_latent_representation(course[course.obs["time"] == 2.5].copy()).mean(0)
    )
    # However far the time, the mean moves by no more than about one gap more.
    assert max(mean) < 2 * gap
    with pytest.warns(UserWarning, match="-2 is beyond the measured times"):
        moving.predict_trajectory(late[:3].copy(), [-2.0], backward=True, seed=0)


def test_interpolation_lies_between_its_neighbours(course):
    left_out = course[course.obs["time"] != 1.5].copy()
    model = fit(left_out, epochs=(30, 12))
    cells = model.interpolate(1.5, 300, seed=0)
    assert (cells.obs["time"] == 1.5).all()
    assert close(cells[:40], model.interpolate(1.5, 40, seed=0, batch_size=7))
    z = {t: model.get_latent_representation(course[course.obs["time"] == t].copy()) for t in (1.0, 1.5, 2.5)}
    distance = energy_distance(cells.obsm["X_latent"], z[1.5])
    assert distance < 0.7 * min(energy_distance(z[1.0], z[1.5]), energy_distance(z[2.5], z[1.5]))
    at_measured = model.interpolate(4.0, 100, seed=0)
    assert (
        energy_distance(
            at_measured.obsm["X_latent"], model.get_latent_representation(course[course.obs["time"] == 4.0].copy())
        )
        < 0.5
    )


# ---------------------------------------------------------------- what is derived


def test_fates_growth_and_branch_points_of_the_simulator(moving, course):
    cells = course[np.arange(0, 1250, 3)].copy()
    obs = cells.obs
    early = (obs["time"] < 4).to_numpy()
    fates = moving.get_fate_probabilities(adata=cells, n_samples=20)
    probability = fates["probability"]
    np.testing.assert_allclose(probability.sum(1), 1)
    truth = obs["fate_probability"].to_numpy()
    near = early & (truth > 0.05) & (truth < 0.95)
    up = (probability["up"] / (probability["up"] + probability["down"])).to_numpy()
    assert np.corrcoef(up[near], truth[near])[0, 1] > 0.6
    # A descendant is more often in the branch that grows than a lineage is.
    weighted = moving.get_fate_probabilities(adata=cells, n_samples=20, weighted=True)["probability"]
    undecided = early & (truth > 0.3) & (truth < 0.7)
    assert weighted.loc[undecided, "up"].mean() > probability.loc[undecided, "up"].mean()

    rates, true = moving.get_growth_rates(cells), obs["growth_rate"].to_numpy()
    branched = early & (obs["time"] > 1.2).to_numpy()
    assert np.corrcoef(rates[branched], true[branched])[0, 1] > 0.7

    points = moving.get_branch_points(adata=cells, n_samples=10)
    first = points[(points["fate_1"] == "down") & (points["fate_2"] == "up")].iloc[0]
    assert first["time_fall"] > 1.0
    assert first["time_peak"] <= 1.5
    assert first["peak_entropy"] > 0.5
    assert np.shape(first["latent"]) == (5,)


def test_standard_errors_are_those_of_repeated_sampling(moving, early):
    draws = [moving.get_fate_probabilities(adata=early, n_samples=10, seed=s) for s in range(12)]
    spread = np.std([d["probability"]["up"] for d in draws], axis=0, ddof=1)
    told = np.mean([d["standard_error"]["up"] for d in draws], axis=0)
    assert told.mean() == pytest.approx(spread.mean(), rel=0.2)


def test_fates_are_read_off_at_any_time_and_by_any_category(moving, course, early):
    at = moving.get_fate_probabilities("fate", 3, early, time=1.0)["probability"]
    assert at["progenitor"].mean() > 0.4
    late = course[course.obs["time"] == 4.0][:20].copy()
    own = moving.get_fate_probabilities(adata=late, n_samples=2)
    assert (own["standard_error"].to_numpy() < 0.35).all()
    assert (own["probability"].idxmax(axis=1) == late.obs["fate"].to_numpy()).mean() > 0.8
    with pytest.raises(
        InvalidInputError, match=r"`labels_key` must be one of the model's categories, \['fate'\]; got 'nope'"
    ):
        moving.get_fate_probabilities("nope")


def test_velocity_points_to_where_cells_go(moving, course):
    cells = course[course.obs["time"] == 0.0].copy()
    velocity = moving.get_velocity(cells)
    assert velocity.shape == (250, 5)
    z = [moving.get_latent_representation(course[course.obs["time"] == t].copy()).mean(0) for t in (0.0, 1.0)]
    mean, ahead = velocity.mean(0), z[1] - z[0]
    assert mean @ ahead / np.linalg.norm(mean) / np.linalg.norm(ahead) > 0.9
    assert np.linalg.norm(mean) == pytest.approx(np.linalg.norm(ahead), rel=0.35)
    # The last time looks back, and its velocity still points ahead in time.
    whole = course.copy()
    whole.obsm["X_state"] = whole.obsm["state"]
    embedded = moving.get_velocity(whole, basis="X_state", elapsed=0.5)
    assert embedded.shape == (1250, 2)
    assert 0.3 < np.median(embedded[:1000, 0]) < 1.5
    assert np.median(embedded[1000:, 0]) > 0
    with pytest.raises(InvalidInputError, match=r"`basis`: adata.obsm has no 'X_umap'"):
        moving.get_velocity(cells, basis="X_umap")
    with pytest.raises(InvalidInputError, match="`elapsed` must be a positive number; got -1"):
        moving.get_velocity(cells, elapsed=-1)


def test_transitions_are_a_sparse_markov_chain_through_time(moving, course):
    small = course[np.arange(0, 1250, 10)].copy()
    matrix = moving.get_transition_matrix(small, n_samples=3, n_neighbors=2)
    np.testing.assert_allclose(matrix.sum(1), 1)
    time = small.obs["time"].to_numpy()
    rows, columns = matrix.nonzero()
    following = dict(zip(TIMES, [*TIMES[1:], TIMES[-1]], strict=True))
    assert all(time[j] == following[time[i]] for i, j in zip(rows, columns, strict=True))
    assert matrix.nnz <= 6 * small.n_obs


def test_the_cellrank_kernel_is_made_of_it_or_says_what_is_missing(moving, course, monkeypatch):
    monkeypatch.setitem(sys.modules, "cellrank.kernels", None)
    with pytest.raises(ImportError, match="pip install cellrank"):
        moving.to_cellrank_kernel()
    stand_in = types.ModuleType("cellrank.kernels")
    stand_in.PrecomputedKernel = lambda matrix, adata: (matrix, adata)
    monkeypatch.setitem(sys.modules, "cellrank", types.ModuleType("cellrank"))
    monkeypatch.setitem(sys.modules, "cellrank.kernels", stand_in)
    small = course[np.arange(0, 1250, 10)].copy()
    matrix, adata = moving.to_cellrank_kernel(small, n_samples=2)
    assert adata is small
    np.testing.assert_allclose(matrix.sum(1), 1)


def test_small_parts():
    mean, error = _weighted_mean(np.array([[[1.0]], [[0.0]], [[0.0]], [[1.0]]]), np.ones((4, 1)))
    assert mean.item() == 0.5
    assert error.item() == pytest.approx(np.sqrt(0.25 / 3))
    assert _weighted_mean(np.array([[[1.0]], [[0.0]]]), np.array([[3.0], [1.0]]))[0].item() == 0.75
    np.testing.assert_allclose(
        _choice_entropy(np.array([0.5, 0.2, 0.0, 1.0]), np.array([0.5, 0.2, 0.0, 0.0])), [1, 0.4, 0, 0], atol=1e-9
    )
    assert _crossings(np.arange(4.0), np.array([0.0, 1.0, 1.0, 0.0])) == (0.5, 2.5)
    rise, fall = _crossings(np.arange(2.0), np.array([1.0, 1.0]))
    assert np.isnan([rise, fall]).all()


# ---------------------------------------------------------------- options and data


def test_given_growth_rates_are_used(course):
    adata = course.copy()
    adata.obs["known"] = adata.obsm["state"][:, 0]
    model = brief(adata, {"growth_key": "known"})
    assert np.corrcoef(model.get_growth_rates()[:1000], adata.obs["known"][:1000])[0, 1] > 0.8
    with pytest.raises(
        InvalidInputError, match=r'`coupling="balanced"` leaves no growth, and .*growth_key.* gives some'
    ):
        TrajectoryDiffusion(adata, coupling="balanced", **SMALL)
    even = brief(course.copy(), coupling="balanced")
    assert np.abs(even.get_growth_rates()).max() < 0.05


def test_cells_may_enter_whose_ancestors_were_not_measured(tmp_path, monkeypatch):
    coupled = []

    def watched(*args, **kwargs):
        coupled.append((kwargs["target_penalty"], couple(*args, **kwargs)))
        return coupled[-1][1]

    monkeypatch.setattr("diffvi.model._trajectory_training.couple", watched)
    adata = simulate_trajectory(60, 30, (0, 1), seed=0)
    # Half of the later cells are of a kind that has no progenitors: other genes are on.
    new = np.flatnonzero(adata.obs["time"] == 1)[::2]
    counts = adata.X.toarray()
    counts[new] = counts[new][:, ::-1]
    adata.X = sparse.csr_matrix(counts)
    for penalty in (np.inf, 0.1):
        model = fit(adata.copy(), epochs=(40, 1), target_penalty=penalty)
    entered = {penalty: (coupling.successors % 2 == 0).mean() for penalty, coupling in coupled}
    assert entered[np.inf] == pytest.approx(0.5, abs=0.25)
    assert entered[0.1] < 0.5 * entered[np.inf]
    model.save(tmp_path / "model")
    assert TrajectoryDiffusion.load(tmp_path / "model", adata).target_penalty == 0.1


def test_cells_keep_their_conditions_and_are_coupled_within_them():
    """Two treatments that move in opposite directions are not mixed."""
    adata = simulate_trajectory(60, 20, (0, 1, 2), seed=0)
    adata.obs["arm"] = np.where(np.arange(180) % 2, "a", "b")
    adata.obs["dose"] = 2.0
    model = brief(adata, {"condition_keys": ["arm", "dose"]})
    cells = adata[:4].copy()
    future = model.predict_trajectory(cells, [1.0], seed=0)
    assert future.obs["arm"].tolist() == cells.obs["arm"].tolist()
    assert (future.obs["dose"] == 2.0).all()
    assert set(model.interpolate(0.5, 20, {"arm": "a"}, seed=0).obs["arm"]) == {"a"}
    mixed = ["a", "b"] * 10
    assert model.interpolate(0.5, 20, {"arm": mixed}, seed=0).obs["arm"].tolist() == mixed
    other = model.predict_trajectory(cells, [1.0], conditions={"arm": "b", "dose": 3.0}, seed=0)
    assert set(other.obs["arm"]) == {"b"}
    assert (other.obs["dose"] == 3.0).all()
    found = []
    original = model._couple

    def spy(x, earlier, later, groups, growth, seed):
        coupling = original(x, earlier, later, groups, growth, seed)
        found.append((groups[earlier][:, None, 0] == groups[later[coupling.successors], 0]).all())
        return coupling

    model._couple = spy
    model.train_diffusion(max_epochs=1, **QUIET)
    assert found == [True, True]


def test_blocks_and_batches(course):
    adata = course.copy()
    adata.obs["batch"] = np.where(np.arange(1250) % 3, "x", "y")
    model = brief(adata, {"batch_key": "batch"}, max_block=100)
    assert model.predict_trajectory(adata[:5].copy(), [1.0], seed=0).n_obs == 5
    assert model.times_ == list(TIMES)
    # The batch that is asked for is the decoder's: the cells go to the same places.
    cells = adata[:5].copy()
    here, there = (
        model.predict_trajectory(cells, [1.0], conditions=c, decode="resample", seed=0)
        for c in ({"batch": "x"}, {"batch": "y"})
    )
    np.testing.assert_allclose(here.obsm["X_latent"], there.obsm["X_latent"], atol=1e-5)
    assert np.abs(here.layers["normalized"] - there.layers["normalized"]).max() > 1e-4


def test_times_with_many_digits_are_the_measured_ones():
    adata = simulate_trajectory(30, 10, (0, 1, 2), seed=0)
    adata.obs["time"] = adata.obs["time"] / 3 + 2 / 3
    model = brief(adata)
    cells = adata[adata.obs["time"] == adata.obs["time"].min()][:3].copy()
    now = model.predict_trajectory(cells, adata.obs["time"].min(), seed=0)
    assert (now.obs["weight"] == 1).all()
    assert sorted(set(model.predict_trajectory(cells, seed=0).obs["time"])) == model.times_[1:]


def test_a_single_time_left_for_training_gets_a_sentence(course):
    reference = brief(course[course.obs["time"] < 2].copy())
    query = course[course.obs["time"] == 4.0].copy()
    model = TrajectoryDiffusion.load_query_data(query, reference, unfrozen=True)
    with pytest.raises(InvalidInputError, match="`time_key`: the training cells are all of the time 4; at least two"):
        model.train(max_epochs=1, max_epochs_diffusion=1, **QUIET)


def test_starting_from_cells_without_a_time(moving, early):
    bare = early.copy()
    del bare.obs["time"]
    with pytest.raises(InvalidInputError, match=r"adata.obs has no 'time'; say when the cells start with `start_time`"):
        moving.predict_trajectory(bare, [1.0])
    assert same(
        moving.predict_trajectory(bare, [1.0], start_time=0.0, seed=0), moving.predict_trajectory(early, [1.0], seed=0)
    )
    early.obs.loc[early.obs_names[:2], "time"] = np.nan
    with pytest.raises(InvalidInputError, match="`adata`: 2 of 30 cells have no finite time to start at"):
        moving.predict_trajectory(early, [1.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda obs: obs.assign(time=1.0), r"`time_key`: adata.obs\['time'\] holds one time \(1\); at least two"),
        (
            lambda obs: obs.assign(time=obs["time"].astype(str)),
            r"`time_key`: adata.obs\['time'\] must hold numbers.*got '0.0'",
        ),
        (
            lambda obs: obs.assign(time=np.where(np.arange(len(obs)) < 3, 9.0, obs["time"])),
            r"the times 9.0 of .* have fewer than 5 cells",
        ),
        (
            lambda obs: obs.assign(time=np.where(np.arange(len(obs)) < 2, np.nan, obs["time"])),
            "no finite value for 2 of 150 cells",
        ),
        (lambda obs: obs.drop(columns="time"), "`time_key`: adata.obs has no column 'time'"),
        (lambda obs: obs.assign(growth_rate="fast"), r"`growth_key`: adata.obs\['growth_rate'\] must hold numbers"),
    ],
)
def test_bad_times_get_a_sentence(change, message):
    adata = simulate_trajectory(50, 10, (0, 1, 2), seed=0)
    adata.obs = change(adata.obs)
    with pytest.raises(InvalidInputError, match=message):
        TrajectoryDiffusion.setup_anndata(adata, "time", growth_key="growth_rate")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"coupling": "best"}, "`coupling` must be one of 'unbalanced', 'balanced'; got 'best'"),
        ({"entropy": 0}, "`entropy` must be a positive number; got 0"),
        ({"source_penalty": -1}, "`source_penalty` must be a positive number; got -1"),
        ({"target_penalty": 0}, "`target_penalty` must be a positive number; got 0"),
        ({"manifold_pull": 2}, "`manifold_pull` must be a number from 0 to 1; got 2"),
        ({"max_block": 0}, "`max_block` must be a whole number"),
        ({"n_growth_neighbors": -1}, "`n_growth_neighbors` must be a whole number of at least 0; got -1"),
        ({"n_growth_updates": 1.5}, "`n_growth_updates` must be a whole number of at least 0; got 1.5"),
    ],
)
def test_bad_model_arguments_get_a_sentence(kwargs, message):
    adata = simulate_trajectory(10, 10, (0, 1), seed=0)
    TrajectoryDiffusion.setup_anndata(adata, "time")
    with pytest.raises(InvalidInputError, match=message):
        TrajectoryDiffusion(adata, **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"time_points": "soon"}, "`time_points` must be finite numbers; got 'soon'"),
        ({"time_points": [1.0, np.nan]}, "`time_points` must be finite numbers"),
        ({"n_samples": 0}, "`n_samples` must be a whole number"),
        ({"decode": "nope"}, "`decode` must be one of 'transport', 'resample'"),
        ({"sampler": "nope"}, "`sampler` must be one of"),
        ({"batch_size": 0}, "`batch_size`"),
    ],
)
def test_bad_arguments_of_predictions_get_a_sentence(moving, early, kwargs, message):
    with pytest.raises(InvalidInputError, match=message):
        moving.predict_trajectory(early, **{"time_points": [1.0], **kwargs})


def test_an_untrained_model_says_so(course):
    adata = course.copy()
    TrajectoryDiffusion.setup_anndata(adata, "time")
    model = TrajectoryDiffusion(adata, **SMALL)
    for call in (
        model.predict_trajectory,
        model.get_velocity,
        model.get_fate_probabilities,
        model.get_growth_rates,
        model.get_transition_matrix,
    ):
        with pytest.raises(NotTrainedError):
            call()
    with pytest.raises(NotTrainedError):
        model.interpolate(1.0, 5)


def test_it_predicts_the_same_after_saving_and_without_its_data(moving, early, tmp_path):
    moving.save(str(tmp_path / "m"))
    loaded = TrajectoryDiffusion.load(str(tmp_path / "m"))
    with pytest.raises(InvalidInputError, match="`adata`: the model was loaded without data; give the cells"):
        loaded.get_velocity()
    assert same(loaded.predict_trajectory(early, [1.0], seed=0), moving.predict_trajectory(early, [1.0], seed=0))
    assert same(loaded.interpolate(2.0, 10, seed=0), moving.interpolate(2.0, 10, seed=0))


def test_an_scvi_model_gets_time(course):
    adata = course.copy()
    scvi.model.SCVI.setup_anndata(adata, labels_key="fate")
    vae = scvi.model.SCVI(adata, n_latent=4, n_hidden=16)
    vae.train(max_epochs=1, **QUIET)
    model = TrajectoryDiffusion.from_scvi_model(vae, "time", denoiser="mlp")
    model.train_diffusion(max_epochs=1, **QUIET)
    np.testing.assert_allclose(model.get_latent_representation(), vae.get_latent_representation(), atol=1e-5)
    assert model.interpolate(2.0, 5, seed=0).obs["fate"].notna().all()


def test_a_query_at_new_times_extends_the_reference(course):
    reference = brief(course[course.obs["time"] < 2].copy())
    query = course[course.obs["time"] >= 2].copy()
    model = TrajectoryDiffusion.load_query_data(query, reference)
    model.train(max_epochs=1, max_epochs_diffusion=1, plan_kwargs={"weight_decay": 0.0}, **QUIET)
    # The prior of the reference stands in for its cells: their times are still there.
    assert model.times_ == list(TIMES)
    assert model.predict_trajectory(query[:3].copy(), [0.5], backward=True, seed=0).n_obs == 3


def test_annotate_needs_no_move(moving, early):
    moving.annotate(early)
    assert early.obsm["X_diffvi"].shape == (30, 5)
    assert np.isfinite(early.obs["diffvi_log_prob"]).all()
