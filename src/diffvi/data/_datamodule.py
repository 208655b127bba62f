"""Minibatches that come from a data module of scvi-tools instead of an AnnData."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import LightningDataModule
from scvi import REGISTRY_KEYS
from torch import Tensor

from diffvi._exceptions import InvalidInputError, listed

from ._conditions import ConditionVocabulary
from ._fields import CONDITIONS_KEY, check_genes

NAMES = {REGISTRY_KEYS.BATCH_KEY: "batch_labels", REGISTRY_KEYS.LABELS_KEY: "labels_mapping"}
"""What scvi's data modules call the names that their codes stand for."""


class ConditionedDataModule(LightningDataModule):
    """A data module of scvi-tools, with the model's codes of batches and labels in its minibatches, and those of the attributes.

    Parameters
    ----------
    datamodule
        Such as :class:`scvi.dataloaders.AnnbatchDataModule`, or any other whose minibatches are those of scvi and which has
        ``n_obs``, ``n_vars``, ``batch_labels`` and ``labels_mapping``.
    registry
        The model's registry.
    data_registry
        What the model reads of a cell, by the names of the minibatch.
    vocabulary
        The model's attributes.

    Raises
    ------
    InvalidInputError
        If genes, batches or labels are not the model's, or if the model needs more than minibatches of counts, batches and labels hold.
    """

    train_idx = val_idx = test_idx = None

    def __init__(
        self,
        datamodule: Any,
        registry: Mapping[str, Any],
        data_registry: Mapping[str, Any],
        vocabulary: ConditionVocabulary,
    ) -> None:
        super().__init__()
        for name in ("n_obs", "n_vars", "train_dataloader"):
            if not hasattr(datamodule, name):
                raise InvalidInputError(
                    f"`datamodule` must be a data module of scvi-tools; {type(datamodule).__name__} has no `{name}`."
                )
        self.datamodule = datamodule
        states = {name: field["state_registry"] for name, field in registry["field_registries"].items()}
        genes = pd.Index(states[REGISTRY_KEYS.X_KEY]["column_names"])
        if datamodule.n_vars != len(genes):
            raise InvalidInputError(f"`datamodule` has {datamodule.n_vars} genes, and the model has {len(genes)}.")
        if (theirs := getattr(datamodule, "_var_names", None)) is not None:
            check_genes(genes, pd.Index(theirs))
        setup = registry["setup_args"]
        columns = {setup.get("batch_key"): REGISTRY_KEYS.BATCH_KEY, setup.get("labels_key"): REGISTRY_KEYS.LABELS_KEY}
        if more := [name for name in vocabulary.names if name not in columns]:
            raise InvalidInputError(
                f"`datamodule` tells batches and labels of its cells, and the model is also conditioned on {listed(more)}."
            )
        self._needed = set(data_registry) - {CONDITIONS_KEY}
        self._codes = {
            columns[name]: self._translation(name, columns[name], list(states[columns[name]]["categorical_mapping"]))
            for name in vocabulary.names
        }
        self._order = [columns[name] for name in vocabulary.names]

    def _translation(self, name: str, key: str, known: list[Any]) -> Tensor:
        """The model's code for each code of the data module; -1 where a cell has no label."""
        theirs = list(map(str, getattr(self.datamodule, NAMES[key], [])))
        codes = {str(category): i for i, category in enumerate(known)}
        hidden = {"nan", str(getattr(self.datamodule, "unlabeled_category", None))}
        unknown = [t for t in theirs if t not in codes and not (key == REGISTRY_KEYS.LABELS_KEY and t in hidden)]
        if not theirs or unknown or not codes.keys() & set(theirs):
            raise InvalidInputError(
                f"`datamodule`: `{NAMES[key]}` must name values of {name!r} that the model knows ({listed(codes, 5)}); got {listed(unknown or theirs, 5)}."
            )
        return torch.tensor([codes.get(t, -1) for t in theirs])

    def __getattr__(self, name: str) -> Any:
        # scvi's `train` would split anew.
        if name in ("datamodule", "set_split", "set_batch_size") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.datamodule, name)

    def split(self, train_size: float | None, validation_size: float | None, shuffle: bool) -> None:
        """Split the cells as asked for, if the data module can; raises if it cannot, and a part is asked for."""
        if hasattr(self.datamodule, "set_split"):
            if train_size is None and validation_size is None:
                train_size = 0.9
            self.datamodule.set_split(train_size=train_size, validation_size=validation_size, shuffle_set_split=shuffle)
        elif train_size is not None or validation_size is not None:
            raise InvalidInputError(
                f"`train_size={train_size!r}` and `validation_size={validation_size!r}`: {type(self.datamodule).__name__} has its own split."
            )

    def sizes(self, batch_size: int) -> tuple[int, int, int]:
        """Cells in a minibatch, if the data module does not say ``batch_size``; cells to train on, and validation cells."""
        n_held_out = int(getattr(self.datamodule, "n_val", 0))
        n_training = int(getattr(self.datamodule, "n_train", self.datamodule.n_obs - n_held_out))
        return int(getattr(self.datamodule, "batch_size", batch_size)), n_training, n_held_out

    def prepare_data(self) -> None:
        """That of the data module."""
        self.datamodule.prepare_data()

    def setup(self, stage: str) -> None:
        """That of the data module."""
        self.datamodule.setup(stage)

    def train_dataloader(self) -> Any:
        """That of the data module."""
        return self.datamodule.train_dataloader()

    def val_dataloader(self) -> Any:
        """That of the data module."""
        return self.datamodule.val_dataloader()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """The minibatch as scvi's, in the model's codes, with those of the attributes."""
        tensors = dict(self.datamodule.on_before_batch_transfer(batch, dataloader_idx))
        if missing := self._needed - set(tensors):
            raise InvalidInputError(
                f"`datamodule`: its minibatches have no {listed(sorted(missing))}, which the model needs."
            )
        codes = []
        for key in self._order:
            theirs = tensors[key].long().flatten()
            ours = self._codes[key].to(theirs.device)[theirs]
            tensors[key] = ours.clamp_min(0)[:, None]
            codes.append(torch.where(ours < 0, torch.nan, ours.float()))
        n = len(tensors[REGISTRY_KEYS.X_KEY])
        tensors[CONDITIONS_KEY] = torch.stack(codes, 1) if codes else torch.empty(n, 0)
        return tensors

    def batches(self, training: bool) -> Iterator[dict[str, Tensor]]:
        """The minibatches of the training or the validation cells, as the model reads them."""
        for batch in self.train_dataloader() if training else self.val_dataloader() or []:
            yield self.on_before_batch_transfer(batch)
