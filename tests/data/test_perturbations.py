import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import stats
from scvi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from torch import tensor

from diffvi import InvalidInputError
from diffvi._random import CellStreams
from diffvi.data import PerturbationCoder, sample_counts, transport_counts


def cells(names, doses=None):
    obs = pd.DataFrame({"drug": names}, index=[str(i) for i in range(len(names))])
    if doses is not None:
        obs["dose"] = doses
    return AnnData(np.ones((len(names), 2)), obs=obs)


def test_a_combination_has_one_treatment_whatever_the_order_and_the_control_in_it():
    coder = PerturbationCoder(["A", "B"], "ctrl")
    assert coder.parse("B+A") == coder.parse("A+B") == coder.parse(" A + B +ctrl") == (("A", 1.0), ("B", 1.0))
    assert coder.parse("A+A") == coder.parse("A")
    assert coder.parse("ctrl") == coder.parse("A", 0.0) == ()
    assert coder.name(coder.parse("B+A")) == "A+B"
    assert PerturbationCoder(["A", "B"], "ctrl", separator="_").parse("B_A") == (("A", 1.0), ("B", 1.0))


def test_codes_translate_both_ways_and_unknown_parts_are_missing():
    adata = cells(["ctrl", "A", "B+A", "A+C"])
    coder = PerturbationCoder.from_cells(adata, "drug", "ctrl", "+", None)
    assert coder.members == ["A", "B", "C"]
    treatments = coder.treatments(adata, "drug")
    assert coder.decode(coder.encode(treatments)) == treatments
    assert np.isnan(coder.encode([(("Z", 1.0),), None])).all()
    assert coder.from_dict(coder.to_dict()) == coder


def test_doses_are_weights_between_zero_and_one_and_come_back():
    adata = cells(["ctrl", "A", "A", "A"], [0.0, 0.1, 1.0, 10.0])
    coder = PerturbationCoder.from_cells(adata, "drug", "ctrl", "+", "dose")
    assert (coder.dose_unit, coder.max_dose) == (0.1, 10.0)
    weights = [coder.weight(d) for d in (0.0, 0.1, 1.0, 10.0)]
    assert weights[0] == 0
    assert weights[3] == 1
    assert (np.diff(weights) > 0).all()
    treatments = coder.treatments(adata, "drug")
    assert coder.decode(coder.encode(treatments)) == treatments


def test_an_indicator_matrix_says_the_same_as_names():
    adata = cells(["ctrl", "A", "A+B"])
    adata.obsm["hot"] = pd.DataFrame([[0, 0], [1, 0], [1, 1]], columns=["A", "B"], index=adata.obs_names)
    named = PerturbationCoder.from_cells(adata, "drug", "ctrl", "+", None)
    hot = PerturbationCoder.from_cells(adata, "hot", "ctrl", "+", None)
    assert hot.treatments(adata, "hot") == named.treatments(adata, "drug")
    adata.obsm["bare"] = np.array([[0, 0], [0.5, 0], [0.5, 2.0]])
    bare = PerturbationCoder.from_cells(adata, "bare", "ctrl", "+", None)
    assert bare.treatments(adata, "bare")[2] == (("bare_0", 0.5), ("bare_1", 2.0))
    adata.obsm["bad"] = np.array([[0, 0], [-1.0, 0], [1, 1]])
    with pytest.raises(InvalidInputError, match=r"adata.obsm\['bad'\] must hold finite numbers of at least 0"):
        PerturbationCoder.from_cells(adata, "bad", "ctrl", "+", None)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_bad_doses_get_a_sentence(bad):
    with pytest.raises(
        InvalidInputError, match=r"`dose_key`: adata.obs\['dose'\] must hold numbers of at least 0; 1 cells"
    ):
        PerturbationCoder.from_cells(cells(["ctrl", "A"], [0.0, bad]), "drug", "ctrl", "+", "dose")


def test_too_many_parts_get_a_sentence():
    names = [f"G{i}" for i in range(9)]
    coder = PerturbationCoder(names, "ctrl")
    with pytest.raises(InvalidInputError, match="at most 8 parts"):
        coder.encode([tuple((n, 1.0) for n in names)])


# ---------------------------------------------------------------- count transport

N = 8_000


def same_counts(a, b):
    """A chi-square test of two samples of counts, with rare values pooled."""
    top = int(np.quantile(b, 0.99))
    table = [np.bincount(np.minimum(v, top), minlength=top + 1) for v in (a, b)]
    keep = np.sum(table, 0) > 20
    return stats.chi2_contingency(np.array(table)[:, keep]).pvalue


def draw(px, seed):
    import torch

    torch.manual_seed(seed)
    return px.sample().numpy().astype(int)


def make(kind, mean, theta=1.5, inflation=-0.5):
    shape = (N, 1)
    mu, disp = tensor(mean).expand(shape), tensor([theta])
    if kind == "poisson":
        return Poisson(rate=mu)
    if kind == "nb":
        return NegativeBinomial(mu=mu, theta=disp)
    return ZeroInflatedNegativeBinomial(mu=mu, theta=disp, zi_logits=tensor(inflation).expand(shape))


