"""Minibatches that come from a data module of scvi-tools instead of an AnnData."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from scvi import REGISTRY_KEYS
from torch import Tensor

from diffvi._exceptions import InvalidInputError, listed

from ._conditions import ConditionVocabulary
from ._fields import CONDITIONS_KEY

NAMES = {
    REGISTRY_KEYS.BATCH_KEY: ("batch_key", "batch_encoder", "batch_labels"),
    REGISTRY_KEYS.LABELS_KEY: ("labels_key", "label_encoder", "labels_mapping"),
}
"""Argument of the model, and what scvi's data modules call the encoder and the names that their codes stand for."""
SUPPORTED = {REGISTRY_KEYS.X_KEY, REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.LABELS_KEY, CONDITIONS_KEY}


class ConditionedDataModule(LightningDataModule):
    """A data module of scvi-tools, with the model's codes of batches and labels in its minibatches, and those of the attributes.

    Parameters
    ----------
    datamodule
        Such as annbatch's in scvi-tools 1.5, or any other whose ``on_before_batch_transfer`` makes scvi's minibatches, and which has ``n_obs``,
        ``n_vars`` and the names behind its codes: ``batch_labels`` and ``labels_mapping``, in the order of the codes, unless it has encoders of
        scikit-learn (``batch_encoder``, ``label_encoder``). Genes are compared by name where it tells them (``var_names``), else their number is.
    registry
        The model's registry.
    data_registry
        What the model reads of a cell, by the names of the minibatch.
    vocabulary
        The model's attributes.

    Raises
    ------
    InvalidInputError
        If genes, batches or labels are not the model's, or if the model needs more of a cell than counts, batch and label.
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
        for name in ("n_obs", "n_vars", "train_dataloader", "on_before_batch_transfer"):
            if not hasattr(datamodule, name):
                raise InvalidInputError(
                    f"`datamodule` must be a data module of scvi-tools; {type(datamodule).__name__} has no `{name}`."
                )
        self.datamodule = datamodule
        setup = registry["setup_args"]
        columns = {setup.get(argument): key for key, (argument, _, _) in NAMES.items()}
        more = [name for name in vocabulary.names if name not in columns] + sorted(set(data_registry) - SUPPORTED)
        if more:
            raise InvalidInputError(
                f"`datamodule` tells counts, batch and label of its cells, and the model also needs {listed(more)}."
            )
        states = {name: field["state_registry"] for name, field in registry["field_registries"].items()}
        self._check_genes(list(map(str, states[REGISTRY_KEYS.X_KEY]["column_names"])))
        # scvi's codes and those of the attributes differ where a category has no cell.
        self._translations = {
            columns[name]: (
                self._translation(columns[name], name, states[columns[name]]["categorical_mapping"]),
                self._translation(columns[name], name, vocabulary.entries[name]["categories"]),
            )
            for name in vocabulary.names
        }

    def _check_genes(self, known: list[str]) -> None:
        n_vars = self.datamodule.n_vars
        if n_vars != len(known):
            raise InvalidInputError(f"`datamodule` has {n_vars} genes, and the model has {len(known)}.")
        names = getattr(self.datamodule, "var_names", None)
        names = getattr(self.datamodule, "_var_names", None) if names is None else names
        if names is None and (var := getattr(getattr(self.datamodule, "dataset", None), "var", None)) is not None:
            names = var.index
        if names is not None and (theirs := list(map(str, names))) != known:
            i = next(i for i, (a, b) in enumerate(zip(theirs, known, strict=True)) if a != b)
            raise InvalidInputError(
                f"`datamodule` must have the model's genes in the model's order; gene {i} is {theirs[i]!r} and not {known[i]!r}."
            )

    def _translation(self, key: str, name: str, known: Any) -> Tensor:
        """A code for each code of the data module; -1 where it stands for no label."""
        _, encoder, attribute = NAMES[key]
        names = getattr(getattr(self.datamodule, encoder, None), "classes_", None)
        names = getattr(self.datamodule, attribute, None) if names is None else names
        names = () if names is None else names
        theirs, codes = list(map(str, names)), {str(category): i for i, category in enumerate(known)}
        missing = {"nan", str(getattr(self.datamodule, "unlabeled_category", None))}
        optional = missing - codes.keys() if key == REGISTRY_KEYS.LABELS_KEY else set()
        unknown = [t for t in theirs if t not in codes and t not in optional]
        if not theirs or unknown:
            raise InvalidInputError(
                f"`datamodule`: `{attribute}` must name values of {name!r} that the model knows ({listed(codes, 5)}); got {listed(unknown, 5)}."
            )
        return torch.tensor([codes.get(t, -1) for t in theirs])

    def __getattr__(self, name: str) -> Any:
        # scvi's `train` would split anew.
        if name in ("datamodule", "set_split", "set_batch_size") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.datamodule, name)

    @property
    def told(self) -> str:
        """What tells the data module from others in the progress of a training."""
        return f"{type(self.datamodule).__name__} of {self.datamodule.n_obs} cells"

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
        n_held_out = getattr(self.datamodule, "n_val", None)
        n_held_out = int(self._validates()) if n_held_out is None else int(n_held_out)
        n_training = int(getattr(self.datamodule, "n_train", None) or self.datamodule.n_obs - n_held_out)
        return int(getattr(self.datamodule, "batch_size", None) or batch_size), n_training, n_held_out

    def _validates(self) -> bool:
        return is_overridden("val_dataloader", self.datamodule, LightningDataModule)

    def prepare_data(self) -> None:
        """That of the data module."""
        self.datamodule.prepare_data()

    def setup(self, stage: str) -> None:
        """That of the data module."""
        self.datamodule.setup(stage)

    def teardown(self, stage: str) -> None:
        """That of the data module."""
        self.datamodule.teardown(stage)

    def train_dataloader(self) -> Any:
        """That of the data module."""
        return self.datamodule.train_dataloader()

    def val_dataloader(self) -> Any:
        """That of the data module, or none."""
        loader = self.datamodule.val_dataloader() if self._validates() else None
        return [] if loader is None else loader

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """The minibatch as scvi's, in the model's codes, with those of the attributes."""
        given = self.datamodule.on_before_batch_transfer(batch, dataloader_idx)
        if not isinstance(given, dict) or REGISTRY_KEYS.X_KEY not in given:
            raise InvalidInputError("`datamodule` must make minibatches as scvi's models take them; one has no 'X'.")
        x = given[REGISTRY_KEYS.X_KEY]
        tensors, codes = {REGISTRY_KEYS.X_KEY: x}, []
        for key in NAMES:
            tensors[key] = torch.zeros(len(x), 1, dtype=torch.long, device=x.device)
        for key, (for_scvi, for_attributes) in self._translations.items():
            theirs = torch.as_tensor(given.get(key, ())).long().flatten()
            low = -1 if key == REGISTRY_KEYS.LABELS_KEY else 0
            if len(theirs) != len(x) or (len(x) and not low <= int(theirs.min()) <= int(theirs.max()) < len(for_scvi)):
                raise InvalidInputError(
                    f"`datamodule`: a minibatch of {len(x)} cells must have as many {key!r} codes from {low} to {len(for_scvi) - 1}; "
                    f"got {len(theirs)} of them, {listed(theirs.unique().tolist(), 5)}."
                )
            # -1 is the last of the table with one more for cells without a label.
            ours, attribute = (
                torch.cat([t, t.new_full((1,), -1)]).to(theirs.device)[theirs] for t in (for_scvi, for_attributes)
            )
            tensors[key] = ours.clamp_min(0)[:, None]
            codes.append(torch.where(attribute < 0, torch.nan, attribute.float()))
        tensors[CONDITIONS_KEY] = torch.stack(codes, 1) if codes else torch.empty(len(x), 0, device=x.device)
        return tensors

    def batches(self, training: bool) -> Iterator[dict[str, Tensor]]:
        """The minibatches of the training or the validation cells, as the model reads them."""
        for batch in self.train_dataloader() if training else self.val_dataloader():
            yield self.on_before_batch_transfer(batch)

    def check(self) -> None:
        """Raise if the first minibatch is not what the model reads, or there is none."""
        self.prepare_data()
        self.setup("fit")
        if next(self.batches(training=True), None) is None:
            raise InvalidInputError("`datamodule` gives no cell to train on.")
