"""What perturbation data must be like, and what is learnt of it at set-up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.decomposition import PCA

from diffvi._exceptions import InvalidInputError, listed
from diffvi.data import PerturbationCoder

MAX_FEATURES = 32
"""Longer embeddings are cut to this many principal components."""


def embedding_table(adata: AnnData, embedding: pd.DataFrame | str | None) -> pd.DataFrame | None:
    """The embedding as a data frame indexed by perturbation."""
    if isinstance(embedding, str):
        if embedding in adata.varm:
            embedding = pd.DataFrame(np.asarray(adata.varm[embedding]), index=adata.var_names)
        elif embedding in adata.uns:
            embedding = adata.uns[embedding]
        else:
            raise InvalidInputError(
                f"`perturbation_embedding`: neither adata.varm nor adata.uns has {embedding!r}; "
                f"they have {listed([*adata.varm, *adata.uns])}."
            )
    if embedding is None:
        return None
    if not isinstance(embedding, pd.DataFrame):
        raise InvalidInputError(
            "`perturbation_embedding` must be a data frame indexed by perturbation, or the key of one in adata.uns or of a "
            f"matrix in adata.varm; got {type(embedding).__name__}."
        )
    values = embedding.to_numpy(float)
    if not np.isfinite(values).all() or values.shape[1] == 0 or embedding.index.has_duplicates:
        raise InvalidInputError("`perturbation_embedding` must hold finite numbers, one row for each perturbation.")
    return pd.DataFrame(values, index=embedding.index.astype(str))


def check_perturbations(
    adata: AnnData, key: str, control: str, separator: str, dose_key: str | None, contexts: Sequence[str]
) -> None:
    """Raise unless every context has control cells and every perturbation at least two cells."""
    if key not in adata.obs and key not in adata.obsm:
        raise InvalidInputError(
            f"`perturbation_key`: neither adata.obs nor adata.obsm has {key!r}; adata.obs has {listed(adata.obs)}."
        )
    treatments = PerturbationCoder([], control, separator, dose_key, obsm=key not in adata.obs).treatments(adata, key)
    n_missing = sum(t is None for t in treatments)
    if n_missing:
        raise InvalidInputError(
            f"`perturbation_key`: {key!r} has no value (NaN) for {n_missing} of {adata.n_obs} cells."
        )
    is_control = np.array([t == () for t in treatments])
    if not is_control.any():
        known = listed(sorted(adata.obs[key].astype(str).unique()), 6) if key in adata.obs else "no row of zeros"
        raise InvalidInputError(f"`control`: no cell has the perturbation {control!r}; {key!r} has {known}.")
    if is_control.all():
        raise InvalidInputError(f"`perturbation_key`: all cells are control cells ({control!r}).")
    sizes = pd.Series([t for t in treatments if t], dtype=object).value_counts()
    if sizes.min() < 2:
        single = [separator.join(p for p, _ in t) for t, n in sizes.items() if n < 2]
        raise InvalidInputError(
            f"`perturbation_key`: {listed(single, 5)} has a single cell, of which no effect can be learnt; remove it, or "
            "give it more cells."
        )
    if contexts:
        which = adata.obs[list(contexts)].astype(str).agg(" / ".join, axis=1)
        without = sorted(set(which[~is_control]) - set(which[is_control]))
        if without:
            raise InvalidInputError(
                f"`control`: no control cells in the context {listed(without, 5)} ({' / '.join(contexts)}); "
                "remove its cells, or name fewer columns in `context_keys`."
            )


def learn_perturbations(
    adata: AnnData, key: str, control: str, separator: str, dose_key: str | None, embedding: pd.DataFrame | None
) -> dict[str, Any]:
    """The entry of the vocabulary: names, doses and, where given, the embedding in the order of the names."""
    coder = PerturbationCoder.from_cells(adata, key, control, separator, dose_key)
    if embedding is None:
        return coder.to_dict()
    missing = [name for name in coder.members if name not in embedding.index]
    if missing:
        raise InvalidInputError(f"`perturbation_embedding` has no row for {listed(missing, 20)}.")
    coder.members = sorted(set(coder.members) | set(embedding.index) - {control})
    values = embedding.loc[coder.members].to_numpy(float)
    values = (values - values.mean(0)) / np.where(values.std(0) > 0, values.std(0), 1.0)
    n = min(MAX_FEATURES, *values.shape)
    if values.shape[1] > n:
        values = PCA(n, random_state=0).fit_transform(values)
        values /= max(float(values.std()), 1e-12)
    return {**coder.to_dict(), "embedding": values.astype(np.float32)}
