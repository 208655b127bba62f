"""Reading one modality of new cells, from whatever object holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from scvi import REGISTRY_KEYS

from diffvi._exceptions import InvalidInputError, listed, one_of
from diffvi._random import cell_number
from diffvi.data import TrainingTable, check_counts
from diffvi.data._fields import check_genes
from diffvi.data._mudata import gather
from diffvi.data._proteins import align_proteins, protein_counts, read_obsm


@dataclass
class Source:
    """One modality of some cells.

    Parameters
    ----------
    adata
        Where results are written.
    counts
        Raw counts: CSR for RNA; for proteins an array, NaN where missing.
    codes
        Codes of the user's attributes, NaN for what is not to be shown to the prior.
    table
        Batch and covariates for encoders and decoder.
    numbers
        One number a cell, for its random stream.
    """

    adata: AnnData
    counts: Any
    codes: np.ndarray
    table: TrainingTable
    numbers: np.ndarray


class SourceMixin:
    """How a model with two modalities reads one of them."""

    module: Any
    adata: Any
    _own_cells: Any
    registry_: dict[str, Any]
    vocabulary: Any
    paired_batches_: list[int]
    gene_names: np.ndarray
    protein_names: np.ndarray
    _modality_names: tuple[str, str]

    def _source(self, data: Any, modality: str, batch: str | None, use_conditions: bool = False) -> Source:
        """The counts of one modality, with what conditions prior, encoders and decoder."""
        data = self._own_cells(data)
        name = self._modality_names[("rna", "protein").index(modality)]
        if isinstance(data, MuData):
            if name not in data.mod:
                raise InvalidInputError(f"`adata` has no modality {name!r}; it has {listed(data.mod)}.")
            adata = data.mod[name]
        else:
            adata = data
        cells = AnnData(obs=self._obs_of(data, name))
        counts = self._rna_of(adata) if modality == "rna" else self._protein_of(adata)
        codes, table = self._cells_of(cells, batch, use_conditions)
        numbers = np.array([cell_number(cell) for cell in adata.obs_names], dtype=np.uint64)
        return Source(adata, counts, codes, table, numbers)

    def _obs_of(self, data: Any, modality: str) -> pd.DataFrame:
        """Columns of the cells of a modality, wherever in a MuData they are."""
        if not isinstance(data, MuData):
            return data.obs
        rna = self._modality_names[0] if self._modality_names[0] in data.mod else modality
        columns = gather(data, dict.fromkeys(self._cell_columns), rna, required=False).obs
        return columns.loc[data.mod[modality].obs_names]

    def _rna_of(self, adata: AnnData) -> sparse.csr_matrix:
        arguments = self.registry_["setup_args"]
        layer = arguments.get("rna_layer", arguments.get("layer"))
        known = pd.Index(self.gene_names)
        if not known.isin(adata.var_names).any() and pd.Index(self.protein_names).isin(adata.var_names).any():
            raise InvalidInputError(
                "`adata` holds proteins where RNA is needed: `translate_protein_to_rna` starts from them."
            )
        check_genes(known, adata.var_names)
        check_counts(adata, layer)
        return sparse.csr_matrix(adata.X if layer is None else adata.layers[layer])

    def _protein_of(self, adata: AnnData, allow_missing: bool = False) -> np.ndarray:
        arguments, known = self.registry_["setup_args"], pd.Index(self.protein_names)
        key = arguments.get("protein_expression_obsm_key")
        if key is not None and key in adata.obsm:
            read = read_obsm(key, arguments.get("protein_names_uns_key"))(adata, True)
            assert read is not None
        elif known.isin(adata.var_names).any():
            read = protein_counts(adata, arguments.get("protein_layer"), "adata")
        else:
            raise InvalidInputError(
                f"`adata` holds none of the model's proteins ({listed(known, 5)}); it has {listed(adata.var_names, 3)}."
            )
        counts = align_proteins(read, known).to_numpy(np.float32)
        if (n := int(np.isnan(counts).all(1).sum())) > 0 and not allow_missing:
            raise InvalidInputError(f"No protein was measured in {n} of {len(counts)} cells: leave them out.")
        return counts

    @property
    def _cell_columns(self) -> list[str]:
        """Columns of the cells that the model may read."""
        arguments = self.registry_["setup_args"]
        keys = [*self.vocabulary.names, arguments.get("batch_key")]
        for argument in ("categorical_covariate_keys", "continuous_covariate_keys"):
            keys.extend(arguments.get(argument) or [])
        return [key for key in dict.fromkeys(keys) if key is not None]

    def _state_registry(self, key: str) -> Any:
        return self.registry_["field_registries"][key]["state_registry"]

    def _cells_of(self, cells: AnnData, batch: str | None, use_conditions: bool) -> tuple[np.ndarray, TrainingTable]:
        """Codes for the prior, and batch and covariates; a batch without measured proteins is not shown to the prior."""
        key, n = self.registry_["setup_args"].get("batch_key"), cells.n_obs
        known = list(self._state_registry(REGISTRY_KEYS.BATCH_KEY)["categorical_mapping"])
        codes = self.vocabulary.encode_cells(cells)
        if not use_conditions:
            codes[:] = np.nan
        own = np.zeros(n, dtype=int)
        if key is None and batch is not None:
            raise InvalidInputError(f"`transform_batch`: the model has no `batch_key`; got {batch!r}.")
        if key is not None:
            if batch is not None:
                own[:] = known.index(one_of("transform_batch", batch, known))
            elif key in cells.obs:
                own = pd.Index(known).get_indexer(pd.Index(cells.obs[key].astype(object)))
                if (own < 0).any():
                    raise InvalidInputError(
                        f"`adata`: the batch {cells.obs[key].iloc[int(np.argmax(own < 0))]!r} is not one of the model's, "
                        f"{listed(known)}: name one of them with `transform_batch`, or put the data on the model with "
                        "`load_query_data`."
                    )
            elif len(known) > 1:
                raise InvalidInputError(
                    f"`adata.obs` has no column {key!r}: name a batch, of {listed(known)}, with `transform_batch`."
                )
            paired = np.isin(own, self.paired_batches_)
            codes[:, self.vocabulary.columns[key].start] = np.where(paired, own, np.nan)
        return codes, TrainingTable(
            codes=codes,
            log_library=np.zeros(n, dtype=np.float32),
            batch=own,
            labels=self._labels_of(cells),
            cat_covs=self._covariates(cells, REGISTRY_KEYS.CAT_COVS_KEY),
            cont_covs=self._covariates(cells, REGISTRY_KEYS.CONT_COVS_KEY),
        )

    def _labels_of(self, cells: AnnData) -> np.ndarray:
        """Scvi's codes of the labels, 0 where there is none: as in the data that a model is set up with."""
        key = self.registry_["setup_args"].get("labels_key")
        if key is None or key not in cells.obs:
            return np.zeros(cells.n_obs, dtype=int)
        known = pd.Index(self._state_registry(REGISTRY_KEYS.LABELS_KEY)["categorical_mapping"])
        return np.maximum(known.get_indexer(pd.Index(cells.obs[key].astype(object))), 0)

    def _covariates(self, cells: AnnData, registry_key: str) -> np.ndarray | None:
        """Covariates of the decoder, as scvi encodes them."""
        argument = (
            "categorical_covariate_keys" if registry_key == REGISTRY_KEYS.CAT_COVS_KEY else "continuous_covariate_keys"
        )
        keys: Sequence[str] = self.registry_["setup_args"].get(argument) or []
        columns = []
        for key in keys:
            if key not in cells.obs:
                raise InvalidInputError(f"`adata.obs` has no column {key!r}, a covariate of the model's decoder.")
            values = cells.obs[key]
            if registry_key == REGISTRY_KEYS.CAT_COVS_KEY:
                known = self._state_registry(registry_key)["mappings"][key]
                values = pd.Series(pd.Index(known).get_indexer(pd.Index(values.astype(object))))
                if (values < 0).any():
                    raise InvalidInputError(f"`adata.obs[{key!r}]` has values other than {listed(known)}.")
            columns.append(np.asarray(values, dtype=np.float32))
        return np.stack(columns, 1) if columns else None
