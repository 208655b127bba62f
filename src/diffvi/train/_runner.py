from __future__ import annotations

from typing import Any

import pandas as pd
from lightning.pytorch import LightningModule, Trainer
from scvi.train import TrainRunner
from scvi.train._progress import ProgressBar

from diffvi._exceptions import memory_told

from ._guards import LossGuard
from ._notes import without_engine_notes
from ._progress import StageProgress


class StageProgressBar(ProgressBar):
    """scvi's bar, with the stage's name before the epoch."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What the bar shows, without the version number."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write stage and epoch in front of the bar."""
        # scvi's own version would first write the epoch without the stage.
        super(ProgressBar, self).on_train_epoch_start(trainer, pl_module)
        if self.is_enabled:
            self.main_progress_bar.set_description(
                f"{self.stage}: epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            )


class StageTrainRunner(TrainRunner):
    """Runs one stage: names it in the progress bar, keeps the other stage's history, records how it ended.

    Parameters
    ----------
    model
        The model; its ``stages_`` gets an entry for this stage.
    training_plan, data_splitter, max_epochs, **kwargs
        As in :class:`scvi.train.TrainRunner`.
    progress
        Where the stage's progress is kept, if anywhere.

    Raises
    ------
    KeyboardInterrupt
        When called, if the user interrupts training; the model keeps what it has learnt.
    OutOfMemoryError
        When called, if the memory does not suffice.

    Examples
    --------
    Models run it; what it leaves behind is the history of both stages and how each ended.

    >>> from diffvi.datasets import simulate_cells
    >>> from diffvi.model import LatentDiffusionSCVI
    >>> cells = simulate_cells(100, 20, seed=0)
    >>> LatentDiffusionSCVI.setup_anndata(cells, labels_key="cell_type")
    >>> model = LatentDiffusionSCVI(cells, n_hidden=8)
    >>> model.train(max_epochs=2, max_epochs_diffusion=1, enable_progress_bar=False)
    >>> model.stages_
    {'vae': {'status': 'done', 'epochs': 2}, 'diffusion': {'status': 'done', 'epochs': 1}}
    >>> len(model.history_["elbo_train"]), len(model.history_["diffusion_loss_train"])
    (2, 1)
    """

    stage = "vae"

    def __init__(
        self,
        model: Any,
        training_plan: LightningModule,
        data_splitter: Any,
        max_epochs: int,
        progress: StageProgress | None = None,
        **kwargs: Any,
    ) -> None:
        # scvi appends to the list it is given, and the caller's list serves both stages.
        kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), LossGuard(self.stage)]
        if progress is not None:
            kwargs["callbacks"].append(progress)
            kwargs["ckpt_path"] = progress.resumes_from
        if kwargs.get("enable_progress_bar", True) and kwargs.pop("simple_progress_bar", True):
            label = {"vae": "VAE", "diffusion": "Diffusion prior"}[self.stage]
            kwargs["callbacks"].append(StageProgressBar(label))
            kwargs["simple_progress_bar"] = False
        with without_engine_notes():
            super().__init__(model, training_plan, data_splitter, max_epochs, **kwargs)

    def _run_training_core(self) -> None:
        model = self.model
        status = "interrupted"
        try:
            batch_size = getattr(self.data_splitter, "data_loader_kwargs", {}).get("batch_size")
            with memory_told("batch_size", batch_size), without_engine_notes():
                self.trainer.fit(self.training_plan, self.data_splitter, ckpt_path=self.ckpt_path)
            status = "done"
        except SystemExit as error:
            # Lightning turns Ctrl-C into sys.exit, which would end the user's session.
            raise KeyboardInterrupt from error
        finally:
            epochs = int(self.trainer.current_epoch)
            self._update_history()
            model.stages_ = {**model.stages_, self.stage: {"status": status, "epochs": epochs}}
            if self.stage == "vae":
                for name, indices in (("train", "train_idx"), ("validation", "val_idx"), ("test", "test_idx")):
                    setattr(model, f"{name}_indices", getattr(self.data_splitter, indices, None))
            model.module.eval()
            model.is_trained_ = model.is_trained_ or status == "done" or epochs > 0 or self.stage == "diffusion"
            model.to_device(self.device)
            model.trainer = self.trainer

    def _update_history(self) -> None:
        history = getattr(self.trainer.logger, "history", None)
        if not history or not self.trainer.is_global_zero:
            return
        merged = dict(self.model.history_ or {})
        for name, values in history.items():
            if (earlier := merged.get(name)) is not None:
                values = values.copy()
                values.index = pd.RangeIndex(len(earlier), len(earlier) + len(values), name=values.index.name)
                values = pd.concat([earlier, values])
            merged[name] = values
        self.model.history_ = merged


class DiffusionTrainRunner(StageTrainRunner):
    """The runner of stage 2."""

    stage = "diffusion"

    def _run_training_core(self) -> None:
        denoiser = self.training_plan.prior.denoiser
        before = denoiser._compiled_call_impl
        try:
            super()._run_training_core()
        finally:
            # A denoiser that was compiled for the training is a plain one again, which files and copies need.
            denoiser._compiled_call_impl = before
