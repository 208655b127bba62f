from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from sklearn.neighbors import NearestNeighbors

from diffvi._exceptions import InvalidInputError, listed, one_of, positive_int

from ._style import PALETTE, axes, finish


def trajectories(
    adata: AnnData,
    predicted: AnnData,
    basis: str = "X_umap",
    latent: str = "X_diffvi",
    time_key: str = "time",
    color: str | None = None,
    max_paths: int = 50,
    n_neighbors: int = 10,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Figure | None:
    """Predicted paths of cells on an embedding of measured ones.

    A predicted cell is put at the mean of the measured cells nearest to it in the latent space, so that the embedding need not
    be computed anew.

    Parameters
    ----------
    adata
        Measured cells, with the embedding and the latent in ``obsm`` (:meth:`~diffvi.model.TrajectoryDiffusion.annotate` writes it).
    predicted
        Result of :meth:`~diffvi.model.TrajectoryDiffusion.predict_trajectory` for cells of ``adata``.
    basis, latent
        Keys of ``adata.obsm``.
    time_key
        Column of both ``obs``.
    color
        Column of ``adata.obs`` to colour the measured cells by; ``None`` for grey.
    max_paths
        Paths to draw, the first ones.
    n_neighbors
        Measured cells around a predicted one.
    ax
        Axes to draw into; ``None`` for a figure of its own.
    show, save
        As in :func:`umap`.

    Returns
    -------
    The figure, or nothing where it has been shown.

    Raises
    ------
    InvalidInputError
        If ``adata`` lacks the embedding, the latent, a column or a start cell, ``predicted`` is no predicted trajectory, or
        ``max_paths`` or ``n_neighbors`` is not a whole number of at least 1.

    Examples
    --------
    With a trained :class:`~diffvi.model.TrajectoryDiffusion` of the cells ``adata``:

    >>> adata.obsm["X_umap"] = adata.obsm["state"]  # any embedding of two dimensions
    >>> model.annotate(adata)
    >>> early = adata[adata.obs["time"] == 0][:5].copy()
    >>> predicted = model.predict_trajectory(early, [1.0, 2.5], n_samples=2, seed=0)
    >>> figure = diffvi.pl.trajectories(adata, predicted, show=False)
    >>> figure.axes[0].get_title()
    '10 predicted paths (dot: start, arrow head: end)'
    """
    for name, key in (("basis", basis), ("latent", latent)):
        one_of(name, key, list(adata.obsm))
    if color is not None:
        one_of("color", color, adata.obs)
    one_of("time_key", time_key, adata.obs)
    one_of("time_key", time_key, predicted.obs)
    if "X_latent" not in predicted.obsm or not {"start_cell", "sample"} <= set(predicted.obs):
        raise InvalidInputError(
            "`predicted` must be a result of `predict_trajectory`, with obs['start_cell'], obs['sample'] and "
            f"obsm['X_latent']; it has {listed([*predicted.obs, *predicted.obsm])}."
        )
    max_paths, n_neighbors = positive_int("max_paths", max_paths), positive_int("n_neighbors", n_neighbors)
    where, points = np.asarray(adata.obsm[basis])[:, :2], np.asarray(adata.obsm[latent])
    if points.shape[1] != (width := predicted.obsm["X_latent"].shape[1]):
        raise InvalidInputError(
            f"`latent`: adata.obsm[{latent!r}] has {points.shape[1]} dimensions; the {width} of `predicted` are needed."
        )
    starts = adata.obs_names.get_indexer(predicted.obs["start_cell"].astype(str))
    if (starts < 0).any():
        raise InvalidInputError("`predicted`: its start cells are not all in `adata`.")
    near = NearestNeighbors(n_neighbors=min(n_neighbors, len(points))).fit(points)
    placed = where[near.kneighbors(predicted.obsm["X_latent"], return_distance=False)].mean(1)
    fig, ax = axes(ax, (6, 4.6))
    if color is None:
        ax.scatter(where[:, 0], where[:, 1], s=6, c="#dddddd", linewidths=0, rasterized=True)
    else:
        groups = adata.obs[color].astype(str).to_numpy()
        for i, name in enumerate(sorted(set(groups))):
            c = PALETTE[i % len(PALETTE)]
            here = where[groups == name]
            ax.scatter(here[:, 0], here[:, 1], s=6, c=c, alpha=0.35, linewidths=0, label=name, rasterized=True)
        ax.legend(frameon=False, fontsize=8, markerscale=2.5, loc="center left", bbox_to_anchor=(1.0, 0.5), title=color)
    paths = []
    frame = pd.DataFrame({"start": starts, "sample": predicted.obs["sample"].to_numpy(), "row": np.arange(len(placed))})
    frame["time"] = predicted.obs[time_key].to_numpy()
    for (start, _), rows in list(frame.sort_values("time").groupby(["start", "sample"], sort=False))[:max_paths]:
        before = rows["time"] < adata.obs[time_key].iloc[start]
        order = rows["row"].to_numpy()
        paths.append(np.concatenate([placed[order[before]], where[[start]], placed[order[~before]]]))
    ax.add_collection(LineCollection(paths, colors="#333333", linewidths=0.8, alpha=0.6))
    begin = where[sorted(set(starts))]
    ax.scatter(begin[:, 0], begin[:, 1], s=10, c="#000000", zorder=3, linewidths=0)
    ends = np.array([path[-1] for path in paths])
    ax.scatter(ends[:, 0], ends[:, 1], s=18, c="#d55e00", zorder=3, marker=">", linewidths=0)
    ax.set(xticks=[], yticks=[], xlabel=f"{basis.removeprefix('X_')} 1", ylabel=f"{basis.removeprefix('X_')} 2")
    ax.set_title(f"{len(paths)} predicted paths (dot: start, arrow head: end)", fontsize=9)
    return finish(fig, show, save)


def fate_probabilities(
    adata: AnnData,
    fates: pd.DataFrame,
    basis: str = "X_umap",
    show: bool | None = None,
    save: str | Path | None = None,
) -> Figure | None:
    """Fate probabilities of cells on an embedding, a panel for each fate.

    Parameters
    ----------
    adata
        The cells, with the embedding in ``obsm``.
    fates
        Result of :meth:`~diffvi.model.TrajectoryDiffusion.get_fate_probabilities` for them.
    basis
        Key of ``adata.obsm``.
    show, save
        As in :func:`umap`.

    Returns
    -------
    The figure, or nothing where it has been shown.

    Raises
    ------
    InvalidInputError
        If ``adata`` lacks the embedding, its cells are not those of ``fates``, or this holds no probabilities.

    Examples
    --------
    With a trained :class:`~diffvi.model.TrajectoryDiffusion` of the cells ``adata``:

    >>> adata.obsm["X_umap"] = adata.obsm["state"]  # any embedding of two dimensions
    >>> fates = model.get_fate_probabilities(n_samples=5, seed=0)
    >>> figure = diffvi.pl.fate_probabilities(adata, fates, show=False)
    >>> [ax.get_title() for ax in figure.axes[:2]]
    ['down', 'up']
    """
    one_of("basis", basis, list(adata.obsm))
    if not adata.obs_names.equals(fates.index):
        raise InvalidInputError("`fates`: its rows are not the cells of `adata`.")
    if "probability" not in fates:
        raise InvalidInputError(
            f"`fates` must be a result of `get_fate_probabilities`, with 'probability'; it has {listed(fates)}."
        )
    probability = fates["probability"]
    where = np.asarray(adata.obsm[basis])[:, :2]
    n = probability.shape[1]
    columns = min(n, 4)
    fig, grid = plt.subplots(
        -(-n // columns),
        columns,
        figsize=(2.9 * columns + 0.8, 2.7 * -(-n // columns)),
        squeeze=False,
        layout="constrained",
    )
    for ax in grid.ravel()[n:]:
        ax.set_visible(False)
    for ax, name in zip(grid.ravel(), probability.columns, strict=False):
        value = probability[name].to_numpy()
        order = np.argsort(value)
        shown = ax.scatter(
            where[order, 0],
            where[order, 1],
            s=6,
            c=value[order],
            vmin=0,
            vmax=1,
            cmap="viridis",
            linewidths=0,
            rasterized=True,
        )
        ax.set(title=name, xticks=[], yticks=[])
    fig.colorbar(shown, ax=grid, label="fate probability", shrink=0.7)
    return finish(fig, show, save)


def population_over_time(
    predicted: AnnData,
    label: str,
    time_key: str = "time",
    measured: AnnData | None = None,
    order: Sequence[str] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Figure | None:
    """Shares of labels in a predicted population over time, weighted by growth.

    Parameters
    ----------
    predicted
        Result of :meth:`~diffvi.model.TrajectoryDiffusion.predict_trajectory`.
    label
        Column of ``obs`` with the label.
    time_key
        Column with the time.
    measured
        Measured cells with the same columns, whose shares are drawn as points.
    order
        Order of the labels; ``None`` for the alphabet's.
    ax
        Axes to draw into; ``None`` for a figure of its own.
    show, save
        As in :func:`umap`.

    Returns
    -------
    The figure, or nothing where it has been shown.

    Raises
    ------
    InvalidInputError
        If a column is missing, or ``order`` names a label that does not exist.

    Examples
    --------
    With a trained :class:`~diffvi.model.TrajectoryDiffusion` of the cells ``adata``:

    >>> early = adata[adata.obs["time"] == 0].copy()
    >>> predicted = model.predict_trajectory(early, [1.0, 2.5, 4.0], seed=0)
    >>> figure = diffvi.pl.population_over_time(predicted, "fate", measured=adata, show=False)
    >>> [entry.get_text() for entry in figure.axes[0].get_legend().get_texts()]
    ['down', 'progenitor', 'up']
    """
    for name, key in (("label", label), ("time_key", time_key)):
        one_of(name, key, list(predicted.obs))
        if measured is not None:
            one_of(name, key, list(measured.obs))
    shares = _shares(predicted, label, time_key)
    real = None if measured is None else _shares(measured, label, time_key)
    found = sorted(set(shares.columns) | set([] if real is None else real.columns))
    # A category that no cell has may be in the order; a name that is none would be left out in silence.
    tables = [cells.obs for cells in (predicted, measured) if cells is not None]
    known = sorted({str(name) for obs in tables for name in pd.Categorical(obs[label]).categories})
    names = found if order is None else [name for name in map(str, order) if one_of("order", name, known) in found]
    fig, ax = axes(ax, (5.6, 3.6))
    for i, name in enumerate(names):
        colour = PALETTE[i % len(PALETTE)]
        if name in shares:
            ax.plot(shares.index, shares[name], "-", c=colour, lw=1.8, label=name)
        if real is not None and name in real:
            ax.plot(real.index, real[name], "o", c=colour, ms=4, mfc="white", label=None if name in shares else name)
    ax.set(xlabel=time_key, ylabel="share of the population", ylim=(-0.02, 1.02))
    ax.set_title("lines: predicted" + ("" if real is None else "; circles: measured"), fontsize=9)
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), title=label)
    return finish(fig, show, save)


def _shares(adata: AnnData, label: str, time_key: str) -> pd.DataFrame:
    """Weighted shares of labels, times by labels."""
    weight = adata.obs["weight"] if "weight" in adata.obs else pd.Series(1.0, index=adata.obs_names)
    table = weight.groupby([adata.obs[time_key], adata.obs[label].astype(str)]).sum().unstack(fill_value=0.0)
    return table.div(table.sum(1), axis=0)
