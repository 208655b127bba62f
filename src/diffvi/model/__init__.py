"""The model classes."""

from ._latent_diffusion_scvi import LatentDiffusionSCVI

__all__ = ["LatentDiffusionSCVI"]
