from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from anndata import AnnData
from scvi.model import SCVI

from diffvi._exceptions import InvalidInputError, one_of, positive_int
from diffvi.data import scvi_fields
from diffvi.data._fields import check_obs_columns
from diffvi.module import ORIGIN
from diffvi.nn import Attribute

from ._denoising import DenoisingMixin
from ._mixin import LatentDiffusionMixin
from ._trajectory_analysis import TrajectoryAnalysisMixin
from ._trajectory_setup import check_numbers, check_times
from ._trajectory_training import ELAPSED, FROM_TIME

COUPLINGS = ("unbalanced", "balanced")


class TrajectoryDiffusion(TrajectoryAnalysisMixin, DenoisingMixin, LatentDiffusionMixin, SCVI):
    r"""Where cells go, when, and with what odds, from populations measured at several times.

    Cells of neighbouring times are coupled in the latent space by entropic unbalanced optimal transport, whose row sums say how much each
    cell grows (:cite:p:`Schiebinger19`). Chains of couplings and the Brownian bridges between them are a Markov process
    through all populations (a Schrödinger bridge); a diffusion transformer learns its transitions
    :math:`p(z_{t_2} - z_{t_1} \mid z_{t_1}, t_1, t_2)` for all pairs of times, forward and backward, measured or not. Decoding gives
    counts.

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
    coupling
        ``"unbalanced"``: cells grow and die at rates that are estimated, or given by ``growth_key``. ``"balanced"``: all cells of a time
        leave equally many descendants.
    entropy
        Entropy of the plans, in units of their mean cost; also sets the Brownian motion between the times.
    source_penalty
        How strongly a plan from which growth is estimated keeps to the masses that it starts from, in units of its mean cost.
    target_penalty
        How strongly plans keep to the later population, in the same units. Infinite: every later cell has an ancestor among those of the time
        before. Around 0.1 where cells enter whose ancestors were not measured: fates of the measured ones are then clearer, but the
        cells that entered are missing from what is predicted.
    n_growth_updates
        How often the growth that a plan has found is put into the next; more let growth vary more, 0 for none.
    n_growth_neighbors
        Cells that growth is smoothed over, at most a third of those of a time; few where many kinds of cells grow at rates of their
        own, many where there are few kinds, 0 for plain unbalanced transport: see :func:`~diffvi.process.estimate_growth`.
    max_block
        Times with more cells are coupled in random blocks of this many.
    manifold_pull
        How far states between two times are drawn to the mean of the cells around them; 0 for straight bridges.
    n_neighbors
        Cells around a state, for that and for labels.
    **vae_kwargs
        Passed to :class:`scvi.module.VAE`.

    Examples
    --------
    >>> import diffvi
    >>> adata = diffvi.datasets.simulate_trajectory(60, 30, seed=0)
    >>> diffvi.model.TrajectoryDiffusion.setup_anndata(adata, time_key="time", labels_key="fate")
    >>> model = diffvi.model.TrajectoryDiffusion(adata)
    >>> model.train(max_epochs=1, max_epochs_diffusion=1, enable_progress_bar=False)
    >>> early = adata[adata.obs["time"] == 0].copy()
    >>> future = model.predict_trajectory(early, [1.0, 2.5], seed=0)
    >>> future.n_obs == 2 * early.n_obs
    True
    """

    # Progenitors and what becomes of them are one continuum, which a classifier of labels would tear apart.
    CLASSIFY_LABELS = False
    VAE_STEPS = 2000

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
        coupling: Literal["unbalanced", "balanced"] = "unbalanced",
        entropy: float = 0.05,
        source_penalty: float = 0.3,
        n_growth_updates: int = 8,
        n_growth_neighbors: int = 20,
        max_block: int = 5000,
        manifold_pull: float = 0.3,
        n_neighbors: int = 15,
        target_penalty: float = float("inf"),
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
        self.coupling = one_of("coupling", coupling, COUPLINGS)
        if coupling == "balanced" and self.registry_["setup_args"].get("growth_key") is not None:
            raise InvalidInputError(
                '`coupling="balanced"` leaves no growth, and `setup_anndata(growth_key=)` gives some.'
            )
        prices = {"entropy": entropy, "source_penalty": source_penalty, "target_penalty": target_penalty}
        for name, value in prices.items():
            if not value > 0:
                raise InvalidInputError(f"`{name}` must be a positive number; got {value!r}.")
        if not 0 <= manifold_pull <= 1:
            raise InvalidInputError(f"`manifold_pull` must be a number from 0 to 1; got {manifold_pull!r}.")
        self.entropy, self.source_penalty, self.target_penalty = (float(v) for v in prices.values())
        for name, number in (("n_growth_updates", n_growth_updates), ("n_growth_neighbors", n_growth_neighbors)):
            if not isinstance(number, int) or number < 0:
                raise InvalidInputError(f"`{name}` must be a whole number of at least 0; got {number!r}.")
        self.n_growth_updates, self.n_growth_neighbors = n_growth_updates, n_growth_neighbors
        self.manifold_pull = float(manifold_pull)
        self.max_block = positive_int("max_block", max_block)
        self.n_neighbors = positive_int("n_neighbors", n_neighbors)
        self.times_: list[float] = []
        self.gaps_: dict[str, float] = {}
        self.cells_ = None
        self.growth_ = None
        self._add_prior(
            denoiser=denoiser,
            denoiser_kwargs=denoiser_kwargs,
            process=process,
            prediction=prediction,
            condition_dropout=condition_dropout,
            ema_decay=ema_decay,
        )
        self._model_summary_string = (
            f"TrajectoryDiffusion: scVI with {n_latent} latent dimensions ({gene_likelihood}, n_hidden {n_hidden}, "
            f"n_layers {n_layers}), {denoiser} denoiser, {process} process, {coupling} couplings."
        )
        self.init_params_ = self._get_init_params(locals())

    @property
    def _prior_attributes(self) -> list[Attribute]:
        """The user's attributes; when a cell starts, for how long it moves, and from where."""
        moves = [Attribute(name, fixed=True) for name in (FROM_TIME, ELAPSED)]
        return [*self.vocabulary.attributes, *moves, Attribute(ORIGIN, size=self._state_size, fixed=True)]

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        time_key: str,
        layer: str | None = None,
        labels_key: str | None = None,
        batch_key: str | None = None,
        condition_keys: Sequence[str] | None = None,
        growth_key: str | None = None,
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
        time_key
            Column of ``adata.obs`` with the time of each cell: numbers, in any unit, with any gaps.
        layer, labels_key, batch_key, size_factor_key, categorical_covariate_keys, continuous_covariate_keys
            As in :meth:`LatentDiffusionSCVI.setup_anndata`.
        condition_keys
            Columns with what a cell keeps as it moves, such as a donor or a treatment. Cells are coupled within the
            combinations of the categories among them, where all times have them.
        growth_key
            Column with the growth rate of each cell, births minus deaths per unit of time, where it is known, for instance from scores of cell
            cycle and apoptosis; ``None`` to estimate it.
        **kwargs
            Used by :meth:`load`.

        Raises
        ------
        InvalidInputError
            If times are not numbers, are missing, are all the same or have fewer than 5 cells, the counts are not raw, or a column
            is missing.

        Examples
        --------
        >>> import diffvi
        >>> adata = diffvi.datasets.simulate_trajectory(50, 20, seed=0)
        >>> diffvi.model.TrajectoryDiffusion.setup_anndata(adata, time_key="time", labels_key="fate")
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        query = "source_registry" in kwargs
        if not query:
            check_obs_columns(adata, time_key=time_key, growth_key=growth_key)
            check_times(adata, time_key)
            if growth_key is not None:
                check_numbers(adata.obs, "growth_key", growth_key)
        fields = scvi_fields(
            adata,
            layer,
            batch_key,
            labels_key,
            size_factor_key,
            categorical_covariate_keys,
            continuous_covariate_keys,
            [time_key, *(condition_keys or ())],
            query=query,
        )
        cls._register(adata, fields, setup_method_args, **kwargs)

    @classmethod
    def from_scvi_model(
        cls,
        scvi_model: SCVI,
        time_key: str,
        condition_keys: Sequence[str] | None = None,
        growth_key: str | None = None,
        **model_kwargs: Any,
    ) -> TrajectoryDiffusion:
        """Put time on an scVI model that is trained already; only :meth:`train_diffusion` is left to do.

        Parameters
        ----------
        scvi_model
            A trained :class:`scvi.model.SCVI` with its data.
        time_key, condition_keys, growth_key
            As in :meth:`setup_anndata`.
        **model_kwargs
            Arguments of the model beside those of the VAE, such as ``coupling``.

        Returns
        -------
        A model whose VAE is that of ``scvi_model`` (a copy) and done, with an untrained prior, over the same data.

        Raises
        ------
        NotTrainedError
            If the model is not trained.
        InvalidInputError
            If it has no data, is not an scVI model, or ``model_kwargs`` change the VAE; for times that :meth:`setup_anndata` refuses.

        Examples
        --------
        >>> import diffvi, scvi
        >>> adata = diffvi.datasets.simulate_trajectory(30, 20, seed=0)
        >>> scvi.model.SCVI.setup_anndata(adata)
        >>> vae = scvi.model.SCVI(adata)
        >>> vae.train(max_epochs=1, enable_progress_bar=False)
        >>> model = diffvi.model.TrajectoryDiffusion.from_scvi_model(vae, time_key="time")
        >>> [stage["status"] for stage in model.stages_.values()]
        ['done', 'not trained']
        """
        setup = {"time_key": time_key, "condition_keys": condition_keys, "growth_key": growth_key}
        model: TrajectoryDiffusion = cls._from_trained(scvi_model, SCVI, setup, **model_kwargs)
        return model
