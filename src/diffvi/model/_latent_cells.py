"""The cells as stage 2 sees them: their latents, and how they are split."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS, settings
from scvi.model._utils import use_distributed_sampler
from torch import Tensor

from diffvi._exceptions import InvalidInputError
from diffvi.data import CONDITIONS_KEY, LatentData, TrainingTable
from diffvi.data._datamodule import ConditionedDataModule
from diffvi.data._latents import large_array


class LatentCellsMixin:
    """Encodes cells, from an AnnData or a data module, and splits them."""

    TAKES_DATAMODULE: ClassVar[bool] = False
    """Whether minibatches of counts, batches and labels are all that the model learns from."""

    module: Any
    adata: Any
    registry_: dict[str, Any]
    vocabulary: Any
    replay_: dict[str, Any] | None

    def _latent_data(
        self, adata: AnnData | None = None, indices: Sequence[int] | None = None, batch_size: int | None = None
    ) -> tuple[LatentData, TrainingTable]:
        """Posterior, codes, batch and covariates of cells, in the order asked for."""
        adata = self._validate_anndata(self._own_cells(adata))  # type: ignore[attr-defined]
        rows = np.arange(adata.n_obs)[slice(None) if indices is None else np.asarray(indices)]
        # Backed data comes back sorted inside each minibatch, so ask in order and restore afterwards.
        order, inverse = np.unique(rows, return_inverse=True)
        loader = self._make_data_loader(adata=adata, indices=order, batch_size=batch_size)  # type: ignore[attr-defined]
        whole = self._encoded(loader, len(order))
        if not np.array_equal(order, rows):
            whole = {name: values[inverse] for name, values in whole.items()}
        return _as_latents(whole)

    def _conditioned(self, datamodule: Any, strategy: Any = None) -> ConditionedDataModule | None:
        """The data module, if there is one, with the model's codes."""
        if datamodule is None:
            return None
        if use_distributed_sampler(strategy):
            raise InvalidInputError(f"`strategy={strategy!r}`: with `datamodule` training runs in one process.")
        if not self.TAKES_DATAMODULE:
            raise InvalidInputError(
                f"`datamodule`: {type(self).__name__} learns from more than counts, batches and labels; only LatentDiffusionSCVI takes one."
            )
        registry = self.adata_manager.data_registry  # type: ignore[attr-defined]
        cells = ConditionedDataModule(datamodule, self.registry_, registry, self.vocabulary)
        cells.check()
        return cells

    def _latents_to_train_on(
        self, datamodule: ConditionedDataModule | None
    ) -> tuple[LatentData, TrainingTable, list[np.ndarray]]:
        """Latents of the cells that are trained on, and their split."""
        if datamodule is None:
            latents, table = self._latent_data()
            return latents, table, self._split(len(latents.mean))
        n_training = 0

        def training() -> Iterable[dict[str, Tensor]]:
            nonlocal n_training
            for tensors in datamodule.batches(training=True):
                n_training += len(tensors[CONDITIONS_KEY])
                yield tensors

        whole = self._encoded(chain(training(), datamodule.batches(training=False)), datamodule.n_obs)
        rows = np.arange(len(whole["mean"]))
        return *_as_latents(whole), [rows[:n_training], rows[n_training:], rows[:0]]

    @torch.inference_mode()
    def _encoded(self, batches: Iterable[dict[str, Tensor]], n_obs: int) -> dict[str, np.ndarray]:
        """What stage 2 and the decoder have to know of the cells of minibatches, of which there are at most ``n_obs``."""
        device = next(self.module.parameters()).device
        whole: dict[str, np.ndarray] = {}
        keys = {"batch": REGISTRY_KEYS.BATCH_KEY, "labels": REGISTRY_KEYS.LABELS_KEY}
        keys |= {"cat_covs": REGISTRY_KEYS.CAT_COVS_KEY, "cont_covs": REGISTRY_KEYS.CONT_COVS_KEY}
        start = 0
        for tensors in batches:
            tensors = {k: v.to(device) for k, v in tensors.items()}
            mean, scale = self._posterior_state(tensors)  # type: ignore[attr-defined]
            if start + len(mean) > n_obs:
                raise InvalidInputError(f"`datamodule` gives more cells than the {n_obs} of its `n_obs`.")
            values = {"mean": mean, "scale": scale, "codes": tensors[CONDITIONS_KEY]}
            values |= {name: tensors[key] for name, key in keys.items() if key in tensors}
            for name, value in values.items():
                block = value.cpu().numpy()
                if name not in whole:
                    whole[name] = large_array((n_obs, *block.shape[1:]), block.dtype)
                whole[name][start : start + len(block)] = block
            start += len(mean)
        return {name: values[:start] for name, values in whole.items()}

    def _with_replay(
        self, latents: LatentData, table: TrainingTable, split: list[np.ndarray]
    ) -> tuple[LatentData, TrainingTable, list[np.ndarray]]:
        """Add the reference's cells, as its own prior drew them, to the training cells of a scArches query."""
        replay = dict(self.replay_ or {})
        state, n = replay.pop("state"), len(latents.mean)
        # What the reference is remembered under may be more than the user's attributes, which come first.
        more = replay["codes"].shape[1] - latents.codes.shape[1]
        joined = LatentData(
            np.concatenate([latents.mean, state]),
            np.concatenate([latents.scale, np.zeros_like(state)]),
            np.concatenate([np.pad(latents.codes, ((0, 0), (0, more)), constant_values=np.nan), replay["codes"]]),
        )
        replay["codes"] = replay["codes"][:, : latents.codes.shape[1]]
        training = np.concatenate([split[0], n + np.arange(len(state))])
        return joined, table.append(TrainingTable(**replay)), [training, *split[1:]]

    def _split(self, n_obs: int) -> list[np.ndarray]:
        """Training, validation and test rows: stage 1's if they fit these data, else a new 90 % split."""
        stored = (self.train_indices_, self.validation_indices_, self.test_indices_)  # type: ignore[attr-defined]
        split = [np.asarray([] if rows is None else rows, dtype=int) for rows in stored]
        if np.array_equal(np.sort(np.concatenate(split)), np.arange(n_obs)):
            return split
        order = np.random.default_rng(settings.seed).permutation(n_obs)
        return [order[: math.ceil(0.9 * n_obs)], order[math.ceil(0.9 * n_obs) :], np.array([], dtype=int)]

    @staticmethod
    def _remembered(table: TrainingTable) -> dict[str, Any]:
        n = len(table.batch)
        if n > TrainingTable.MAX_CELLS:
            rng = np.random.default_rng(settings.seed)
            table = table.subset(np.sort(rng.choice(n, TrainingTable.MAX_CELLS, replace=False)))
        return dict(vars(table))


def _as_latents(whole: dict[str, np.ndarray]) -> tuple[LatentData, TrainingTable]:
    latents = LatentData(whole["mean"], whole["scale"], whole["codes"].reshape(len(whole["mean"]), -1))
    table = TrainingTable(
        codes=latents.codes,
        log_library=whole["mean"][:, -1],
        batch=whole["batch"].ravel().astype(int),
        labels=whole["labels"].ravel().astype(int),
        cat_covs=whole.get("cat_covs"),
        cont_covs=whole.get("cont_covs"),
    )
    return latents, table
