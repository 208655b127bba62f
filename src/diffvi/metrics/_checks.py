"""Checks of what scores are given: each raises in one sentence that names the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData

from diffvi._exceptions import InvalidInputError, listed


def check_genes(real: AnnData, in_order: bool = True, **others: AnnData | None) -> None:
    """Raise unless the others have the genes of ``real``, and in the same order."""
    known = real.var_names
    for argument, cells in others.items():
        if cells is None or known.equals(cells.var_names):
            continue
        missing, surplus = known.difference(cells.var_names, False), cells.var_names.difference(known, False)
        if len(missing):
            why = f"it lacks {listed(missing, 5)}"
        elif len(surplus):
            why = f"it has {listed(surplus, 5)} besides"
        elif in_order or len(known) != cells.n_vars:
            why = "it has them in another order, or some of them twice"
        else:
            continue
        order = " in the same order" if in_order else ""
        raise InvalidInputError(f"`{argument}` must have the genes of `real`{order}; {why}.")


def check_column(argument: str, key: str | None, **sets: AnnData) -> None:
    """Raise unless every set has the column of ``obs`` that an argument names."""
    for name, cells in sets.items():
        if key is not None and key not in cells.obs:
            raise InvalidInputError(f"`{argument}`: {name}.obs has no column {key!r}; it has {listed(cells.obs)}.")


def check_rows(at_least: int, **sets: Any) -> None:
    """Raise if one of the sets has too few cells."""
    for argument, cells in sets.items():
        if cells is not None and (n := np.shape(cells)[0]) < at_least:
            raise InvalidInputError(f"`{argument}` has {n} cells; at least {at_least} are needed.")


def check_matrices(at_least: int = 1, **sets: Any) -> None:
    """Raise unless all have two dimensions, enough rows, and the columns of the first."""
    first, width = next(iter(sets)), None
    for argument, x in sets.items():
        if len(np.shape(x)) != 2:
            raise InvalidInputError(f"`{argument}` must have rows and columns; it has the shape {np.shape(x)}.")
        n_columns = np.shape(x)[1]
        if n_columns != (width := n_columns if width is None else width):
            raise InvalidInputError(f"`{argument}` has {n_columns} columns; it must have those of `{first}`, {width}.")
    check_rows(at_least, **sets)


def check_shape(like: Any, of: str = "real", **arrays: Any) -> None:
    """Raise unless the arrays have the shape of another one."""
    for argument, values in arrays.items():
        if np.shape(values) != np.shape(like):
            raise InvalidInputError(
                f"`{argument}` has the shape {np.shape(values)}; it must be that of `{of}`, {np.shape(like)}."
            )


def check_length(of: str, n: int, **values: Any) -> None:
    """Raise unless there is one entry for each of ``n`` things, such as "cells of `real`"."""
    for argument, given in values.items():
        if given is not None and np.shape(given)[:1] != (n,):
            raise InvalidInputError(
                f"`{argument}` must have one entry for each of the {n} {of}; it has the shape {np.shape(given)}."
            )


def check_together(**arguments: Any) -> None:
    """Raise if only one of two arguments that go together is given."""
    given = [name for name, value in arguments.items() if value is not None]
    if len(given) == 1:
        both = " and ".join(f"`{name}`" for name in arguments)
        raise InvalidInputError(f"{both} go together; got only `{given[0]}`.")


def checked_weights(weights: Any, n: int) -> np.ndarray:
    """Weights of ``n`` cells as an array; raises if they are none."""
    try:
        values = np.asarray(weights, float)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (n,) or not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise InvalidInputError(
            f"`weights` must hold {n} finite numbers of at least 0, not all of them 0; got {listed(np.ravel(weights), 5)}."
        )
    return values
