"""Bad input is told in one sentence that names the argument; where a score is not defined it is NaN."""

import numpy as np
import pandas as pd
import pytest

from diffvi import InvalidInputError, metrics
from diffvi.datasets import simulate_cells, simulate_perturbations

CELLS = simulate_cells(120, 60, n_types=2, seed=0)
A, B, C = CELLS[:40].copy(), CELLS[40:80].copy(), CELLS[80:].copy()
FEWER, TURNED = B[:, 1:].copy(), B[:, ::-1].copy()
X, Y = A.X, B.X
LABELS = A.obs["cell_type"].to_numpy(str)
POINTS, OTHERS = np.random.default_rng(0).normal(size=(2, 30, 3))
SETS = {"a": ["gene_0", "gene_1"]}
SMALL = simulate_cells(40, 20, n_types=2, seed=0)
PERTURBED = simulate_perturbations(200, 10, n_perturbations=2, seed=0)
CONTROL = PERTURBED[PERTURBED.obs["perturbation"] == "control"]
EXPRESSION = metrics.log_normalise(X)
RNA, PROTEIN = X, Y[:, :4]


def _generation(**kwargs):
    return metrics.evaluate_generation(A, B, C, n_estimators=5, n_resamples=0, floor=False, **kwargs)


BAD = {
    "few genes": (
        lambda: metrics.gene_set_agreement(SMALL[:20], SMALL[20:], SETS),
        r"`gene_sets`: among the cells' 20 genes none is left as a control for the 2 of 'a'",
    ),
    "few genes in a table": (
        lambda: metrics.evaluate_generation(SMALL[:13], SMALL[13:26], SMALL[26:], gene_sets=SETS),
        "`gene_sets`: among the cells' 20 genes",
    ),
    "sets of other genes": (
        lambda: metrics.gene_set_agreement(A, FEWER, SETS),
        "`generated` must have the genes of `real` in the same order; it lacks 'gene_0'",
    ),
    "sets of more genes": (
        lambda: metrics.gene_set_agreement(FEWER, A, SETS),
        "`generated` must have the genes of `real` in the same order; it has 'gene_0' besides",
    ),
    "sets of turned genes": (
        lambda: metrics.gene_set_agreement(A, TURNED, SETS),
        "`generated` must have the genes of `real` in the same order; it has them in another order",
    ),
    "label of gene sets": (
        lambda: metrics.gene_set_agreement(A, B, SETS, "kind"),
        r"`labels_key`: real\.obs has no column 'kind'; it has 'cell_type'",
    ),
    "space": (
        lambda: metrics.classifier_two_sample(X, Y, space="gene"),
        "`space` must be one of 'genes', 'pca', 'features'; got 'gene'",
    ),
    "classifier": (
        lambda: metrics.classifier_two_sample(X, Y, classifier="svm"),
        "`classifier` must be one of 'forest', 'logistic'; got 'svm'",
    ),
    "trees": (
        lambda: metrics.classifier_two_sample(X, Y, n_estimators=0),
        "`n_estimators` must be a whole number of at least 1; got 0",
    ),
    "cells to classify": (
        lambda: metrics.classifier_two_sample(X[:4], Y[:3]),
        "`real` and `generated` have 4 and 3 cells; one of them needs at least 5",
    ),
    "genes to classify": (
        lambda: metrics.classifier_two_sample(X, FEWER.X),
        "`generated` has 59 columns; it must have those of `real`, 60",
    ),
    "labels to learn": (
        lambda: metrics.label_agreement(X, LABELS[1:], Y, LABELS),
        r"`train_labels` must have one entry for each of the 40 cells of `train`; it has the shape \(39,\)",
    ),
    "labels of points": (
        lambda: metrics.silhouette(POINTS, LABELS),
        "`labels` must have one entry for each of the 30 cells of `cells`",
    ),
    "correlation method": (
        lambda: metrics.feature_correlation(POINTS, OTHERS, method="kendall"),
        "`method` must be one of 'pearson', 'spearman'; got 'kendall'",
    ),
    "correlation shape": (
        lambda: metrics.feature_correlation(POINTS, POINTS[:, :1]),
        r"`predicted` has the shape \(30, 1\); it must be that of `real`, \(30, 3\)",
    ),
    "error shape": (lambda: metrics.feature_rmse(POINTS, POINTS[:1]), r"`predicted` has the shape \(1, 3\)"),
    "proteins of other cells": (
        lambda: metrics.cross_correlation_agreement(RNA, PROTEIN[1:], RNA, PROTEIN),
        "`real_protein` must have one entry for each of the 40 cells of `real_rna`",
    ),
    "low alone": (
        lambda: metrics.evaluate_translation(POINTS, OTHERS, low=OTHERS),
        "`low` and `high` go together; got only `low`",
    ),
    "shape of an end": (
        lambda: metrics.evaluate_translation(POINTS, OTHERS, low=OTHERS, high=OTHERS[:, :1]),
        r"`high` has the shape \(30, 1\)",
    ),
    "feature names": (
        lambda: metrics.evaluate_translation(POINTS, OTHERS, ["CD3"]),
        "`feature_names` must have one entry for each of the 3 features of `real`",
    ),
    "labels alone": (
        lambda: metrics.evaluate_trajectory(POINTS, OTHERS, real_labels=["a"] * 30),
        "`real_labels` and `predicted_labels` go together; got only `real_labels`",
    ),
    "resamples": (
        lambda: metrics.evaluate_trajectory(POINTS, OTHERS, n_resamples=-1),
        "`n_resamples` must be a whole number of at least 0; got -1",
    ),
    "number of weights": (
        lambda: metrics.resample_weighted(POINTS, np.ones(3)),
        r"`weights` must hold 30 finite numbers of at least 0, not all of them 0; got 1\.0, 1\.0, 1\.0",
    ),
    "negative weights": (
        lambda: metrics.resample_weighted(POINTS[:2], [2.0, -1.0]),
        r"`weights` must hold 2 finite numbers .*; got 2\.0, -1\.0",
    ),
    "zero weights": (
        lambda: metrics.composition_distance(["a"], ["a", "b"], [0, 0]),
        "`weights` must hold 2 finite numbers .*; got 0, 0",
    ),
    "no weights": (lambda: metrics.composition_distance(["a"], ["a"], ["many"]), "`weights` .*; got 'many'"),
    "no labels": (lambda: metrics.composition_distance([], ["a"]), "`real_labels` has 0 cells; at least 1 are needed"),
    "fates": (
        lambda: metrics.fate_auroc(["up"], pd.DataFrame({"up": [0.5, 0.5]})),
        "`fates` must have one entry for each of the 2 cells of `predicted`",
    ),
    "cells of a table": (lambda: _generation(max_cells=3), "`max_cells` must be a whole number of at least 10; got 3"),
    "trees of a table": (
        lambda: metrics.evaluate_generation(A, B, C, n_estimators=0),
        "`n_estimators` must be a whole number of at least 1; got 0",
    ),
    "one location": (
        lambda: metrics.moran_i(np.ones((1, 2)), np.ones((1, 2))),
        "`values` has 1 cells; at least 2 are needed",
    ),
    "locations": (
        lambda: metrics.moran_i(POINTS, POINTS[:5, :2]),
        r"`coordinates` must have one entry for each of the 30 locations of `values`; it has the shape \(5, 2\)",
    ),
    "neighbours in space": (
        lambda: metrics.moran_i(POINTS, POINTS[:, :2], k=0),
        "`k` must be a whole number of at least 1; got 0",
    ),
    "one point": (
        lambda: metrics.manifold_scores(POINTS[:1], POINTS),
        "`real` has 1 cells; at least 2 are needed",
    ),
    "neighbours": (
        lambda: metrics.manifold_scores(POINTS, OTHERS, k=0),
        "`k` must be a whole number of at least 1; got 0",
    ),
    "power": (lambda: metrics.wasserstein(POINTS, OTHERS, p=0), "`p` must be a finite number above 0; got 0"),
    "a row for a matrix": (
        lambda: metrics.memorisation_ratio(POINTS, OTHERS, POINTS[0]),
        r"`generated` must have rows and columns; it has the shape \(3,\)",
    ),
    "reference": (
        lambda: metrics.evaluate_perturbation(PERTURBED, PERTURBED, CONTROL, "perturbation", reference=np.ones(3)),
        "`reference` must have one entry for each of the 10 genes of `real`",
    ),
    "one control cell": (
        lambda: metrics.evaluate_perturbation(PERTURBED, PERTURBED, CONTROL[:1], "perturbation"),
        "`control` has 1 cells; at least 2 are needed",
    ),
    "locations of a table": (
        lambda: metrics.evaluate_space(EXPRESSION, EXPRESSION, EXPRESSION, POINTS),
        "`coordinates` must have one entry for each of the 40 locations of `real`",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_a_sentence(case):
    call, message = BAD[case]
    with pytest.raises(InvalidInputError, match=message):
        call()


@pytest.mark.parametrize(
    "score",
    ["zero_fraction_difference", "mean_variance_distance", "gene_wasserstein", "correlation_agreement"],
)
@pytest.mark.parametrize(
    ("other", "message"),
    [(FEWER.X, "`generated` has 59 columns; it must have those of `real`, 60"), (Y[:0], "`generated` has 0 cells")],
)
def test_scores_of_counts_need_the_same_genes(score, other, message):
    with pytest.raises(InvalidInputError, match=message):
        getattr(metrics, score)(X, other)


@pytest.mark.parametrize("score", ["energy_distance", "mmd", "wasserstein", "sliced_wasserstein"])
def test_distances_need_the_same_dimensions(score):
    with pytest.raises(InvalidInputError, match="`y` has 2 columns; it must have those of `x`, 3"):
        getattr(metrics, score)(POINTS, OTHERS[:, :2])


def test_gene_sets_leave_numpys_global_generator_as_it_was():
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(7)
    metrics.gene_set_agreement(A, B, SETS)
    assert np.random.random() == expected


def test_a_half_without_control_genes_does_not_end_the_table(monkeypatch):
    whole = metrics.gene_set_agreement

    def only_the_whole(real, generated, *args):
        if real.n_obs < 40:
            raise InvalidInputError("no control genes")
        return whole(real, generated, *args)

    monkeypatch.setattr("diffvi.metrics._evaluate.gene_set_agreement", only_the_whole)
    table = metrics.evaluate_generation(A, B, C, gene_sets=SETS, n_estimators=5, n_resamples=2, floor=False)
    assert table.loc["gene_set_distance", "value"] > 0
    assert np.isnan(table.loc["gene_set_distance", "low"])
    assert table.loc["w1", "low"] < table.loc["w1", "value"]


def test_density_is_over_the_neighbours_that_there_are():
    # Each ball reaches to the last of the three others, so that every point is in all four.
    line = np.arange(4.0)[:, None]
    assert metrics.manifold_scores(line, line, k=10) == metrics.manifold_scores(line, line, k=3)
    assert metrics.manifold_scores(line, line, k=10).density == pytest.approx(4 / 3)


def test_scores_that_are_not_defined_are_nan():
    same = np.ones((20, 3))
    assert np.isnan(metrics.nearest_neighbour_test(same, same)).all()
    assert metrics.nearest_neighbour_test(same, same + 1) == (1.0, 1.0)
    for many in (POINTS, np.random.default_rng(0).normal(size=(50, 40))):
        assert np.isnan(metrics.memorisation_ratio(many, many, many + 1))
        assert metrics.memorisation_ratio(many, many + 1, many) == pytest.approx(0, abs=1e-6)
    assert np.isnan(metrics.correlation_agreement(X[:, :1], Y[:, :1]))
