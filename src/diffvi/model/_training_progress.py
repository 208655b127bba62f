"""What is kept of a training, so that it can go on where it was cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.model.base._constants import SAVE_KEYS

from diffvi._exceptions import InvalidInputError, positive_int
from diffvi.data import CONDITIONS_KEY
from diffvi.data._store import digest
from diffvi.train._progress import StageProgress


class TrainingProgressMixin:
    """The progress of a stage on disk, and what tells one training from another."""

    module: Any
    adata: Any
    registry_: dict[str, Any]
    vocabulary: Any
    replay_: dict[str, Any] | None

    def _require_data(self) -> Any:
        if self.adata is None:  # type: ignore[attr-defined]
            raise InvalidInputError(
                "Training needs data, and this model was loaded without: `load(path, adata=adata)`."
            )
        return self.adata  # type: ignore[attr-defined]

    def _progress(
        self, stage: str, folder: str | Path | None, every: int | None, told: dict[str, Any]
    ) -> StageProgress | None:
        """Where the progress of a stage is kept."""
        if folder is None:
            return None
        every = None if every is None else positive_int("ckpt_every_n_epochs", every)
        adata = self._require_data()
        request = {
            "model": type(self).__name__,
            "arguments": digest(self.init_params_),  # type: ignore[attr-defined]
            "cells": digest(adata.obs_names.tolist()),
            "genes": digest(list(map(str, self.get_var_names()))),  # type: ignore[attr-defined]
            "setup": digest(self.registry_["setup_args"], self.vocabulary.to_dict()),
            "counts": self._counts_digest(),
            **told,
        }
        if self.replay_ is not None:
            request["reference"] = digest(*self.replay_.values())
        return StageProgress(folder, stage, request, every)

    def _counts_digest(self, rows: int = 50_000) -> str:
        """A digest of the counts' sums over cells and genes, of the conditions and of the batches."""
        manager: Any = self.adata_manager  # type: ignore[attr-defined]
        parts = [np.asarray(manager.get_from_registry(key)) for key in (CONDITIONS_KEY, REGISTRY_KEYS.BATCH_KEY)]
        x = manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        genes = np.zeros(x.shape[1])
        for first in range(0, x.shape[0], rows):
            block = x[first : first + rows]
            parts.append(np.asarray(block.sum(1)).ravel())
            genes += np.asarray(block.sum(0)).ravel()
        return digest(*parts, genes)

    def _weights(self, prior: bool = True) -> list[np.ndarray]:
        """Everything that the module holds, with or without the prior."""
        state = self.module.state_dict().items()
        return [
            v.cpu().numpy() for n, v in state if isinstance(v, torch.Tensor) and (prior or not n.startswith("prior."))
        ]

    def _adopt(self, progress: StageProgress) -> None:
        """Become the model that a stage ended with."""
        # Written by this very training; a second model of it could not always be made without data.
        done = torch.load(progress.model / SAVE_KEYS.MODEL_FNAME, map_location="cpu", weights_only=False)
        state = done[SAVE_KEYS.MODEL_STATE_DICT_KEY]
        state.pop("pyro_param_store", None)
        self.module.prior.few_steps = None
        self.module.load_state_dict(state)
        for name, value in done[SAVE_KEYS.ATTR_DICT_KEY].items():
            if name not in ("registry_", "init_params_"):
                setattr(self, name, value)
        self.module.eval()
