"""The model classes."""

from ._latent_diffusion_scvi import LatentDiffusionSCVI
from ._perturb_diffusion import PerturbDiffusion
from ._spatial_diffusion import SpatialDiffusion
from ._total_diffusion import TotalDiffusion
from ._trajectory_diffusion import TrajectoryDiffusion

__all__ = ["LatentDiffusionSCVI", "PerturbDiffusion", "SpatialDiffusion", "TotalDiffusion", "TrajectoryDiffusion"]
