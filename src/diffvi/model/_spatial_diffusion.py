from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.model import SCVI

from diffvi._exceptions import positive_int
from diffvi.data import scvi_fields
from diffvi.data._fields import check_obs_columns
from diffvi.module import ORIGIN
from diffvi.nn import Attribute

from ._denoising import DenoisingMixin
from ._mixin import LatentDiffusionMixin
from ._spatial_context import AROUND, PLACE
from ._spatial_resolution import SpatialResolutionMixin
from ._spatial_setup import check_space, coordinates_of

MAX_LATENT = 20
"""Dimensions of the latent where there are genes enough."""


class SpatialDiffusion(SpatialResolutionMixin, DenoisingMixin, LatentDiffusionMixin, SCVI):
    r"""Cells at any location of a tissue, given the cells that were measured around it.

    What a location is expected to hold is told by kriging from the cells around it, with a covariance of several ranges that is fitted in the latent space and
    on the measured expression. A diffusion transformer that attends to these cells learns the distribution of the rest,
    :math:`p(z(s) - \hat z(s) \mid s, z(s_1), \dots, z(s_k))`. Draws start from noise that is correlated in space as the rest is. In training
    cells are hidden at random, in blobs and in whole planes. Decoding gives counts.

    Parameters
    ----------
    adata
        Data registered with :meth:`setup_anndata`.
    registry
        Registry of a saved model, used on loading without data.
    n_hidden, n_layers, dropout_rate, gene_likelihood, use_batch_norm, use_layer_norm
        The VAE: see :class:`LatentDiffusionSCVI`.
    n_latent
        Dimensions of the latent; ``None`` for 20, or a third of the genes where that is less (few imaged genes do not hold more).
    dispersion
        As in :class:`scvi.model.SCVI`. Dispersions of its own for each cell fit counts of imaged molecules, which scatter far more in
        some cells than in others.
    denoiser, denoiser_kwargs, process, prediction, condition_dropout, ema_decay
        The diffusion: see :class:`LatentDiffusionSCVI`.
    n_neighbors
        Nearest cells that the network attends to. Kriging sees 24 (or as many, if these are more) and 24 further ones of coarser subsets.
    **vae_kwargs
        Passed to :class:`scvi.module.VAE`.

    Examples
    --------
    >>> import diffvi
    >>> adata = diffvi.datasets.simulate_tissue(60, 10, seed=0)
    >>> diffvi.model.SpatialDiffusion.setup_anndata(adata, labels_key="cell_type")
    >>> model = diffvi.model.SpatialDiffusion(adata, n_latent=5, n_neighbors=4)
    >>> model.train(max_epochs=1, max_epochs_diffusion=1, enable_progress_bar=False)
    >>> model.generate_at_location([[5.0, 5.0], [5.5, 5.0]], n_samples=3, seed=0).n_obs
    6
    """

    # What the latent does not hold cannot be correlated in space, and the standard normal prior is not sampled from.
    KL_WEIGHT = 0.1
    VAE_STEPS = 4000
    DIFFUSION_STEPS = 3000

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        n_hidden: int = 256,
        n_latent: int | None = None,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene-cell",
        gene_likelihood: Literal["nb", "zinb", "poisson"] = "nb",
        use_batch_norm: Literal["encoder", "decoder", "none", "both"] = "none",
        use_layer_norm: Literal["encoder", "decoder", "none", "both"] = "both",
        denoiser: Literal["dit", "mlp"] = "dit",
        denoiser_kwargs: dict[str, Any] | None = None,
        process: Literal["linear", "vp_cosine", "vp_linear"] = "linear",
        prediction: Literal["velocity", "noise", "data"] = "velocity",
        condition_dropout: float = 0.1,
        ema_decay: float = 0.999,
        n_neighbors: int = 16,
        **vae_kwargs: Any,
    ) -> None:
        if n_latent is None:
            n_latent = min(MAX_LATENT, max(2, _n_genes(adata, registry) // 3))
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
        self.n_neighbors = positive_int("n_neighbors", n_neighbors)
        self.frames_ = None
        self.components_ = None
        self.kriging_ = None
        self.cells_ = None
        self.mean_ = None
        self.correction_ = None
        self.moments_: dict[str, Any] | None = None
        self._add_prior(
            denoiser=denoiser,
            denoiser_kwargs=denoiser_kwargs,
            process=process,
            prediction=prediction,
            condition_dropout=condition_dropout,
            ema_decay=ema_decay,
        )
        self._model_summary_string = (
            f"SpatialDiffusion: scVI with {n_latent} latent dimensions ({gene_likelihood}, n_hidden {n_hidden}, "
            f"n_layers {n_layers}), {denoiser} denoiser, {process} process, {n_neighbors} neighbours in {self.n_dims} dimensions."
        )
        self.init_params_ = self._get_init_params(locals())

    @property
    def n_dims(self) -> int:  # type: ignore[override]
        """Dimensions of the coordinates."""
        return int(self.registry_["setup_args"]["n_dims"])

    @property
    def _prior_attributes(self) -> list[Attribute]:
        """The user's attributes; where the location is, what is around it, and what kriging says."""
        k, token = self.n_neighbors, self._token_size
        return [
            *self.vocabulary.attributes,
            Attribute(PLACE, size=self._place_size, fixed=True),
            Attribute(AROUND, size=k * token, n_tokens=k, fixed=True),
            Attribute(ORIGIN, size=self._state_size, fixed=True),
        ]

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        spatial_key: str = "spatial",
        section_key: str | None = None,
        layer: str | None = None,
        labels_key: str | None = None,
        batch_key: str | None = None,
        condition_keys: Sequence[str] | None = None,
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
        spatial_key
            Key of ``adata.obsm`` with the coordinates, ``(n, 2)`` or ``(n, 3)``, in any unit.
        section_key
            Column of ``adata.obs`` that tells apart what has coordinates of its own: sections in two dimensions, blocks of aligned sections in three. Cells see the cells of
            their own section alone. ``None`` if all share one frame.
        layer, labels_key, batch_key, size_factor_key, categorical_covariate_keys, continuous_covariate_keys
            As in :meth:`LatentDiffusionSCVI.setup_anndata`.
        condition_keys
            Columns that condition the diffusion, categorical or numeric.
        **kwargs
            Used by :meth:`load`.

        Raises
        ------
        InvalidInputError
            If there are no coordinates, they have another number of columns than 2 or 3 or are not finite, a section has fewer than 10 cells or a cell no section, the
            counts are not raw, or a column is missing.

        Examples
        --------
        >>> import diffvi
        >>> adata = diffvi.datasets.simulate_tissue(100, 20, n_sections=2, seed=0)
        >>> diffvi.model.SpatialDiffusion.setup_anndata(adata, spatial_key="spatial", section_key="section")
        """
        # What loading passes back of what was registered.
        kwargs.pop("n_dims", None)
        setup_method_args = cls._get_setup_method_args(**locals())
        query = "source_registry" in kwargs
        check_obs_columns(adata, section_key=section_key)
        if query:
            setup_method_args["setup_args"]["n_dims"] = kwargs["source_registry"]["setup_args"]["n_dims"]
        else:
            check_space(adata, spatial_key, section_key, batch_key)
            setup_method_args["setup_args"]["n_dims"] = coordinates_of(adata, spatial_key).shape[1]
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
            context_keys=[key for key in (section_key,) if key is not None],
        )
        cls._register(adata, fields, setup_method_args, **kwargs)

    @classmethod
    def from_scvi_model(
        cls,
        scvi_model: SCVI,
        spatial_key: str = "spatial",
        section_key: str | None = None,
        condition_keys: Sequence[str] | None = None,
        **model_kwargs: Any,
    ) -> SpatialDiffusion:
        """Put space on an scVI model that is trained already; only :meth:`train_diffusion` is left to do.

        Parameters
        ----------
        scvi_model
            A trained :class:`scvi.model.SCVI` with its data.
        spatial_key, section_key, condition_keys
            As in :meth:`setup_anndata`.
        **model_kwargs
            Arguments of the model beside those of the VAE, such as ``n_neighbors``.

        Returns
        -------
        A model whose VAE is that of ``scvi_model`` (a copy) and done, with an untrained prior, over the same data.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        InvalidInputError
            If it has no data, is not an scVI model, or ``model_kwargs`` change the VAE; for coordinates that :meth:`setup_anndata` refuses.

        Examples
        --------
        >>> import diffvi, scvi
        >>> adata = diffvi.datasets.simulate_tissue(100, 20, seed=0)
        >>> scvi.model.SCVI.setup_anndata(adata)
        >>> vae = scvi.model.SCVI(adata)
        >>> vae.train(max_epochs=1, enable_progress_bar=False)
        >>> model = diffvi.model.SpatialDiffusion.from_scvi_model(vae, spatial_key="spatial")
        >>> [stage["status"] for stage in model.stages_.values()]
        ['done', 'not trained']
        """
        setup = {"spatial_key": spatial_key, "section_key": section_key, "condition_keys": condition_keys}
        model: SpatialDiffusion = cls._from_trained(scvi_model, SCVI, setup, **model_kwargs)
        return model


def _n_genes(adata: AnnData | None, registry: dict[str, Any] | None) -> int:
    if adata is not None:
        return int(adata.n_vars)
    fields = {} if registry is None else registry["field_registries"]
    return int(fields[REGISTRY_KEYS.X_KEY]["summary_stats"]["n_vars"]) if fields else 0
