from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi.model import SCVI

from diffvi._exceptions import InvalidInputError, one_of
from diffvi.data import scvi_fields
from diffvi.data._fields import check_obs_columns
from diffvi.module import ORIGIN
from diffvi.nn import Attribute
from diffvi.process import PAIRINGS, Pairing

from ._denoising import DenoisingMixin
from ._mixin import LatentDiffusionMixin
from ._perturbation_prediction import PerturbationPredictionMixin
from ._perturbation_setup import check_perturbations, embedding_table, learn_perturbations
from ._perturbation_training import POPULATION


class PerturbDiffusion(PerturbationPredictionMixin, DenoisingMixin, LatentDiffusionMixin, SCVI):
    r"""What a cell would look like after a perturbation, and how sure that is.

    The latent of a control cell is moved by what training says of the perturbation: the measured effects, weighted by
    a Gaussian process over treatments (so that combinations start from the scaled sum of their parts and unknown
    perturbations from their embedding), as the control cells most like it responded to them. A diffusion over
    latent changes adds the spread (optimal transport pairs of control and perturbed cells), and a deterministic head, on
    request, what the measured effects leave on average. The cell's own counts are then moved by the ratio of the decoded rates
    (:func:`~diffvi.data.transport_counts`), which keeps what the latent does not hold.

    Parameters
    ----------
    adata
        Data registered with :meth:`setup_anndata`.
    registry
        Registry of a saved model, used on loading without data.
    n_hidden, n_latent, n_layers, dropout_rate, dispersion, gene_likelihood, use_batch_norm, use_layer_norm
        The VAE: see :class:`LatentDiffusionSCVI`.
    denoiser, denoiser_kwargs, process, prediction, condition_dropout, ema_decay
        The diffusion: see :class:`LatentDiffusionSCVI`.
    pairing
        Which control cell a perturbed cell is taken to come from, within its context: ``"ot"``, by optimal transport
        in the latent space, or ``"random"``.
    n_smoothed
        Pairs of a treatment that are averaged with those most like them before the diffusion learns them, against the
        chance in pairing two samples; 1 for none.
    perturbation_encoder
        What the network knows of a single perturbation beside a learned vector: ``"embedding"``, the user's
        (``perturbation_embedding`` of the set-up); ``"effects"``, principal components of the measured effects;
        ``"learned"``, nothing. ``None`` for ``"embedding"`` where there is one.
    additive
        Start from the measured effects. Without, the networks have to learn all of a change.
    shrink
        Draw effects that were measured badly to those of their parts, of similar perturbations and to the mean effect, and what is left of them
        for single genes and for the library to 0. Without, all is taken as measured: in contexts that were seen perturbed
        mean effects then correlate better with new measurements, at a larger distance from them (``benchmarks/perturbation.md``).
    n_neighbors
        Control cells that count as alike in how they respond; 0 for the same mean effect in all cells.
    transfer_gain
        Factor on the measured effects in contexts in which no perturbed cell was seen. A decoder that has not seen a
        cell type perturbed answers a latent change too weakly; 1.15 is what inner folds of the Kang data, with two cell
        types held out, ask for (``benchmarks/perturbation.md``).
    head_weight
        Weight of the squared error of the deterministic head beside the diffusion loss; 0 for no head.
    condition_on_population
        Tell the networks the mean latent of the control cells of a cell's context.
    rate_offset
        Also correct the decoded log rates of each gene by what the latent changes leave of the measured log ratios,
        shrunk by its noise (with ``shrink``), as far as it repeats: in contexts that were seen perturbed, from one half of the cells to the other; in new
        ones, from the other contexts to each in turn (0 where there is but one). These two shares are ``offset_shares_``.
    **vae_kwargs
        Passed to :class:`scvi.module.VAE`.

    Examples
    --------
    >>> import diffvi
    >>> adata = diffvi.datasets.simulate_perturbations(200, 30, seed=0)
    >>> diffvi.model.PerturbDiffusion.setup_anndata(adata, perturbation_key="perturbation", control="control")
    >>> model = diffvi.model.PerturbDiffusion(adata)
    >>> model.train(max_epochs=1, max_epochs_diffusion=1, enable_progress_bar=False)
    >>> control = adata[adata.obs["perturbation"] == "control"].copy()
    >>> model.predict_perturbation(control, "A+B", seed=0)
    >>> control.layers["perturbed"].shape == control.shape
    True
    """

    # Types kept apart in the latent respond in directions of their own, and effects have to carry from one to another.
    CLASSIFY_LABELS = False

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        n_hidden: int = 256,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene",
        gene_likelihood: Literal["nb", "zinb", "poisson"] = "nb",
        use_batch_norm: Literal["encoder", "decoder", "none", "both"] = "none",
        use_layer_norm: Literal["encoder", "decoder", "none", "both"] = "both",
        denoiser: Literal["dit", "mlp"] = "dit",
        denoiser_kwargs: dict[str, Any] | None = None,
        process: Literal["linear", "vp_cosine", "vp_linear"] = "linear",
        prediction: Literal["velocity", "noise", "data"] = "velocity",
        condition_dropout: float = 0.1,
        ema_decay: float = 0.999,
        pairing: Pairing = "ot",
        n_smoothed: int = 20,
        perturbation_encoder: Literal["embedding", "effects", "learned"] | None = None,
        additive: bool = True,
        shrink: bool = True,
        n_neighbors: int = 100,
        transfer_gain: float = 1.15,
        head_weight: float = 0.0,
        condition_on_population: bool = True,
        rate_offset: bool = True,
        **vae_kwargs: Any,
    ) -> None:
        super().__init__(
            adata,
            registry,
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            dispersion=dispersion,
            gene_likelihood=gene_likelihood,
            use_batch_norm=use_batch_norm,
            use_layer_norm=use_layer_norm,
            **vae_kwargs,
        )
        self.pairing = one_of("pairing", pairing, PAIRINGS)
        self.n_smoothed = int(n_smoothed)
        known = self.perturbation_embedding is not None
        encoder = perturbation_encoder or ("embedding" if known else "learned")
        self.perturbation_encoder = one_of("perturbation_encoder", encoder, ("embedding", "effects", "learned"))
        if self.perturbation_encoder == "embedding" and not known:
            raise InvalidInputError(
                '`perturbation_encoder="embedding"` needs an embedding: give `setup_anndata(perturbation_embedding=)`.'
            )
        self.additive, self.shrink, self.n_neighbors = additive, shrink, int(n_neighbors)
        self.transfer_gain = float(transfer_gain)
        self.condition_on_population, self.rate_offset = condition_on_population, rate_offset
        self.responses_ = None
        self.measured_ = None
        self.controls_ = None
        self.control_means_: dict[tuple[int, ...], np.ndarray] = {}
        self.perturbed_contexts_: list[tuple[int, ...]] = []
        self.offset_shares_ = {"seen": 1.0, "new": 1.0}
        self.library_shares_ = {"seen": 1.0, "new": 1.0}
        self.spread_gain_: float | None = None
        self._add_prior(
            denoiser=denoiser,
            denoiser_kwargs=denoiser_kwargs,
            process=process,
            prediction=prediction,
            condition_dropout=condition_dropout,
            ema_decay=ema_decay,
            head_weight=head_weight,
        )
        self._fill_features()
        self._model_summary_string = (
            f"PerturbDiffusion: scVI with {n_latent} latent dimensions ({gene_likelihood}, n_hidden {n_hidden}, "
            f"n_layers {n_layers}), {denoiser} denoiser, {process} process, {self.pairing} pairs, "
            f"{self.perturbation_encoder} perturbation encoder."
        )
        self.init_params_ = self._get_init_params(locals())

    @property
    def _prior_attributes(self) -> list[Attribute]:
        """The user's attributes, with features of the perturbations; the control population; the cell to start from."""
        n_features = {
            "embedding": 0 if self.perturbation_embedding is None else self.perturbation_embedding.shape[1],
            "effects": self.module.n_latent,
            "learned": 0,
        }[self.perturbation_encoder]
        attributes = [
            Attribute(a.name, a.n_categories, a.size, n_features) if a.name == self.perturbation_key else a
            for a in self.vocabulary.attributes
        ]
        if self.condition_on_population:
            attributes.append(Attribute(POPULATION, size=self._state_size, fixed=True))
        return [*attributes, Attribute(ORIGIN, size=self._state_size, fixed=True)]

    def _fill_features(self) -> None:
        if self.perturbation_encoder == "embedding":
            assert self.perturbation_embedding is not None
            self._set_features(np.nan_to_num(self.perturbation_embedding))

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        perturbation_key: str,
        control: str = "control",
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        dose_key: str | None = None,
        perturbation_embedding: pd.DataFrame | str | None = None,
        condition_keys: Sequence[str] | None = None,
        context_keys: Sequence[str] | None = None,
        separator: str = "+",
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Register data with the model.

        Parameters
        ----------
        adata
            Cells by genes, raw counts.
        perturbation_key
            Column of ``adata.obs`` with the perturbation: one name, or several joined by ``separator`` in any order.
            Or a key of ``adata.obsm``: cells by perturbations, zeros and ones or doses, the names being the columns of
            a data frame; a row of zeros is a control cell.
        control
            Name of the control.
        layer, batch_key, labels_key, size_factor_key, categorical_covariate_keys, continuous_covariate_keys
            As in :meth:`LatentDiffusionSCVI.setup_anndata`.
        dose_key
            Column with doses, numbers of at least 0; at dose 0 a cell is a control cell.
        perturbation_embedding
            A vector for every single perturbation, also for ones that were not measured: a data frame, or the name of
            one in ``adata.uns``, indexed by perturbation, or a key of ``adata.varm`` for perturbations named after genes.
        condition_keys
            Further columns that condition the prior.
        context_keys
            Columns, of categories, within whose combinations perturbed cells are compared with control cells; ``None``
            for batch and label. They condition the prior too.
        separator
            Between the parts of a combination.
        **kwargs
            Used by :meth:`load`.

        Raises
        ------
        InvalidInputError
            If there are no control cells, a context has none, a perturbation has a single cell, a dose is negative or
            missing, the embedding lacks a perturbation, the counts are not raw, or a column is missing.

        Examples
        --------
        >>> import diffvi
        >>> adata = diffvi.datasets.simulate_perturbations(200, 20, seed=0)
        >>> diffvi.model.PerturbDiffusion.setup_anndata(adata, perturbation_key="perturbation", labels_key="cell_type")
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        query = "source_registry" in kwargs
        embedding = None if query else embedding_table(adata, perturbation_embedding)
        # The table is kept with the vocabulary, where loading finds it without the data.
        setup_method_args["setup_args"]["perturbation_embedding"] = None
        if not query:
            check_obs_columns(adata, dose_key=dose_key, context_keys=context_keys)
            contexts = context_keys if context_keys is not None else [k for k in (batch_key, labels_key) if k]
            check_perturbations(adata, perturbation_key, control, separator, dose_key, contexts)
        fields = scvi_fields(
            adata,
            layer,
            batch_key,
            labels_key,
            size_factor_key,
            categorical_covariate_keys,
            continuous_covariate_keys,
            condition_keys,
            query=query,
            context_keys=context_keys,
            sets={
                perturbation_key: lambda cells: learn_perturbations(
                    cells, perturbation_key, control, separator, dose_key, embedding
                )
            },
        )
        cls._register(adata, fields, setup_method_args, **kwargs)

    @classmethod
    def from_scvi_model(
        cls,
        scvi_model: SCVI,
        perturbation_key: str,
        control: str = "control",
        dose_key: str | None = None,
        perturbation_embedding: pd.DataFrame | str | None = None,
        condition_keys: Sequence[str] | None = None,
        context_keys: Sequence[str] | None = None,
        separator: str = "+",
        **model_kwargs: Any,
    ) -> PerturbDiffusion:
        """Put perturbations on an scVI model that is trained already; only :meth:`train_diffusion` is left to do.

        Parameters
        ----------
        scvi_model
            A trained :class:`scvi.model.SCVI` with its data.
        perturbation_key, control, dose_key, perturbation_embedding, condition_keys, context_keys, separator
            As in :meth:`setup_anndata`.
        **model_kwargs
            Arguments of the model beside those of the VAE, such as ``pairing``.

        Returns
        -------
        A model whose VAE is that of ``scvi_model`` (a copy) and done, with an untrained prior, over the same data.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        InvalidInputError
            If it has no data, is not an scVI model, or ``model_kwargs`` change the VAE; for perturbations that :meth:`setup_anndata` refuses.

        Examples
        --------
        >>> import diffvi, scvi
        >>> adata = diffvi.datasets.simulate_perturbations(200, 20, seed=0)
        >>> scvi.model.SCVI.setup_anndata(adata, labels_key="cell_type")
        >>> vae = scvi.model.SCVI(adata)
        >>> vae.train(max_epochs=1, enable_progress_bar=False)
        >>> model = diffvi.model.PerturbDiffusion.from_scvi_model(vae, perturbation_key="perturbation")
        >>> model.train_diffusion(max_epochs=1, enable_progress_bar=False)
        >>> bool((model.predict_perturbation(perturbation="A", seed=0).obs["perturbed_status"] == "seen").all())
        True
        """
        setup = {
            "perturbation_key": perturbation_key,
            "control": control,
            "dose_key": dose_key,
            "perturbation_embedding": perturbation_embedding,
            "condition_keys": condition_keys,
            "context_keys": context_keys,
            "separator": separator,
        }
        model: PerturbDiffusion = cls._from_trained(scvi_model, SCVI, setup, **model_kwargs)
        return model
