"""What coordinates have to be."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi.data._utils import _get_adata_minify_type

from diffvi._exceptions import InvalidInputError, listed

MIN_LOCATIONS = 10
"""Locations that a section must have."""
SECTION_COLUMNS = ("section", "sample", "slice", "library_id", "slide", "fov", "batch")
"""Columns of ``obs`` that often tell sections apart."""
CROWDED = 0.05
"""Share of locations that coincide from which sections that lie on one another are suspected."""


def read_coordinates(values: Any, argument: str, n_dims: int | None = None) -> np.ndarray:
    """Coordinates as numbers, ``(n, n_dims)``; raises a sentence where they are none."""
    try:
        array = np.asarray(values.to_numpy() if isinstance(values, pd.DataFrame) else values, dtype=float)
    except (TypeError, ValueError):
        raise InvalidInputError(f"{argument} must hold numbers; got {values!r}.") from None
    allowed = "2 or 3 columns" if n_dims is None else f"{n_dims} columns, as the model's have"
    if array.ndim != 2 or array.shape[1] not in ((2, 3) if n_dims is None else (n_dims,)):
        raise InvalidInputError(
            f"{argument} must have a row for each location and {allowed}; got the shape {array.shape}."
        )
    if not len(array):
        raise InvalidInputError(f"{argument} must have at least one location; got none.")
    if n := int((~np.isfinite(array)).any(1).sum()):
        raise InvalidInputError(f"{argument} has NaN or infinite values for {n} of {len(array)} locations.")
    return array


def coordinates_of(adata: AnnData, spatial_key: str, n_dims: int | None = None) -> np.ndarray:
    """Coordinates of the cells of ``adata``."""
    if spatial_key not in adata.obsm:
        raise InvalidInputError(f"`spatial_key`: adata.obsm has no {spatial_key!r}; it has {listed(adata.obsm)}.")
    return read_coordinates(adata.obsm[spatial_key], f"`spatial_key`: adata.obsm[{spatial_key!r}]", n_dims)


def check_counts(adata: AnnData) -> None:
    """Raise for minified data, whose expression cannot be kriged."""
    if _get_adata_minify_type(adata) is not None:
        raise InvalidInputError(
            "`adata` is minified and holds no counts, which kriging needs; give the data as it was."
        )


def check_space(adata: AnnData, spatial_key: str, section_key: str | None, batch_key: str | None) -> None:
    """Raise for coordinates that cannot be used, and warn of those that are probably not what they should be."""
    coordinates = coordinates_of(adata, spatial_key)
    if section_key is None:
        sections = np.zeros(adata.n_obs, dtype=int)
    else:
        if n := int(adata.obs[section_key].isna().sum()):
            raise InvalidInputError(
                f"`section_key`: adata.obs[{section_key!r}] has no value (NaN) for {n} of {adata.n_obs} cells."
            )
        sections = adata.obs[section_key].to_numpy(str)
    names, sizes = np.unique(sections, return_counts=True)
    if (few := sizes < MIN_LOCATIONS).any():
        which = "adata has" if section_key is None else f"the sections {listed(names[few].tolist(), 5)} have"
        raise InvalidInputError(
            f"`section_key`: {which} fewer than {MIN_LOCATIONS} locations; leave them out, or join them with others."
        )
    places = pd.DataFrame(coordinates).assign(section=sections)
    shared = int(places.duplicated(keep=False).sum())
    if section_key is None and (key := _overlapping(adata, coordinates, batch_key)) is not None:
        warnings.warn(
            f"`section_key` is not given, but the groups of adata.obs[{key!r}] lie on one another in adata.obsm[{spatial_key!r}]; if they "
            f"are sections with coordinates of their own, pass `section_key={key!r}`.",
            UserWarning,
            stacklevel=3,
        )
    elif shared:
        more = ""
        if section_key is None and shared > CROWDED * adata.n_obs:
            more = " If these are several sections, name the column that tells them apart with `section_key`."
        warnings.warn(
            f"`spatial_key`: {shared} of {adata.n_obs} cells share their location with another cell; they count as neighbours at no "
            f"distance.{more}",
            UserWarning,
            stacklevel=3,
        )


def _overlapping(adata: AnnData, coordinates: np.ndarray, batch_key: str | None) -> str | None:
    """A column of ``obs`` whose groups cover the same part of the plane, if there is one."""
    for key in dict.fromkeys([batch_key, *SECTION_COLUMNS]):
        if key is None or key not in adata.obs or coordinates.shape[1] != 2:
            continue
        groups = adata.obs[key].to_numpy(str)
        boxes = [
            np.quantile(coordinates[groups == g], (0.05, 0.95), axis=0)
            for g in np.unique(groups)
            if (groups == g).sum() >= MIN_LOCATIONS
        ]
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                common = np.prod(np.clip(np.minimum(a[1], b[1]) - np.maximum(a[0], b[0]), 0, None))
                if common > 0.5 * min(np.prod(a[1] - a[0]), np.prod(b[1] - b[0])) > 0:
                    return key
    return None
