from __future__ import annotations

import os
import pickle
import shutil
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

from scvi.model.base._constants import SAVE_KEYS

from diffvi._exceptions import DiffviError, ModelFileError


class SafeFilesMixin:
    """Saving that never leaves half a file, loading that says what is wrong with one."""

    def save(self, dir_path: str, prefix: str | None = None, overwrite: bool = False, **kwargs: Any) -> None:
        """Save the model, as in :meth:`scvi.model.SCVI.save`.

        The files are written to a folder beside ``dir_path``, flushed to the disk and then renamed into
        place, so that a model that is already there survives a failure.

        Raises
        ------
        ModelFileError
            If ``dir_path`` exists and ``overwrite`` is false, or cannot be written.
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
                target.mkdir(exist_ok=True)
                for file in Path(aside).iterdir():
                    with file.open("rb+") as handle:
                        os.fsync(handle.fileno())
                    os.replace(file, target / file.name)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        except OSError as error:
            raise ModelFileError(f"`dir_path`: cannot write the model to {str(target)!r} ({error}).") from error

    @classmethod
    def load(cls, dir_path: str, adata: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Load a saved model, as in :meth:`scvi.model.SCVI.load`.

        Parameters
        ----------
        dir_path
            Folder of the model.
        adata
            Data with the model's genes in the model's order; ``None`` for the data saved with the model,
            if any. Generation needs none.
        *args, **kwargs
            As in :meth:`scvi.model.SCVI.load`.

        Raises
        ------
        ModelFileError
            If the file is missing, damaged, or of another class.
        InvalidInputError
            If ``adata`` lacks genes or has them in another order.
        """
        file = Path(dir_path) / f"{kwargs.get('prefix') or ''}{SAVE_KEYS.MODEL_FNAME}"
        if not file.is_file() and not kwargs.get("backup_url"):
            raise ModelFileError(f"`dir_path`: there is no model in {str(dir_path)!r} (no file {file.name!r}).")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="var_names for adata passed in does not match")
            warnings.filterwarnings("ignore", message="Save path contains no saved anndata")
            try:
                return super().load(dir_path, adata, *args, **kwargs)  # type: ignore[misc]
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
