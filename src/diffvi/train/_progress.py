"""Progress of training on disk, so that it goes on after a crash."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lightning.pytorch import Callback, LightningModule, Trainer

from diffvi._exceptions import OutputFileError
from diffvi.data._store import other_request, put_in_place, read_json, write_text

N_CHECKPOINTS = 20
"""Checkpoints of a stage, unless told otherwise."""


class StageProgress(Callback):
    """Keeps how far one stage has come in a folder.

    Checkpoints are written aside, flushed and renamed. Beside them are the split of the cells, so that none changes sides when training
    goes on, and what was asked for, so that another training does not.

    Parameters
    ----------
    folder
        The folder, shared by the stages.
    stage
        Name of the stage.
    request
        What tells this training from others, as JSON.
    every_n_epochs
        Epochs between checkpoints; ``None`` for about 20 of them.

    Raises
    ------
    InvalidInputError
        If the folder holds the progress of another training.
    OutputFileError
        If it cannot be written.
    """

    def __init__(
        self, folder: str | Path, stage: str, request: dict[str, Any], every_n_epochs: int | None = None
    ) -> None:
        self.folder, self.stage, self.request, self.every_n_epochs = Path(folder), stage, request, every_n_epochs
        self.history: dict[str, dict[str, list[float]]] = {}
        earlier = self._told()
        if earlier is not None and earlier["request"] != request:
            raise other_request(
                f"`ckpt_path`: {str(self.folder)!r} holds the progress of another training of the {stage} stage",
                earlier["request"],
                request,
                "name another folder, or remove it",
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError("the folder is read-only")
        except OSError as error:
            raise OutputFileError(f"`ckpt_path`: cannot write to {str(self.folder)!r} ({error}).") from error

    def _told(self) -> dict[str, Any] | None:
        return read_json(self.folder / f"{self.stage}.json")

    @property
    def model(self) -> Path:
        """Folder of the model when the stage is done."""
        return self.folder / self.stage

    @property
    def is_done(self) -> bool:
        """Whether the stage came to its end."""
        return (self.model / "model.pt").is_file()

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.folder / f"{self.stage}.ckpt"

    @property
    def resumes_from(self) -> str | None:
        """The newest checkpoint, if there is one."""
        return str(self.checkpoint) if self.checkpoint.is_file() and self.split is not None else None

    @property
    def split(self) -> list[np.ndarray] | None:
        """Training, validation and test cells of the training that was cut off."""
        told = self._told()
        return None if told is None else [np.array(rows, dtype=int) for rows in told["split"]]

    def keep_split(self, split: list[np.ndarray]) -> None:
        """Remember which cells are for training, validation and test."""
        if self._told() is None:
            rows = [np.asarray(part).tolist() for part in split]
            try:
                write_text(self.folder / f"{self.stage}.json", json.dumps({"request": self.request, "split": rows}))
            except OSError as error:
                raise OutputFileError(f"`ckpt_path`: cannot write to {str(self.folder)!r} ({error}).") from error

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the split, and give the logger the history of the training that was cut off."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        split = [getattr(data, f"{name}_idx", None) for name in ("train", "val", "test")]
        if not trainer.is_global_zero:
            return
        self.keep_split([np.array([], dtype=int) if rows is None else rows for rows in split])
        experiment = getattr(trainer.logger, "experiment", None)
        if self.history and hasattr(experiment, "data"):
            experiment.data = {  # type: ignore[union-attr]
                name: pd.DataFrame({name: held["value"]}, index=pd.Index(held["at"], name="epoch"))
                for name, held in self.history.items()
            }

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a checkpoint, if it is time for one."""
        epoch = trainer.current_epoch + 1
        every = self.every_n_epochs or max(1, (trainer.max_epochs or 0) // N_CHECKPOINTS)
        if epoch % every and epoch != trainer.max_epochs:
            return
        aside = self.checkpoint.with_suffix(".aside")
        try:
            trainer.save_checkpoint(aside)
            if trainer.is_global_zero:
                put_in_place(aside, self.checkpoint)
        except OSError as error:
            raise OutputFileError(
                f"`ckpt_path`: cannot write to {str(self.folder)!r} ({error}); the checkpoint before is kept, and the same call goes on from it."
            ) from error

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the history to the checkpoint."""
        # Every process has to ask, as the answer is a mean over them.
        metrics = dict(trainer.callback_metrics)
        if not trainer.is_global_zero:
            return
        history: dict[str, Any] = getattr(trainer.logger, "history", None) or {}
        told: dict[str, dict[str, list[float]]] = {
            name: {"at": [int(i) for i in table.index], "value": [float(v) for v in table.iloc[:, 0]]}
            for name, table in history.items()
        }
        # What this epoch logs is on its way.
        for name, value in metrics.items():
            held = told.setdefault(name, {"at": [], "value": []})
            if trainer.current_epoch not in held["at"] and (name in history or not history):
                held["at"].append(trainer.current_epoch)
                held["value"].append(float(value))
        checkpoint["diffvi_history"] = told

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the history out of the checkpoint."""
        self.history = checkpoint.get("diffvi_history", {})

    def finish(self, model: Any) -> None:
        """Keep the model, instead of the checkpoint, when the stage is done."""
        model.save(str(self.model), overwrite=True)
        self.checkpoint.unlink(missing_ok=True)
