"""How long a stage trains, and how often it is validated."""

from __future__ import annotations

import math
from typing import Any

from scvi.dataloaders._data_splitting import validate_data_split

from diffvi._exceptions import InvalidInputError


def n_validation(n_obs: int, batch_size: int, train_size: Any, validation_size: Any) -> int:
    """Number of validation cells, as scvi splits them; raises if none are left to train on."""
    given = 0.9 if train_size is None else train_size
    try:
        n_train, n_val = validate_data_split(n_obs, given, validation_size, batch_size, False, train_size is None)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(
            f"`train_size={train_size!r}` and `validation_size={validation_size!r}` do not split {n_obs} cells ({error})."
        ) from error
    if n_train < 1:
        raise InvalidInputError(
            f"`adata` has {n_obs} cell(s), of which none is left to train on; `train` needs at least 3."
        )
    return int(n_val)


def epochs_for(n_steps: int, n_cells: float, batch_size: int, most: int) -> int:
    """Epochs that make about ``n_steps`` minibatches, at least 20 and at most ``most``."""
    return int(min(most, max(20, math.ceil(n_steps / max(1, math.ceil(n_cells / batch_size))))))


def watch(trainer_kwargs: dict[str, Any], metric: str, max_epochs: int, validates: bool) -> None:
    """Validate about 50 times (every epoch if stopping early) and watch a metric of this stage, unless told otherwise."""
    for callback in ("early_stopping", "checkpointing"):
        trainer_kwargs.setdefault(f"{callback}_monitor", metric)
    if validates:
        every = 1 if trainer_kwargs.get("early_stopping") else max(1, max_epochs // 50)
        trainer_kwargs.setdefault("check_val_every_n_epoch", every)
