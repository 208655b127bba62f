"""MuData: the cells' own columns wherever they are, the RNA in its modality, proteins for some of the cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scvi.data.fields import BaseAnnDataField
from scvi.data.fields._mudata import BaseMuDataWrapperClass, MuDataWrapper

from diffvi._exceptions import InvalidInputError, listed

from ._fields import CountsField

RNA_NAMES = ("rna", "gex", "RNA", "GEX")
PROTEIN_NAMES = ("protein", "prot", "adt", "ADT", "Protein")

MuDataCountsField = MuDataWrapper(CountsField)


class CellsField(BaseMuDataWrapperClass):
    """A field of the cells (batch, labels, covariates, conditions), from the columns of any part of a MuData.

    The field works on an AnnData that holds those columns and nothing else; what it writes goes to the MuData.

    Parameters
    ----------
    field
        The field for an AnnData.
    columns
        Its columns, and the modality that each is in: see :func:`gather`.
    rna
        Name of the RNA modality.
    """

    def __init__(self, field: BaseAnnDataField, columns: Mapping[str, str | None], rna: str) -> None:
        super().__init__(mod_key=None)
        self._adata_field, self.columns, self.rna = field, columns, rna

    def get_modality(self, mdata: MuData) -> AnnData:
        """An AnnData with the field's columns; one that is nowhere is left out."""
        return gather(mdata, self.columns, self.rna, required=False)

    def _copied(self, mdata: MuData, cells: AnnData, state: dict) -> dict:
        if not self.is_empty:
            getattr(mdata, self.attr_name)[self.attr_key] = getattr(cells, self.attr_name)[self.attr_key]
        return state

    def register_field(self, mdata: MuData) -> dict:
        """Register the field with the columns, and copy what it writes to the MuData."""
        cells = self.get_modality(mdata)
        return self._copied(mdata, cells, self.adata_field.register_field(cells))

    def transfer_field(self, state_registry: dict, mdata_target: MuData, **kwargs: Any) -> dict:
        """The same for other data, by the state of those it was registered with."""
        cells = self.get_modality(mdata_target)
        return self._copied(mdata_target, cells, self.adata_field.transfer_field(state_registry, cells, **kwargs))


def gather(mdata: MuData, columns: Mapping[str, str | None], rna: str, required: bool = True) -> AnnData:
    """An AnnData without genes whose ``obs`` has the columns asked for.

    A column is looked for in the modality that is named for it, or in ``mdata.obs``, the RNA modality and then the others.
    One that is found nowhere is left out, or refused where it is ``required``.
    """
    obs = pd.DataFrame(index=mdata.obs_names)
    for name, modality in columns.items():
        if modality is not None and modality not in mdata.mod:
            raise InvalidInputError(f"`modalities`: there is no modality {modality!r}; there are {listed(mdata.mod)}.")
        places = [mdata.mod[modality]] if modality is not None else [mdata, mdata.mod[rna], *mdata.mod.values()]
        found = next((place.obs[name] for place in places if name in place.obs), None)
        if found is not None:
            obs[name] = found.reindex(obs.index)
        elif required:
            where = f"mdata[{modality!r}].obs" if modality else f"mdata.obs or mdata[{rna!r}].obs"
            raise InvalidInputError(f"There is no column {name!r} in {where}, which has {listed(places[0].obs)}.")
    return AnnData(obs=obs)


def find_modalities(mdata: MuData, modalities: Mapping[str, str] | None, allowed: Sequence[str]) -> dict[str, str]:
    """The modality of each argument of ``setup_mudata``; RNA and protein are told by their usual names if not given."""
    if not isinstance(mdata, MuData):
        raise InvalidInputError(
            f"`mdata` must be a MuData; got {type(mdata).__name__}. For an AnnData with proteins in `obsm` there is "
            "`setup_anndata`."
        )
    found = dict(modalities or {})
    for argument in found:
        if argument not in allowed:
            raise InvalidInputError(f"`modalities` must have the keys {listed(allowed)}; got {argument!r}.")
    for argument, names in (("rna_layer", RNA_NAMES), ("protein_layer", PROTEIN_NAMES)):
        if argument not in found:
            usual = [name for name in names if name in mdata.mod]
            if len(usual) != 1:
                raise InvalidInputError(
                    f"`modalities` does not say which modality is {argument!r}; there are {listed(mdata.mod)}. Name it, as "
                    'in `modalities={"rna_layer": "rna", "protein_layer": "protein"}`.'
                )
            found[argument] = usual[0]
    return found


def check_modalities(mdata: MuData, rna: str, protein: str | None) -> None:
    """Raise for modalities that are missing, empty, swapped, or whose cells do not belong together."""
    for argument, name in (("rna_layer", rna), ("protein_layer", protein)):
        if name is None:
            continue
        if name not in mdata.mod:
            raise InvalidInputError(
                f"`modalities[{argument!r}]`: there is no modality {name!r}; there are {listed(mdata.mod)}."
            )
        if 0 in mdata.mod[name].shape:
            raise InvalidInputError(
                f"mdata[{name!r}] is empty: it has {mdata.mod[name].n_obs} cells and {mdata.mod[name].n_vars} features."
            )
    genes = mdata.mod[rna]
    if protein is not None:
        proteins = mdata.mod[protein]
        if proteins.n_vars > genes.n_vars or _says(genes, "antibody") or _says(proteins, "gene expression"):
            raise InvalidInputError(
                f"`modalities` seem to be swapped: {rna!r}, given as RNA, has {genes.n_vars} features and {protein!r}, given "
                f"as protein, has {proteins.n_vars}."
            )
    missing = mdata.obs_names.difference(genes.obs_names)
    if len(missing):
        raise InvalidInputError(
            f"{len(missing)} of {mdata.n_obs} cells have no RNA (such as {listed(missing[:1])}): every cell needs it, "
            f"while proteins may be missing. `mdata[mdata[{rna!r}].obs_names].copy()` leaves them out."
        )
    if not np.array_equal(mdata.obs_names, genes.obs_names):
        raise InvalidInputError(
            f"The cells of mdata[{rna!r}] are in another order than those of the MuData: "
            f"`mdata = mdata[mdata[{rna!r}].obs_names].copy()` puts them in one."
        )


def _says(adata: AnnData, kind: str) -> bool:
    """Whether the feature types of a 10x file are all of a kind."""
    types = adata.var.get("feature_types")
    return types is not None and bool(types.astype(str).str.lower().str.contains(kind).all())
