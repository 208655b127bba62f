from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from scvi.train import TrainingPlan
from torch import Tensor, nn
from torch.nn import functional as F

from diffvi._exceptions import InvalidInputError
from diffvi.data import CONDITIONS_KEY
from diffvi.module import LatentPrior


def cosine_schedule(optimizer: torch.optim.Optimizer, n_warmup: int, n_steps: int) -> dict[str, Any]:
    """Linear warm-up and cosine decay to zero, stepped every optimiser step."""

    def factor(step: int) -> float:
        progress = min(1.0, step / max(1, n_steps))
        return min(1.0, (step + 1) / max(1, n_warmup)) * 0.5 * (1 + math.cos(math.pi * progress))

    return {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor), "interval": "step"}


def adamw(parameters: Any, trainer: Trainer, **kwargs: Any) -> torch.optim.AdamW:
    """AdamW, with its update in one kernel where that can be: Lightning refuses to clip the gradients of such a one in mixed precision."""
    mixed = "mixed" in str(trainer.precision)
    device = trainer.strategy.root_device.type
    return torch.optim.AdamW(parameters, fused=not mixed and device in ("cpu", "cuda"), **kwargs)


class VAETrainingPlan(TrainingPlan):
    """Stage 1: scvi's plan with an optimiser that fits the dispersions.

    scvi's Adam (``eps=0.01``) leaves the inverse dispersions close to where they started, because their
    gradients are far below ``eps``; cells that are sampled from such a model are told from real ones at
    a glance. Here AdamW has ``eps=1e-8``, the dispersions start at ``exp(2)`` and have a learning rate
    of their own, and the rate follows warm-up and cosine.

    Parameters
    ----------
    module
        The VAE.
    lr
        Learning rate of everything but the dispersions.
    dispersion_lr
        Learning rate of the log inverse dispersions; ``None`` for 20 times ``lr``.
    weight_decay
        AdamW's decoupled weight decay; the dispersions have none.
    eps
        AdamW's epsilon.
    n_steps_warmup
        Steps over which the learning rate rises.
    kl_warmup
        Part of training over which the weight of the KL term rises from 0 to ``max_kl_weight``.
    classification_ratio
        Weight of the cross-entropy of a linear classifier that reads the label from the latent, as in scANVI
        (:cite:p:`Xu21`); 0 for none. It keeps neighbouring types apart which the counts alone would blur. Cells
        without a label do not take part, and the classifier is thrown away after training.
    label
        Column of the condition codes that holds the label, and the number of labels; the model fills this in.
    **kwargs
        Passed to :class:`scvi.train.TrainingPlan`.

    Examples
    --------
    >>> from diffvi.train import VAETrainingPlan
    >>> from scvi.module import VAE
    >>> plan = VAETrainingPlan(VAE(10), lr=1e-3)
    >>> plan.lr, plan.dispersion_lr
    (0.001, 0.02)
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        lr: float = 1e-3,
        dispersion_lr: float | None = None,
        weight_decay: float = 1e-4,
        eps: float = 1e-8,
        n_steps_warmup: int = 100,
        kl_warmup: float = 0.2,
        classification_ratio: float = 3.0,
        label: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        if "n_epochs_kl_warmup" not in kwargs and "n_steps_kl_warmup" not in kwargs:
            # Known only once the trainer knows the number of steps: see configure_optimizers.
            kwargs |= {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 1}
            self._kl_warmup: float | None = kl_warmup
        else:
            self._kl_warmup = None
        if kwargs.get("compile_kwargs") is not None:
            # scvi writes into it.
            kwargs["compile_kwargs"] = dict(kwargs["compile_kwargs"])
        super().__init__(module, lr=lr, weight_decay=weight_decay, eps=eps, **kwargs)
        self.dispersion_lr = 20 * lr if dispersion_lr is None else dispersion_lr
        self.n_steps_warmup = n_steps_warmup
        self.classification_ratio = classification_ratio
        self.label_column = None
        self._told_epoch = -1
        if label is not None and label[1] > 1 and classification_ratio > 0:
            self.label_column = label[0]
            self.label_classifier = nn.Linear(int(module.n_latent), label[1])  # type: ignore[arg-type]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Outputs and losses of scvi, in training with the cross-entropy of the labels in ``loss``."""
        inference, generative, losses = super().forward(*args, **kwargs)
        if self.training and self.label_column is not None:
            codes = args[0][CONDITIONS_KEY][:, self.label_column]
            known = ~torch.isnan(codes)
            if known.any():
                logits = self.label_classifier(inference["z"][known])
                losses.loss = losses.loss + self.classification_ratio * F.cross_entropy(logits, codes[known].long())
        return inference, generative, losses

    def log_dict(self, dictionary: Any, *args: Any, **kwargs: Any) -> None:
        """Lightning's, but in training once an epoch, unless single steps are logged.

        What scvi logs this way are metrics that gather the epoch by themselves; Lightning needs no more than to know
        of them, and walking through their parts in every step takes a tenth of the time of training.
        """
        if not self.training or self._told_epoch != self.current_epoch or kwargs.get("on_step") is not False:
            self._told_epoch = self.current_epoch if self.training else self._told_epoch
            super().log_dict(dictionary, *args, **kwargs)

    def get_optimizer_creator(self) -> Callable[[Iterable[Tensor]], torch.optim.Optimizer]:
        """That of scvi, which knows the parameters of the module, with those of the classifier of labels."""
        create = super().get_optimizer_creator()
        if self.label_column is None:
            return create
        return lambda parameters: create([*parameters, *self.label_classifier.parameters()])

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimiser and its schedule; a ``"Custom"`` one, or one that waits for a plateau, is scvi's."""
        n_steps = int(self.trainer.estimated_stepping_batches)
        if self._kl_warmup is not None:
            self.n_steps_kl_warmup = max(1, int(self._kl_warmup * n_steps))
        if self.optimizer_name == "Custom" or self.reduce_lr_on_plateau:
            return super().configure_optimizers()
        # A compiled module has the module inside.
        named = ((n.removeprefix("_orig_mod."), p) for n, p in self.module.named_parameters())
        trained = {n: p for n, p in named if p.requires_grad and not n.startswith("prior.")}
        dispersions = [p for n, p in trained.items() if n.split(".")[-1] in ("px_r", "py_r")]
        others = [p for n, p in trained.items() if n.split(".")[-1] not in ("px_r", "py_r")]
        if self.label_column is not None:
            others += list(self.label_classifier.parameters())
        groups = [
            {"params": others, "lr": self.lr, "weight_decay": self.weight_decay},
            {"params": dispersions, "lr": self.dispersion_lr, "weight_decay": 0.0},
        ]
        optimizer = adamw([g for g in groups if g["params"]], self.trainer, eps=self.eps)
        return {"optimizer": optimizer, "lr_scheduler": cosine_schedule(optimizer, self.n_steps_warmup, n_steps)}


