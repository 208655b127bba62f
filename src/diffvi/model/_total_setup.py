"""The fields of TotalDiffusion, from a MuData or from an AnnData with proteins in ``obsm``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scvi.data.fields import BaseAnnDataField
from sklearn.mixture import GaussianMixture

from diffvi.data import scvi_fields
from diffvi.data._fields import CountsField
from diffvi.data._mudata import CellsField, MuDataCountsField, check_modalities, gather
from diffvi.data._proteins import ProteinsField, read_modality, read_obsm, warn_of_zero_panels

COLUMN_ARGUMENTS = (
    "batch_key",
    "labels_key",
    "categorical_covariate_keys",
    "continuous_covariate_keys",
    "condition_keys",
)
"""Arguments of the set-up that name columns of the cells."""


def anndata_fields(
    adata: AnnData, layer: str | None, key: str, names_key: str | None, query: bool, columns: Mapping[str, Any]
) -> list[BaseAnnDataField]:
    """Fields of RNA in ``X`` or a layer, and proteins in ``obsm``."""
    read = read_obsm(key, names_key)
    if not query:
        _check_panels(read(adata, True), adata.obs, columns["batch_key"])
    return [*scvi_fields(adata, layer, **columns, size_factor_key=None, query=query), ProteinsField(read)]


def mudata_fields(
    mdata: MuData,
    layers: tuple[str | None, str | None],
    modalities: Mapping[str, str],
    query: bool,
    columns: Mapping[str, Any],
) -> list[BaseAnnDataField]:
    """Fields of RNA and proteins in modalities of their own; the columns of the cells may be in any part."""
    rna, protein = modalities["rna_layer"], modalities["protein_layer"]
    check_modalities(mdata, rna, protein if protein in mdata.mod or not query else None)
    places = {name: modalities.get(argument) for argument, names in columns.items() for name in _as_list(names)}
    cells = gather(mdata, places, rna, required=not query)
    read = read_modality(protein, layers[1])
    if not query:
        _check_panels(read(mdata, True), cells.obs, columns["batch_key"])
    # The checks of the counts belong to the RNA, those of the columns to the cells.
    fields = scvi_fields(cells, layers[0], **columns, size_factor_key=None, query=query)
    wrapped: list[BaseAnnDataField] = [
        MuDataCountsField(f.registry_key, layers[0], is_count_data=True, mod_key=rna, mod_required=True)
        if isinstance(f, CountsField)
        else CellsField(f, places, rna)
        for f in fields
    ]
    return [*wrapped, ProteinsField(read)]


def _check_panels(counts: pd.DataFrame | None, obs: pd.DataFrame, batch_key: str | None) -> None:
    if counts is not None:
        warn_of_zero_panels(counts, None if batch_key is None else obs.get(batch_key))


def _as_list(names: str | Sequence[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or [])


def background_start(counts: np.ndarray, n_batch: int, most: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Where the prior of each protein's background starts: the lower of two normal components of its log counts.

    Mean and spread, ``(n_proteins, n_batch)``; counts are NaN where missing.
    """
    mean, scale = np.zeros((2, counts.shape[1]), dtype=np.float32)
    for j, column in enumerate(counts.T):
        logged = np.log1p(column[~np.isnan(column)])
        if len(np.unique(logged)) < 3:
            mean[j], scale[j] = logged.mean() if len(logged) else 0.0, 1.0
            continue
        logged = np.random.default_rng(0).choice(logged, min(len(logged), most), replace=False)
        mixture = GaussianMixture(2, random_state=0, reg_covar=1e-3).fit(logged[:, None])
        low = int(mixture.means_.argmin())
        mean[j], scale[j] = mixture.means_[low, 0], np.sqrt(mixture.covariances_[low, 0, 0])
    return np.tile(mean[:, None], (1, n_batch)), np.tile(scale[:, None], (1, n_batch))
