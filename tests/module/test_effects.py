import numpy as np
import pytest

from diffvi.module import EffectProcess, Responses

RNG = np.random.default_rng(0)
D = 6
SINGLES = {name: RNG.normal(size=D) for name in "ABCDEFGH"}


def t(*names, dose=1.0):
    return tuple((n, dose) for n in sorted(names))


def process(pairs=(), noise=1e-4, scale=1.0, singles="ABCDEFGH", features=None, misfit=0.0, **kwargs):
    treatments = [t(n) for n in singles] + [t(*p) for p in pairs]
    effects = [SINGLES[n] for n in singles]
    effects += [scale * sum(SINGLES[n] for n in p) + misfit * RNG.normal(size=D) for p in pairs]
    effects = np.array(effects) + np.sqrt(noise) * RNG.normal(size=(len(effects), D))
    return EffectProcess(treatments, effects, np.full(len(effects), noise), features=features or {}, **kwargs)


def test_a_well_measured_effect_is_predicted_as_measured():
    p = process()
    got = p.predict([t("A")])
    np.testing.assert_allclose(got.weights @ p.effects, p.effects[:1], atol=0.01)
    assert got.status == ["seen"]
    assert got.epistemic[0] < 0.01


def test_a_noisy_measurement_is_drawn_to_the_others_and_not_without_shrinkage():
    for shrink in (True, False):
        p = process(noise=4.0, shrink=shrink)
        got = p.predict([t("A")]).weights[0]
        assert (got[0] < 0.6) == shrink


def test_a_pair_is_the_scaled_sum_of_its_parts_with_the_scale_of_the_other_pairs():
    pairs = ["AB", "CD", "EF", "GH", "AC", "BD", "EG", "FH"]
    for scale in (1.0, 0.5):
        p = process(pairs, scale=scale)
        assert abs(p.params["scale"] - scale) < 0.1
        got = p.predict([t("A", "D")])
        truth = scale * (SINGLES["A"] + SINGLES["D"])
        np.testing.assert_allclose(got.weights @ p.effects, truth[None], atol=0.15)
        assert got.status == ["combo_seen2"]


def test_a_part_that_was_only_seen_in_pairs_is_inferred_from_them():
    p = process(["AH", "BH", "CH", "DE", "FG"], singles="ABCDEFG")
    assert p.status(t("H")) == "seen_in_combination"
    got = p.predict([t("D", "H")])
    np.testing.assert_allclose(got.weights @ p.effects, (SINGLES["D"] + SINGLES["H"])[None], atol=0.6)


def test_an_unknown_perturbation_has_a_mean_effect_and_a_large_variance():
    p = process()
    got = p.predict([t("Z"), t("A")])
    assert got.status == ["unseen_no_information", "seen"]
    assert got.epistemic[0] > 20 * got.epistemic[1]
    np.testing.assert_allclose(got.weights[0], got.weights[0].mean(), rtol=1e-3)


def test_features_predict_an_unknown_perturbation():
    names = [f"G{i}" for i in range(40)]
    features = {n: RNG.normal(size=2) for n in names}
    maps = RNG.normal(size=(2, D))
    effects = np.array([np.tanh(features[n]) @ maps for n in names])
    p = EffectProcess([t(n) for n in names[:36]], effects[:36], np.full(36, 1e-3), features=features)
    got = p.predict([t(n) for n in names[36:]])
    guess = got.weights @ p.effects
    assert got.status == ["unseen_embedded"] * 4
    assert ((guess - effects[36:]) ** 2).mean() < 0.2 * (effects[36:] ** 2).mean()
    far = EffectProcess(**{**p.to_dict(), "features": {**features, "far": np.full(2, 50.0)}})
    assert far.predict([t("far")]).epistemic[0] > 2 * got.epistemic.max()


def test_effects_grow_with_the_dose_from_nothing():
    doses = [0.1, 1.0, 10.0]
    curve = {d: np.log1p(d / 0.1) for d in (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)}
    effects = np.array([curve[d] * SINGLES["A"] for d in doses])
    p = EffectProcess([t("A", dose=d) for d in doses], effects, np.full(3, 1e-4), dose_unit=0.1, max_dose=10.0)
    for dose in (0.3, 3.0):
        got = p.predict([t("A", dose=dose)])
        assert got.status == ["unseen_dose"]
        np.testing.assert_allclose(got.weights @ p.effects, curve[dose] * SINGLES["A"][None], rtol=0.05, atol=0.02)
    assert not p.predict([()]).weights.any()
    assert p.predict([()]).epistemic[0] == 0


@pytest.mark.parametrize("features", [None, {n: RNG.normal(size=3) for n in "ABCDEFGH"}])
def test_leaving_one_out_is_what_a_fit_without_it_predicts(features):
    p = process(["AB", "CD", "EF"], noise=0.05, features=features)
    left_out = p.leave_one_out()
    for i in (0, 9):
        rest = [j for j in range(len(p.treatments)) if j != i]
        q = EffectProcess(
            [p.treatments[j] for j in rest], p.effects[rest], p.noise[rest], features=p.features, params=p.params
        )
        q._length = p._length
        got = q.predict([p.treatments[i]])
        np.testing.assert_allclose(left_out.weights[i] @ p.effects, got.weights[0] @ q.effects, atol=1e-6)
        np.testing.assert_allclose(
            left_out.epistemic[i] + left_out.noise[i], got.epistemic[0] + got.noise[0], rtol=1e-5
        )
        assert left_out.status[i] == got.status[0]


def test_intervals_of_the_process_cover():
    """Pairs that are the sum of their parts and a deviation: the stated variance of one left out is what is found."""
    ratios = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        names = [f"G{i}" for i in range(10)]
        single = {n: rng.normal(size=D) for n in names}
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]][:25]
        truth = [single[n] for n in names] + [single[a] + single[b] + 0.6 * rng.normal(size=D) for a, b in pairs]
        noise = 0.05
        p = EffectProcess(
            [t(n) for n in names] + [t(*q) for q in pairs[:20]],
            np.array(truth[:30]) + np.sqrt(noise) * rng.normal(size=(30, D)),
            np.full(30, noise),
        )
        got = p.predict([t(*q) for q in pairs[20:]])
        error = got.weights @ p.effects - truth[30:]
        ratios.append((error**2).mean(1) / (got.epistemic + got.noise))
    assert 0.8 < np.mean(ratios) < 1.25


def test_cells_respond_as_the_cells_most_like_them_did():
    z = RNG.normal(size=(400, D))
    change = np.where(z[:, :1] > 0, 1.0, -1.0) * np.ones(D)
    p = EffectProcess([t("A")], change.mean(0)[None], np.array([1e-4]))
    query = np.zeros((2, D))
    query[:, 0] = [2.0, -2.0]
    local = Responses(p, z, change, np.zeros(400, int), n_neighbors=20).shifts(query, [t("A"), t("A")])
    assert (local[0] > 0.6).all()
    assert (local[1] < -0.6).all()
    mean = Responses(p, z, change, np.zeros(400, int), n_neighbors=0).shifts(query, [t("A"), ()])
    np.testing.assert_allclose(mean[0], change.mean(0), atol=0.05)
    assert not mean[1].any()
