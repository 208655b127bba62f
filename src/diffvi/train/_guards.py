"""What may go wrong in training, told in a sentence."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from diffvi._exceptions import TrainingError


class LossGuard(Callback):
    """Stops at a loss that is not finite, before it reaches the weights, and brings back the last good ones.

    Parameters
    ----------
    stage
        Name of the stage, for the message.

    Raises
    ------
    TrainingError
        In training, at the first such loss.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.good: dict[str, Tensor] = {}
        self.good_epoch = 0
        self._batch: Any = None

    def _keep(self, trainer: Trainer, pl_module: Any, done: int) -> None:
        state = {name: v for name, v in pl_module.module.state_dict().items() if isinstance(v, Tensor)}
        if all(bool(v.isfinite().all()) for v in state.values() if v.is_floating_point()):
            self.good = {name: v.detach().clone() for name, v in state.items()}
            self.good_epoch = trainer.current_epoch + done

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights that training starts from."""
        self._keep(trainer, pl_module, 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights of the end of every epoch, if they are finite."""
        self._keep(trainer, pl_module, 1)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the batch, for the message."""
        self._batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Tensor) -> None:
        """Stop, with the weights that were kept, if the loss is not finite."""
        # All processes have to stop, whichever of them has the broken batch.
        if trainer.strategy.reduce_boolean_decision(bool(loss.isfinite()), all=True):
            return
        pl_module.module.load_state_dict({**pl_module.module.state_dict(), **self.good})
        raise TrainingError(
            f"The loss of the {self.stage} stage became {float(loss.detach()):g} in epoch {trainer.current_epoch + 1}, {_cause(self._batch)}. The model has the weights "
            f"of the end of epoch {self.good_epoch}. Look at these cells, or train with a smaller learning rate (`plan_kwargs={{'lr': ...}}`)."
        )


def _cause(batch: Any) -> str:
    """What is unusual about a batch."""
    tensors = {k: v for k, v in batch.items() if isinstance(v, Tensor)} if isinstance(batch, dict) else {}
    # Codes of conditions are NaN where they are not known.
    broken = [
        k for k, v in tensors.items() if v.is_floating_point() and k not in CODES and not bool(v.isfinite().all())
    ]
    if broken:
        return f"on a batch that has NaN or infinite values in {', '.join(map(repr, broken))}"
    if (x := tensors.get("X")) is not None:
        x = x.to_dense() if x.layout != torch.strided else x
        return f"on a batch whose largest count is {float(x.max()):g} and largest library {float(x.sum(1).max()):g}"
    largest = {k: float(v.nan_to_num(0).abs().max()) for k, v in tensors.items() if v.numel() and v.is_floating_point()}
    return "on a batch whose largest values are " + ", ".join(f"{v:.3g} in {k!r}" for k, v in largest.items())


CODES = ("codes", "diffvi_conditions")
