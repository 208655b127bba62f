"""The spine that all models share: a VAE's latents, a diffusion prior over them, and the two stages."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data._manager import AnnDataManagerValidationCheck
from scvi.data._utils import _get_adata_minify_type
from torch import Tensor

from diffvi._exceptions import InvalidInputError, NotTrainedError
from diffvi._random import CellStreams
from diffvi.data import ConditionVocabulary, LatentData, TrainingTable
from diffvi.data._fields import CONDITIONS_KEY, ConditionsField
from diffvi.module import CountVAE, LatentPrior
from diffvi.nn import Attribute
from diffvi.process import get_sampler

from ._distillation import DistillationMixin
from ._files import SafeFilesMixin
from ._generation import GenerationMixin
from ._training import StagedTrainingMixin

NOT_TRAINED = "not trained"


class LatentDiffusionMixin(StagedTrainingMixin, GenerationMixin, DistillationMixin, SafeFilesMixin):
    """A diffusion prior on top of an scvi model; put it before the scvi class in the bases.

    A subclass calls :meth:`_add_prior` at the end of its ``__init__`` and sets ``init_params_`` itself.
    What a model class may change are the hooks: :meth:`_posterior_state`, which says what the prior
    learns, :attr:`_prior_attributes`, what it is conditioned on, :meth:`_training_rows`, the examples it is trained
    on, and :meth:`_decode`, which turns a state back into counts.
    """

    ADDED_PARTS: tuple[str, ...] = ("prior.",)
    """Parts of the module that a plain scvi model does not have."""

    NOT_OURS: tuple[str, ...] = ()
    """Arguments of the plain scvi model that mean nothing here."""

    _module_cls: type = CountVAE
    registry_: dict[str, Any]
    summary_stats: Any

    def _add_prior(self, **prior_kwargs: Any) -> None:
        """Attach an untrained prior to ``self.module`` and start its dispersions at ``exp(2)``."""
        self.module.prior = LatentPrior(self._state_size, self._prior_attributes, **prior_kwargs)
        for name in ("px_r", "py_r"):
            if getattr(self.module, name, None) is not None:
                torch.nn.init.constant_(getattr(self.module, name), 2.0)
        self.stages_ = {stage: {"status": NOT_TRAINED, "epochs": 0} for stage in ("vae", "diffusion")}
        self.training_table_ = None
        self.replay_ = None

    # ---------------------------------------------------------------- what the prior learns

    @property
    def _state_size(self) -> int:
        return int(self.module.n_latent) + 1

    @property
    def _prior_attributes(self) -> list[Attribute]:
        """Attributes of the prior: those of the vocabulary, then any that the model adds."""
        return self.vocabulary.attributes

    def _standardised(self, state: np.ndarray) -> np.ndarray:
        """States, or latents without the library, in the units of the diffusion."""
        prior, d = self.module.prior, state.shape[1]
        return (state - prior.shift.cpu().numpy()[:d]) / prior.scale.cpu().numpy()[:d]

    def _restored(self, state: np.ndarray) -> np.ndarray:
        """States in the units of the data, from those of the diffusion."""
        prior = self.module.prior
        return (state * prior.scale.cpu().numpy() + prior.shift.cpu().numpy()).astype(np.float32)

    def _training_rows(
        self, latents: LatentData, table: TrainingTable, split: list[np.ndarray]
    ) -> tuple[LatentData, list[np.ndarray]]:
        """Examples of stage 2 and their split, from the cells' latents; called when the standardiser is fitted."""
        del table
        return latents, split

    def _posterior_state(self, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and scale of q(state | x) for a batch: the latent, then the log library or log size factor."""
        outputs = self.module.inference(**self.module._get_inference_input(tensors))
        qz, ql, library = outputs["qz"], outputs["ql"], outputs["library"]
        if ql is not None:
            library, spread = ql.loc, ql.scale
        else:
            if self.module.use_size_factor_key:
                library = tensors[REGISTRY_KEYS.SIZE_FACTOR_KEY].to(qz.loc).log()
            spread = torch.zeros_like(library)
        return torch.cat([qz.loc, library], 1), torch.cat([qz.scale, spread], 1)

    def _sampled(
        self,
        codes: Any,
        streams: CellStreams,
        sampler: str,
        n_steps: int,
        scales: Sequence[float],
        start: Any = None,
        network: torch.nn.Module | None = None,
    ) -> Tensor:
        """States that the prior draws, every random number from the cells' own streams; from ``start`` where that is given."""
        prior = self.module.prior
        device = prior.shift.device

        def noise() -> Tensor:
            return streams.normal(prior.d).to(device)

        start = noise() if start is None else torch.as_tensor(start, device=device)
        codes = torch.as_tensor(codes, device=device)
        return prior.sample(start, codes, get_sampler(sampler), n_steps, scales, noise=noise, network=network)

    def _decode(self, state: Tensor, table: TrainingTable) -> Any:
        """Count distribution of states, with the decoder's batch and covariates from ``table``."""
        z, library = self.module.z_encoder.z_transformation(state[:, :-1]), state[:, -1:]
        cells = table.tensors(state.device)
        return self.module.generative(
            z=z,
            library=library,
            size_factor=library,
            batch_index=cells["batch"],
            y=cells["labels"],
            cat_covs=cells["cat_covs"],
            cont_covs=cells["cont_covs"],
        )["px"]

    # ---------------------------------------------------------------- conditions and latents

    @property
    def vocabulary(self) -> ConditionVocabulary:
        """Names and values of the attributes that condition the prior."""
        state = self.registry_["field_registries"][CONDITIONS_KEY]["state_registry"]
        return ConditionVocabulary.from_dict(state[ConditionsField.VOCABULARY_KEY])

    @property
    def _decoder_attributes(self) -> list[str]:
        """Attributes that the decoder reads too, which therefore need a value in every generated cell."""
        setup = self.registry_["setup_args"]
        keys = [setup.get("batch_key")]
        dispersions = (getattr(self.module, f"{name}dispersion", "") for name in ("", "gene_", "protein_"))
        if any(dispersion.endswith("-label") for dispersion in dispersions):
            keys.append(setup.get("labels_key"))
        return [key for key in keys if key is not None]

    def _own_cells(self, adata: AnnData | None) -> AnnData:
        """The cells that are given, or else the model's."""
        adata = self.adata if adata is None else adata  # type: ignore[attr-defined]
        if adata is None:
            raise InvalidInputError("`adata`: the model was loaded without data; give the cells.")
        return adata

    def _require(self, stage: str) -> None:
        """Raise unless a stage has been trained, at least in part."""
        if self.stages_[stage]["status"] == NOT_TRAINED:
            call = {"vae": "train_vae", "diffusion": "train_diffusion"}[stage]
            raise NotTrainedError(
                f"The {stage} stage of this {type(self).__name__} is not trained: call `model.train()` "
                f"(or `model.{call}()` for this stage alone) first."
            )

    def get_normalized_expression(self, *args: Any, weights: str | None = None, **kwargs: Any) -> Any:
        """As in scvi, but for ``weights="importance"``, which assumes a standard normal prior and is refused.

        Parameters
        ----------
        *args
            As in the scvi model, such as :meth:`scvi.model.SCVI.get_normalized_expression`: cells, rows, ``transform_batch`` and more.
        weights
            How cells are weighted where several draws are averaged: ``"uniform"``, or ``None`` for scvi's default.
        **kwargs
            As in the scvi model, such as ``library_size`` (1 for shares, or the total that a cell is scaled to).

        Returns
        -------
        As in the scvi model: a data frame or an array of decoded expression, cells by genes; two of them, genes and proteins, for
        :class:`TotalDiffusion`.

        Raises
        ------
        InvalidInputError
            For importance weights.

        Examples
        --------
        >>> expression = model.get_normalized_expression(adata, library_size=1e4)
        >>> expression.shape, float(expression.sum(axis=1).mean().round())
        ((300, 40), 10000.0)
        """
        if weights == "importance":
            raise InvalidInputError(
                '`weights` must be "uniform"; got "importance", which assumes a standard normal prior.'
            )
        # Not every scvi model has the argument.
        given = {} if weights is None else {"weights": weights}
        return super().get_normalized_expression(*args, **given, **kwargs)  # type: ignore[misc]

    @property
    def summary_string(self) -> str:
        """What the model is, what conditions it and which stages are trained."""
        conditions = "; ".join(f"{n} ({k}: {v})" for n, k, v in self.vocabulary.describe()) or "none"
        stages = "; ".join(
            f"{title} {s['status']}" + (f" ({s['epochs']} epochs)" if s["epochs"] else "")
            for title, s in zip(
                ("VAE", "diffusion prior"), (self.stages_[n] for n in ("vae", "diffusion")), strict=True
            )
        )
        stats = self.summary_stats
        minified = ", minified" if self.minified_data_type is not None else ""  # type: ignore[attr-defined]
        return (
            f"{self._model_summary_string}\n"  # type: ignore[attr-defined]
            f"Data: {stats.n_cells:,} cells, {stats.n_vars:,} genes{minified}.\n"
            f"Conditions of the prior: {conditions}.\n"
            f"Training: {stages}."
        )

    def __repr__(self) -> str:
        # scvi's prints and returns nothing, which logs, lists and notebooks make little of.
        return self.summary_string

    @classmethod
    def _register(cls, adata: AnnData, fields: list[Any], setup_method_args: dict[str, Any], **kwargs: Any) -> None:
        """The end of every ``setup_anndata``: register the fields, those of minified data too."""
        owner: Any = cls
        if (minified := _get_adata_minify_type(adata)) is not None:
            fields = [*fields, *owner._get_fields_for_adata_minification(minified)]
        # Cells that a modality of a MuData lacks are for the fields to judge.
        checks = AnnDataManagerValidationCheck(check_fully_paired_mudata=False)
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args, validation_checks=checks)
        manager.register_fields(adata, **kwargs)
        owner.register_manager(manager)

    @classmethod
    def load_query_data(cls, *args: Any, **kwargs: Any) -> Any:
        """Put new data on a trained reference (scArches), as in :meth:`scvi.model.SCVI.load_query_data`.

        The prior keeps what it knows of the reference: see :meth:`train_diffusion`. With ``unfrozen=True`` the latents of
        the reference change, and nothing is kept.

        Parameters
        ----------
        *args, **kwargs
            As in :meth:`scvi.model.SCVI.load_query_data`: the new data, the reference (a model, or the folder of a saved one), which
            weights are frozen; and ``trust``, as in :meth:`load`, for a folder.

        Returns
        -------
        A model of the new data with the weights of the reference. What is left to do is :meth:`train`.

        Raises
        ------
        ModelFileError
            If the reference is a folder whose model is missing, damaged, or would run code.
        InvalidInputError
            If the new data lack genes, or are not what :meth:`setup_anndata` allows.

        Examples
        --------
        >>> query = adata[:50].copy()
        >>> query.obs["batch"] = "new"
        >>> updated = diffvi.model.LatentDiffusionSCVI.load_query_data(query, model)
        >>> updated.vocabulary.entries["batch"]["categories"]  # the reference's stay known
        ['batch_0', 'batch_1', 'new']
        """
        model: Any = super().load_query_data(*args, **kwargs)  # type: ignore[misc]
        known = model.training_table_ is not None and not kwargs.get("unfrozen", False)
        model.replay_ = model._draw_replay() if known else None
        return model

    @classmethod
    def _from_trained(cls, source: Any, source_class: Any, setup_kwargs: Mapping[str, Any], **model_kwargs: Any) -> Any:
        """A new model with the trained VAE of a plain scvi model, over the data of that model."""
        if type(source) is not source_class:
            raise InvalidInputError(
                f"`{source_class.__name__.lower()}_model` must be a {source_class.__name__} model; got {source!r}."
            )
        if not source.is_trained_:
            raise NotTrainedError(f"The {source_class.__name__} model is not trained: call its `train()` first.")
        if source.adata is None:
            raise InvalidInputError(f"The {source_class.__name__} model has no data: load it with `adata=`.")
        register = getattr(cls, source.registry_.get("setup_method_name", "setup_anndata"))
        setup = {**source.registry_["setup_args"], **setup_kwargs}
        register(source.adata, **{k: v for k, v in setup.items() if k in inspect.signature(register).parameters})
        init = source.init_params_
        # Where our defaults differ from scvi's, the VAE was built with scvi's.
        ours = inspect.signature(cls).parameters
        theirs = inspect.signature(source._module_cls).parameters
        defaults = {n: p.default for n, p in theirs.items() if n in ours and p.default is not p.empty}
        vae_kwargs = {
            **defaults,
            **init["non_kwargs"],
            **{k: v for part in init["kwargs"].values() for k, v in part.items()},
        }
        kwargs = {**{k: v for k, v in vae_kwargs.items() if k not in cls.NOT_OURS}, **model_kwargs}
        model: Any = cls(source.adata, **kwargs)  # type: ignore[call-arg]
        missing, unexpected = model.module.load_state_dict(source.module.state_dict(), strict=False)
        if unexpected or any(not name.startswith(cls.ADDED_PARTS) for name in missing):
            raise InvalidInputError("`model_kwargs` change the VAE, which has to stay as it was trained.")
        for name in ("train_indices_", "validation_indices_", "test_indices_", "history_"):
            setattr(model, name, getattr(source, name, None))
        model.module.eval()
        model.is_trained_ = True
        model.stages_ = {**model.stages_, "vae": {"status": "done", "epochs": 0}}
        return model
