from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse, stats

from diffvi._exceptions import InvalidInputError

from ._checks import check_column, check_genes, check_rows
from ._counts import expression


def gene_set_agreement(
    real: AnnData, generated: AnnData, gene_sets: Mapping[str, Sequence[str]], labels_key: str | None = None
) -> pd.DataFrame:
    """Activity of gene sets, such as pathways, in generated cells against real ones.

    The activity of a set in a cell is scanpy's :func:`~scanpy.tl.score_genes`: the mean expression of its
    genes minus that of control genes of similar expression (Tirosh et al. 2016), computed with the same
    control genes for both.

    Parameters
    ----------
    real, generated
        Cells with the same genes in the same order: raw counts in ``X``, or log-normalised by scanpy.
    gene_sets
        Gene names of each set; names that are not among the genes are left out.
    labels_key
        Column of both ``obs``; adds the correlation of the activities' means over labels.

    Returns
    -------
    One row a set: ``distance``, the 1-Wasserstein distance between the activities of real and of
    generated cells in standard deviations of the real ones (0 is best); ``shift``, the difference of the means in
    the same unit (0 is best); ``label_correlation`` (1 is best).

    Raises
    ------
    InvalidInputError
        If genes differ, a set is empty, the column is missing, none of a set's genes is among those of the cells, or
        these have too few genes to find control genes for it.

    Examples
    --------
    Other cells of the same population, before and after the genes of a program are silenced in them:

    >>> import diffvi
    >>> cells = diffvi.datasets.simulate_cells(200, 60, seed=0)
    >>> real, other = cells[:100].copy(), cells[100:].copy()
    >>> sets = {"program": ["gene_3", "gene_21", "gene_26"]}
    >>> diffvi.metrics.gene_set_agreement(real, other, sets).round(1).to_dict("index")
    {'program': {'distance': 0.2, 'shift': -0.1}}
    >>> other.X = other.X.multiply(~other.var_names.isin(sets["program"])).tocsr()
    >>> diffvi.metrics.gene_set_agreement(real, other, sets).round(1).to_dict("index")
    {'program': {'distance': 3.6, 'shift': -3.6}}
    """
    check_genes(real, generated=generated)
    check_rows(1, real=real, generated=generated)
    check_column("labels_key", labels_key, real=real, generated=generated)
    x, y = expression(real), expression(generated)
    # One object for both, so that the control genes are the same.
    both = AnnData(sparse.csr_matrix(np.concatenate([x, y])), var=pd.DataFrame(index=real.var_names))
    rows = {}
    for name, genes in gene_sets.items():
        known = [gene for gene in genes if gene in both.var_names]
        if not known:
            raise InvalidInputError(
                f"`gene_sets`: none of the {len(genes)} genes of {name!r} is among the cells' genes."
            )
        activity = _activity(both, name, known)
        a, b = activity[: len(x)], activity[len(x) :]
        unit = max(a.std(), 1e-12)
        rows[name] = {
            "distance": stats.wasserstein_distance(a, b) / unit,
            "shift": (b.mean() - a.mean()) / unit,
        }
        if labels_key is not None:
            means = pd.DataFrame(
                {
                    "real": pd.Series(a).groupby(real.obs[labels_key].to_numpy(str)).mean(),
                    "generated": pd.Series(b).groupby(generated.obs[labels_key].to_numpy(str)).mean(),
                }
            ).dropna()
            rows[name]["label_correlation"] = means["real"].corr(means["generated"])
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("gene_set")


def _activity(cells: AnnData, name: str, genes: list[str]) -> np.ndarray:
    """Activity of a set in every cell; numpy's global generator, which scanpy seeds, is left as it was."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        sc.tl.score_genes(cells, genes, score_name="activity", ctrl_size=min(50, cells.n_vars), random_state=0)
    except RuntimeError as error:
        if "No control genes" not in str(error):
            raise
        raise InvalidInputError(
            f"`gene_sets`: among the cells' {cells.n_vars} genes none is left as a control for the {len(genes)} of "
            f"{name!r}; scanpy needs others of similar expression."
        ) from error
    finally:
        np.random.set_state(state)  # noqa: NPY002
    return cells.obs["activity"].to_numpy(float)
