"""Protein counts: read from an obsm matrix or from a modality, checked, and missing where they were not measured."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import rich.table
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data import fields

from diffvi._exceptions import InvalidInputError, listed

Reader = Callable[[Any, bool], pd.DataFrame | None]
"""Gives the protein counts of a data set; where it has none, ``None``, or an error if they are required."""


class ProteinsField(fields.BaseAnnDataField):
    """Protein counts as floats in ``obsm``, cells by proteins, NaN where a protein was not measured in a cell.

    Zeros are data. A query may lack all proteins, or some of them.

    Parameters
    ----------
    read
        How to get the counts from the object that is registered.

    Raises
    ------
    InvalidInputError
        When registered with a protein that was measured in no cell, or transferred to data with one that is not in the panel.
    """

    NAMES_KEY = "column_names"

    def __init__(self, read: Reader) -> None:
        super().__init__()
        self.read = read

    @property
    def registry_key(self) -> str:
        return REGISTRY_KEYS.PROTEIN_EXP_KEY

    @property
    def attr_name(self) -> str:
        return "obsm"

    @property
    def attr_key(self) -> str:
        return "_diffvi_proteins"

    @property
    def is_empty(self) -> bool:
        return False

    def validate_field(self, adata: Any) -> None:
        """The reader checks what it reads."""

    def register_field(self, adata: Any) -> dict:
        """Write the counts to ``obsm`` and remember the panel."""
        super().register_field(adata)
        counts = self.read(adata, True)
        assert counts is not None
        unmeasured = counts.columns[counts.isna().all(0)]
        if len(unmeasured):
            raise InvalidInputError(
                f"The proteins {listed(unmeasured)} were measured in no cell (all NaN): remove them from the panel."
                if len(unmeasured) < counts.shape[1]
                else "The proteins were measured in no cell: all values are NaN."
            )
        adata.obsm[self.attr_key] = counts.to_numpy(np.float32)
        return {self.NAMES_KEY: counts.columns.to_numpy()}

    def transfer_field(self, state_registry: dict, adata_target: Any, **kwargs: Any) -> dict:
        """Write the counts of other data in the order of the panel, NaN for proteins that they lack."""
        super().transfer_field(state_registry, adata_target, **kwargs)
        known = pd.Index(state_registry[self.NAMES_KEY])
        counts = self.read(adata_target, False)
        if counts is None:
            adata_target.obsm[self.attr_key] = np.full((adata_target.n_obs, len(known)), np.nan, dtype=np.float32)
        else:
            adata_target.obsm[self.attr_key] = align_proteins(counts, known).to_numpy(np.float32)
        return {self.NAMES_KEY: known.to_numpy()}

    def get_summary_stats(self, state_registry: dict) -> dict:
        return {"n_proteins": len(state_registry[self.NAMES_KEY])}

    def view_state_registry(self, state_registry: dict) -> rich.table.Table:
        table = rich.table.Table(title="Proteins")
        table.add_column("Names")
        table.add_row(listed(state_registry[self.NAMES_KEY]))
        return table


def align_proteins(counts: pd.DataFrame, known: pd.Index) -> pd.DataFrame:
    """The model's panel, NaN for proteins that ``counts`` lacks; raises for names that the model does not know."""
    unknown = counts.columns.difference(known, sort=False)
    if len(unknown):
        raise InvalidInputError(
            f"The proteins {listed(unknown, 5)} are not in the model's panel, which has {listed(known, 30)}: rename "
            "them, or leave them out."
        )
    return counts.reindex(columns=known)