@pytest.mark.parametrize("kind", ["nb", "zinb", "poisson"])
@pytest.mark.parametrize(("low", "high"), [(2.0, 7.0), (7.0, 2.0), (0.2, 0.3)])
def test_transported_counts_follow_the_second_distribution(kind, low, high):
    before = make(kind, low)
    after = make(kind, high, inflation=0.3 if low < high else -1.5)
    moved, mean, variance = transport_counts(draw(before, 0), before, after, CellStreams(0, np.arange(N)))
    moved = moved.toarray().ravel()
    assert same_counts(moved, draw(after, 1).ravel()) > 1e-3
    np.testing.assert_allclose(moved.mean(), mean.mean(), rtol=0.05)
    # Law of total variance: what is reported given the cell, and the spread of that over cells.
    np.testing.assert_allclose(moved.var(), variance.mean() + mean.var(), rtol=0.12)


def test_adding_independent_counts_would_not_follow_it():
    """The simpler rule, negative binomial counts of the missing mean, has too little variance: the test above has teeth."""
    before, after = make("nb", 2.0), make("nb", 7.0)
    naive = draw(before, 0) + draw(make("nb", 5.0), 2)
    assert same_counts(naive.ravel(), draw(after, 1).ravel()) < 1e-6


@pytest.mark.parametrize("kind", ["nb", "zinb", "poisson"])
def test_equal_distributions_leave_every_count_as_it_is(kind):
    px = make(kind, 3.0)
    counts = draw(px, 0)
    moved, mean, variance = transport_counts(counts, px, px, CellStreams(0, np.arange(N)))
    assert (moved.toarray() == counts).all()
    assert np.allclose(mean, counts)
    assert np.allclose(variance, 0)


def test_transport_keeps_what_is_a_cells_own():
    """A cell that has more of a gene than expected before has more of it after."""
    before, after = make("nb", 5.0, theta=1.0), make("nb", 10.0, theta=1.0)
    counts = draw(before, 0)
    moved, _, _ = transport_counts(counts, before, after, CellStreams(0, np.arange(N)))
    assert np.corrcoef(moved.toarray().ravel(), counts.ravel())[0, 1] > 0.9


# ---------------------------------------------------------------- other dispersions


def negative_binomial(mean, theta, shape=(4000, 200)):
    return NegativeBinomial(mu=tensor(mean).expand(shape), theta=tensor(theta).expand(shape))


@pytest.mark.parametrize(
    ("first", "second"),
    [((5.0, 2.0), (10.0, 0.5)), ((10.0, 0.5), (5.0, 2.0)), ((3.0, 1.0), (3.0, 20.0)), ((2.0, 1e-3), (3.0, 1.0))],
)
def test_transport_to_another_dispersion_is_exact_and_keeps_the_cells_order(first, second):
    before, after = negative_binomial(*first), negative_binomial(*second)
    counts = sample_counts(before, CellStreams(0, np.arange(4000)))
    moved, mean, variance = transport_counts(counts, before, after, CellStreams(1, np.arange(4000)))
    moved, (m, theta) = moved.toarray(), second
    np.testing.assert_allclose(moved.mean(), m, rtol=0.02)
    np.testing.assert_allclose(moved.var(), m + m**2 / theta, rtol=0.05)
    np.testing.assert_allclose((moved == 0).mean(), (theta / (theta + m)) ** theta, rtol=0.02)
    assert np.corrcoef(moved.ravel(), counts.toarray().ravel())[0, 1] > 0.1
    np.testing.assert_allclose(mean.mean(), m, rtol=0.02)
    np.testing.assert_allclose(variance.mean() + mean.var(), m + m**2 / theta, rtol=0.05)


@pytest.mark.parametrize("inflation", [0.3, -1.5])  # dropout rises, and falls
def test_a_zero_inflated_count_of_another_dispersion_follows_the_second_distribution(inflation):
    before, after = make("zinb", 4.0, theta=1.5), make("zinb", 6.0, theta=0.5, inflation=inflation)
    moved, mean, variance = transport_counts(draw(before, 0), before, after, CellStreams(0, np.arange(N)))
    assert same_counts(moved.toarray().ravel(), draw(after, 1).ravel()) > 1e-3
    np.testing.assert_allclose(moved.toarray().var(), variance.mean() + mean.var(), rtol=0.12)


def test_counts_of_the_same_dispersion_and_other_cells_are_not_touched_by_those_of_another():
    before = negative_binomial(5.0, 2.0, (20, 3))
    counts = sample_counts(before, CellStreams(0, np.arange(20)))
    plain, other = negative_binomial(8.0, 2.0, (20, 3)), negative_binomial(8.0, 2.0, (20, 3))
    other.theta = other.theta.clone()
    # As far apart as single precision has them, and further.
    other.theta[:, 0] *= 1 + 2e-7
    other.theta[10:, 1] = 0.7
    one, two = (
        transport_counts(counts, before, after, CellStreams(1, np.arange(20)))[0].toarray() for after in (plain, other)
    )
    np.testing.assert_array_equal(one[:10], two[:10])
    assert (one[10:, 1] != two[10:, 1]).any()
    rows = slice(15, 20)
    some = NegativeBinomial(mu=other.mu[rows], theta=other.theta[rows])
    part = transport_counts(counts[rows], negative_binomial(5.0, 2.0, (5, 3)), some, CellStreams(1, np.arange(15, 20)))[
        0
    ]
    np.testing.assert_array_equal(part.toarray(), two[rows])


def test_a_count_far_out_stays_far_out():
    """Beyond the digits that a probability near one has."""
    before, after = negative_binomial(1.0, 5.0, (1, 1)), negative_binomial(1.0, 5.1, (1, 1))
    moved, _, _ = transport_counts(np.array([[300]]), before, after, CellStreams(0, [0]))
    assert 270 < moved[0, 0] < 320
