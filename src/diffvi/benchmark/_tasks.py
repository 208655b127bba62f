"""The benchmark tasks: how each splits the data, what it asks of a method, and how it scores the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split

from diffvi._exceptions import InvalidInputError, one_of
from diffvi.data._fields import check_obs_columns
from diffvi.metrics import (
    evaluate_generation,
    evaluate_perturbation,
    evaluate_space,
    evaluate_trajectory,
    evaluate_translation,
    log_normalise,
)
from diffvi.metrics._counts import dense

from ._diffvi import GROUP, PAIR, Diffvi, DiffviPerturbation, DiffviSpace, DiffviTrajectory, DiffviTranslation
from ._generation_baselines import GENERATION_BASELINES
from ._options import Options
from ._perturbation_baselines import PERTURBATION_BASELINES, canonical, mean_changes, parts
from ._space_baselines import SPACE_BASELINES
from ._splits import most_variable, split_cells, times_of
from ._task import Split, Task
from ._trajectory_baselines import TRAJECTORY_BASELINES
from ._translation_baselines import TRANSLATION_BASELINES

# ---------------------------------------------------------------- generation


def _generation_splits(adata: AnnData, options: Options) -> Iterator[Split]:
    check_obs_columns(adata, labels_key=options.labels_key, batch_key=options.batch_key)
    key = options.labels_key
    if options.batch_key is not None:
        key = GROUP
        # Both attributes are asked for together, so what is stratified, and a label to the baselines, is the pair.
        pairs = adata.obs[options.labels_key].astype(str) + PAIR + adata.obs[options.batch_key].astype(str)
        adata = AnnData(adata.X, obs=adata.obs.assign(**{GROUP: pairs.to_numpy()}), var=adata.var)
        many = pairs.groupby(pairs).transform("size") >= 10
        if not many.any():
            raise InvalidInputError("`batch_key`: no pair of label and batch has 10 cells.")
        adata = adata[many.to_numpy()].copy()
    train, test = split_cells(adata, key, options.test_size, options.n_top_genes, options.seed)
    yield Split("held-out cells", train, test, {"labels_key": key})


def _generators(options: Options) -> list[Any]:
    keys = None if options.batch_key is None else (options.labels_key, options.batch_key)
    # The held-out cells are set aside already, and without early stopping a second hold-out buys nothing.
    return [Diffvi(train_kwargs={"train_size": 1.0}, keys=keys), *(method() for method in GENERATION_BASELINES)]


def _draw_generation(method: Any, split: Split, options: Options, seed: int) -> tuple[Any, int]:
    return method.generate(split.test.obs[split.extra["labels_key"]].to_numpy(str), seed), split.test.n_obs


def _score_generation(answer: Any, split: Split, options: Options, seed: int) -> pd.DataFrame:
    floors = split.extra.setdefault("floors", {})
    table = evaluate_generation(
        split.test,
        answer,
        split.train,
        split.extra["labels_key"],
        n_resamples=20 if seed == options.seed else 0,
        floor=seed not in floors,
        seed=seed,
    )
    # The floor is the same for every method, and costs as much as the scores.
    table["floor"] = floors.setdefault(seed, table["floor"])
    return table.reset_index()


# ---------------------------------------------------------------- perturbation


def _perturbation_splits(adata: AnnData, options: Options) -> Iterator[Split]:
    check_obs_columns(adata, perturbation_key=options.perturbation_key, context_key=options.context_key)
    # "A+B" and "B+A" are one, and so are "A+control" and "A".
    raw = adata.obs[options.perturbation_key].to_numpy(str)
    names = np.array([canonical(name, options.control) for name in raw])
    adata = AnnData(adata.X, obs=adata.obs.assign(**{options.perturbation_key: names}), var=adata.var)
    if options.control not in names:
        known = ", ".join(map(repr, np.unique(names)[:10]))
        raise InvalidInputError(f"`control`: no cell has the perturbation {options.control!r}; there are {known}.")
    if options.context_key is not None:
        contexts = adata.obs[options.context_key].to_numpy(str)
        for context in np.unique(contexts):
            here = contexts == context
            treated = [n for n in np.unique(names[here]) if n != options.control and (here & (names == n)).sum() >= 10]
            if treated and (here & (names == options.control)).sum() >= 10:
                yield _perturbation_split(adata, names, here, [treated], f"{context} held out", options)
        return
    found = [str(n) for n in np.unique(names) if n != options.control and (names == n).sum() >= 10]
    if not found:
        raise InvalidInputError(f"`perturbation_key`: no perturbation in {options.perturbation_key!r} has 10 cells.")
    combined = [n for n in found if len(parts(n)) > 1 and set(parts(n)) <= set(found)]
    folds = [list(f) for f in np.array_split(np.random.default_rng(options.seed).permutation(combined or found), 5)]
    what = "combinations of seen perturbations" if combined else "unseen perturbations"
    yield _perturbation_split(adata, names, np.ones(len(names), bool), [f for f in folds if f], what, options)


def _perturbation_split(
    adata: AnnData, names: np.ndarray, here: np.ndarray, folds: list[list[str]], name: str, options: Options
) -> Split:
    """Held-out perturbations in ``here``; one half of the controls there is for scoring, the other for everything else.

    With the same controls in both, their sampling noise would be shared by predicted and real effects.
    """
    controls = np.random.default_rng(options.seed).permutation(np.flatnonzero(here & (names == options.control)))
    scored = np.zeros(len(names), bool)
    scored[controls[: len(controls) // 2][:MAX_CONTROLS]] = True
    held_out = sorted({n for fold in folds for n in fold})
    test = here & np.isin(names, held_out)
    trains = [~scored & ~(here & np.isin(names, fold)) for fold in folds]
    # Genes are chosen where nothing of any fold's held-out cells is seen; what is targeted is always kept.
    kept = most_variable(adata[np.all(trains, axis=0)], options.n_top_genes)
    kept |= adata.var_names.isin([part for name in np.unique(names) for part in parts(name)])
    adata = adata[:, kept]
    data = [(adata[train].copy(), fold) for train, fold in zip(trains, folds, strict=True)]
    extra = {
        "folds": data,
        "control": adata[scored].copy(),
        "source": adata[np.sort(controls[len(controls) // 2 :][:MAX_CONTROLS])].copy(),
        "reference": np.mean(
            [_perturbed_mean(train, here[rows], options) for (train, _), rows in zip(data, trains, strict=True)], 0
        ),
    }
    return Split(name, extra["folds"][0][0], adata[test].copy(), extra)


MAX_CONTROLS = 500
"""Every held-out perturbation is predicted for this many control cells at most."""


def _perturbed_mean(train: AnnData, here: np.ndarray, options: Options) -> np.ndarray:
    """What a perturbed cell of the held-out context looks like on average: its controls plus the mean training effect."""
    x = log_normalise(train.X)
    control = here & (train.obs[options.perturbation_key] == options.control).to_numpy()
    effects = mean_changes(x, train, options.perturbation_key, options.control, options.context_key)
    return x[control].mean(0) + np.mean(list(effects.values()), axis=0)


def _fit_perturbation(method: Any, split: Split, options: Options) -> None:
    # Fitted fold by fold in `draw`, since every fold holds other perturbations out.
    del method, split, options


def _draw_perturbation(method: Any, split: Split, options: Options, seed: int) -> tuple[Any, int]:
    del seed
    control = split.extra["source"]
    cells, names = [], []
    for train, fold in split.extra["folds"]:
        method.fit(train, options.perturbation_key, options.control, options.context_key)
        for name in fold:
            cells.append(method.predict(control, name))
            names += [name] * len(cells[-1])
    obs = pd.DataFrame({options.perturbation_key: names}, index=[f"cell_{i}" for i in range(len(names))])
    answer = AnnData(np.concatenate(cells), obs=obs, var=control.var[[]].copy())
    answer.uns["log1p"] = {"base": None}
    return answer, answer.n_obs


def _score_perturbation(answer: Any, split: Split, options: Options, seed: int) -> pd.DataFrame:
    held, key = split.extra, options.perturbation_key
    table = evaluate_perturbation(
        split.test, answer, held["control"], key, held["reference"], seed, source=held["source"]
    )
    mean = table.groupby("score", sort=False)[["value", "floor"]].mean()
    return mean.assign(best=table.groupby("score")["best"].first()).reset_index()


# ---------------------------------------------------------------- translation


def _translation_splits(data: Any, options: Options) -> Iterator[Split]:
    if not hasattr(data, "mod") or len(data.mod) < 2:
        raise InvalidInputError("The translation task needs a MuData (.h5mu) with the modalities rna and protein.")
    rna_name, protein_name = (next((n for n in data.mod if n in known), None) for known in (RNA_NAMES, PROTEIN_NAMES))
    if rna_name is None or protein_name is None:
        raise InvalidInputError(f"The modalities must be named rna and protein (or prot, adt); got {list(data.mod)}.")
    rna, protein = data.mod[rna_name], data.mod[protein_name]
    shared = rna.obs_names.intersection(protein.obs_names)
    rna, protein = rna[shared], protein[shared]
    rows = train_test_split(np.arange(len(shared)), test_size=options.test_size, random_state=options.seed)
    kept = most_variable(rna[rows[0]], options.n_top_genes)
    train, test = ((rna[r][:, kept].copy(), protein[r].copy()) for r in rows)
    yield Split("held-out cells", train, test)


RNA_NAMES = ("rna", "gex", "RNA")
PROTEIN_NAMES = ("protein", "prot", "adt", "ADT")


def _score_translation(answer: Any, split: Split, options: Options, seed: int) -> pd.DataFrame:
    truth = split.test[1]
    mean = evaluate_translation(np.log1p(dense(truth.X)), answer, list(truth.var_names)).mean()
    best = {"pearson": "high", "spearman": "high", "rmse": "low"}
    return pd.DataFrame({"score": mean.index, "value": mean.to_numpy(), "best": [best[name] for name in mean.index]})


# ---------------------------------------------------------------- trajectory


def _trajectory_splits(adata: AnnData, options: Options) -> Iterator[Split]:
    check_obs_columns(adata, time_key=options.time_key)
    times = times_of(adata.obs[options.time_key], options.time_key)
    values = np.unique(times)
    if len(values) < 3:
        raise InvalidInputError(f"`time_key`: {options.time_key!r} has {len(values)} times; at least 3 are needed.")
    for time in values[1:-1]:
        left_out = times == time
        kept = most_variable(adata[~left_out], options.n_top_genes)
        x = log_normalise(adata.X)[:, kept]
        pca = PCA(min(options.n_components, *x[~left_out].shape), random_state=options.seed).fit(x[~left_out])
        points = pca.transform(x)
        train = {float(t): points[times == t] for t in values if t != time}
        cells = AnnData(
            adata.X[~left_out],
            obs=pd.DataFrame({"time": times[~left_out]}, adata.obs_names[~left_out]),
            var=adata.var[[]].copy(),
        )

        def place(made: AnnData, pca: PCA = pca, kept: np.ndarray = kept) -> np.ndarray:
            return pca.transform(log_normalise(made.X)[:, kept])

        extra = {"time": float(time), "cells": cells, "place": place}
        yield Split(f"time {time:g} left out", train, points[left_out], extra)


def _fit_trajectory(method: Any, split: Split, options: Options) -> None:
    # Ours learns from counts, and its cells are placed among the points afterwards.
    del options
    method.fit_cells(split.extra["cells"]) if hasattr(method, "fit_cells") else method.fit(split.train)


def _draw_trajectory(method: Any, split: Split, options: Options, seed: int) -> tuple[Any, int]:
    del options
    answer = method.predict(split.extra["time"], len(split.test), seed)
    return (split.extra["place"](answer) if isinstance(answer, AnnData) else answer), len(answer)


def _score_trajectory(answer: Any, split: Split, options: Options, seed: int) -> pd.DataFrame:
    return evaluate_trajectory(
        split.test, answer, n_resamples=20 if seed == options.seed else 0, seed=seed
    ).reset_index()


# ---------------------------------------------------------------- space


def _space_splits(adata: AnnData, options: Options) -> Iterator[Split]:
    if options.spatial_key not in adata.obsm:
        raise InvalidInputError(f"`spatial_key`: adata.obsm has no {options.spatial_key!r}; it has {list(adata.obsm)}.")
    if options.section_key is not None:
        check_obs_columns(adata, section_key=options.section_key)
        sections = adata.obs[options.section_key].to_numpy(str)
        names, sizes = np.unique(sections, return_counts=True)
        adata = adata[sections == names[sizes.argmax()]].copy()
    coordinates = np.asarray(adata.obsm[options.spatial_key], float)
    rng = np.random.default_rng(options.seed)
    n_test = round(options.test_size * adata.n_obs)
    centre = coordinates[np.linalg.norm(coordinates - np.median(coordinates, 0), axis=1).argmin()]
    masks = {
        "random locations": np.isin(np.arange(adata.n_obs), rng.permutation(adata.n_obs)[:n_test]),
        "disc": np.argsort(np.argsort(np.linalg.norm(coordinates - centre, axis=1))) < n_test,
    }
    for name, held in masks.items():
        kept = most_variable(adata[~held], options.n_top_genes)
        values = log_normalise(adata.X)[:, kept]
        train, test = ((coordinates[rows], values[rows]) for rows in (~held, held))
        yield Split(name, train, test, {"cells": adata[~held], "genes": kept})


def _fit_space(method: Any, split: Split, options: Options) -> None:
    if hasattr(method, "fit_cells"):
        method.fit_cells(split.train[0], split.extra["cells"], split.extra["genes"])
    else:
        method.fit(*split.train)


def _draw_space(method: Any, split: Split, options: Options, seed: int) -> tuple[Any, int]:
    where = split.test[0]
    return (method.predict(where), method.sample(where, seed)), len(where)


def _score_space(answer: Any, split: Split, options: Options, seed: int) -> pd.DataFrame:
    coordinates, values = split.test
    mean, sample = answer
    return evaluate_space(values, mean, sample, coordinates).reset_index()


def _instances(classes: Sequence[type]) -> Callable[[Options], list[Any]]:
    return lambda options: [method() for method in classes]


TASKS = {
    task.name: task
    for task in (
        Task(
            "generation",
            "held-out cells against generated ones",
            _generators,
            _generation_splits,
            lambda method, split, options: method.fit(split.train, split.extra["labels_key"]),
            _draw_generation,
            _score_generation,
        ),
        Task(
            "perturbation",
            "cells under combinations, or in cell types, that were not seen perturbed",
            _instances([DiffviPerturbation, *PERTURBATION_BASELINES]),
            _perturbation_splits,
            _fit_perturbation,
            _draw_perturbation,
            _score_perturbation,
            stochastic=False,
        ),
        Task(
            "translation",
            "proteins of cells of which only the RNA is known",
            _instances([DiffviTranslation, *TRANSLATION_BASELINES]),
            _translation_splits,
            lambda method, split, options: method.fit(*split.train),
            lambda method, split, options, seed: (method.predict(split.test[0]), split.test[0].n_obs),
            _score_translation,
            stochastic=False,
        ),
        Task(
            "trajectory",
            "the population at a time that was left out",
            _instances([DiffviTrajectory, *TRAJECTORY_BASELINES]),
            _trajectory_splits,
            _fit_trajectory,
            _draw_trajectory,
            _score_trajectory,
        ),
        Task(
            "space",
            "expression at locations, or in a disc, that were not measured",
            _instances([DiffviSpace, *SPACE_BASELINES]),
            _space_splits,
            _fit_space,
            _draw_space,
            _score_space,
        ),
    )
}
"""The tasks by name."""


def find_task(name: str) -> Task:
    """The task of a name.

    Parameters
    ----------
    name
        Its name.

    Returns
    -------
    The task.

    Raises
    ------
    InvalidInputError
        If there is none of that name.

    Examples
    --------
    >>> find_task("spaces")
    Traceback (most recent call last):
    diffvi._exceptions.InvalidInputError: `task` must be one of 'generation', 'perturbation', 'translation', 'trajectory', 'space'; got 'spaces'. Did you mean 'space'?
    """
    one_of("task", name, list(TASKS))
    return TASKS[name]
