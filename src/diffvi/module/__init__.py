"""The latent prior, and what it starts from where perturbations move cells."""

from ._effects import EffectProcess, EffectWeights
from ._prior import ORIGIN, LatentPrior
from ._responses import Responses

__all__ = ["ORIGIN", "EffectProcess", "EffectWeights", "LatentPrior", "Responses"]
