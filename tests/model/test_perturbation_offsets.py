"""What the decoder misses of measured log ratios is added as far as it repeats, in cells that were not counted for it."""

import numpy as np
import pytest
import scvi

from diffvi.datasets import simulate_perturbations
from diffvi.model import PerturbDiffusion
from diffvi.model._perturbation_calibration import PerturbationCalibrationMixin
from diffvi.model._perturbation_measures import FoundAgain, Measured, Transfer, repeatable
from tests.conftest import QUIET

RNG = np.random.default_rng(0)
NOISE = 0.2


def test_what_repeats_is_kept_and_noise_is_not():
    signal = RNG.normal(size=(2, 4000)) * np.array([[1.0], [0.0]])
    variance = np.full_like(signal, NOISE**2)
    kept = repeatable(signal + NOISE * RNG.normal(size=signal.shape), variance)
    assert np.corrcoef(kept[0], signal[0])[0, 1] > 0.95
    assert kept[0].std() == pytest.approx(1 / np.sqrt(1 + NOISE**2), rel=0.05)
    assert kept[1].std() < 0.02
    variance[0] = np.inf
    assert not repeatable(signal, variance)[0].any()
    variance[0] = NOISE**2
    np.testing.assert_array_equal(repeatable(signal, variance, shrink=False), signal)


def test_what_was_not_measured_takes_nothing_from_the_signal():
    signal = RNG.normal(size=(1, 4000))
    variance = np.where(np.arange(4000) % 4, np.inf, 1.0)[None]
    measured = signal + RNG.normal(size=signal.shape)
    kept = repeatable(measured, variance)
    np.testing.assert_allclose(kept[:, ::4], 0.5 * measured[:, ::4], rtol=0.1)
    assert not kept[np.isinf(variance)].any()
    assert repeatable(np.zeros((1, 0)), np.zeros((1, 0))).shape == (1, 0)


class Decoder(PerturbationCalibrationMixin):
    """A decoder that misses all of every effect, but in contexts of which no control cell is left."""

    shrink = rate_offset = True

    def _through(self, effects, where):
        return np.full((len(effects), 500), np.nan if (9,) in where else 0.0)


def _measured(log_ratio, variance=NOISE**2):
    noisy = log_ratio + NOISE * RNG.normal(size=log_ratio.shape)
    log_library = noisy[:, 0]
    return Measured(
        noisy, np.full_like(log_ratio, variance), np.zeros_like(log_ratio), log_library, np.full(len(noisy), variance)
    )


def _transfer(told, asked, **kwargs):
    return Transfer(np.zeros((len(told), 3)), _measured(told, **kwargs), _measured(asked), {(0,)}, {(1,)})


def _share(*transfers):
    return Decoder()._shares_found(transfers)[0]


def _library_share(told, asked, unknown=0, noise=NOISE):
    """Of as many treatments as there are log libraries; ``unknown`` of which were not measured on the first cells."""

    def measured(library):
        empty = np.zeros((len(library), 500))
        noisy = library + noise * RNG.normal(size=len(library))
        return Measured(empty, empty + 1.0, empty, noisy, np.full(len(library), noise**2))

    first = measured(told)
    first.library_variance[:unknown] = np.inf
    transfer = Transfer(np.zeros((len(told), 3)), first, measured(asked), {(0,)}, {(1,)})
    return Decoder()._shares_found([transfer])[1]


def test_libraries_have_a_share_of_their_own():
    told = RNG.normal(size=3000)
    assert _library_share(told, told) == pytest.approx(1.0, abs=0.05)
    assert _library_share(told, -told) == 0.0
    for unknown in (0, 2400):
        assert _library_share(told, 0.5 * told, unknown, noise=1.0) == pytest.approx(0.5, abs=0.15)
    assert _library_share(told, told, unknown=3000) is None


def test_the_share_is_that_of_what_is_found_again():
    told = RNG.normal(size=(6, 500))
    assert _share(_transfer(told, told)) > 0.97
    assert _share(_transfer(told, 0.5 * told)) == pytest.approx(0.5, abs=0.05)
    assert _share(_transfer(told, RNG.normal(size=told.shape))) < 0.1
    assert _share(_transfer(told, -told)) == 0.0
    # Where less is left to explain, it counts for more: weights of 4 to 1.
    assert _share(_transfer(told, 0.5 * told), _transfer(told, told)) == pytest.approx((4 * 0.5 + 1) / 5, abs=0.05)


def test_what_was_not_measured_tells_nothing():
    told = RNG.normal(size=(6, 500))
    assert FoundAgain().share is None
    assert _share() is None
    assert _share(_transfer(told, told, variance=np.inf)) is None
    nowhere = _transfer(told, told)
    nowhere.asked_in = {(9,)}
    assert _share(nowhere) is None
    assert _share(nowhere, _transfer(told, told)) > 0.97


def _fit(adata, **setup):
    scvi.settings.seed = 0
    PerturbDiffusion.setup_anndata(adata, "perturbation", "control", **setup)
    model = PerturbDiffusion(adata, n_hidden=32, n_latent=4, denoiser_kwargs={"width": 16, "depth": 1, "n_heads": 2})
    model.train(max_epochs=5, max_epochs_diffusion=1, batch_size=64, **QUIET)
    return model


def test_contexts_have_shares_of_their_own(tmp_path):
    adata = simulate_perturbations(600, 30, n_perturbations=3, seed=0)
    adata.obs["donor"] = np.tile(["a", "b", "c"], 200)
    perturbed = adata.obs["perturbation"] != "control"
    train = adata[~((adata.obs["donor"] == "c") & perturbed)].copy()
    model = _fit(train, batch_key="donor")
    # A decoder that has hardly been trained misses most of the effects, which are the same in all donors.
    assert model.offset_shares_["seen"] > 0.5
    assert model.offset_shares_["new"] > 0.5
    cells = adata[~perturbed].copy()

    def means(model):
        return model.predict_perturbation(cells, "A", use_diffusion=False, copy=True).layers["perturbed_mean"]

    with_offset = means(model)
    model.save(tmp_path / "model")
    loaded = PerturbDiffusion.load(tmp_path / "model", train)
    assert loaded.offset_shares_ == model.offset_shares_
    np.testing.assert_allclose(means(loaded), with_offset, rtol=1e-5)
    loaded.offset_shares_["new"] = 0.0
    moved = np.abs(means(loaded) - with_offset).max(1) > 1e-6
    assert moved[(cells.obs["donor"] == "c").to_numpy()].all()
    assert not moved[(cells.obs["donor"] != "c").to_numpy()].any()


def test_one_context_tells_nothing_of_new_ones():
    model = _fit(simulate_perturbations(300, 30, n_perturbations=3, seed=0))
    assert model.offset_shares_["new"] == 0.0
    assert model.offset_shares_["seen"] > 0.5
    # Nor do contexts of which no control cell is remembered.
    effects = np.zeros((2, 4))
    assert np.isnan(model._through(effects, {(7,)})).all()
    np.testing.assert_allclose(model._through(effects, {()}), 0.0, atol=1e-6)
