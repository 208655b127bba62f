from __future__ import annotations

import builtins
import collections
import os
import pickle
import re
import shutil
import struct
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scvi.data._download import _download
from scvi.model.base import ArchesMixin, BaseModelClass
from scvi.model.base._constants import SAVE_KEYS

from diffvi._exceptions import DiffviError, ModelFileError

from ._distillation import undistilled
from ._notes import without_notes

# What the data of a model are made of. Nothing here calls what a file names.
PLAIN = (
    builtins.bytes,
    builtins.dict,
    builtins.slice,
    collections.OrderedDict,
    np.ndarray,
    np.dtype,
    *(value for name, value in vars(np.dtypes).items() if name.endswith("DType") and name != "VoidDType"),
    *np.array(0).__reduce__()[:1],
    *np.float64(0).__reduce__()[:1],
    pd.DataFrame,
    pd.Series,
    pd.Index,
    pd.RangeIndex,
    *pd.Index(["a"]).__reduce__()[:1],
    type(pd.DataFrame()._mgr),
    *pd.DataFrame({"a": [0]})._mgr.blocks[0].__reduce__()[:1],
)
"""Types, and functions that make them, that a file may hold: arrays, tables and Python's own containers."""


class SafeFilesMixin:
    """Saving that never leaves half a file, loading that says what is wrong with one and runs none of its code."""

    def save(self, dir_path: str, prefix: str | None = None, overwrite: bool = False, **kwargs: Any) -> None:
        """Save the model, as in :meth:`scvi.model.SCVI.save`.

        The files are written to a folder beside ``dir_path``, flushed to the disk and then renamed into
        place, so that a model that is already there survives a failure.

        Parameters
        ----------
        dir_path
            Folder to make.
        prefix
            Put before the names of the files in it.
        overwrite
            Replace the model in ``dir_path``.
        **kwargs
            As in :meth:`scvi.model.SCVI.save`, such as ``save_anndata=True`` to save the data too.

        Raises
        ------
        ModelFileError
            If ``dir_path`` exists and ``overwrite`` is false, or cannot be written.

        Examples
        --------
        >>> model.save("my_model")
        >>> model.save("my_model")
        Traceback (most recent call last):
        diffvi._exceptions.ModelFileError: `dir_path`: 'my_model' already exists; pass `overwrite=True` to replace the model in it.
        """
        target = Path(dir_path)
        if target.exists() and not overwrite:
            raise ModelFileError(
                f"`dir_path`: {str(target)!r} already exists; pass `overwrite=True` to replace the model in it."
            )
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent)
            try:
                super().save(aside, prefix=prefix, overwrite=True, **kwargs)  # type: ignore[misc]
                _rewrite_plain(Path(aside) / f"{prefix or ''}{SAVE_KEYS.MODEL_FNAME}", kwargs.get("save_kwargs"))
                try:
                    _check_file(aside, prefix or "", name=type(self).__name__)
                except ModelFileError as error:
                    more = str(error).partition("plain data ")[2].partition(":")[0]
                    warnings.warn(
                        f"This model holds more than plain data {more}: loading it will need `trust=True`.",
                        UserWarning,
                        stacklevel=2,
                    )
                target.mkdir(exist_ok=True)
                for file in Path(aside).iterdir():
                    with file.open("rb+") as handle:
                        os.fsync(handle.fileno())
                    os.replace(file, target / file.name)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        except OSError as error:
            raise ModelFileError(f"`dir_path`: cannot write the model to {str(target)!r} ({error}).") from error

    def _get_user_attributes(self) -> list[tuple[str, Any]]:
        """What may be saved: attributes, but no properties, which before training have nothing to work with."""
        return list(vars(self).items())

    @classmethod
    def load(
        cls,
        dir_path: str,
        adata: Any = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
        backup_url: str | None = None,
        trust: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a saved model, as in :meth:`scvi.model.SCVI.load`.

        A file of PyTorch's kind can run code when it is opened. Here its checksums are tested and it is read as plain data first; one that holds
        anything else is refused.

        Parameters
        ----------
        dir_path
            Folder of the model.
        adata
            Data with the model's genes in the model's order; ``None`` for the data saved with the model,
            if any. Generation needs none.
        accelerator, device, prefix, backup_url, **kwargs
            As in :meth:`scvi.model.SCVI.load`.
        trust
            Open the file even if it runs code.

        Returns
        -------
        The model, with all of its stages as they were saved.

        Raises
        ------
        ModelFileError
            If the file is missing, damaged, of another class, or would run code.
        InvalidInputError
            If ``adata`` lacks genes or has them in another order.

        Examples
        --------
        >>> model.save("my_model")
        >>> restored = diffvi.model.LatentDiffusionSCVI.load("my_model")  # generation needs no data
        >>> (restored.generate(3, seed=0).X != model.generate(3, seed=0).X).nnz  # the same counts
        0
        """
        if backup_url is not None:
            _download(backup_url, dir_path, f"{prefix or ''}{SAVE_KEYS.MODEL_FNAME}")
        _check_file(dir_path, prefix or "", trust, cls.__name__)
        kwargs |= {"accelerator": accelerator, "device": device, "prefix": prefix, "backup_url": backup_url}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="var_names for adata passed in does not match")
            warnings.filterwarnings("ignore", message="Save path contains no saved anndata")
            try:
                with without_notes():
                    return super().load(dir_path, adata, **kwargs)  # type: ignore[misc]
            except DiffviError:
                raise
            except (
                pickle.UnpicklingError,
                OSError,
                EOFError,
                zipfile.BadZipFile,
                AttributeError,
                KeyError,
                TypeError,
            ) as error:
                why = "is damaged, or was not written by diffvi"
                raise ModelFileError(f"`dir_path`: the model in {str(dir_path)!r} {why} ({error}).") from error
            except (RuntimeError, ValueError) as error:
                if "different class" in str(error):
                    why = f"is of another class than {cls.__name__}"
                else:
                    why = f"cannot be loaded as a {cls.__name__}"
                raise ModelFileError(
                    f"`dir_path`: the model in {str(dir_path)!r} {why} ({str(error).splitlines()[0]})."
                ) from error

    @classmethod
    def load_query_data(
        cls, adata: Any = None, reference_model: Any = None, *args: Any, trust: bool = False, **kwargs: Any
    ) -> Any:
        """As in scvi, but that a folder is opened only if it holds plain data, or is trusted.

        Parameters
        ----------
        adata, reference_model, *args, **kwargs
            As in :meth:`scvi.model.SCVI.load_query_data`.
        trust
            Open the file of the reference even if it runs code.

        Returns
        -------
        A model of the new data.

        Raises
        ------
        ModelFileError
            If the reference is a folder whose model is missing, damaged, or would run code.
        """
        _check_reference(reference_model, trust, cls.__name__)
        device = {name: kwargs[name] for name in ("accelerator", "device") if name in kwargs}
        with undistilled(cls, reference_model, trust, **device) as reference, without_notes():
            return super().load_query_data(adata, reference, *args, **kwargs)  # type: ignore[misc]

    @staticmethod
    def prepare_query_anndata(adata: Any, reference_model: Any, *args: Any, trust: bool = False, **kwargs: Any) -> Any:
        """As in scvi, but that a folder is opened only if it holds plain data, or is trusted.

        Parameters
        ----------
        adata, reference_model, *args, **kwargs
            As in :meth:`scvi.model.SCVI.prepare_query_anndata`.
        trust
            Open the file of the reference even if it runs code.

        Returns
        -------
        ``None``, or the prepared data with ``inplace=False``: genes in the reference's order, zeros where they were not measured.

        Raises
        ------
        ModelFileError
            If the reference is a folder whose model is missing, damaged, or would run code.

        Examples
        --------
        >>> query = adata[:20, 5:].copy()  # 5 genes were not measured
        >>> diffvi.model.LatentDiffusionSCVI.prepare_query_anndata(query, model)
        >>> query.shape, query.var_names.equals(adata.var_names)
        ((20, 40), True)
        """
        _check_reference(reference_model, trust)
        return ArchesMixin.prepare_query_anndata(adata, reference_model, *args, **kwargs)

    @staticmethod
    def prepare_query_mudata(mdata: Any, reference_model: Any, *args: Any, trust: bool = False, **kwargs: Any) -> Any:
        """As in scvi, but that a folder is opened only if it holds plain data, or is trusted.

        Parameters
        ----------
        mdata, reference_model, *args, **kwargs
            As in :meth:`scvi.model.TOTALVI.prepare_query_mudata`.
        trust
            Open the file of the reference even if it runs code.

        Returns
        -------
        ``None``, or the prepared data with ``inplace=False``: genes in the reference's order, zeros where they were not measured.

        Raises
        ------
        ModelFileError
            If the reference is a folder whose model is missing, damaged, or would run code.
        """
        _check_reference(reference_model, trust)
        return ArchesMixin.prepare_query_mudata(mdata, reference_model, *args, **kwargs)

    @staticmethod
    def load_registry(dir_path: str, prefix: str | None = None) -> dict[str, Any]:
        """What :meth:`setup_anndata` stored, of a saved model.

        Parameters
        ----------
        dir_path
            Folder of the model.
        prefix
            Put before the names of the files in it.

        Returns
        -------
        The registry: ``"setup_args"`` are the arguments of the set-up.

        Raises
        ------
        ModelFileError
            If the file is missing, damaged, or would run code.

        Examples
        --------
        >>> model.save("my_model")
        >>> diffvi.model.LatentDiffusionSCVI.load_registry("my_model")["setup_args"]["labels_key"]
        'cell_type'
        """
        _check_file(dir_path, prefix or "")
        return BaseModelClass.load_registry(dir_path, prefix)


def _check_reference(reference: Any, trust: bool, name: str = "diffvi model") -> None:
    if isinstance(reference, str | os.PathLike):
        _check_file(os.fspath(reference), "", trust, name)


def _rewrite_plain(file: Path, save_kwargs: dict[str, Any] | None) -> None:
    """Turn containers of other kinds, which scvi's registry has, into those that are read as plain data."""
    content = torch.load(file, map_location="cpu", weights_only=False)
    content[SAVE_KEYS.ATTR_DICT_KEY] = _plain(content[SAVE_KEYS.ATTR_DICT_KEY])
    torch.save(content, file, **(save_kwargs or {}))


def _plain(value: Any) -> Any:
    # The strings of pandas 3 are arrays of a kind of their own.
    if isinstance(value, pd.DataFrame):
        return pd.DataFrame(value.to_numpy(), index=_plain(value.index), columns=_plain(value.columns))
    if isinstance(value, pd.Index):
        return value if isinstance(value.dtype, np.dtype) else value.astype(object)
    if isinstance(value, pd.api.extensions.ExtensionArray):
        return np.asarray(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else list(map(_plain, value))
    return value


def _check_file(dir_path: str | Path, prefix: str, trust: bool = False, name: str = "diffvi model") -> None:
    """Raise unless the file of a model is there, whole and plain."""
    file = Path(dir_path) / f"{prefix}{SAVE_KEYS.MODEL_FNAME}"
    if not file.is_file():
        raise ModelFileError(f"`dir_path`: there is no model in {str(dir_path)!r} (no file {file.name!r}).")
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError, struct.error, zlib.error) as error:
        raise ModelFileError(
            f"`dir_path`: the model in {str(dir_path)!r} is damaged, or was not written by diffvi ({error})."
        ) from error
    if damaged is not None:
        raise ModelFileError(f"`dir_path`: the model in {str(dir_path)!r} is damaged (checksum of {damaged!r}).")
    if trust:
        return
    try:
        with torch.serialization.safe_globals(list(PLAIN)):
            torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)|global ([\w.]+)|got <class '([\w.]+)'", str(error))
        what = next((part for part in found.groups() if part), "") if found else "data of another kind"
        raise ModelFileError(
            f"`dir_path`: the model in {str(dir_path)!r} holds more than plain data ({what}): it is of another class than {name}, or would run code "
            "when it is opened; if you know where it comes from, pass `trust=True`."
        ) from error
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, EOFError, IndexError) as error:
        raise ModelFileError(
            f"`dir_path`: the model in {str(dir_path)!r} is damaged, or was not written by diffvi ({error})."
        ) from error
