"""The latent prior: standardiser, conditioned denoiser, diffusion process and EMA in one module."""

from ._prior import LatentPrior

__all__ = ["LatentPrior"]
