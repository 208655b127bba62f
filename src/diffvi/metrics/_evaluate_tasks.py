"""Tables for the tasks beside generation, one call each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.decomposition import PCA

from diffvi._exceptions import InvalidInputError, positive_int

from ._checks import check_column, check_genes, check_length, check_matrices, check_rows, check_shape, check_together
from ._counts import dense, expression
from ._distances import energy_distance, mmd, wasserstein
from ._perturbation import (
    de_agreement,
    discrimination,
    effect_distance,
    effect_norm_ratio,
    fold_change_nmae,
    interval_coverage,
    pearson_delta,
    variance_r2,
)
from ._resampling import Scores, half_sample_intervals
from ._space import moran_i, variance_ratio
from ._trajectory import composition_distance, resample_weighted
from ._translation import feature_correlation, feature_rmse

PERTURBATION_BEST = {
    "pearson_delta": "high",
    "pearson_delta_mean": "high",
    "effect_distance": "low",
    "effect_norm_ratio": "1",
    "fold_change_nmae": "low",
    "discrimination": "high",
    "energy_distance": "low",
    "variance_r2": "high",
    "de_ratio": "1",
    "de_overlap": "high",
}


def evaluate_perturbation(
    real: AnnData,
    predicted: AnnData,
    control: AnnData,
    perturbation_key: str,
    reference: np.ndarray | None = None,
    seed: int = 0,
    source: AnnData | None = None,
) -> pd.DataFrame:
    """Score predicted perturbed cells against real ones, perturbation by perturbation.

    Parameters
    ----------
    real
        Real cells of the held-out perturbations: raw counts in ``X``, or log-normalised by scanpy.
    predicted
        Predicted cells of the same perturbations, with the same genes.
    control
        Control cells of the same context: effects are counted from their mean.
    perturbation_key
        Column of ``obs`` in ``real`` and ``predicted`` with the perturbation.
    reference
        Mean log-normalised expression of the *training* perturbations, for ``pearson_delta_mean``; ``None`` for
        the mean over the perturbations in ``real``.
    seed
        Seed of the draws.
    source
        Control cells that the predictions started from, where those are others than ``control``: predicted effects are
        then counted from their mean. With the same cells on both sides the noise of their mean is part of the real
        effect and of the predicted one, and a prediction that draws cells to the mean of all perturbed ones is rewarded.

    Returns
    -------
    One row a perturbation and score, with the columns ``perturbation``, ``score``, ``value``, ``floor``, ``best``. The
    floor is what one half of the real cells, with one half of the controls, scores as a prediction of the other half: the
    replicate. As it uses half of the cells its noise is larger than that of a prediction judged by all of them.

    Raises
    ------
    InvalidInputError
        If genes differ, a column is missing, ``control`` has fewer than 2 cells or ``source`` none, or a perturbation has
        no predicted or fewer than 4 real cells.

    Examples
    --------
    Other real cells of the same perturbations, in the place of predicted ones:

    >>> import diffvi
    >>> cells = diffvi.datasets.simulate_perturbations(600, 30, n_perturbations=2, strength=1.5, seed=1)
    >>> control = cells[cells.obs["perturbation"] == "control"]
    >>> perturbed = cells[cells.obs["perturbation"] != "control"]
    >>> table = diffvi.metrics.evaluate_perturbation(perturbed[::2], perturbed[1::2], control, "perturbation")
    >>> table[table["score"] == "pearson_delta"].round(2)[["perturbation", "value", "floor"]].to_numpy().tolist()
    [['A', 0.98, 0.97], ['A+B', 1.0, 0.99], ['B', 0.98, 0.95]]
    """
    check_genes(real, predicted=predicted, control=control, source=source)
    check_column("perturbation_key", perturbation_key, real=real, predicted=predicted)
    check_rows(1, real=real, predicted=predicted, source=source)
    check_rows(2, control=control)
    if reference is not None:
        check_length("genes of `real`", real.n_vars, reference=reference)
    x, y, c = (expression(cells) for cells in (real, predicted, control))
    real_names, predicted_names = (a.obs[perturbation_key].to_numpy(str) for a in (real, predicted))
    names = [str(name) for name in np.unique(real_names)]
    truth = {name: x[real_names == name] for name in names}
    guess = {name: y[predicted_names == name] for name in names}
    for name in names:
        if len(guess[name]) == 0 or len(truth[name]) < 4:
            raise InvalidInputError(
                f"`perturbation_key`: {name!r} has {len(truth[name])} real and {len(guess[name])} predicted cells; "
                "at least 4 and 1 are needed."
            )
    if reference is None:
        reference = np.mean([cells.mean(0) for cells in truth.values()], axis=0)
    rng = np.random.default_rng(seed)
    halves = {name: np.array_split(rng.permutation(len(cells)), 2) for name, cells in truth.items()}
    first = {name: cells[halves[name][0]] for name, cells in truth.items()}
    second = {name: cells[halves[name][1]] for name, cells in truth.items()}
    moved = 0.0 if source is None else c.mean(0) - expression(source).mean(0)
    value = _perturbation_scores(truth, guess, c, reference, seed, shift=moved)
    # A replicate has controls of its own: with shared ones, their noise would be shared by both effects. Its effect is
    # put on the other half's controls, as a prediction is.
    one, two = (c[rows] for rows in np.array_split(rng.permutation(len(c)), 2))
    floor = _perturbation_scores(first, second, one, reference, seed, shift=one.mean(0) - two.mean(0))
    table = value.merge(floor.rename(columns={"value": "floor"}), on=["perturbation", "score"])
    return table.assign(best=table["score"].map(PERTURBATION_BEST))


def _perturbation_scores(
    truth: dict[str, np.ndarray],
    guess: dict[str, np.ndarray],
    control: np.ndarray,
    reference: np.ndarray,
    seed: int,
    shift: np.ndarray | float = 0.0,
) -> pd.DataFrame:
    base = control.mean(0)
    means = {name: (truth[name].mean(0), guess[name].mean(0) + shift) for name in truth}
    ranks = discrimination(*(np.stack([m[i] - base for m in means.values()]) for i in (0, 1)))
    rng = np.random.default_rng(seed)
    rows = []
    for (name, (real, predicted)), rank in zip(means.items(), ranks, strict=True):
        cells, made = truth[name], guess[name]
        made = made[rng.permutation(len(made))[: len(cells)]]
        both = np.concatenate([cells, made])
        pca = PCA(min(30, *both.shape), random_state=seed).fit(both)
        de = de_agreement(cells, made, control)
        scores = {
            "pearson_delta": pearson_delta(real, predicted, base),
            "pearson_delta_mean": pearson_delta(real, predicted, reference),
            "effect_distance": effect_distance(real, predicted),
            "effect_norm_ratio": effect_norm_ratio(real, predicted, base),
            "fold_change_nmae": fold_change_nmae(real, predicted, base),
            "discrimination": rank,
            "energy_distance": _energy(pca.transform(cells), pca.transform(made)),
            "variance_r2": variance_r2(cells, made, control),
            "de_ratio": de.n_predicted / de.n_real if de.n_real else np.nan,
            "de_overlap": de.overlap,
        }
        rows += [{"perturbation": name, "score": score, "value": value} for score, value in scores.items()]
    return pd.DataFrame(rows)


def evaluate_translation(
    real: np.ndarray,
    predicted: np.ndarray,
    feature_names: Sequence[str] | None = None,
    low: np.ndarray | None = None,
    high: np.ndarray | None = None,
) -> pd.DataFrame:
    """Score one modality predicted from another, feature by feature.

    Parameters
    ----------
    real, predicted
        Measured and predicted values, cells by features, on the same scale (``log1p`` of counts is the custom).
    feature_names
        Names of the features; ``None`` to number them.
    low, high
        Ends of a prediction interval, same shape; both together add ``interval_coverage``.

    Returns
    -------
    One row a feature, with the columns ``pearson``, ``spearman``, ``rmse`` and, with an interval, ``interval_coverage``.
    ``table.mean()`` is the mean over features.

    Raises
    ------
    InvalidInputError
        If the shapes differ, there are no cells, names are not one for each feature, or only one end of the interval is
        given.

    Examples
    --------
    An error of half a standard deviation, and an interval that is one such error wide to either side:

    >>> import diffvi
    >>> import numpy as np
    >>> real, error = np.random.default_rng(0).normal(size=(2, 400, 2))
    >>> predicted = real + 0.5 * error
    >>> table = diffvi.metrics.evaluate_translation(
    ...     real, predicted, ["CD3", "CD19"], low=predicted - 0.5, high=predicted + 0.5
    ... )
    >>> table.round(1).loc["CD3"].to_dict()
    {'pearson': 0.9, 'spearman': 0.9, 'rmse': 0.5, 'interval_coverage': 0.7}
    """
    real, predicted = dense(real), dense(predicted)
    check_matrices(real=real)
    check_shape(real, predicted=predicted)
    names = [str(i) for i in range(real.shape[1])] if feature_names is None else list(feature_names)
    check_length("features of `real`", real.shape[1], feature_names=names)
    check_together(low=low, high=high)
    table = pd.DataFrame(
        {
            "pearson": feature_correlation(real, predicted),
            "spearman": feature_correlation(real, predicted, "spearman"),
            "rmse": feature_rmse(real, predicted),
        },
        index=pd.Index(names, name="feature"),
    )
    if low is not None and high is not None:
        check_shape(real, low=low, high=high)
        columns = zip(real.T, dense(low).T, dense(high).T, strict=True)
        table["interval_coverage"] = [interval_coverage(*column) for column in columns]
    return table


def evaluate_trajectory(
    real: np.ndarray,
    predicted: np.ndarray,
    weights: np.ndarray | None = None,
    real_labels: np.ndarray | None = None,
    predicted_labels: np.ndarray | None = None,
    n_resamples: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """Score a predicted population against the cells measured at that time.

    Parameters
    ----------
    real, predicted
        Cells as points, ``(n, d)`` and ``(m, d)``, such as principal components; the PCA must not have been fitted on
        the held-out time.
    weights
        Weights of the predicted cells, such as their growth, ``(m,)``; ``None`` for equal ones.
    real_labels, predicted_labels
        Cell types; both together add ``composition_distance``, which has no interval.
    n_resamples
        Random halves for the 95 % intervals; 0 for none.
    seed
        Seed of everything random.

    Returns
    -------
    One row a score, with the columns ``value``, ``low``, ``high``, ``floor`` and ``best``. The floor compares
    two random halves of the real cells; W1 and W2 fall with the number of cells, so it is somewhat too high.

    Raises
    ------
    InvalidInputError
        If there are fewer than two real cells or no predicted ones, their dimensions differ, labels of one side only or
        not one for each cell, weights are no weights (see :func:`resample_weighted`), or ``n_resamples`` is negative.

    Examples
    --------
    Where growth is left out, the composition is not that of the real cells:

    >>> import diffvi
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> real_labels = np.repeat(["up", "down"], [90, 30])
    >>> labels = np.repeat(["up", "down"], [60, 60])
    >>> real, predicted = ((x == "up")[:, None] * 3 + rng.normal(size=(120, 2)) for x in (real_labels, labels))
    >>> for weights in (None, np.where(labels == "up", 3.0, 1.0)):
    ...     table = diffvi.metrics.evaluate_trajectory(
    ...         real, predicted, weights, real_labels, labels, n_resamples=0
    ...     )
    ...     table.loc[["w1", "composition_distance"], "value"].round(1).tolist()
    [1.2, 0.2]
    [0.5, 0.0]
    """
    check_matrices(real=real, predicted=predicted)
    check_rows(2, real=real)
    check_together(real_labels=real_labels, predicted_labels=predicted_labels)
    check_length("cells of `real`", len(real), real_labels=real_labels)
    check_length("cells of `predicted`", len(predicted), predicted_labels=predicted_labels)
    points = predicted if weights is None else resample_weighted(predicted, weights, seed)

    def scores(r: np.ndarray, p: np.ndarray, cells: np.ndarray = points) -> Scores:
        x, y = real[r], cells[p]
        return {
            "w1": wasserstein(x, y, p=1, seed=seed),
            "w2": wasserstein(x, y, p=2, seed=seed),
            "mmd": mmd(x, y),
            "energy_distance": energy_distance(x, y),
        }

    table = half_sample_intervals(scores, len(real), len(points), n_resamples, seed)
    first, second = np.array_split(np.random.default_rng(seed).permutation(len(real)), 2)
    table["floor"] = pd.Series(scores(first, second, real))
    table["best"] = "low"
    if real_labels is not None and predicted_labels is not None:
        distance = composition_distance(real_labels, predicted_labels, weights)
        floor = composition_distance(np.asarray(real_labels)[first], np.asarray(real_labels)[second])
        table.loc["composition_distance"] = [distance, np.nan, np.nan, floor, "low"]
    return table.rename_axis("score")


def evaluate_space(
    real: np.ndarray,
    mean: np.ndarray,
    sample: np.ndarray,
    coordinates: np.ndarray,
    n_components: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Score expression predicted at held-out locations: the mean by accuracy, one sample by its structure.

    Parameters
    ----------
    real
        Measured log-normalised values, locations by genes.
    mean, sample
        Predicted mean and one sample, same shape.
    coordinates
        Of the locations, ``(n, 2)`` or ``(n, 3)``.
    n_components
        Principal components for the energy distance; they are fitted on ``real``.
    seed
        Seed of the PCA.

    Returns
    -------
    One row a score, with the columns ``value``, ``floor`` (the measured values' own) and ``best``: ``pearson`` (mean
    over genes, of the mean), ``moran_i_mean`` and ``moran_i_sample`` (best at the floor), ``variance_ratio_mean``,
    ``variance_ratio_sample`` and ``energy_distance`` (of the sample).

    Raises
    ------
    InvalidInputError
        If the shapes differ, there are fewer than two locations, or ``n_components`` is not a whole number of at least 1.

    Examples
    --------
    The true mean of every place is smoother and varies less than what is measured; cells in random order have the
    right variance and no structure:

    >>> import diffvi
    >>> import numpy as np
    >>> tissue = diffvi.datasets.simulate_tissue(200, 20, seed=0)
    >>> real, mean = (diffvi.metrics.log_normalise(x) for x in (tissue.X, tissue.layers["expected"]))
    >>> sample = np.random.default_rng(0).permutation(real)
    >>> table = diffvi.metrics.evaluate_space(real, mean, sample, tissue.obsm["spatial"])
    >>> table.loc[["moran_i_mean", "moran_i_sample"], ["value", "floor"]].round(1).abs().to_numpy().tolist()
    [[0.9, 0.3], [0.0, 0.3]]
    >>> table.loc[["variance_ratio_mean", "variance_ratio_sample"], "value"].round(1).tolist()
    [0.3, 1.0]
    """
    check_matrices(2, real=real)
    check_shape(real, mean=mean, sample=sample)
    check_length("locations of `real`", len(real), coordinates=coordinates)
    pca = PCA(min(positive_int("n_components", n_components), *real.shape), random_state=seed).fit(real)
    true_i = moran_i(real, coordinates)
    # A gene that is constant in the measurement has no autocorrelation to keep; one that only the prediction
    # holds constant has lost all of it.
    there = np.isfinite(true_i)
    mean_i, sample_i = (np.nan_to_num(moran_i(v, coordinates))[there].mean() for v in (mean, sample))
    floor_i = float(true_i[there].mean())
    rows = {
        "pearson": (float(np.nanmean(feature_correlation(real, mean))), 1.0, "high"),
        "moran_i_mean": (float(mean_i), floor_i, "floor"),
        "moran_i_sample": (float(sample_i), floor_i, "floor"),
        "variance_ratio_mean": (variance_ratio(real, mean), 1.0, "1"),
        "variance_ratio_sample": (variance_ratio(real, sample), 1.0, "1"),
        "energy_distance": (_energy(pca.transform(real), pca.transform(sample)), 0.0, "low"),
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "floor", "best"]).rename_axis("score")


def _energy(x: np.ndarray, y: np.ndarray) -> float:
    return energy_distance(x, y) if min(len(x), len(y)) > 1 else float("nan")