def check_proteins(values: Any, names: Any, index: pd.Index, where: str) -> pd.DataFrame:
    """Protein counts as a data frame, after a check that they are counts or missing."""
    values = values.toarray() if sparse.issparse(values) else np.asarray(values)
    if values.ndim != 2 or values.shape[1] == 0 or values.shape[0] == 0:
        raise InvalidInputError(f"{where} has the shape {values.shape}: at least one cell and one protein are needed.")
    names = pd.Index(names).astype(str)
    if names.has_duplicates:
        raise InvalidInputError(f"{where} has several proteins called {listed(names[names.duplicated()].unique(), 3)}.")
    try:
        values = values.astype(np.float32)
    except (TypeError, ValueError):
        raise InvalidInputError(f"{where} holds values that are not numbers; raw protein counts are needed.") from None
    known = values[~np.isnan(values)]
    if np.isinf(known).any():
        raise InvalidInputError(f"{where} holds infinite values; raw protein counts are needed.")
    if (known < 0).any():
        raise InvalidInputError(
            f"{where} holds negative values (such as {known[known < 0][0]:g}); raw counts are needed."
        )
    if (known % 1 != 0).any():
        raise InvalidInputError(
            f"{where} holds values that are not whole numbers (such as {known[known % 1 != 0][0]:g}); raw protein counts "
            "are needed."
        )
    return pd.DataFrame(values, index=index, columns=names)


def read_obsm(key: str, names_key: str | None = None) -> Reader:
    """Read proteins from ``adata.obsm[key]``, with the names of a data frame, of ``adata.uns``, or numbers."""

    def read(adata: AnnData, required: bool) -> pd.DataFrame | None:
        if key not in adata.obsm:
            if not required:
                return None
            raise InvalidInputError(
                f"`protein_expression_obsm_key`: adata.obsm has no {key!r}; it has {listed(adata.obsm)}."
            )
        values = adata.obsm[key]
        if names_key is not None:
            if names_key not in adata.uns:
                raise InvalidInputError(f"`protein_names_uns_key`: adata.uns has no {names_key!r}.")
            names = adata.uns[names_key]
            if len(names) != values.shape[1]:
                raise InvalidInputError(
                    f"`protein_names_uns_key`: adata.uns[{names_key!r}] has {len(names)} names for the {values.shape[1]} "
                    f"proteins of adata.obsm[{key!r}]."
                )
        else:
            names = values.columns if isinstance(values, pd.DataFrame) else np.arange(values.shape[1])
        return check_proteins(values, names, adata.obs_names, f"adata.obsm[{key!r}]")

    return read


def read_modality(name: str, layer: str | None) -> Reader:
    """Read proteins from a modality of a MuData, which may cover some of the cells only."""

    def read(mdata: Any, required: bool) -> pd.DataFrame | None:
        if name not in mdata.mod and not required:
            return None
        return protein_counts(mdata.mod[name], layer, f"mdata[{name!r}]").reindex(mdata.obs_names)

    return read


def protein_counts(adata: AnnData, layer: str | None, where: str) -> pd.DataFrame:
    """The counts of an AnnData whose features are proteins."""
    if layer is not None and layer not in adata.layers:
        raise InvalidInputError(
            f"`protein_layer`: {where}.layers has no {layer!r}; it has {listed(filter(None, adata.layers))}."
        )
    where = f"{where}.X" if layer is None else f"{where}.layers[{layer!r}]"
    x = adata.X if layer is None else adata.layers[layer]
    if x is None:
        raise InvalidInputError(f"{where} is empty (None): raw protein counts are needed there.")
    return check_proteins(x, adata.var_names, adata.obs_names, where)


def warn_of_zero_panels(counts: pd.DataFrame, batch: pd.Series | None) -> None:
    """Warn of a protein that is zero in all cells of a batch and not in others: it may not have been in its panel."""
    if batch is None:
        return
    totals = counts.groupby(batch.to_numpy(), observed=True).sum(min_count=1)
    suspects = [(p, b) for p in totals for b in totals.index[totals[p] == 0] if totals[p].sum() > 0]
    if suspects:
        shown = ", ".join(f"{p!r} in batch {b!r}" for p, b in suspects[:3])
        more = "" if len(suspects) <= 3 else f", ... ({len(suspects)} in all)"
        warnings.warn(
            f"Some proteins are 0 in all cells of a batch ({shown}{more}). Zeros are data: if these proteins were not "
            "measured there, set them to NaN.",
            UserWarning,
            stacklevel=3,
        )
