from __future__ import annotations

import contextlib
import math
import os
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.data.fields import ObsmField


class _QuietObsmField(ObsmField):
    """A field whose columns have no names; scvi would log that it makes some up, three times in every training."""

    def _setup_column_names(self, adata: AnnData) -> np.ndarray:
        return np.arange(adata.obsm[self.attr_key].shape[1])


IN_MEMORY = 2**25
"""Bytes of an array of latents above which it is kept in a file."""


def large_array(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array to be filled; a large one lies in a temporary file without a name, which goes away with the array.

    The system can then drop its pages from memory and read them again, so that latents do not have to fit. The file is in
    the folder of :mod:`tempfile` (``TMPDIR``), which should be on a disk; without room there, or where room cannot be set aside, the array is in memory.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size > IN_MEMORY and hasattr(os, "posix_fallocate"):
        # A hole in a file that the disk has no room for would end the process when it is written to.
        with contextlib.suppress(OSError), tempfile.TemporaryFile(prefix="diffvi_latents_") as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype, "r+", shape=shape)
    return np.empty(shape, dtype)


@dataclass
class LatentData:
    """Everything stage 2 sees: posterior mean and scale of the state, and codes, for every cell.

    Parameters
    ----------
    mean, scale
        Shape ``(n_cells, d)``.
    codes
        Attribute codes, ``(n_cells, n_columns)``, NaN where unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.data import LatentData
    >>> manager = LatentData(np.zeros((5, 2)), np.ones((5, 2)), np.zeros((5, 1))).manager()
    >>> sorted(manager.data_registry), manager.adata.shape
    (['codes', 'mean', 'scale'], (5, 0))
    """

    mean: np.ndarray
    scale: np.ndarray
    codes: np.ndarray

    KEYS = ("mean", "scale", "codes")

    def manager(self) -> AnnDataManager:
        """A manager over an AnnData without genes, which scvi's splitter, samplers and runner accept."""
        adata = AnnData(obs=pd.DataFrame(index=pd.RangeIndex(len(self.mean)).astype(str)))
        for key in self.KEYS:
            adata.obsm[key] = np.ascontiguousarray(getattr(self, key), dtype=np.float32)
        manager = AnnDataManager(fields=[_QuietObsmField(key, key) for key in self.KEYS])
        manager.register_fields(adata)
        return manager


@dataclass
class TrainingTable:
    """What generation has to remember of the training cells, when the data are gone.

    The decoder needs a batch and covariates for every cell, and the empirical library sizes are one of
    the options; both are drawn from cells that match the conditions asked for.

    Parameters
    ----------
    codes
        Attribute codes, ``(n, n_columns)``.
    log_library
        Log library size (or log size factor), ``(n,)``.
    batch, labels
        scvi's codes, ``(n,)``.
    cat_covs, cont_covs
        Covariates of the decoder, ``(n, k)``, or ``None``.

    Examples
    --------
    Three cells with a type and a batch. No cell is of type 1 and in batch 1, so one of type 1 stands in.

    >>> import numpy as np
    >>> from diffvi.data import TrainingTable
    >>> codes = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    >>> table = TrainingTable(codes, np.full(3, 8.0), batch=np.array([0, 1, 0]), labels=np.array([0, 0, 1]))
    >>> table.match(np.array([[0.0, 1.0], [1.0, 1.0]]), np.zeros(2)).tolist()
    [1, 2]
    """

    codes: np.ndarray
    log_library: np.ndarray
    batch: np.ndarray
    labels: np.ndarray
    cat_covs: np.ndarray | None = None
    cont_covs: np.ndarray | None = None

    MAX_CELLS = 50_000

    def subset(self, rows: np.ndarray) -> TrainingTable:
        """The given rows."""
        values: dict[str, Any] = {k: None if v is None else v[rows] for k, v in vars(self).items()}
        return TrainingTable(**values)

    def tensors(self, device: torch.device) -> dict[str, torch.Tensor | None]:
        """What decoder and encoders are told of each cell, ``(n, k)`` each: whole numbers but for ``cont_covs``."""

        def column(values: np.ndarray | None, dtype: torch.dtype) -> torch.Tensor | None:
            if values is None:
                return None
            return torch.as_tensor(np.asarray(values), dtype=dtype, device=device).view(len(values), -1)

        return {
            "batch": column(self.batch, torch.long),
            "labels": column(self.labels, torch.long),
            "cat_covs": column(self.cat_covs, torch.long),
            "cont_covs": column(self.cont_covs, torch.float32),
        }

    def append(self, other: TrainingTable) -> TrainingTable:
        """The rows of this table, then those of another of the same model; covariates that one of them lacks are left out."""
        mine, theirs = vars(self), vars(other)
        values: dict[str, Any] = {
            k: None if v is None or theirs[k] is None else np.concatenate([v, theirs[k]]) for k, v in mine.items()
        }
        return TrainingTable(**values)

    def match(self, codes: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """For each row of ``codes``, a training cell that agrees with it, picked by a number in [0, 1).

        Only categories have to agree, because no two cells share a measured number. If no cell has the
        combination, agreement is given up from the last attribute to the first.

        Parameters
        ----------
        codes
            Attribute codes, ``(n, n_columns)``, NaN where anything will do.
        uniform
            Numbers in [0, 1), ``(n,)``.

        Returns
        -------
        Rows of this table, ``(n,)``.
        """
        rows = np.empty(len(codes), dtype=int)
        unique, inverse = np.unique(np.nan_to_num(codes, nan=-1e9), axis=0, return_inverse=True)
        inverse = np.asarray(inverse).ravel()
        for i, wanted in enumerate(unique):
            pool = np.arange(len(self.codes))
            for j, value in enumerate(wanted):
                if value > -1e9 and len(agree := pool[self.codes[pool, j] == value]):
                    pool = agree
            asked = inverse == i
            rows[asked] = pool[(uniform[asked] * len(pool)).astype(int)]
        return rows
