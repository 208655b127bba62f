"""Latent diffusion models for single-cell omics, built on scvi-tools."""

from . import benchmark, datasets, metrics, model, pl
from ._distributed import generate_distributed
from ._exceptions import (
    DiffviError,
    InvalidInputError,
    ModelFileError,
    NotTrainedError,
    OutOfMemoryError,
    OutputFileError,
    TrainingError,
)
from ._hub import hub_model
from ._version import __version__

__all__ = [
    "DiffviError",
    "InvalidInputError",
    "ModelFileError",
    "NotTrainedError",
    "OutOfMemoryError",
    "OutputFileError",
    "TrainingError",
    "__version__",
    "benchmark",
    "datasets",
    "generate_distributed",
    "hub_model",
    "metrics",
    "model",
    "pl",
]
