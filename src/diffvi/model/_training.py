from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from scvi.dataloaders import DataSplitter
from scvi.model._utils import use_distributed_sampler
from scvi.model.base import UnsupervisedTrainingMixin

from diffvi._exceptions import positive_int
from diffvi.data._store import digest
from diffvi.train import DiffusionTrainingPlan, StageTrainRunner, VAETrainingPlan
from diffvi.train._runner import DiffusionTrainRunner

from ._latent_cells import LatentCellsMixin
from ._training_length import epochs_for, n_validation, watch
from ._training_progress import TrainingProgressMixin


class StagedTrainingMixin(LatentCellsMixin, TrainingProgressMixin):
    """Training in two stages: the VAE on counts, then the diffusion prior on its latents."""

    _training_plan_cls = VAETrainingPlan
    _train_runner_cls = StageTrainRunner

    VAE_STEPS = 5000
    DIFFUSION_STEPS = 5000
    KL_WEIGHT = 1.0
    """Weight of the VAE's prior in stage 1, unless told otherwise in the arguments of its plan."""
    CLASSIFY_LABELS = True
    """Whether stage 1 reads the labels from the latent: see :class:`~diffvi.train.VAETrainingPlan`."""

    is_trained_: bool
    history_: dict[str, Any] | None
    stages_: dict[str, dict[str, Any]]
    training_table_: dict[str, Any] | None

    def train(
        self,
        max_epochs: int | None = None,
        max_epochs_diffusion: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        batch_size: int = 128,
        batch_size_diffusion: int = 256,
        early_stopping: bool = False,
        plan_kwargs: dict[str, Any] | None = None,
        diffusion_plan_kwargs: dict[str, Any] | None = None,
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        datasplitter_kwargs: dict[str, Any] | None = None,
        ckpt_path: str | Path | None = None,
        ckpt_every_n_epochs: int | None = None,
        datamodule: LightningDataModule | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the VAE, then the diffusion prior on its latents.

        Parameters
        ----------
        max_epochs
            Epochs of the VAE; ``None`` for as many as make about 5,000 steps, between 20 and 1,000.
        max_epochs_diffusion
            Epochs of the prior; ``None`` for as many as make about 5,000 steps (2,500 in LatentDiffusionSCVI, 6,000 in TotalDiffusion), between
            20 and 500 (beyond that it memorises small data sets).
        accelerator, devices
            Where to train, as in :meth:`scvi.model.SCVI.train`.
        batch_size
            Cells in a minibatch of the VAE.
        batch_size_diffusion
            Cells in a minibatch of the prior.
        early_stopping
            Stop a stage when its validation loss stops improving. The validation ELBO stops too soon for
            generation, so the default is to run the whole cosine schedule.
        plan_kwargs
            Passed to :class:`~diffvi.train.VAETrainingPlan`, such as ``{"lr": 1e-3}``.
        diffusion_plan_kwargs
            Passed to :class:`~diffvi.train.DiffusionTrainingPlan`.
        train_size, validation_size, shuffle_set_split, load_sparse_tensor, datasplitter_kwargs
            The split, as in :meth:`scvi.model.SCVI.train`; both stages use the same one.
        ckpt_path
            Folder in which the progress of both stages is kept. The same call, also in a new process, goes on where one was cut off, and does nothing when
            all is done.
        ckpt_every_n_epochs
            Epochs between checkpoints, which is what a crash can lose; ``None`` for about 20 checkpoints a stage.
        datamodule
            Cells to train on in place of the model's own, such as ``scvi.dataloaders.AnnbatchDataModule`` (scvi-tools 1.5) over more cells than fit
            into memory. The model's AnnData, which may be a sample of them, has the same genes, and its batches and labels are those that
            are known. The minibatches of the VAE are those of the data module, and so is the split if it has no ``set_split``. In one process,
            for LatentDiffusionSCVI without covariates and further conditions.
        **trainer_kwargs
            Passed to :class:`scvi.train.Trainer` in both stages, such as ``logger`` or ``callbacks``.

        Raises
        ------
        TrainingError
            If the loss is not finite any more. The model keeps its last good weights.
        OutOfMemoryError
            If the memory does not suffice; the message names what to lower.
        InvalidInputError
            If ``ckpt_path`` holds the progress of another training, or ``datamodule`` has other genes, batches or labels than the model.
        OutputFileError
            If ``ckpt_path`` cannot be written.
        KeyboardInterrupt
            If interrupted. The model stays usable and can be saved; ``repr(model)`` tells which stage
            is done.

        Examples
        --------
        >>> model.train(max_epochs=1, max_epochs_diffusion=1, enable_progress_bar=False)
        >>> model.stages_
        {'vae': {'status': 'done', 'epochs': 1}, 'diffusion': {'status': 'done', 'epochs': 1}}
        """
        self.train_vae(
            max_epochs=max_epochs,
            accelerator=accelerator,
            devices=devices,
            batch_size=batch_size,
            early_stopping=early_stopping,
            plan_kwargs=plan_kwargs,
            train_size=train_size,
            validation_size=validation_size,
            shuffle_set_split=shuffle_set_split,
            load_sparse_tensor=load_sparse_tensor,
            datasplitter_kwargs=datasplitter_kwargs,
            ckpt_path=ckpt_path,
            ckpt_every_n_epochs=ckpt_every_n_epochs,
            datamodule=datamodule,
            **trainer_kwargs,
        )
        self.train_diffusion(
            max_epochs=max_epochs_diffusion,
            accelerator=accelerator,
            devices=devices,
            batch_size=batch_size_diffusion,
            early_stopping=early_stopping,
            plan_kwargs=diffusion_plan_kwargs,
            ckpt_path=ckpt_path,
            ckpt_every_n_epochs=ckpt_every_n_epochs,
            datamodule=datamodule,
            **trainer_kwargs,
        )

    def train_vae(
        self,
        max_epochs: int | None = None,
        batch_size: int = 128,
        ckpt_path: str | Path | None = None,
        ckpt_every_n_epochs: int | None = None,
        datamodule: LightningDataModule | None = None,
        **kwargs: Any,
    ) -> None:
        """Train stage 1 alone; the arguments are those of :meth:`train` for this stage.

        Resets the status of stage 2, whose prior belongs to the old latents. Logs ``elbo_train`` and ``elbo_validation``, among others.

        Parameters
        ----------
        max_epochs
            Epochs; ``None`` for the default of :meth:`train`.
        batch_size
            Cells in a minibatch.
        ckpt_path, ckpt_every_n_epochs
            Folder for the progress, and epochs between checkpoints.
        datamodule
            Cells to train on in place of the model's own.
        **kwargs
            Further arguments of :meth:`train`: ``accelerator``, ``devices``, ``early_stopping``, ``plan_kwargs``, those of the split, and
            of the trainer.

        Raises
        ------
        TrainingError, OutOfMemoryError, OutputFileError, KeyboardInterrupt
            As of :meth:`train`.
        InvalidInputError
            If the model has no data, the split leaves no cell to train on, ``ckpt_path`` holds the progress of another training, or
            ``datamodule`` has other genes, batches or labels than the model.

        Examples
        --------
        >>> model.train_vae(max_epochs=1, enable_progress_bar=False)
        >>> model.stages_["diffusion"]["status"]
        'not trained'
        >>> model.train_diffusion(max_epochs=1, enable_progress_bar=False)
        >>> model.stages_["diffusion"]["status"]
        'done'
        """
        adata = self._require_data()
        batch_size = positive_int("batch_size", batch_size)
        max_epochs = None if max_epochs is None else positive_int("max_epochs", max_epochs)
        external = (kwargs.get("datasplitter_kwargs") or {}).get("external_indexing")
        size, held_out = kwargs.get("train_size"), kwargs.get("validation_size")
        if (cells := self._conditioned(datamodule, kwargs.get("strategy"))) is not None:
            cells.split(size, held_out, kwargs.get("shuffle_set_split", True))
            batch_size, n_training, n_held_out = cells.sizes(batch_size)
        else:
            n_training = 0.9 * adata.n_obs
            n_held_out = len(external[1]) if external else n_validation(adata.n_obs, batch_size, size, held_out)
        if max_epochs is None:
            max_epochs = epochs_for(self.VAE_STEPS, n_training, batch_size, most=1000)
        watch(kwargs, "elbo_validation", max_epochs, n_held_out > 0)
        key = self.registry_["setup_args"].get("labels_key")
        if self.CLASSIFY_LABELS and key in self.vocabulary.entries:
            n_labels = len(self.vocabulary.entries[key].get("categories", []))
            label = {"label": (self.vocabulary.columns[key].start, n_labels)}
            kwargs["plan_kwargs"] = {**label, **(kwargs.get("plan_kwargs") or {})}
        if self.KL_WEIGHT != 1:
            kwargs["plan_kwargs"] = {"max_kl_weight": self.KL_WEIGHT, **(kwargs.get("plan_kwargs") or {})}
        told = {
            "max_epochs": max_epochs,
            "batch_size": batch_size,
            "settings": digest(
                *(kwargs.get(k) for k in ("plan_kwargs", "datasplitter_kwargs", "shuffle_set_split", "early_stopping")),
                size,
                held_out,
                None if cells is None else cells.told,
            ),
        }
        progress = self._progress("vae", ckpt_path, ckpt_every_n_epochs, told)
        if progress is not None:
            if progress.is_done:
                return self._adopt(progress)
            if progress.split is not None and cells is None:
                given = kwargs.get("datasplitter_kwargs") or {}
                kwargs["datasplitter_kwargs"] = {**given, "external_indexing": progress.split}
        self.module.train()
        self.module.prior.few_steps = None
        self.stages_ = {**self.stages_, "diffusion": {"status": "not trained", "epochs": 0}}
        # By name: some scvi models have a `train` with the arguments of a plan of their own.
        UnsupervisedTrainingMixin.train(  # type: ignore[misc]
            self,  # type: ignore[arg-type]
            max_epochs=max_epochs,
            batch_size=batch_size,
            datamodule=cells,
            progress=progress,
            **kwargs,
        )
        if progress is not None and self.trainer.is_global_zero:  # type: ignore[attr-defined]
            progress.finish(self)

    def train_diffusion(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        batch_size: int = 256,
        early_stopping: bool = False,
        plan_kwargs: dict[str, Any] | None = None,
        ckpt_path: str | Path | None = None,
        ckpt_every_n_epochs: int | None = None,
        datamodule: LightningDataModule | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train stage 2 alone, on the latents of a VAE that is trained already.

        The VAE is frozen, the split is that of stage 1, or of the data module. Logs ``diffusion_loss_train`` and
        ``diffusion_loss_validation``. The arguments are those of :meth:`train` for this stage.

        After scArches surgery (:meth:`load_query_data`) the prior also trains on cells that the reference's prior
        drew with the reference's conditions (generative replay, :cite:p:`Shin17`), so that it does not forget them.

        Parameters
        ----------
        max_epochs
            Epochs; ``None`` for the default of :meth:`train`.
        accelerator, devices
            Where to train, as in :meth:`scvi.model.SCVI.train`.
        batch_size
            Latents in a minibatch.
        early_stopping
            Stop when ``diffusion_loss_validation`` stops improving.
        plan_kwargs
            Passed to :class:`~diffvi.train.DiffusionTrainingPlan`, such as ``{"lr": 1e-3}``.
        ckpt_path, ckpt_every_n_epochs
            Folder for the progress, and epochs between checkpoints.
        datamodule
            Cells to train on in place of the model's own; their split is as the data module has it.
        **trainer_kwargs
            Passed to :class:`scvi.train.Trainer`.

        Raises
        ------
        NotTrainedError
            If the VAE is not trained.
        TrainingError, OutOfMemoryError, OutputFileError, KeyboardInterrupt
            As of :meth:`train`.
        InvalidInputError
            If the model has no data, or ``ckpt_path`` holds the progress of another training.

        Examples
        --------
        >>> model.train_diffusion(max_epochs=3, enable_progress_bar=False)
        >>> model.stages_["diffusion"]
        {'status': 'done', 'epochs': 3}
        """
        self._require_data()
        self._require("vae")  # type: ignore[attr-defined]
        batch_size = positive_int("batch_size", batch_size)
        max_epochs = None if max_epochs is None else positive_int("max_epochs", max_epochs)
        cells = self._conditioned(datamodule, trainer_kwargs.get("strategy"))
        told = {
            "max_epochs": max_epochs,
            "batch_size": batch_size,
            "settings": digest(plan_kwargs, early_stopping, None if cells is None else cells.told),
            "vae": digest(*self._weights(prior=False)),
        }
        progress = self._progress("diffusion", ckpt_path, ckpt_every_n_epochs, told)
        if progress is not None and progress.is_done:
            return self._adopt(progress)
        self.module.prior.few_steps = None
        latents, table, split = self._latents_to_train_on(cells)
        if progress is not None:
            split = progress.split or split
            progress.keep_split(split)
        if self.replay_ is not None:
            latents, table, split = self._with_replay(latents, table, split)
        training = split[0]
        self.module.prior.fit_standardiser(
            torch.as_tensor(latents.mean), torch.as_tensor(latents.scale), torch.as_tensor(training)
        )
        self.training_table_ = self._remembered(table.subset(training))
        latents, split = self._training_rows(latents, table, split)  # type: ignore[attr-defined]
        training = split[0]

        if max_epochs is None:
            max_epochs = epochs_for(self.DIFFUSION_STEPS, len(training), batch_size, most=500)
        trainer_kwargs.setdefault("gradient_clip_val", 1.0)
        trainer_kwargs["early_stopping"] = early_stopping
        watch(trainer_kwargs, "diffusion_loss_validation", max_epochs, len(split[1]) > 0)
        splitter = DataSplitter(
            latents.manager(),
            external_indexing=split,
            batch_size=batch_size,
            distributed_sampler=use_distributed_sampler(trainer_kwargs.get("strategy")),
        )
        with self._only_prior_trainable():
            DiffusionTrainRunner(
                self,
                DiffusionTrainingPlan(self.module, **(plan_kwargs or {})),
                splitter,
                max_epochs,
                accelerator=accelerator,
                devices=devices,
                progress=progress,
                **trainer_kwargs,
            )()
        self._finish_diffusion()
        if progress is not None and self.trainer.is_global_zero:  # type: ignore[attr-defined]
            progress.finish(self)

    def _finish_diffusion(self) -> None:
        """What a model still has to fit when the prior is trained."""

    @contextlib.contextmanager
    def _only_prior_trainable(self) -> Iterator[None]:
        """Freeze the VAE and free the denoiser (scArches may have frozen it); restore both afterwards."""
        flags = [(p, p.requires_grad) for p in self.module.parameters()]
        try:
            self.module.requires_grad_(False)
            self.module.prior.denoiser.requires_grad_(True)
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
