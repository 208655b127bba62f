from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure

from diffvi._exceptions import InvalidInputError, listed, one_of
from diffvi.metrics import expression, log_normalise
from diffvi.metrics._counts import dense

from ._style import finish


def spatial(
    adata: AnnData,
    gene: str,
    mean: AnnData | None = None,
    sample: AnnData | None = None,
    key: str = "imputed",
    layer: str | None = None,
    spatial_key: str = "spatial",
    section_key: str | None = None,
    section: str | None = None,
    size: float | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Figure | None:
    """A gene in a tissue: measured, expected and in one sample, side by side and on one scale.

    Parameters
    ----------
    adata
        Measured cells, raw counts.
    gene
        Name of the gene.
    mean, sample
        Results of :meth:`~diffvi.model.SpatialDiffusion.generate_at_location` with and without ``return_mean``; ``None`` for what
        :meth:`~diffvi.model.SpatialDiffusion.impute_region` has written into ``adata``.
    key
        Its ``key_added``.
    layer
        Layer of ``adata`` with the counts; ``None`` for ``X``.
    spatial_key
        Key of ``obsm`` with the coordinates; the first two are drawn.
    section_key, section
        Column of ``obs`` with the sections, and the one to draw; ``None`` for all.
    size
        Size of a dot; ``None`` for one that fits.
    show, save
        As in :func:`umap`.

    Returns
    -------
    The figure, or nothing where it has been shown.

    Raises
    ------
    InvalidInputError
        If the gene, the layer, the coordinates, the section or the imputed layers are not there.

    Examples
    --------
    With a trained :class:`~diffvi.model.SpatialDiffusion` of the cells ``adata``:

    >>> places = adata.obsm["spatial"]
    >>> mean = model.generate_at_location(places, return_mean=True, n_samples=2, seed=0)
    >>> sample = model.generate_at_location(places, seed=0)
    >>> figure = diffvi.pl.spatial(adata, "gene_3", mean, sample, show=False)
    >>> [ax.get_title() for ax in figure.axes[:3]]
    ['gene_3, measured', 'gene_3, mean', 'gene_3, sample']
    """
    for name, cells in (("adata", adata), ("mean", mean), ("sample", sample)):
        if cells is not None and gene not in cells.var_names:
            raise InvalidInputError(f"`gene`: {gene!r} is not in {name}.var_names, {listed(cells.var_names, 5)}.")
    if layer is not None:
        one_of("layer", layer, [name for name in adata.layers if name is not None])
    j = adata.var_names.get_loc(gene)
    panels: list[tuple[str, Any, np.ndarray]] = [
        ("measured", adata, log_normalise(adata.X if layer is None else adata.layers[layer])[:, j])
    ]
    for name, cells, written in (("mean", mean, f"{key}_mean"), ("sample", sample, f"{key}_sample")):
        if cells is not None:
            panels.append((name, cells, expression(cells)[:, cells.var_names.get_loc(gene)]))
        elif written in adata.layers:
            values = adata.layers[written]
            panels.append((name, adata, (dense(values) if name == "mean" else log_normalise(values))[:, j]))
        else:
            raise InvalidInputError(
                f"`{name}` is not given, and adata.layers has no {written!r}: call `impute_region` first."
            )
    limit = max(float(np.quantile(panels[0][2], 0.99)), 1e-6)
    shown = []
    for name, cells, values in panels:
        if spatial_key not in cells.obsm:
            raise InvalidInputError(f"`spatial_key`: obsm has no {spatial_key!r}; it has {listed(cells.obsm)}.")
        kept = np.ones(cells.n_obs, dtype=bool)
        if section is not None:
            if section_key is None or section_key not in cells.obs:
                raise InvalidInputError(f"`section_key`: obs has no column {section_key!r}, and `section` needs it.")
            kept = cells.obs[section_key].astype(str).to_numpy() == str(section)
            if not kept.any():
                raise InvalidInputError(f"`section`: no cell is in {section!r}.")
        shown.append((name, np.asarray(cells.obsm[spatial_key])[kept, :2], values[kept]))
    everywhere = np.concatenate([where for _, where, _ in shown])
    extent = np.nanmax(everywhere, axis=0) - np.nanmin(everywhere, axis=0)
    # A panel as wide as the tissue, so that those of a narrow one stand side by side.
    width = 3.3 * float(np.clip(extent[0] / max(extent[1], 1e-12), 0.45, 1.6))
    fig, axs = plt.subplots(1, 3, figsize=(3 * width + 1.2, 3.6), layout="constrained", sharex=True, sharey=True)
    for ax, (name, where, values) in zip(axs, shown, strict=True):
        dots = ax.scatter(
            *where.T,
            c=values,
            s=size or min(40.0, max(1.0, 12_000 / max(len(where), 1))),
            cmap="viridis",
            vmin=0,
            vmax=limit,
            linewidths=0,
            rasterized=True,
        )
        ax.set(title=f"{gene}, {name}", xticks=[], yticks=[], aspect="equal")
    fig.colorbar(dots, ax=axs, label="log-normalised", shrink=0.8)
    return finish(fig, show, save)
