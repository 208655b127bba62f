"""Tables that are written to disk in parts: flat in memory, safe to kill, open to several processes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from anndata.io import write_elem

from diffvi._exceptions import InvalidInputError, OutputFileError

ALIGNED = ("X", "obs", "obsm", "layers")
"""Elements of an AnnData with a row for each cell."""
MIN_CHUNK = 1 << 18
"""Length of the chunks of arrays whose length is not known beforehand."""


class PartStore:
    """An AnnData or MuData store (zarr) of many cells, whose parts may be written in any order and by several processes.

    Parts are complete stores of their own in a folder beside ``path``; each is written aside, flushed and renamed, so that it is there or it is not.
    ``path`` appears when all parts are there and joined. The folder also holds what was asked for: the same request goes on where it was, another is refused.

    Parameters
    ----------
    path
        Where the store will be.
    n_parts
        Number of parts.
    request
        What tells this request from others, as JSON.
    overwrite
        Replace what is there.

    Raises
    ------
    InvalidInputError
        If ``path`` exists, or parts of another request do.
    OutputFileError
        If the folder cannot be written.
    """

    def __init__(self, path: str | Path, n_parts: int, request: dict[str, Any], overwrite: bool = False) -> None:
        self.path, self.n_parts, self.request = Path(path), n_parts, request
        self.folder = self.partial_of(self.path)
        if self.path.exists() and not overwrite:
            raise InvalidInputError(f"`path`: {str(self.path)!r} already exists; pass `overwrite=True` to replace it.")
        earlier = self.earlier_request(self.path)
        if earlier != request:
            if earlier is not None and not overwrite:
                raise other_request(
                    f"`path`: {str(self.folder)!r} holds parts of another request",
                    earlier,
                    request,
                    "ask for the same to go on with it, or pass `overwrite=True` to start anew",
                )
            with self.told_on_failure():
                _discard(self.folder)
                self.folder.mkdir(parents=True)
                write_text(self.folder / "request.json", json.dumps(request))

    @staticmethod
    def partial_of(path: Path) -> Path:
        """Folder of the parts of a store."""
        return path.parent / f".{path.name}.partial"

    @classmethod
    def earlier_request(cls, path: str | Path) -> dict[str, Any] | None:
        """What was asked for by a call that did not come to its end."""
        return read_json(cls.partial_of(Path(path)) / "request.json")

    def part(self, k: int) -> Path:
        """Where a part is."""
        return self.folder / f"part-{k:08d}.zarr"

    @property
    def missing(self) -> list[int]:
        """Parts that are not there yet."""
        return [k for k in range(self.n_parts) if not self.part(k).exists()]

    def write(self, k: int, cells: Any) -> None:
        """Write a part, an AnnData or MuData."""
        aside = self.folder / f"aside-{uuid.uuid4().hex}"
        with self.told_on_failure():
            try:
                _write_zarr(cells, aside)
                _flush(aside)
                os.rename(aside, self.part(k))
                _flush_folder(self.folder)
            except OSError:
                # Another process may have been faster.
                if not self.part(k).exists():
                    raise
            finally:
                shutil.rmtree(aside, ignore_errors=True)

    def finish(self) -> Path:
        """Join the parts and put the store in its place."""
        if missing := self.missing:
            raise OutputFileError(f"`path`: {len(missing)} of {self.n_parts} parts of {str(self.path)!r} are missing.")
        joined = self.folder / f"joined-{uuid.uuid4().hex}"
        with self.told_on_failure():
            _join([self.part(k) for k in range(self.n_parts)], joined)
            _flush(joined)
            if self.path.exists():
                os.rename(self.path, self.folder / f"replaced-{uuid.uuid4().hex}")
            os.rename(joined, self.path)
            _flush_folder(self.path.parent)
            _discard(self.folder)
        return self.path

    @contextlib.contextmanager
    def told_on_failure(self) -> Iterator[None]:
        """Say what is kept when the disk is full or the folder cannot be written."""
        try:
            yield
        except OSError as error:
            done = self.n_parts - len(self.missing)
            raise OutputFileError(
                f"`path`: cannot write {str(self.path)!r} ({error}); {done} of {self.n_parts} parts are kept in {str(self.folder)!r}, "
                "and the same call goes on with them."
            ) from error


def other_request(what: str, earlier: dict[str, Any], request: dict[str, Any], allowed: str) -> InvalidInputError:
    """What to raise where ``earlier``, which ``what`` tells of, is not ``request``: says in which entries they differ."""
    differs = sorted(k for k in {**earlier, **request} if earlier.get(k) != request.get(k))
    return InvalidInputError(f"{what}, which differs in {', '.join(differs)}; {allowed}.")


def digest(*parts: Any) -> str:
    """A digest of arrays and of values that JSON can hold."""
    h = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            h.update(f"{part.dtype}{part.shape}".encode())
            h.update(part.tobytes())
        else:
            h.update(json.dumps(part, sort_keys=True, default=_told).encode())
    return h.hexdigest()


def _told(value: Any) -> str:
    """What stands for a value that JSON does not hold, in this process and in others."""
    if isinstance(value, np.ndarray | pd.DataFrame | pd.Series | pd.Index):
        array = np.asarray(value)
        return digest(array.tolist() if array.dtype == object else array)
    return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else str(value)


# ---------------------------------------------------------------- files


def _write_zarr(cells: Any, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells.write_zarr(str(path))


def read_json(path: Path) -> Any:
    """What a JSON file holds; ``None`` if there is none, or it is not whole."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def write_text(path: Path, text: str) -> None:
    """Write a file, so that it is there as a whole or not at all."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    aside.write_text(text)
    put_in_place(aside, path)


def put_in_place(aside: Path, path: Path) -> None:
    """Flush a file that was written aside, and rename it to ``path``."""
    with aside.open("rb+") as handle:
        os.fsync(handle.fileno())
    os.replace(aside, path)
    _flush_folder(path.parent)


def _flush(folder: Path) -> None:
    """Make sure that all files of a folder are on the disk."""
    for root, _, files in os.walk(folder):
        for name in files:
            with open(os.path.join(root, name), "rb") as handle:
                os.fsync(handle.fileno())
        _flush_folder(Path(root))


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows opens no folders.
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems flush no folders; what is in them is flushed.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _discard(folder: Path) -> None:
    """Remove the parts of a store. First what makes them count: a removal that is cut off leaves parts with holes."""
    if folder.exists():
        (folder / "request.json").unlink(missing_ok=True)
        _flush_folder(folder)
        trash = folder.with_name(f"{folder.name}-{uuid.uuid4().hex}")
        os.rename(folder, trash)
        shutil.rmtree(trash, ignore_errors=True)


# ---------------------------------------------------------------- joining


def _open(path: Path, mode: Any = "r") -> Any:
    return zarr.open_group(str(path), mode=mode, use_consolidated=False)


def _join(parts: list[Path], path: Path) -> None:
    """Join stores of the same structure, one after the other, row by row."""
    shutil.copytree(parts[0], path)
    whole = _open(path, "r+")
    categories = _categories(parts)
    _rechunk(whole)
    for name, values in categories.items():
        _recode(whole, name, values)
    n = _n_rows(whole)
    for part in parts[1:]:
        more = _open(part)
        for name in _aligned(more):
            _append(whole, more, name, categories, n)
        n += _n_rows(more)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(str(path))


def _aligned(group: Any) -> list[str]:
    """Names of the elements with a row for each cell, down to those that are encoded as a whole."""
    names = [f"{prefix}/{key}" if prefix else key for prefix in ("", *_modalities(group)) for key in ALIGNED]
    found: list[str] = []
    for name in [*names, "obsmap"]:
        if name not in group:
            continue
        element: Any = group[name]
        nested = isinstance(element, zarr.Group) and element.attrs.get("encoding-type", "dict") in ("dict", "dataframe")
        found += [f"{name}/{key}" for key in element] if nested else [name]
    return found


def _modalities(group: Any) -> list[str]:
    return [f"mod/{name}" for name in group["mod"]] if "mod" in group else []


def _n_rows(group: Any) -> int:
    return len(_values(group["obs"][group["obs"].attrs["_index"]]))


def _values(element: Any) -> Any:
    """Values of an array, or of one that comes with a mask of missing ones."""
    return element[:] if isinstance(element, zarr.Array) else element["values"][:]


def _append(whole: Any, part: Any, name: str, categories: dict[str, np.ndarray], n: int) -> None:
    """Append an element of a part."""
    into: Any = whole[name]
    new: Any = part[name]
    kind = new.attrs.get("encoding-type", "array")
    if kind == "csr_matrix":
        into["indptr"].append(new["indptr"][1:].astype(np.int64) + int(into["indptr"][-1]))
        for key in ("data", "indices"):
            into[key].append(new[key][:])
        into.attrs["shape"] = [into.attrs["shape"][0] + new.attrs["shape"][0], into.attrs["shape"][1]]
    elif kind == "categorical":
        into["codes"].append(_codes(new, categories.get(name)))
    elif kind.startswith("nullable"):
        for key in ("values", "mask"):
            into[key].append(new[key][:])
    else:
        values = new[:]
        if name.split("/")[0] == "obsmap":
            # Rows of a modality, counted from one; none for cells that it lacks.
            values = np.where(values > 0, values + np.asarray(n, values.dtype), values)
        into.append(values)


def _categories(parts: list[Path]) -> dict[str, np.ndarray]:
    """Categories of all parts together, of those elements in which they differ between parts."""
    known: dict[str, list[np.ndarray]] = {}
    for path in parts:
        part = _open(path)
        for name in _aligned(part):
            if part[name].attrs.get("encoding-type") == "categorical":
                known.setdefault(name, []).append(_values(part[name]["categories"]))
    differ = {n: values for n, values in known.items() if any(not np.array_equal(v, values[0]) for v in values)}
    # A part without a single value has an empty list of categories, of whatever type.
    return {n: np.array(sorted({x for v in values for x in v.tolist()}), dtype=object) for n, values in differ.items()}


def _codes(element: Any, categories: np.ndarray | None) -> np.ndarray:
    """Codes of a categorical, in terms of other categories where these are given."""
    codes = element["codes"][:]
    if categories is None:
        return codes
    own = _values(element["categories"])
    place = pd.Index(categories).get_indexer(own) if len(own) else np.array([-1])
    return np.where(codes < 0, -1, place[np.maximum(codes, 0)]).astype(np.int32)


def _recode(whole: Any, name: str, categories: np.ndarray) -> None:
    """Write a categorical with other categories in place of its own."""
    codes = _codes(whole[name], categories)
    _replace(whole[name], "codes", codes)
    text = all(isinstance(value, str) for value in categories)
    write_elem(whole[name], "categories", categories if text else np.array(categories.tolist()))


def _rechunk(whole: Any) -> None:
    """Give arrays that will grow by much chunks of a fit size."""
    for name in _aligned(whole):
        element: Any = whole[name]
        if element.attrs.get("encoding-type") == "csr_matrix":
            for key in ("data", "indices"):
                _replace(element, key, element[key][:], (MIN_CHUNK,))
            _replace(element, "indptr", element["indptr"][:].astype(np.int64), (MIN_CHUNK,))
        elif isinstance(element, zarr.Array) and element.ndim == 1:
            parent, _, key = name.rpartition("/")
            _replace(whole[parent] if parent else whole, key, element[:], (MIN_CHUNK,))


def _replace(group: Any, name: str, values: Any, chunks: tuple[int, ...] | None = None) -> None:
    """Put other values in place of an array, with its attributes."""
    attributes = dict(group[name].attrs)
    kwargs = {} if chunks is None else {"chunks": chunks}
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=group[name].dtype if values.dtype == object else values.dtype,
        overwrite=True,
        **kwargs,
    )
    array[:] = values
    array.attrs.update(attributes)
