from __future__ import annotations

import numpy as np
import pandas as pd
import scanpy as sc
import torch
from anndata import AnnData
from sklearn.model_selection import train_test_split

from diffvi._exceptions import InvalidInputError
from diffvi.data._fields import check_obs_columns


def split_cells(
    adata: AnnData, labels_key: str, test_size: float = 0.35, n_top_genes: int | None = 2000, seed: int = 0
) -> tuple[AnnData, AnnData]:
    """Stratified split into training and held-out cells, over the genes most variable in the training cells.

    Parameters
    ----------
    adata
        Raw counts in ``X``.
    labels_key
        Column of ``obs`` to stratify by.
    test_size
        Share of held-out cells.
    n_top_genes
        Genes to keep, by ``seurat_v3`` on the training cells alone; ``None`` for all.
    seed
        Seed of the split.

    Returns
    -------
    Training and held-out cells, copies, over the same genes; cells without a count in these are left out.

    Raises
    ------
    InvalidInputError
        If there is no such column, a cell has no label, or a label has a single cell.

    Examples
    --------
    >>> from diffvi.benchmark import split_cells
    >>> from diffvi.datasets import simulate_cells
    >>> train, test = split_cells(simulate_cells(100, 20, seed=0), "cell_type", test_size=0.2)
    >>> train.shape, test.shape
    ((80, 20), (20, 20))
    """
    check_obs_columns(adata, labels_key=labels_key)
    sizes = adata.obs[labels_key].value_counts(dropna=False)
    if adata.obs[labels_key].isna().any() or sizes.loc[lambda n: n > 0].min() < 2:
        missing = int(adata.obs[labels_key].isna().sum())
        single = [str(k) for k, n in sizes.items() if n == 1]
        raise InvalidInputError(
            f"`labels_key`: to split by {labels_key!r} every cell needs a label and every label two cells; {missing} cells "
            f"have none, and these labels have one cell: {single}."
        )
    rows = train_test_split(
        np.arange(adata.n_obs), test_size=test_size, stratify=adata.obs[labels_key], random_state=seed
    )
    train, test = (adata[r].copy() for r in rows)
    kept = most_variable(train, n_top_genes)
    train, test = train[:, kept].copy(), test[:, kept].copy()
    some = np.asarray(test.X.sum(1)).ravel() > 0
    return train[np.asarray(train.X.sum(1)).ravel() > 0].copy(), test[some].copy()


def most_variable(train: AnnData, n_top_genes: int | None) -> np.ndarray:
    """Mask of the genes most variable in raw counts (``seurat_v3``); all of them where there are no more.

    Parameters
    ----------
    train
        Raw counts in ``X``.
    n_top_genes
        Genes to keep; ``None`` for all.

    Returns
    -------
    Which genes to keep, ``(n_genes,)``.
    """
    if n_top_genes is None or n_top_genes >= train.n_vars:
        return np.ones(train.n_vars, bool)
    cells = AnnData(train.X, var=train.var[[]].copy())
    for span in (0.3, 0.6, 1.0):
        try:
            sc.pp.highly_variable_genes(cells, n_top_genes=n_top_genes, flavor="seurat_v3", span=span)
            break
        except ValueError as error:
            # The local fit has too few different means within its span, as where there are few cells.
            if span == 1.0:
                raise InvalidInputError(
                    f"`n_top_genes`: no curve of variance over mean can be fitted to {cells.n_obs} cells ({error}); pass None for all genes."
                ) from error
    # Scanpy's compiled kernels leave torch's OpenMP pool at all cores, whatever torch was told.
    torch.set_num_threads(torch.get_num_threads())
    return cells.var["highly_variable"].to_numpy()


def times_of(column: pd.Series, key: str) -> np.ndarray:
    """Times as numbers: the first one in a text ("day 10", "210-270"); an ordered category stands for its rank."""
    if column.isna().any():
        raise InvalidInputError(f"`time_key`: {key!r} is missing for {int(column.isna().sum())} cells.")
    if isinstance(column.dtype, pd.CategoricalDtype) and column.cat.ordered:
        return column.cat.codes.to_numpy(float)
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(float)
    names = pd.Series(column.astype(str).unique())
    numbers = pd.to_numeric(names.str.extract(r"(^-?\d+(?:\.\d+)?|\d+(?:\.\d+)?)")[0])
    if numbers.isna().any() or numbers.duplicated().any():
        bad = names[numbers.isna() | numbers.duplicated()].iloc[0]
        raise InvalidInputError(
            f"`time_key`: {key!r} must hold numbers, texts with one number each, or an ordered category, as the order "
            f"of the times is not to be guessed; got {bad!r}."
        )
    return column.astype(str).map(dict(zip(names, numbers, strict=True))).to_numpy(float)
