"""Drawn changes are used where they bring predicted cells nearer to real ones, and libraries move on request."""

import copy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scvi
import torch

from diffvi import InvalidInputError
from diffvi.datasets import simulate_perturbations
from diffvi.model import PerturbDiffusion
from diffvi.model._perturbation_spread import MAX_CELLS, MIN_CELLS, Probe, probes, spread_gain
from tests.conftest import QUIET

RNG = np.random.default_rng(0)
SMALL = {"n_hidden": 32, "n_latent": 4, "denoiser_kwargs": {"width": 16, "depth": 1, "n_heads": 2}}


PRIOR = SimpleNamespace(shift=torch.zeros(3), mean=lambda codes: codes + 1.0, standardise=lambda state: state)
"""Moves cells by 1 on average."""


def _probe(sides):
    codes, real = (0.1 * RNG.normal(size=(100, 3)).astype(np.float32) for _ in range(2))
    real = real + 1.0
    real[:, 0] += sides
    return Probe(codes, real)


def test_a_spread_is_a_gain_where_real_cells_have_it():
    two_groups, one = _probe(RNG.choice([-1.0, 1.0], 100)), _probe(np.zeros(100))

    def gain(looked_at, spread=1.0):
        def draw(codes, streams):
            side = torch.zeros(len(codes), 3)
            side[:, 0] = spread * torch.sign(streams.normal(1)[:, 0])
            return torch.as_tensor(codes) + 1.0 + side

        return spread_gain(PRIOR, looked_at, draw)

    assert gain([two_groups]) > 0.3
    assert gain([one]) < -0.3
    assert gain([two_groups], spread=0.0) == pytest.approx(0.0, abs=1e-6)
    assert gain([two_groups, one]) == pytest.approx((gain([two_groups]) + gain([one])) / 2, abs=0.1)
    assert gain([]) is None


def test_probes_are_training_cells_of_the_largest_groups_and_controls_of_their_context():
    sizes = {((0,), (("A", 1.0),)): 3 * MAX_CELLS, ((1,), (("A", 1.0),)): 100, ((0,), (("B", 1.0),)): 2 * MIN_CELLS - 2}
    ends = np.cumsum([0, *sizes.values(), 40, 60])
    groups = {key: list(range(ends[i], ends[i + 1])) for i, key in enumerate(sizes)}
    controls = {(0,): np.arange(ends[3], ends[4]), (1,): np.arange(ends[4], ends[5])}
    state, training = np.arange(ends[5], dtype=float)[:, None], np.arange(ends[5]) % 2 == 0
    asked = []

    def codes_of(start, treatments, contexts):
        asked.append((set(treatments), set(contexts)))
        return start

    found = probes(state, groups, controls, training, codes_of)
    assert asked == [({key[1]}, {key[0]}) for key in list(sizes)[:2]]  # of the third, too few are in training
    assert [len(probe.real) for probe in found] == [MAX_CELLS, 50]
    for probe, (context, treatment) in zip(found, sizes, strict=False):
        real = probe.real[:, 0].astype(int)
        assert len(set(real)) == len(real)
        assert set(real) <= set(np.array(groups[context, treatment])[training[groups[context, treatment]]])
        assert set(probe.codes[:, 0].astype(int)) == set(controls[context])


def _fit(adata, **kwargs):
    scvi.settings.seed = 0
    torch.set_num_threads(1)
    PerturbDiffusion.setup_anndata(adata, "perturbation", "control", batch_key="donor")
    model = PerturbDiffusion(adata, **SMALL, **kwargs)
    model.train(max_epochs=15, max_epochs_diffusion=1, batch_size=64, **QUIET)
    return model


@pytest.fixture(scope="module")
def larger():
    """Cells under A have twice as many counts, in all donors but those of c; there is none perturbed."""
    adata = simulate_perturbations(900, 30, n_perturbations=3, strength=1.5, seed=0)
    names = adata.obs["perturbation"].to_numpy(str)
    adata.X = adata.X.multiply(np.where(np.char.find(names, "A") >= 0, 2, 1)[:, None]).tocsr()
    adata.obs["donor"] = np.tile(["a", "b", "c"], 300)
    train = adata[~((adata.obs["donor"] == "c") & (names != "control"))].copy()
    return _fit(train), adata[names == "control"].copy()


def _growth(model, cells, perturbation, **kwargs):
    out = model.predict_perturbation(cells, perturbation, seed=0, copy=True, use_diffusion=False, **kwargs)
    assert out.uns["perturbed"]["library_size"] == (kwargs["library_size"] or "own")
    return float(out.layers["perturbed"].sum() / cells.X.sum())


@pytest.mark.parametrize("donors", ["ab", "c"])
@pytest.mark.parametrize("decode", ["transport", "resample"])
def test_the_library_moves_on_request_as_that_of_perturbed_cells_does(larger, donors, decode):
    model, cells = larger
    cells = cells[cells.obs["donor"].isin(list(donors))].copy()

    def growth(perturbation):
        own, moved = (
            _growth(model, cells, perturbation, library_size=size, decode=decode) for size in (None, "perturbed")
        )
        return moved / own

    log_library = pd.Series(np.log(np.asarray(model.adata.X.sum(1)).ravel()))
    measured = log_library.groupby(model.adata.obs["perturbation"].to_numpy(str)).mean()
    change = np.exp(measured - measured["control"])
    assert change["A"] > 1.8 * change["B"]
    for name in ("A", "B", "A+B"):
        assert growth(name) == pytest.approx(change[name], rel=0.1)


