"""The latent prior, what it starts from where perturbations move cells or one modality is known, and the multimodal VAE."""

from ._distillation import FewSteps, distil
from ._effects import EffectProcess, EffectWeights
from ._kernel_path import KernelPath, ProteinFeatures, RNAFeatures
from ._kriging import LocalKriging, RandomField
from ._multimodal import MultimodalVAE
from ._prior import ORIGIN, LatentPrior
from ._repeatability import repeatable_share
from ._responses import Responses
from ._surroundings import Frames, Surroundings
from ._trees import BaggedTrees
from ._vae import CountNegativeBinomial, CountVAE

__all__ = [
    "ORIGIN",
    "BaggedTrees",
    "CountNegativeBinomial",
    "CountVAE",
    "EffectProcess",
    "EffectWeights",
    "FewSteps",
    "Frames",
    "KernelPath",
    "LatentPrior",
    "LocalKriging",
    "MultimodalVAE",
    "ProteinFeatures",
    "RNAFeatures",
    "RandomField",
    "Responses",
    "Surroundings",
    "distil",
    "repeatable_share",
]
