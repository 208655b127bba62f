"""AnnData fields: scvi's own, with checks that say what is wrong and conditions that tolerate gaps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import rich.table
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data import fields
from scvi.data._constants import _ADATA_MINIFY_TYPE_UNS_KEY

from diffvi._exceptions import InvalidInputError, listed

from ._conditions import ConditionVocabulary

CONDITIONS_KEY = "diffvi_conditions"
ROWS = 50_000
"""Cells whose counts are checked at a time: those of data on the disk are read into memory."""


def check_names(argument: str, value: Any, several: bool = False) -> None:
    """Raise unless ``value`` is a name, or ``several`` of them in a list, or None."""
    if value is None or (isinstance(value, str) and not several):
        return
    if several and isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return
    allowed = "a list of names" if several else "a name"
    raise InvalidInputError(f"`{argument}` must be None or {allowed}; got {value!r}.")


def check_obs_columns(adata: AnnData, **columns: str | Sequence[str] | None) -> None:
    """Raise if an argument that names a column, or a list of them (``..._keys``), does not, or the column is not in ``adata.obs``."""
    for argument, keys in columns.items():
        check_names(argument, keys, several=argument.endswith("_keys"))
        for key in [keys] if isinstance(keys, str) else keys or []:
            if key not in adata.obs:
                raise InvalidInputError(f"`{argument}`: adata.obs has no column {key!r}; it has {listed(adata.obs)}.")


def check_complete(adata: AnnData, **columns: str | None) -> None:
    """Raise if a column that needs a value for every cell holds NaN."""
    for argument, key in columns.items():
        if key is not None and (n := int(adata.obs[key].isna().sum())):
            raise InvalidInputError(
                f"`{argument}`: adata.obs[{key!r}] has no value (NaN) for {n} of {adata.n_obs} cells."
            )


def check_finite(adata: AnnData, **columns: str | None) -> None:
    """Raise if a column that needs finite numbers holds something else."""
    for argument, key in columns.items():
        if key is None:
            continue
        column = adata.obs[key]
        if not pd.api.types.is_numeric_dtype(column):
            raise InvalidInputError(f"`{argument}`: adata.obs[{key!r}] must hold numbers; it holds {column.dtype}.")
        if n := int((~np.isfinite(column.to_numpy(float))).sum()):
            raise InvalidInputError(
                f"`{argument}`: adata.obs[{key!r}] has NaN or infinite values for {n} of {adata.n_obs} cells."
            )


def check_counts(adata: AnnData, layer: str | None) -> None:
    """Raise unless the matrix holds finite non-negative whole numbers and no cell is empty.

    Parameters
    ----------
    adata
        The data; the matrix may be dense, sparse or on the disk.
    layer
        Name of the layer to check; ``None`` for ``adata.X``.

    Raises
    ------
    InvalidInputError
        If they are no such counts, the layer is not there, or there is no cell or no gene.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> from diffvi.data import check_counts
    >>> check_counts(AnnData(np.array([[1.0, 0.5]])), None)
    Traceback (most recent call last):
    diffvi._exceptions.InvalidInputError: adata.X holds values that are not whole numbers (such as 0.5); raw counts are needed. ...
    """
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    if layer is not None and layer not in adata.layers:
        raise InvalidInputError(f"`layer`: adata.layers has no {layer!r}; it has {listed(filter(None, adata.layers))}.")
    if 0 in adata.shape:
        raise InvalidInputError(
            f"`adata` has {adata.n_obs} cells and {adata.n_vars} genes; at least one of each is needed."
        )
    x = adata.X if layer is None else adata.layers[layer]
    if x is None:
        raise InvalidInputError(f"{where} is empty (None): raw counts are needed there.")
    for start in range(0, adata.n_obs, ROWS):
        block = x[start : start + ROWS]
        values = block.data if sparse.issparse(block) else np.asarray(block)
        bad = None
        if not np.isfinite(values).all():
            bad = "NaN or infinite values"
        elif (values < 0).any():
            bad = f"negative values (such as {values[values < 0].flat[0]:g})"
        elif not np.issubdtype(values.dtype, np.integer) and (values % 1 != 0).any():
            bad = f"values that are not whole numbers (such as {values[values % 1 != 0].flat[0]:g})"
        if bad:
            raise InvalidInputError(
                f"{where} holds {bad}; raw counts are needed. If they are in a layer, name it with `layer=`."
            )
        empty = np.flatnonzero(np.asarray(block.sum(1)).ravel() == 0)
        if len(empty):
            names = listed(adata.obs_names[start + empty], 3)
            raise InvalidInputError(
                f"{where} has cells without a single count ({names}): remove them with "
                "`scanpy.pp.filter_cells(adata, min_counts=1)`."
            )


class CountsField(fields.LayerField):
    """Raw counts, checked in full; new data must have the model's genes in the model's order.

    Examples
    --------
    >>> from diffvi.data import CountsField
    >>> from diffvi.datasets import simulate_cells
    >>> cells = simulate_cells(20, 5, seed=0)
    >>> field = CountsField("X", None, is_count_data=True)
    >>> state = field.register_field(cells)
    >>> field.transfer_field(state, cells[:, ::-1].copy())
    Traceback (most recent call last):
    diffvi._exceptions.InvalidInputError: `adata` has the model's genes in another order. ...
    """

    def validate_field(self, adata: AnnData) -> None:
        if _ADATA_MINIFY_TYPE_UNS_KEY not in adata.uns:
            check_counts(adata, self.attr_key)
        # Without scvi's check of a few values, which does not know sparse arrays.
        super(fields.LayerField, self).validate_field(adata)

    def register_field(self, adata: AnnData) -> dict:
        state = super().register_field(adata)
        x = self.get_field_data(adata)
        # Of data that stays on the disk nobody waits for all sums.
        if _ADATA_MINIFY_TYPE_UNS_KEY not in adata.uns and (isinstance(x, np.ndarray) or sparse.issparse(x)):
            silent = adata.var_names[np.asarray(x.sum(0)).ravel() == 0]
            if len(silent):
                warnings.warn(
                    f"{len(silent)} of {adata.n_vars} genes have no counts at all ({listed(silent, 3)}); nothing can be "
                    "learned about them. `scanpy.pp.filter_genes(adata, min_cells=1)` removes them.",
                    UserWarning,
                    stacklevel=2,
                )
        return state

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs: Any) -> dict:
        known = pd.Index(state_registry[self.COLUMN_NAMES_KEY])
        check_genes(known, adata_target.var_names)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*genes have no counts at all")
            return super().transfer_field(state_registry, adata_target, **kwargs)


def check_genes(known: pd.Index, given: pd.Index) -> None:
    """Raise unless ``given`` is ``known``, saying whether genes are missing, surplus or out of order."""
    if known.equals(pd.Index(given)):
        return
    missing, surplus = known.difference(given, sort=False), pd.Index(given).difference(known, sort=False)
    if len(missing):
        why = f"lacks {len(missing)} of the model's {len(known)} genes ({listed(missing, 5)})"
    elif len(surplus):
        why = f"has {len(surplus)} genes that the model does not know ({listed(surplus, 5)})"
    else:
        why = "has the model's genes in another order"
    raise InvalidInputError(
        f"`adata` {why}. `adata[:, model.get_var_names()]` selects and orders them; "
        "`prepare_query_anndata` also fills missing ones with zeros."
    )


class LabelsField(fields.CategoricalObsField):
    """Labels that a query may lack: the likelihood needs them only for ``dispersion="gene-label"``.

    Missing, unknown and NaN labels get code 0 here and a null condition in :class:`ConditionsField`.

    Examples
    --------
    >>> import pandas as pd
    >>> from anndata import AnnData
    >>> from diffvi.data import LabelsField
    >>> cells, query = (AnnData(obs=pd.DataFrame({"type": t}, index=["a", "b"])) for t in (["B", "T"], ["T", "NK"]))
    >>> field = LabelsField("labels", "type")
    >>> state = field.register_field(cells)
    >>> _ = field.transfer_field(state, query)
    >>> query.obs[field.attr_key].tolist()
    [1, 0]
    """

    def register_field(self, adata: AnnData) -> dict:
        if self.is_default:
            return super().register_field(adata)
        self.validate_field(adata)
        categories = adata.obs[self._original_attr_key].astype("category").cat.remove_unused_categories().cat.categories
        if len(categories) == 0:
            raise InvalidInputError(f"`labels_key`: adata.obs[{self._original_attr_key!r}] has no value for any cell.")
        return self._encode(adata, categories.to_numpy(copy=True))

    def transfer_field(
        self, state_registry: dict, adata_target: AnnData, extend_categories: bool = False, **kwargs: Any
    ) -> dict:
        if self.is_default:
            return super().transfer_field(state_registry, adata_target, extend_categories=extend_categories, **kwargs)
        known = state_registry[self.CATEGORICAL_MAPPING_KEY].copy()
        if extend_categories and self._original_attr_key in adata_target.obs:
            new = pd.Index(adata_target.obs[self._original_attr_key].dropna().unique()).difference(pd.Index(known))
            known = np.concatenate([known, new.to_numpy()])
        return self._encode(adata_target, known)

    def _encode(self, adata: AnnData, categories: np.ndarray) -> dict:
        values = adata.obs.get(self._original_attr_key, pd.Series(np.nan, index=adata.obs_names))
        codes = pd.Categorical(values, categories=categories).codes
        adata.obs[self.attr_key] = np.maximum(codes, 0).astype(np.int64)
        return {self.CATEGORICAL_MAPPING_KEY: categories, self.ORIGINAL_ATTR_KEY: self._original_attr_key}


class ConditionsField(fields.BaseAnnDataField):
    """The attributes that condition the prior, encoded into one float matrix in ``obsm``.

    Category codes, standardised numbers, and NaN for whatever is missing: a query without some of the
    columns, or with values that training never saw, is encoded as not given.

    Parameters
    ----------
    keys
        Columns of ``adata.obs``.
    categorical
        Those that hold categories even if they are numbers.
    sets
        Further entries of the vocabulary, by name: how each is learnt from the data.

    Examples
    --------
    A query without ages, and with a type that is not known:

    >>> import pandas as pd
    >>> from anndata import AnnData
    >>> from diffvi.data import ConditionsField
    >>> cells = AnnData(obs=pd.DataFrame({"type": ["B", "T"], "age": [20, 40]}, index=["a", "b"]))
    >>> query = AnnData(obs=pd.DataFrame({"type": ["T", "NK"]}, index=["c", "d"]))
    >>> field = ConditionsField(["type", "age"])
    >>> _ = field.transfer_field(field.register_field(cells), query)
    >>> query.obsm[field.attr_key].tolist()
    [[1.0, nan], [nan, nan]]
    """

    VOCABULARY_KEY = "vocabulary"

    def __init__(
        self,
        keys: Sequence[str],
        categorical: Sequence[str] = (),
        sets: Mapping[str, Callable[[AnnData], dict[str, Any]]] | None = None,
    ) -> None:
        super().__init__()
        self.keys, self.categorical, self.sets = list(dict.fromkeys(keys)), tuple(categorical), dict(sets or {})

    @property
    def registry_key(self) -> str:
        return CONDITIONS_KEY

    @property
    def attr_name(self) -> str:
        return "obsm"

    @property
    def attr_key(self) -> str:
        return f"_{CONDITIONS_KEY}"

    @property
    def is_empty(self) -> bool:
        return False

    def validate_field(self, adata: AnnData) -> None:
        check_obs_columns(adata, condition_keys=self.keys)

    def register_field(self, adata: AnnData) -> dict:
        super().register_field(adata)
        vocabulary = ConditionVocabulary.from_obs(adata.obs, self.keys, self.categorical)
        vocabulary.entries |= {name: learn(adata) for name, learn in self.sets.items()}
        return self._write(adata, vocabulary)

    def transfer_field(
        self, state_registry: dict, adata_target: AnnData, extend_categories: bool = False, **kwargs: Any
    ) -> dict:
        vocabulary = ConditionVocabulary.from_dict(state_registry[self.VOCABULARY_KEY])
        return self._write(adata_target, vocabulary.extended(adata_target) if extend_categories else vocabulary)

    def _write(self, adata: AnnData, vocabulary: ConditionVocabulary) -> dict:
        adata.obsm[self.attr_key] = vocabulary.encode_cells(adata)
        return {self.VOCABULARY_KEY: vocabulary.to_dict()}

    def get_summary_stats(self, state_registry: dict) -> dict:
        return {"n_conditions": len(state_registry[self.VOCABULARY_KEY])}

    def view_state_registry(self, state_registry: dict) -> rich.table.Table:
        table = rich.table.Table(title="Conditions of the prior")
        for column in ("Source Location", "Kind", "Values"):
            table.add_column(column)
        for name, kind, values in ConditionVocabulary.from_dict(state_registry[self.VOCABULARY_KEY]).describe():
            table.add_row(f"adata.obs[{name!r}]", kind, values)
        return table


def scvi_fields(
    adata: AnnData,
    layer: str | None,
    batch_key: str | None,
    labels_key: str | None,
    size_factor_key: str | None,
    categorical_covariate_keys: Sequence[str] | None,
    continuous_covariate_keys: Sequence[str] | None,
    condition_keys: Sequence[str] | None,
    query: bool = False,
    context_keys: Sequence[str] | None = None,
    sets: Mapping[str, Callable[[AnnData], dict[str, Any]]] | None = None,
) -> list[fields.BaseAnnDataField]:
    """The fields of :class:`scvi.model.SCVI` and those of the prior, after a check of every argument.

    A ``query`` that is registered with a model that is trained already may lack labels and conditions. ``context_keys``
    are conditions that hold categories, as labels and batch do; ``sets`` are further ones: see :class:`ConditionsField`.

    Parameters
    ----------
    adata
        The data that the arguments refer to.
    layer
        Layer with the counts; ``None`` for ``adata.X``.
    batch_key, labels_key, size_factor_key
        Columns of ``adata.obs``, or ``None``.
    categorical_covariate_keys, continuous_covariate_keys, condition_keys, context_keys
        Lists of them, or ``None``.
    query, sets
        See above.

    Returns
    -------
    Fields for a manager, the counts first and the conditions last.

    Raises
    ------
    InvalidInputError
        If an argument is of the wrong kind or names a column that is absent, incomplete or does not hold what it needs.

    Examples
    --------
    >>> from diffvi.data import scvi_fields
    >>> from diffvi.datasets import simulate_cells
    >>> fields = scvi_fields(simulate_cells(20, 5, seed=0), None, None, "cell_type", None, None, None, None)
    >>> [field.registry_key for field in fields][:3], fields[-1].keys
    (['X', 'batch', 'labels'], ['cell_type'])
    """
    check_names("layer", layer)
    for argument, keys in (("labels_key", labels_key), ("condition_keys", condition_keys)):
        check_names(argument, keys, several=argument.endswith("_keys"))
    categorical = [key for key in (labels_key, batch_key, *(context_keys or ())) if key is not None]
    if not query:
        check_obs_columns(adata, labels_key=labels_key, condition_keys=condition_keys)
    check_obs_columns(
        adata,
        batch_key=batch_key,
        size_factor_key=size_factor_key,
        categorical_covariate_keys=categorical_covariate_keys,
        continuous_covariate_keys=continuous_covariate_keys,
    )
    check_complete(adata, batch_key=batch_key, size_factor_key=size_factor_key)
    check_finite(adata, size_factor_key=size_factor_key)
    for key in categorical_covariate_keys or ():
        check_complete(adata, categorical_covariate_keys=key)
    for key in continuous_covariate_keys or ():
        check_complete(adata, continuous_covariate_keys=key)
        check_finite(adata, continuous_covariate_keys=key)
    if size_factor_key is not None and not (adata.obs[size_factor_key] > 0).all():
        raise InvalidInputError(f"`size_factor_key`: adata.obs[{size_factor_key!r}] has values that are not positive.")
    return [
        CountsField(REGISTRY_KEYS.X_KEY, layer, is_count_data=True),
        fields.CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
        LabelsField(REGISTRY_KEYS.LABELS_KEY, labels_key),
        fields.NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key, required=False),
        fields.CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical_covariate_keys),
        fields.NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, continuous_covariate_keys),
        ConditionsField([*categorical, *(condition_keys or ())], categorical, sets),
    ]