def test_the_library_moves_as_far_as_that_repeats(larger, tmp_path):
    model, cells = larger
    assert model.library_shares_["new"] > 0.7
    model.save(tmp_path / "model")
    loaded = PerturbDiffusion.load(tmp_path / "model", model.adata)
    assert loaded.library_shares_ == model.library_shares_
    assert loaded.spread_gain_ == model.spread_gain_
    new = cells[cells.obs["donor"] == "c"].copy()
    moved = _growth(model, new, "A", library_size="perturbed")
    loaded.library_shares_["new"] = 0.0
    own = _growth(loaded, new, "A", library_size="perturbed")
    assert own == _growth(loaded, new, "A", library_size=None) < 0.7 * moved


def test_one_context_tells_nothing_of_the_libraries_of_new_ones(larger):
    of_a = larger[0].adata[larger[0].adata.obs["donor"].isin(["a", "c"])].copy()
    model = _fit(of_a)
    assert model.library_shares_["new"] == 0.0
    new = larger[1][larger[1].obs["donor"] == "c"].copy()
    assert _growth(model, new, "A", library_size="perturbed") == _growth(model, new, "A", library_size=None)


def test_without_shrinkage_libraries_are_as_measured(larger):
    shares = {shrink: _fit(larger[0].adata.copy(), shrink=shrink).library_shares_["seen"] for shrink in (True, False)}
    assert shares[False] == 1.0 > shares[True]


def test_without_an_offset_none_is_looked_for(larger, monkeypatch):
    monkeypatch.setattr(PerturbDiffusion, "_through", None)
    model = _fit(larger[0].adata.copy(), rate_offset=False)
    assert "offset" not in model.measured_
    assert model.library_shares_["seen"] > 0.7


@pytest.mark.parametrize("perturbed", [True, False])
def test_surgery_leaves_the_reference_alone_and_keeps_what_it_knew(larger, perturbed):
    reference, cells = larger
    query = (reference.adata if perturbed else cells)[:150].copy()
    query.obs["donor"] = "d"
    names = ("offset_shares_", "library_shares_", "spread_gain_")
    before = {name: copy.deepcopy(getattr(reference, name)) for name in names}
    moved = _growth(reference, cells, "A", library_size="perturbed")
    model = PerturbDiffusion.load_query_data(query, reference)
    model.train(max_epochs=1, max_epochs_diffusion=1, batch_size=64, **QUIET)
    assert {name: getattr(reference, name) for name in names} == before
    assert _growth(reference, cells, "A", library_size="perturbed") == moved
    # One more context tells nothing of new ones, and control cells tell nothing at all.
    assert model.library_shares_["new"] == before["library_shares_"]["new"]
    if not perturbed:
        assert {name: getattr(model, name) for name in names} == before
        own, of_query = (_growth(model, query, "A", library_size=size) for size in (None, "perturbed"))
        assert of_query > 1.5 * own


def test_surgery_on_a_model_that_did_not_measure_libraries(larger, tmp_path):
    model, cells = larger
    model.save(tmp_path / "model")
    old = PerturbDiffusion.load(tmp_path / "model", model.adata)
    del old.measured_["library_effect"]
    with pytest.raises(InvalidInputError, match="trained before libraries were measured"):
        old.predict_perturbation(cells, "A", library_size="perturbed")
    query = model.adata[:150].copy()
    query.obs["donor"] = "d"
    fresh = PerturbDiffusion.load_query_data(query, old)
    fresh.train(max_epochs=1, max_epochs_diffusion=1, batch_size=64, **QUIET)
    out = fresh.predict_perturbation(
        query[query.obs["perturbation"] == "control"].copy(), "A", library_size="perturbed", copy=True
    )
    assert np.isfinite(out.layers["perturbed_mean"]).all()


def test_retraining_forgets_what_the_last_prior_was_good_for(larger, tmp_path):
    model, _ = larger
    model.save(tmp_path / "model")
    loaded = PerturbDiffusion.load(tmp_path / "model", model.adata)
    loaded.module.prior.sample = None  # what is told of the spread comes after training

    with pytest.raises(TypeError):
        loaded.train_diffusion(max_epochs=1, **QUIET)
    assert loaded.spread_gain_ is None


def test_changes_are_drawn_by_default_where_that_was_a_gain(larger, tmp_path):
    model, cells = larger
    assert np.isfinite(model.spread_gain_)
    model.save(tmp_path / "model")
    loaded = PerturbDiffusion.load(tmp_path / "model", model.adata)

    def delta(use_diffusion):
        out = loaded.predict_perturbation(cells, "A", use_diffusion=use_diffusion, seed=0, copy=True)
        return out.obsm["X_perturbed_delta"], out.uns["perturbed"]["use_diffusion"]

    drawn, mean = delta(True), delta(False)
    assert np.abs(drawn[0] - mean[0]).max() > 1e-3
    assert (drawn[1], mean[1]) == (True, False)
    for gain, expected in ((0.1, drawn), (-0.1, mean), (None, drawn)):
        loaded.spread_gain_ = gain
        found = delta("auto")
        np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
        assert found[1] is expected[1]