class DiffusionTrainingPlan(TrainingPlan):
    """Stage 2: train ``module.prior`` on cached posteriors.

    Wraps the whole module, so that scvi's checkpoint callbacks save and restore a complete model; the
    model freezes the VAE while this plan runs.

    Parameters
    ----------
    module
        A VAE with a :class:`~diffvi.module.LatentPrior` as its ``prior``.
    lr
        Peak learning rate of AdamW, reached after ``n_steps_warmup`` steps and decayed by a cosine.
    weight_decay
        AdamW's weight decay.
    eps
        AdamW's epsilon.
    n_steps_warmup
        Steps over which the learning rate rises.
    compile, compile_kwargs
        Whether to train a denoiser that :func:`torch.compile` has compiled, and the arguments of that.
    **kwargs
        Passed to :class:`scvi.train.TrainingPlan`.

    Raises
    ------
    InvalidInputError
        If another optimiser, or a learning rate that waits for a plateau, is asked for.

    Examples
    --------
    The loss of a batch, of which cells need no more than posterior and codes:

    >>> import torch
    >>> from diffvi.module import LatentPrior
    >>> from diffvi.train import DiffusionTrainingPlan
    >>> from scvi.module import VAE
    >>> vae = VAE(10, n_latent=3)
    >>> vae.prior = LatentPrior(4)
    >>> plan = DiffusionTrainingPlan(vae)
    >>> plan({"mean": torch.randn(8, 4), "scale": torch.ones(8, 4), "codes": torch.empty(8, 0)}).shape
    torch.Size([])
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
        eps: float = 1e-8,
        n_steps_warmup: int = 200,
        compile: bool = False,
        compile_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        for name, only in (("optimizer", "AdamW"), ("reduce_lr_on_plateau", False)):
            if kwargs.get(name, only) != only:
                raise InvalidInputError(
                    f"`{name}` must be {only!r} in the diffusion stage, whose schedule is a cosine; got {kwargs[name]!r}."
                )
        super().__init__(module, lr=lr, weight_decay=weight_decay, eps=eps, **kwargs)
        self.n_steps_warmup = n_steps_warmup
        self.compile_kwargs = (compile_kwargs or {}) if compile else None

    @property
    def prior(self) -> LatentPrior:
        """The prior that is trained."""
        prior = self.module.prior
        assert isinstance(prior, LatentPrior)
        return prior

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Loss of a batch with ``mean`` and ``scale``, ``(n, d)``, and ``codes``, ``(n, n_columns)``; a scalar."""
        return self.prior.loss(batch["mean"], batch["scale"], batch["codes"])

    def _set_modes(self) -> None:
        # A frozen VAE has nothing to learn from dropout or batch statistics, and Lightning leaves the
        # modes of a second fit as the first one ended.
        self.module.eval()
        self.prior.denoiser.train()
        self.prior.training = True

    def on_fit_start(self) -> None:
        """Train the denoiser and nothing else."""
        self._set_modes()
        if self.compile_kwargs is not None:
            self.prior.denoiser.compile(**self.compile_kwargs)

    def on_train_epoch_start(self) -> None:
        """Train the denoiser and nothing else, in every epoch anew."""
        self._set_modes()

    def _log(self, name: str, loss: Tensor, n: int) -> None:
        sync = isinstance(self.trainer.strategy, DDPStrategy)
        self.log(name, loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=n, sync_dist=sync)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch, logged as ``diffusion_loss_train``."""
        loss = self(batch)
        self._log("diffusion_loss_train", loss, len(batch["mean"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the loss of a batch as ``diffusion_loss_validation``."""
        self._log("diffusion_loss_validation", self(batch), len(batch["mean"]))

    def on_train_batch_end(self, *args: Any) -> None:
        """Average the weights after every step."""
        self.prior.update_ema()

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW on the denoiser, with warm-up and cosine."""
        optimizer = adamw(
            self.prior.denoiser.parameters(), self.trainer, lr=self.lr, weight_decay=self.weight_decay, eps=self.eps
        )
        n_steps = int(self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": cosine_schedule(optimizer, self.n_steps_warmup, n_steps)}
