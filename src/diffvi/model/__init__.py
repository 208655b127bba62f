"""The model classes."""

from ._latent_diffusion_scvi import LatentDiffusionSCVI
from ._perturb_diffusion import PerturbDiffusion
from ._total_diffusion import TotalDiffusion

__all__ = ["LatentDiffusionSCVI", "PerturbDiffusion", "TotalDiffusion"]
