"""totalVI's generative model with an encoder for each modality, so that either may be missing in any cell."""

from __future__ import annotations

from typing import Any, Literal

import torch
from scvi import REGISTRY_KEYS
from scvi.distributions import NegativeBinomial, NegativeBinomialMixture, ZeroInflatedNegativeBinomial
from scvi.module import TOTALVAE
from scvi.module.base import LossOutput, auto_move_data
from scvi.nn import Encoder
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

View = Literal["both", "rna", "protein"]
"""What of a cell an encoder sees."""

VIEWS: tuple[View, ...] = ("both", "rna", "protein")


class MultimodalVAE(TOTALVAE):
    r"""totalVI (:cite:p:`GayosoSteier21`) with the encoders q(z | rna), q(z | protein) and q(z | both).

    The decoder and the likelihoods are totalVI's. Counts that are NaN are missing, protein by protein and cell by cell: the
    encoder of both sees a learned value in their place, and they take no part in the likelihood. A cell without
    any protein is encoded from its RNA.

    In training the view from which a cell is encoded is drawn at random (modality dropout), and the encoders of one
    modality are drawn to that of both by

    .. math:: \alpha \left[ KL(q(z | x, y) \,\|\, q(z | x)) + KL(q(z | x, y) \,\|\, q(z | y)) \right],

    as in the joint multimodal VAE (:cite:p:`Suzuki17`): in this direction the encoder of one modality has to cover whatever the other one might
    add. The gradient goes to the encoders of one modality only, so that they do not cost the others detail.

    Parameters
    ----------
    n_input_genes, n_input_proteins
        Features of each modality.
    alignment_weight
        The weight :math:`\alpha`.
    modality_dropout
        Probability that a training cell with both modalities is encoded from one of them, either with half of it.
    protein_weight
        Weight of the proteins' part of the loss. Their counts are large and tell a lot, so at 1 the latent is mostly about
        them; the prior holds the proteins themselves, and needs the latent for the RNA.
    normalize_encoder_input
        Divide a cell's counts by their mean before they are encoded, as totalVI does; it hides from the latent how much of
        everything there is in a cell.
    **kwargs
        As in :class:`scvi.module.TOTALVAE`.

    Examples
    --------
    A cell whose proteins are all missing is encoded from its RNA; the next one from both.

    >>> import torch
    >>> from diffvi.module import MultimodalVAE
    >>> vae = MultimodalVAE(20, 3, n_batch=1, n_latent=2).eval()
    >>> rna, protein, batch = torch.ones(2, 20), torch.ones(2, 3), torch.zeros(2, 1)
    >>> protein[0] = float("nan")
    >>> z = vae.inference(rna, protein, batch)["qz"].loc
    >>> from_rna, from_both = (vae.posterior(view, rna, protein, batch).loc for view in ("rna", "both"))
    >>> torch.allclose(z[0], from_rna[0]), torch.allclose(z[1], from_both[1])
    (True, True)
    """

    def __init__(
        self,
        n_input_genes: int,
        n_input_proteins: int,
        n_batch: int = 0,
        n_labels: int = 0,
        n_hidden: int = 256,
        n_latent: int = 10,
        n_layers_encoder: int = 1,
        n_continuous_cov: int = 0,
        n_cats_per_cov: Any = None,
        dropout_rate_encoder: float = 0.1,
        dropout_rate_decoder: float = 0.0,
        encode_covariates: bool = True,
        latent_distribution: Literal["normal", "ln"] = "normal",
        use_batch_norm: Literal["encoder", "decoder", "none", "both"] = "none",
        use_layer_norm: Literal["encoder", "decoder", "none", "both"] = "both",
        alignment_weight: float = 1.0,
        modality_dropout: float = 0.1,
        protein_weight: float = 0.2,
        normalize_encoder_input: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            n_input_genes,
            n_input_proteins,
            n_batch=n_batch,
            n_labels=n_labels,
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers_encoder=n_layers_encoder,
            n_continuous_cov=n_continuous_cov,
            n_cats_per_cov=n_cats_per_cov,
            dropout_rate_encoder=dropout_rate_encoder,
            dropout_rate_decoder=dropout_rate_decoder,
            encode_covariates=encode_covariates,
            latent_distribution=latent_distribution,
            use_batch_norm=use_batch_norm,
            use_layer_norm=use_layer_norm,
            n_panel=n_batch,
            **kwargs,
        )
        self.alignment_weight, self.modality_dropout = alignment_weight, modality_dropout
        self.protein_weight = protein_weight
        self.normalize_encoder_input = normalize_encoder_input
        categories = [n_batch, *(n_cats_per_cov or [])] if encode_covariates else None

        def encoder(n_input: int) -> Encoder:
            return Encoder(
                n_input + n_continuous_cov * encode_covariates,
                n_latent,
                n_cat_list=categories,
                n_layers=n_layers_encoder,
                n_hidden=n_hidden,
                dropout_rate=dropout_rate_encoder,
                distribution=latent_distribution,
                use_batch_norm=use_batch_norm in ("encoder", "both"),
                use_layer_norm=use_layer_norm in ("encoder", "both"),
                return_dist=True,
            )

        self.rna_encoder, self.protein_encoder = encoder(n_input_genes), encoder(n_input_proteins)
        # totalVI sees zeros in place of missing proteins; -1 is no log count, and so cannot be mistaken for one.
        self.missing_protein = nn.Parameter(torch.full((n_input_proteins,), 0.0 if normalize_encoder_input else -1.0))

    # ---------------------------------------------------------------- encoding

    def _logged(self, counts: Tensor, measured: Tensor | None = None) -> Tensor:
        if self.normalize_encoder_input:
            n = counts.shape[1] if measured is None else measured.sum(1, keepdim=True).clamp_min(1)
            counts = counts / (1 + counts.sum(1, keepdim=True) / n)
        return counts.log1p()

    def posterior(
        self,
        view: View,
        x: Tensor | None,
        y: Tensor | None,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
    ) -> Normal:
        """q(z | view), from raw counts; NaN proteins are missing, and the modality that is not in view may be ``None``.

        Parameters
        ----------
        view
            ``"both"``, ``"rna"`` or ``"protein"``.
        x, y
            Counts of genes and proteins, ``(n, n_genes)`` and ``(n, n_proteins)``.
        batch_index, cont_covs, cat_covs
            scvi's batch, ``(n, 1)``, and covariates, ``(n, k)``.

        Returns
        -------
        Normal distributions, ``(n, n_latent)``.
        """
        parts = []
        if view != "protein":
            assert x is not None
            parts.append(self._logged(x))
        if view != "rna":
            assert y is not None
            measured = ~y.isnan()
            parts.append(torch.where(measured, self._logged(y.nan_to_num(0.0), measured), self.missing_protein))
        if self.encode_covariates and cont_covs is not None:
            parts.append(cont_covs)
        covariates: tuple[Tensor, ...] = ()
        if self.encode_covariates and cat_covs is not None:
            covariates = torch.split(cat_covs, 1, dim=1)
        network = {"both": self.encoder, "rna": self.rna_encoder, "protein": self.protein_encoder}[view]
        return network(torch.cat(parts, 1), batch_index, *covariates)[0]

    @auto_move_data
    def _regular_inference(
        self,
        x: Tensor,
        y: Tensor,
        batch_index: Tensor,
        panel_index: Tensor | None = None,
        label: Tensor | None = None,
        n_samples: int = 1,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        view: View = "both",
    ) -> dict[str, Any]:
        """The posterior of each cell: from ``view``, but from what there is in cells that lack a modality of it."""
        has_protein = ~y.isnan().all(1, keepdim=True)
        covariates = (batch_index, cont_covs, cat_covs)
        posteriors = {v: self.posterior(v, x, y, *covariates) for v in (VIEWS if self.training else {view, "rna"})}
        weight = {"both": torch.zeros_like(has_protein), "protein": torch.zeros_like(has_protein)}
        if self.training:
            uniform = torch.rand(has_protein.shape, device=y.device)
            weight["protein"] = has_protein & (uniform < self.modality_dropout / 2)
            weight["both"] = has_protein & (uniform >= self.modality_dropout)
        elif view != "rna":
            weight[view] = has_protein
        mean, scale = posteriors["rna"].loc, posteriors["rna"].scale
        for v, mine in weight.items():
            if v in posteriors:
                mean = torch.where(mine, posteriors[v].loc, mean)
                scale = torch.where(mine, posteriors[v].scale, scale)
        qz = Normal(mean, scale)
        untransformed = qz.rsample() if n_samples == 1 else qz.sample((n_samples,))
        library = x.sum(1, keepdim=True)
        if n_samples > 1:
            library = library.expand(n_samples, *library.shape)
        batches = F.one_hot(batch_index.squeeze(-1).long(), self.n_batch).float()
        # Kept, as totalVI's marginal likelihood reads it.
        self.back_mean_prior = Normal(
            F.linear(batches, self.background_pro_alpha), F.linear(batches, self.background_pro_log_beta.exp())
        )
        return {
            "z": self.encoder.z_transformation(untransformed),
            "qz": qz,
            "ql": None,
            "library_gene": library,
            "untran_z": untransformed,
            "posteriors": posteriors,
            "back_mean_prior": self.back_mean_prior,
        }

    # ---------------------------------------------------------------- decoding

    @auto_move_data
    def generative(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As in totalVI, but ``py_`` holds the rates that the likelihood is trained with.

        totalVI trains with rates times the efficiency of the batch, and reports and samples them without.
        """
        outputs = super().generative(*args, **kwargs)
        outputs["py_"] = outputs.pop("py_norm_")
        py, efficiency = outputs["py_"], outputs["per_batch_efficiency"]
        # What the background is expected to be; `rate_back` is drawn anew in every pass.
        py["background"] = efficiency * py["back_alpha"].exp()
        return outputs

    def likelihoods(self, px: dict[str, Tensor], py: dict[str, Tensor]) -> tuple[Any, NegativeBinomialMixture]:
        """Count distributions of the genes, ``(n, n_genes)``, and the proteins, from what :meth:`generative` returns."""
        if self.gene_likelihood == "zinb":
            genes = ZeroInflatedNegativeBinomial(
                mu=px["rate"], theta=px["r"], zi_logits=px["dropout"], scale=px["scale"]
            )
        else:
            genes = NegativeBinomial(mu=px["rate"], theta=px["r"], scale=px["scale"])
        proteins = NegativeBinomialMixture(
            mu1=py["rate_back"], mu2=py["rate_fore"], theta1=py["r"], mixture_logits=py["mixing"]
        )
        return genes, proteins

    @staticmethod
    def protein_state(py: dict[str, Tensor], y: Tensor) -> tuple[Tensor, Tensor]:
        r"""Mean and standard deviation of :math:`w`, the continuous value that a protein count is rounded from.

        A count is :math:`y = \mathrm{round}(e^w - 1)`, so that a count that was measured is known up to rounding
        (dequantisation; :cite:p:`Theis16`). A prior over :math:`w` then has no noise model to be wrong about: protein
        counts are large, and hardly any of their spread is that of counting. Where no count was measured, mean
        and spread are about those of the decoder's mixture.

        Parameters
        ----------
        py
            The proteins' part of what :meth:`generative` returns.
        y
            Protein counts, ``(n, n_proteins)``, NaN where missing.

        Returns
        -------
        Mean and standard deviation, in natural logarithms of counts plus one, ``(n, n_proteins)`` each.
        """
        counts = y.nan_to_num(0.0)
        width = (counts + 1.5).log() - (counts + 0.5).log()
        theta = py["r"].expand(y.shape)
        mus = torch.stack([py["background"], py["background"] * py["fore_scale"]])
        weights = torch.stack([torch.sigmoid(py["mixing"]), torch.sigmoid(-py["mixing"])])
        means = (mus * (theta.digamma() - theta.log()).exp()).log1p()
        mean = (weights * means).sum(0)
        variance = torch.polygamma(1, theta) + (weights * ((means - mean).square() + 1 / (1 + mus))).sum(0)
        # A quarter of the interval: a normal draw then rarely leaves it.
        return torch.where(y.isnan(), mean, counts.log1p()), torch.where(y.isnan(), variance.sqrt(), width / 4)

    @staticmethod
    def protein_counts(w: Tensor) -> Tensor:
        """Counts of :meth:`protein_state`'s values.

        Examples
        --------
        >>> import torch
        >>> from diffvi.module import MultimodalVAE
        >>> MultimodalVAE.protein_counts(torch.log1p(torch.tensor([0.0, 3.2, 250.0]))).tolist()
        [0.0, 3.0, 250.0]
        """
        return w.clamp_max(20.0).expm1().round().clamp_min(0.0)

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: float = 1.0,
    ) -> LossOutput:
        """Negative ELBO of the view that was drawn, over the counts that were measured, and the alignment."""
        x, y = tensors[REGISTRY_KEYS.X_KEY], tensors[REGISTRY_KEYS.PROTEIN_EXP_KEY]
        measured = ~y.isnan()
        px, py = generative_outputs["px_"], generative_outputs["py_"]
        genes, proteins = self.likelihoods(px, py)
        reconstruction = {
            "reconst_loss_gene": -genes.log_prob(x).sum(-1),
            "reconst_loss_protein": -(proteins.log_prob(y.nan_to_num(0.0)) * measured).sum(-1),
        }
        background = kl_divergence(Normal(py["back_alpha"], py["back_beta"]), inference_outputs["back_mean_prior"])
        kl_local = {
            "kl_div_z": kl_divergence(inference_outputs["qz"], Normal(0.0, 1.0)).sum(1),
            "kl_div_back_pro": (background * measured).sum(1),
        }
        loss = reconstruction["reconst_loss_gene"] + self.protein_weight * reconstruction["reconst_loss_protein"]
        loss = loss + kl_weight * (kl_local["kl_div_z"] + self.protein_weight * kl_local["kl_div_back_pro"])
        if self.n_batch > 1:
            efficiency = torch.distributions.LogNormal(0.0, 1.0).log_prob(generative_outputs["per_batch_efficiency"])
            loss = loss - kl_weight * self.protein_weight * (efficiency * measured).sum(1)
        if self.training and self.alignment_weight > 0:
            loss = loss + self.alignment_weight * self._alignment(inference_outputs["posteriors"], measured.any(1))
        return LossOutput(loss=loss.mean(), reconstruction_loss=reconstruction, kl_local=kl_local)

    def on_load(self, model: Any, **kwargs: Any) -> None:
        """Nothing to do: no file is older than the decoder's present activation."""

    @staticmethod
    def _alignment(posteriors: dict[View, Normal], paired: Tensor) -> Tensor:
        both = Normal(posteriors["both"].loc.detach(), posteriors["both"].scale.detach())
        return paired * sum(kl_divergence(both, posteriors[v]).sum(1) for v in ("rna", "protein"))
