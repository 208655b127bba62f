"""The model classes."""

from ._latent_diffusion_scvi import LatentDiffusionSCVI
from ._perturb_diffusion import PerturbDiffusion

__all__ = ["LatentDiffusionSCVI", "PerturbDiffusion"]
