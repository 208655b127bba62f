from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS
from scvi.data.fields import CategoricalJointObsField
from scvi.model import TOTALVI
from scvi.utils import attrdict

from diffvi._exceptions import InvalidInputError
from diffvi.data._mudata import find_modalities
from diffvi.module import MultimodalVAE

from ._generation import DEFAULT_STEPS
from ._mixin import LatentDiffusionMixin
from ._total_setup import COLUMN_ARGUMENTS, anndata_fields, background_start, mudata_fields
from ._total_state import TotalStateMixin
from ._translation import TranslationMixin
from ._translation_draws import USUAL_WEIGHTS


class TotalDiffusion(TranslationMixin, TotalStateMixin, LatentDiffusionMixin, TOTALVI):
    r"""RNA and protein of a cell: both from nothing, or either from the other.

    totalVI's decoder and likelihoods (:cite:p:`GayosoSteier21`), with an encoder for each modality beside that for both
    (:class:`~diffvi.module.MultimodalVAE`). One diffusion prior learns the joint distribution of the latent, the protein counts and
    the library size given labels, batch and other attributes, and given either modality: then it starts from
    what kernel ridge regression predicts of the rest, sees a draw from the encoder of that modality, and adds what they leave open.
    Proteins may be missing in any cell (NaN, or a cell that is not in the protein modality); zeros are data.

    Parameters
    ----------
    adata
        Data registered with :meth:`setup_mudata` or :meth:`setup_anndata`.
    registry
        Registry of a saved model, used on loading without data.
    n_hidden
        Width of encoders and decoder.
    n_latent
        Latent dimensions.
    n_layers_encoder, n_layers_decoder
        Layers of encoders and decoder.
    dropout_rate_encoder, dropout_rate_decoder
        Dropout of encoders and decoder.
    gene_dispersion, protein_dispersion, gene_likelihood
        As in :class:`scvi.model.TOTALVI`.
    use_batch_norm, use_layer_norm
        As in :class:`scvi.module.TOTALVAE`, but with layer norm as the default.
    alignment_weight
        Weight of the term that draws the encoders of one modality to that of both.
    modality_dropout
        Probability that a training cell with both modalities is encoded from one of them.
    protein_weight
        Weight of the proteins' part of the VAE's loss; the prior holds the proteins themselves, and needs the latent for
        the RNA.
    denoiser, denoiser_kwargs, process, prediction, condition_dropout, ema_decay
        The diffusion: see :class:`LatentDiffusionSCVI`.
    **vae_kwargs
        Passed to :class:`~diffvi.module.MultimodalVAE`.

    Examples
    --------
    >>> import diffvi
    >>> mdata = diffvi.datasets.simulate_cite(200, 30, 5, seed=0)
    >>> diffvi.model.TotalDiffusion.setup_mudata(mdata, labels_key="cell_type")
    >>> model = diffvi.model.TotalDiffusion(mdata)
    >>> model.train(max_epochs=1, max_epochs_diffusion=1, enable_progress_bar=False)
    >>> model.generate(5, seed=0)["protein"].shape
    (5, 5)
    >>> rna = mdata["rna"].copy()
    >>> model.translate_rna_to_protein(rna, seed=0)
    >>> rna.obsm["protein"].shape
    (200, 5)
    """

    _module_cls = MultimodalVAE
    DIFFUSION_STEPS = 6000
    # A state with proteins in it is larger than a latent, and has finer detail.
    GENERATION_STEPS: ClassVar[dict[str, int]] = {**DEFAULT_STEPS, "heun": 10}
    ADDED_PARTS = ("prior.", "rna_encoder.", "protein_encoder.", "missing_protein")
    NOT_OURS = ("empirical_protein_background_prior", "override_missing_proteins")

    def __init__(
        self,
        adata: AnnData | MuData | None = None,
        registry: dict[str, Any] | None = None,
        n_hidden: int = 256,
        n_latent: int = 10,
        n_layers_encoder: int = 1,
        n_layers_decoder: int = 1,
        dropout_rate_encoder: float = 0.1,
        dropout_rate_decoder: float = 0.0,
        gene_dispersion: Literal["gene", "gene-batch", "gene-label"] = "gene",
        protein_dispersion: Literal["protein", "protein-batch", "protein-label"] = "protein",
        gene_likelihood: Literal["nb", "zinb"] = "nb",
        use_batch_norm: Literal["encoder", "decoder", "none", "both"] = "none",
        use_layer_norm: Literal["encoder", "decoder", "none", "both"] = "both",
        alignment_weight: float = 1.0,
        modality_dropout: float = 0.1,
        protein_weight: float = 0.2,
        denoiser: Literal["dit", "mlp"] = "dit",
        denoiser_kwargs: dict[str, Any] | None = None,
        process: Literal["linear", "vp_cosine", "vp_linear"] = "linear",
        prediction: Literal["velocity", "noise", "data"] = "velocity",
        condition_dropout: float = 0.1,
        ema_decay: float = 0.999,
        **vae_kwargs: Any,
    ) -> None:
        # Past TOTALVI's own `__init__`, which needs data, and zeros in place of missing proteins.
        super(TOTALVI, self).__init__(adata, registry)
        if not vae_kwargs.get("use_observed_lib_size", True):
            raise InvalidInputError(
                "`use_observed_lib_size` must be True: the prior learns the observed library sizes."
            )
        stats = self.summary_stats
        covariates = self.registry_["field_registries"][REGISTRY_KEYS.CAT_COVS_KEY]["state_registry"]
        background = background_start(self._registered_proteins(), stats.n_batch) if adata is not None else (None, None)
        self.module = MultimodalVAE(
            n_input_genes=stats.n_vars,
            n_input_proteins=stats.n_proteins,
            n_batch=stats.n_batch,
            n_labels=stats.n_labels,
            n_continuous_cov=stats.get("n_extra_continuous_covs", 0),
            n_cats_per_cov=covariates.get(CategoricalJointObsField.N_CATS_PER_KEY),
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers_encoder=n_layers_encoder,
            n_layers_decoder=n_layers_decoder,
            dropout_rate_encoder=dropout_rate_encoder,
            dropout_rate_decoder=dropout_rate_decoder,
            gene_dispersion=gene_dispersion,
            protein_dispersion=protein_dispersion,
            gene_likelihood=gene_likelihood,
            use_batch_norm=use_batch_norm,
            use_layer_norm=use_layer_norm,
            protein_background_prior_mean=background[0],
            protein_background_prior_scale=background[1],
            alignment_weight=alignment_weight,
            modality_dropout=modality_dropout,
            protein_weight=protein_weight,
            **vae_kwargs,
        )
        self.module.minified_data_type = self.minified_data_type
        self.paths_ = None
        self.seen_ = None
        self.remembered_ = None
        self.paired_batches_: list[int] = []
        self.path_weights_ = dict(USUAL_WEIGHTS)
        self._held_out = None
        self._add_prior(
            denoiser=denoiser,
            denoiser_kwargs=denoiser_kwargs,
            process=process,
            prediction=prediction,
            condition_dropout=condition_dropout,
            ema_decay=ema_decay,
        )
        self._model_summary_string = (
            f"TotalDiffusion: totalVI with {n_latent} latent dimensions ({gene_likelihood}, n_hidden {n_hidden}), "
            f"{stats.n_proteins} proteins, {denoiser} denoiser, {process} process, {prediction} prediction."
        )
        self.init_params_ = self._get_init_params(locals())

    @property
    def protein_state_registry(self) -> Any:
        """As in TOTALVI: names of the proteins."""
        return attrdict(self.registry_["field_registries"][REGISTRY_KEYS.PROTEIN_EXP_KEY]["state_registry"])

    @property
    def modalities(self) -> dict[str, str]:
        """Names of the modalities, as in TOTALVI."""
        return dict(zip(("rna_layer", "protein_layer"), self._modality_names, strict=True))

    def _write_expression(self, adata: Any) -> str:
        genes, proteins = self.get_normalized_expression(adata, library_size=1e4, include_protein_background=True)
        rna = adata.mod[self._modality_names[0]] if isinstance(adata, MuData) else adata
        rna.layers["diffvi_normalized"], rna.obsm["diffvi_protein"] = genes.to_numpy(), proteins
        return "normalized: 10,000 counts a cell; protein: expected counts"

    def _validate_anndata(self, adata: Any = None, copy_if_view: bool = True) -> Any:
        # TOTALVI's check would warn of the missing values.
        return super(TOTALVI, self)._validate_anndata(adata, copy_if_view)

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        protein_expression_obsm_key: str,
        protein_names_uns_key: str | None = None,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        condition_keys: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Register an AnnData whose proteins are in ``obsm``.

        Parameters
        ----------
        adata
            Cells by genes, raw counts.
        protein_expression_obsm_key
            Key of ``adata.obsm`` with the raw protein counts. NaN is missing, for single values or whole cells; zeros are
            data.
        protein_names_uns_key
            Key of ``adata.uns`` with the names of the proteins; ``None`` for the columns of a data frame, or numbers.
        layer, batch_key, labels_key, categorical_covariate_keys, continuous_covariate_keys, condition_keys
            As in :meth:`LatentDiffusionSCVI.setup_anndata`.
        **kwargs
            Used by :meth:`load`.

        Raises
        ------
        InvalidInputError
            If a matrix or column is missing, counts are not raw, or a protein was measured in no cell.

        Examples
        --------
        >>> import diffvi
        >>> adata, protein = diffvi.datasets.simulate_cite(100, 20, 5, seed=0).mod.values()
        >>> adata.obsm["protein"] = protein.to_df()
        >>> diffvi.model.TotalDiffusion.setup_anndata(adata, protein_expression_obsm_key="protein")
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        columns = {name: setup_method_args["setup_args"][name] for name in COLUMN_ARGUMENTS}
        fields = anndata_fields(
            adata, layer, protein_expression_obsm_key, protein_names_uns_key, "source_registry" in kwargs, columns
        )
        cls._register(adata, fields, setup_method_args, **kwargs)

    @classmethod
    def setup_mudata(
        cls,
        mdata: MuData,
        rna_layer: str | None = None,
        protein_layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        condition_keys: Sequence[str] | None = None,
        modalities: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Register a MuData with a modality of RNA and one of proteins.

        Parameters
        ----------
        mdata
            Raw counts of both modalities. Every cell has RNA; cells that are not in the protein modality, and NaN in it, are
            missing; zeros are data.
        rna_layer, protein_layer
            Layers of the modalities that hold the counts; ``None`` for ``X``.
        batch_key, labels_key, categorical_covariate_keys, continuous_covariate_keys, condition_keys
            As in :meth:`LatentDiffusionSCVI.setup_anndata`. Columns are looked for in ``mdata.obs``, the RNA and then
            the proteins.
        modalities
            Names of the modalities by argument, as in :meth:`scvi.model.TOTALVI.setup_mudata`: ``{"rna_layer": "rna",
            "protein_layer": "prot"}``; further arguments say which modality their columns are in. ``None`` where the
            modalities have their usual names.
        **kwargs
            Used by :meth:`load`.

        Raises
        ------
        InvalidInputError
            If modalities are missing, empty or swapped, cells have no RNA, counts are not raw, or a protein was measured in
            no cell.

        Examples
        --------
        >>> import diffvi
        >>> mdata = diffvi.datasets.simulate_cite(100, 20, 5, seed=0)
        >>> diffvi.model.TotalDiffusion.setup_mudata(mdata, labels_key="cell_type")
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        arguments = setup_method_args["setup_args"]
        modalities = find_modalities(mdata, modalities, ["rna_layer", "protein_layer", *COLUMN_ARGUMENTS])
        arguments["modalities"] = modalities
        columns = {name: arguments[name] for name in COLUMN_ARGUMENTS}
        fields = mudata_fields(mdata, (rna_layer, protein_layer), modalities, "source_registry" in kwargs, columns)
        cls._register(mdata, fields, setup_method_args, **kwargs)

    @classmethod
    def from_totalvi_model(
        cls,
        totalvi_model: TOTALVI,
        labels_key: str | None = None,
        condition_keys: Sequence[str] | None = None,
        **model_kwargs: Any,
    ) -> TotalDiffusion:
        """Put encoders of single modalities and a prior on a totalVI model that is trained already.

        What totalVI has learned is frozen: :meth:`train` fits the new encoders to it, then the prior, and its latents
        stay as they are.

        Parameters
        ----------
        totalvi_model
            A trained :class:`scvi.model.TOTALVI` with its data.
        labels_key, condition_keys
            Columns that condition the prior.
        **model_kwargs
            Arguments of the prior, such as ``denoiser``.

        Returns
        -------
        A model with the decoder and encoder of ``totalvi_model`` (copies), whose other parts are not trained, over the same data.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        InvalidInputError
            If it has no data, is not a totalVI model, has a panel or size factors, or treats proteins as missing because they are zero
            in a batch; if ``model_kwargs`` change the VAE.

        Examples
        --------
        >>> import diffvi, scvi
        >>> mdata = diffvi.datasets.simulate_cite(100, 20, 5, seed=0)
        >>> scvi.model.TOTALVI.setup_mudata(mdata, modalities={"rna_layer": "rna", "protein_layer": "protein"})
        >>> totalvi = scvi.model.TOTALVI(mdata)
        >>> totalvi.train(max_epochs=1, enable_progress_bar=False)
        >>> diffvi.model.TotalDiffusion.from_totalvi_model(totalvi).stages_["vae"]["status"]
        'not trained'
        """
        registry = totalvi_model.registry_ if isinstance(totalvi_model, TOTALVI) else {"setup_args": {}}
        for argument in ("panel_key", "size_factor_key"):
            if registry["setup_args"].get(argument) is not None:
                raise InvalidInputError(f"`totalvi_model` has a `{argument}`, which TotalDiffusion does not have.")
        if isinstance(totalvi_model, TOTALVI) and getattr(totalvi_model.module, "protein_batch_mask", None) is not None:
            raise InvalidInputError(
                "`totalvi_model` treats proteins that are zero in a whole batch as missing. Here zeros are data: set them to "
                "NaN, and train a TotalDiffusion."
            )
        model: TotalDiffusion = cls._from_trained(
            totalvi_model,
            TOTALVI,
            {"labels_key": labels_key, "condition_keys": condition_keys},
            normalize_encoder_input=True,
            **model_kwargs,
        )
        for name, parameter in model.module.named_parameters():
            parameter.requires_grad_(name.startswith(cls.ADDED_PARTS) and ".ema." not in f".{name}")
        for name, part in model.module.named_modules():
            if isinstance(part, torch.nn.BatchNorm1d) and not name.startswith(cls.ADDED_PARTS):
                part.momentum = 0.0  # Its running statistics are part of what is frozen.
        model.stages_ = {**model.stages_, "vae": {"status": "not trained", "epochs": 0}}
        return model
