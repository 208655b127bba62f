from __future__ import annotations

from typing import Any

import numpy as np
import torch
from anndata import AnnData

from diffvi._exceptions import InvalidInputError


class DenoisingMixin:
    """Denoising of cells whose whole state is the latent of an scVI and the library size."""

    module: Any

    def denoise(
        self,
        adata: AnnData | None = None,
        noise_level: float | None = None,
        use_conditions: bool = True,
        key_added: str = "denoised",
        batch_size: int = 2048,
        copy: bool = False,
    ) -> AnnData | None:
        r"""Denoise cells with the learned prior in place of the VAE's standard normal one.

        The encoder's posterior :math:`N(m, s^2)` is a standard normal prior times a Gaussian likelihood
        with mean :math:`m / (1 - s^2)` and variance :math:`s^2 / (1 - s^2)`. That is a noisy observation
        of the latent, whose expectation under the learned prior is what the denoiser predicts at the
        noise level of the observation (Tweedie's formula; Efron 2011). One level is used for a cell, the
        median over the dimensions, because those that the encoder does not use are all noise. The result is decoded at the cell's own library size.

        Parameters
        ----------
        adata
            Cells; ``None`` for the model's own.
        noise_level
            Standard deviation of the noise to assume, in standard deviations of the latent; ``None`` for
            each cell's own posterior uncertainty. Larger values pull harder towards common states.
        use_conditions
            Condition on the cells' own attributes.
        key_added
            Writes ``layers[key_added]`` (expected counts at the cell's library), ``obsm["X_" + key_added]``
            (latent) and ``uns[key_added]``.
        batch_size
            Cells at a time.
        copy
            Return a copy with the results instead of writing to ``adata``.

        Returns
        -------
        ``None``, or the copy.

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.
        InvalidInputError
            If ``noise_level`` is not positive.

        Examples
        --------
        >>> cells = model.denoise(adata, copy=True)
        >>> cells.layers["denoised"].shape, cells.obsm["X_denoised"].shape
        ((300, 40), (300, 10))
        >>> cells.uns["denoised"]["units"]
        "expected counts at the cell's own library size"
        """
        self._require("diffusion")  # type: ignore[attr-defined]
        if noise_level is not None and not (np.isfinite(noise_level) and noise_level > 0):
            raise InvalidInputError(f"`noise_level` must be None or a positive number; got {noise_level!r}.")
        adata = self._own_cells(adata)  # type: ignore[attr-defined]
        adata = adata.copy() if copy else adata
        latents, table = self._latent_data(adata, batch_size=batch_size)  # type: ignore[attr-defined]
        prior = self.module.prior
        device = prior.shift.device
        expected, clean = [], []
        with torch.inference_mode():
            for start in range(0, len(latents.mean), batch_size):
                rows = np.arange(start, min(start + batch_size, len(latents.mean)))
                mean, sd, codes = (
                    torch.as_tensor(v[rows], device=device) for v in (latents.mean, latents.scale, latents.codes)
                )
                shrunk = (1 - sd.square()).clamp_min(0.2)
                observed = prior.standardise(mean / torch.where(sd > 0, shrunk, torch.ones_like(sd)))
                if noise_level is None:
                    noise = (sd.square() / shrunk / prior.scale.square())[:, :-1].median(1).values.sqrt()
                else:
                    noise = torch.full((len(rows),), float(noise_level), device=device)
                t = prior.path.time_of_noise(noise)
                codes = codes if use_conditions else torch.full_like(codes, float("nan"))
                x0 = prior.estimate(prior.path.alpha(t)[:, None] * observed, t, codes)
                state = prior.restore(x0.clamp(prior.low, prior.high))
                state[:, -1] = mean[:, -1]
                px = self._decode(state, table.subset(rows))  # type: ignore[attr-defined]
                expected.append(px.mean.cpu().numpy())
                clean.append(state[:, :-1].cpu().numpy())
        adata.layers[key_added] = np.concatenate(expected)
        adata.obsm[f"X_{key_added}"] = np.concatenate(clean)
        adata.uns[key_added] = self._provenance(  # type: ignore[attr-defined]
            units="expected counts at the cell's own library size"
        )
        return adata if copy else None
