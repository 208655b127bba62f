from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffvi._exceptions import InvalidInputError, one_of, positive_int
from diffvi.metrics._checks import check_column, check_genes, check_rows
from diffvi.metrics._counts import dense

from ._style import GENERATED, PALETTE, REAL, axes, finish


def umap(
    real: AnnData,
    generated: AnnData,
    color: str | None = None,
    n_top_genes: int = 1000,
    seed: int = 0,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Figure | None:
    """UMAP of real and generated cells, side by side on one embedding of both.

    Parameters
    ----------
    real, generated
        Raw counts in ``X``, the same genes.
    color
        Column of both ``obs`` to colour by.
    n_top_genes
        Most variable genes (of both sets together) to embed.
    seed
        Seed of PCA and UMAP.
    show
        Show the figure; ``None`` to show and return nothing in interactive use, ``False`` to return it.
    save
        File to write it to.

    Returns
    -------
    The figure, or nothing where it has been shown.

    Raises
    ------
    InvalidInputError
        If genes differ, a set is empty, there are fewer than 4 cells or 2 genes in all, the column is missing, or
        ``n_top_genes`` is not a whole number of at least 1.

    Examples
    --------
    >>> import diffvi
    >>> cells = diffvi.datasets.simulate_cells(100, 30, seed=0)
    >>> real, generated = cells[:50], cells[50:]
    >>> figure = diffvi.pl.umap(real, generated, color="cell_type", show=False)
    >>> [ax.get_title() for ax in figure.axes]
    ['real (50 cells)', 'generated (50 cells)']
    """
    n_top_genes = positive_int("n_top_genes", n_top_genes)
    both = _concat(real, generated, "color", color)
    if both.n_vars < 2 or both.n_obs < 4:
        raise InvalidInputError(
            f"`real` and `generated` have {both.n_obs} cells and {both.n_vars} genes; an embedding needs at least 4 and 2."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.normalize_total(both, target_sum=1e4)
        sc.pp.log1p(both)
        sc.pp.highly_variable_genes(both, n_top_genes=min(n_top_genes, both.n_vars))
        sc.pp.pca(both, n_comps=min(30, both.n_vars - 1, both.n_obs - 1), random_state=seed)
        sc.pp.neighbors(both, random_state=seed)
        sc.tl.umap(both, random_state=seed)
    points = both.obsm["X_umap"]
    groups = both.obs["group"].astype(str).to_numpy()
    names = sorted(set(groups))
    fig, panels = plt.subplots(1, 2, figsize=(11, 4.4), sharex=True, sharey=True, layout="constrained")
    for ax, origin in zip(panels, ("real", "generated"), strict=True):
        shown = (both.obs["origin"] == origin).to_numpy()
        ax.scatter(*points[~shown].T, s=5, c="#e5e5e5", linewidths=0, rasterized=True)
        for i, name in enumerate(names):
            rows = shown & (groups == name)
            ax.scatter(*points[rows].T, s=9, c=PALETTE[i % len(PALETTE)], linewidths=0, label=name, rasterized=True)
        ax.set(title=f"{origin} ({shown.sum():,} cells)", xticks=[], yticks=[], xlabel="UMAP1", ylabel="UMAP2")
    if color is not None:
        fig.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside right upper",
            frameon=False,
            markerscale=2.5,
            title=color,
        )
    return finish(fig, show, save)


def mean_variance(
    real: AnnData, generated: AnnData, ax: Axes | None = None, show: bool | None = None, save: str | Path | None = None
) -> Figure | None:
    """Variance against mean of every gene's counts, real and generated.

    The dotted line is where the variance is the mean.

    Parameters
    ----------
    real, generated
        Raw counts in ``X``.
    ax
        Axes to draw into; ``None`` for a figure of its own.
    show, save
        As in :func:`umap`.

    Returns
    -------
    The figure, or nothing where it has been shown.

    Examples
    --------
    >>> import diffvi
    >>> cells = diffvi.datasets.simulate_cells(100, 30, seed=0)
    >>> real, generated = cells[:50], cells[50:]
    >>> figure = diffvi.pl.mean_variance(real, generated, show=False)
    >>> [entry.get_text() for entry in figure.axes[0].get_legend().get_texts()]
    ['real', 'generated', 'Poisson']
    """
    fig, ax = axes(ax)
    for cells, colour, label in ((real, REAL, "real"), (generated, GENERATED, "generated")):
        x = dense(cells.X)
        mean, variance = x.mean(0), x.var(0)
        kept = (mean > 0) & (variance > 0)
        ax.scatter(mean[kept], variance[kept], s=8, c=colour, alpha=0.5, linewidths=0, label=label, rasterized=True)
    ax.axline((1, 1), slope=1, c="k", lw=0.8, ls=":", label="Poisson")
    ax.set(xscale="log", yscale="log", xlabel="mean count of a gene", ylabel="variance", title="Mean and variance")
    ax.legend(frameon=False, markerscale=2)
    return finish(fig, show, save)


def library_sizes(
    real: AnnData, generated: AnnData, ax: Axes | None = None, show: bool | None = None, save: str | Path | None = None
) -> Figure | None:
    """Distribution of the library sizes, real and generated.

    Parameters
    ----------
    real, generated
        Raw counts in ``X``.
    ax
        Axes to draw into; ``None`` for a figure of its own.
    show, save
        As in :func:`umap`.

    Returns
    -------
    The figure, or nothing where it has been shown.

    Examples
    --------
    >>> import diffvi
    >>> cells = diffvi.datasets.simulate_cells(100, 30, seed=0)
    >>> real, generated = cells[:50], cells[50:]
    >>> figure = diffvi.pl.library_sizes(real, generated, show=False)
    >>> figure.axes[0].get_xlabel(), figure.axes[0].get_xscale()
    ('total counts of a cell', 'log')
    """
    fig, ax = axes(ax)
    sizes = [np.maximum(dense(cells.X).sum(1), 1) for cells in (real, generated)]
    bins = np.geomspace(min(s.min() for s in sizes), max(s.max() for s in sizes) * 1.01, 31).tolist()
    for size, colour, label in zip(sizes, (REAL, GENERATED), ("real", "generated"), strict=True):
        ax.hist(size, bins=bins, density=True, histtype="step", lw=1.8, color=colour, label=label)
    ax.set(xscale="log", xlabel="total counts of a cell", ylabel="density", title="Library sizes")
    ax.legend(frameon=False)
    return finish(fig, show, save)


def losses(model: Any, show: bool | None = None, save: str | Path | None = None) -> Figure | None:
    """Loss curves of both stages of a trained model.

    Parameters
    ----------
    model
        Any of the models; a stage that has not been trained has an empty panel.
    show, save
        As in :func:`umap`.

    Returns
    -------
    The figure, or nothing where it has been shown.

    Examples
    --------
    With a trained model:

    >>> figure = diffvi.pl.losses(model, show=False)
    >>> [ax.get_title() for ax in figure.axes]
    ['VAE', 'Diffusion prior']
    """
    fig, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    stages = [("VAE", "elbo", "negative ELBO"), ("Diffusion prior", "diffusion_loss", "mean squared error")]
    history = model.history or {}
    for ax, (title, name, label) in zip(panels, stages, strict=True):
        for part, colour in (("train", REAL), ("validation", GENERATED)):
            if (curve := history.get(f"{name}_{part}")) is not None and len(curve):
                ax.plot(curve.index, curve.to_numpy(float).ravel(), c=colour, lw=1.4, label=part)
        ax.set(title=title, xlabel="epoch", ylabel=label)
        if ax.lines:
            ax.legend(frameon=False)
            lines = np.concatenate(
                [np.asarray(line.get_ydata(), float)[len(line.get_ydata()) // 20 :] for line in ax.lines]
            )
            ax.set_ylim(lines.min() - 0.05 * np.ptp(lines), lines.max() + 0.05 * np.ptp(lines))
    return finish(fig, show, save)


def marker_dotplot(
    real: AnnData,
    generated: AnnData,
    groupby: str,
    markers: Sequence[str] | None = None,
    n_markers: int = 2,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Figure | None:
    """Dot plot of marker genes by label, real and generated rows beneath each other.

    Parameters
    ----------
    real, generated
        Raw counts in ``X``, the same genes.
    groupby
        Column of both ``obs`` with the label.
    markers
        Genes; ``None`` for the ``n_markers`` that the real cells rank first for each label.
    n_markers
        Genes a label.
    show, save
        As in :func:`umap`.

    Returns
    -------
    The figure, or nothing where it has been shown.

    Raises
    ------
    InvalidInputError
        If genes differ, a set is empty, the column or a marker is missing, ``n_markers`` is not a whole number of at
        least 1, or markers cannot be ranked since the real cells have fewer than two labels with two cells.

    Examples
    --------
    >>> import diffvi
    >>> cells = diffvi.datasets.simulate_cells(100, 30, seed=0)
    >>> real, generated = cells[:50], cells[50:]
    >>> figure = diffvi.pl.marker_dotplot(real, generated, "cell_type", ["gene_0", "gene_3"], show=False)
    >>> [row.get_text() for row in figure.axes[0].get_yticklabels()][:2]
    ['type_0 | real', 'type_0 | generated']
    """
    both = _concat(real, generated, "groupby", groupby)
    if markers is None:
        positive_int("n_markers", n_markers)
    elif len(markers) == 0:
        raise InvalidInputError("`markers` must be None or a list of one or more genes; got none.")
    for marker in markers if markers is not None else ():
        one_of("markers", marker, both.var_names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.normalize_total(both, target_sum=1e4)
        sc.pp.log1p(both)
        if markers is None:
            only = both[both.obs["origin"] == "real"].copy()
            only = only[only.obs["group"].isin(only.obs["group"].value_counts().loc[lambda n: n > 1].index)].copy()
            if only.obs["group"].nunique() < 2:
                raise InvalidInputError(
                    f"`groupby`: real.obs[{groupby!r}] has {only.obs['group'].nunique()} labels with two cells or more; "
                    "at least 2 are needed to rank genes, or name them in `markers`."
                )
            sc.tl.rank_genes_groups(only, "group", method="wilcoxon")
            ranked = pd.DataFrame(only.uns["rank_genes_groups"]["names"])
            markers = list(dict.fromkeys(ranked.head(n_markers).to_numpy().T.ravel()))
        order = [f"{g} | {o}" for g in sorted(set(both.obs["group"].astype(str))) for o in ("real", "generated")]
        rows = both.obs["group"].astype(str) + " | " + both.obs["origin"].astype(str)
        both.obs["cells"] = pd.Categorical(rows, categories=[o for o in order if o in set(rows)])
        plot = sc.pl.dotplot(both, list(markers), "cells", show=False, return_fig=True, standard_scale="var")
        plot.style(cmap="viridis_r")
        plot.make_figure()
    return finish(plot.fig, show, save)


def _concat(real: AnnData, generated: AnnData, argument: str, group: str | None) -> AnnData:
    """Counts of both sets with ``obs["origin"]`` and ``obs["group"]``, the column that an argument names."""
    check_genes(real, in_order=False, generated=generated)
    check_rows(1, real=real, generated=generated)
    check_column(argument, group, real=real, generated=generated)
    parts = {}
    for origin, cells in (("real", real), ("generated", generated)):
        values = cells.obs[group].astype(str).to_numpy() if group is not None else "cells"
        obs = pd.DataFrame({"group": values}, index=cells.obs_names)
        parts[origin] = AnnData(cells.X.astype(np.float32), obs=obs, var=pd.DataFrame(index=cells.var_names))
    return ad.concat(parts, label="origin", index_unique="-")
