"""Latent diffusion models for single-cell omics, built on scvi-tools."""

from . import benchmark, datasets, metrics, model, pl
from ._exceptions import DiffviError, InvalidInputError, ModelFileError, NotTrainedError
from ._version import __version__

__all__ = [
    "DiffviError",
    "InvalidInputError",
    "ModelFileError",
    "NotTrainedError",
    "__version__",
    "benchmark",
    "datasets",
    "metrics",
    "model",
    "pl",
]
