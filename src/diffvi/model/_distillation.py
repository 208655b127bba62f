from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from scvi.model.base._constants import SAVE_KEYS
from scvi.utils import track

from diffvi._exceptions import InvalidInputError, positive_int, seed_or_random
from diffvi.data import TrainingTable
from diffvi.module import distil

DISTILLED = "distilled"
"""Name of the sampler that :meth:`distill` makes."""


@contextlib.contextmanager
def undistilled(cls: Any, reference: Any, trust: bool, **device: Any) -> Iterator[Any]:
    """The reference of a surgery, a model or its folder, without what was distilled: the query's prior is trained further."""
    if isinstance(reference, str | os.PathLike):
        file = Path(reference) / SAVE_KEYS.MODEL_FNAME
        # What does not look like a model is for scvi to judge.
        content = torch.load(file, map_location="cpu", weights_only=False, mmap=True)
        weights = content.get(SAVE_KEYS.MODEL_STATE_DICT_KEY, {}) if isinstance(content, dict) else {}
        is_distilled = "prior.few_steps.steps" in weights
        del content, weights
        if not is_distilled:
            yield str(reference)
            return
        reference = cls.load(str(reference), adata=False, trust=trust, **device)
    prior: Any = getattr(getattr(reference, "module", None), "prior", None)
    few_steps = getattr(prior, "few_steps", None)
    if few_steps is None:
        yield reference
        return
    prior.few_steps = None
    try:
        yield reference
    finally:
        prior.few_steps = few_steps


class DistillationMixin:
    """Sampling in few steps."""

    module: Any
    training_table_: dict[str, Any] | None
    _replayed: Any
    _require: Any

    def distill(
        self,
        n_steps: int = 2,
        n_updates: int = 3000,
        batch_size: int = 512,
        lr: float = 1e-3,
        seed: int | None = 0,
        show_progress: bool = True,
    ) -> None:
        """Make generation faster: train a copy of the denoiser that samples in one to four steps.

        ``generate(sampler="distilled")`` then evaluates the network ``n_steps`` times, instead of 10 times. It is saved with the model, and
        forgotten when the diffusion is trained again. Cells follow the learned distribution; guidance needs the other samplers.

        Parameters
        ----------
        n_steps
            Steps that sampling will take.
        n_updates, batch_size, lr
            Updates, states in each, and their learning rate.
        seed
            Seed.
        show_progress
            Show a progress bar.

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.
        InvalidInputError
            For an argument that is not allowed.

        Examples
        --------
        >>> model.distill(n_steps=2, n_updates=5, show_progress=False)  # far fewer updates than it takes
        >>> cells = model.generate(10, sampler="distilled", seed=0)
        >>> cells.uns["diffvi"]["n_steps"]
        2
        """
        self._require("diffusion")
        n_steps, n_updates = positive_int("n_steps", n_steps), positive_int("n_updates", n_updates)
        batch_size = positive_int("batch_size", batch_size)
        if not isinstance(lr, int | float) or not 0 < lr < 1:
            raise InvalidInputError(f"`lr` must be between 0 and 1; got {lr!r}.")
        codes = torch.as_tensor(self._replayed(TrainingTable(**(self.training_table_ or {})))[1])
        updates = range(n_updates)
        batches = track(updates, description="Distilling", style="tqdm") if show_progress else updates
        self.module.eval()
        self.module.prior.few_steps = distil(
            self.module.prior, codes, n_steps, batches, batch_size, lr, seed_or_random(seed)
        )

    def _few_steps(self, n_steps: int | None, scales: list[float]) -> int:
        """Steps of the distilled sampler; raises if there is none, or for what it cannot do."""
        few = self.module.prior.few_steps
        if few is None:
            raise InvalidInputError('`sampler`: "distilled" needs `model.distill()` first.')
        if n_steps not in (None, few.n_steps):
            raise InvalidInputError(
                f"`n_steps` must be None or {few.n_steps}, which the model was distilled for; got {n_steps!r}."
            )
        if any(scale != 1 for scale in scales):
            raise InvalidInputError(f'`guidance_scale` must be 1 for `sampler="distilled"`; got {scales!r}.')
        return int(few.n_steps)
