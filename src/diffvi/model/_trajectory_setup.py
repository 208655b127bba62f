"""What a time course has to be."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from diffvi._exceptions import InvalidInputError, listed

MIN_CELLS = 5
"""Cells that a measured time must have."""


def check_numbers(obs: pd.DataFrame, argument: str, key: str) -> np.ndarray:
    """The finite numbers of a column; raises where it holds anything else."""
    values = obs[key]
    if is_bool_dtype(values) or not is_numeric_dtype(values):
        raise InvalidInputError(
            f"`{argument}`: adata.obs[{key!r}] must hold numbers, such as hours or days; got {values.iloc[0]!r} "
            f"(dtype {values.dtype})."
        )
    numbers = values.to_numpy(float)
    if n := int((~np.isfinite(numbers)).sum()):
        raise InvalidInputError(f"`{argument}`: adata.obs[{key!r}] has no finite value for {n} of {len(obs)} cells.")
    return numbers


def check_times(adata: AnnData, time_key: str) -> None:
    """Raise unless every cell has a time, there are at least two, and each has enough cells."""
    times, sizes = np.unique(check_numbers(adata.obs, "time_key", time_key), return_counts=True)
    if len(times) < 2:
        raise InvalidInputError(
            f"`time_key`: adata.obs[{time_key!r}] holds one time ({times[0]:g}); at least two are needed."
        )
    if (few := sizes < MIN_CELLS).any():
        raise InvalidInputError(
            f"`time_key`: the times {listed(times[few].tolist(), 5)} of adata.obs[{time_key!r}] have fewer than {MIN_CELLS} cells "
            "each; leave them out, or join them with the next."
        )
