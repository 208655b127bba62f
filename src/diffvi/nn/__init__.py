"""Networks: the diffusion transformer, the residual MLP, and how time and conditions enter them."""

from ._backbones import BACKBONES, DiT, ResidualMLP
from ._conditions import Attribute, ConditionEncoder, columns
from ._denoiser import Denoiser
from ._time import TimeEmbedding

__all__ = ["BACKBONES", "Attribute", "ConditionEncoder", "Denoiser", "DiT", "ResidualMLP", "TimeEmbedding", "columns"]
