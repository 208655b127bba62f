"""Training plans of the two stages, and the runner that both share."""

from ._plans import DiffusionTrainingPlan, VAETrainingPlan
from ._runner import StageTrainRunner

__all__ = ["DiffusionTrainingPlan", "StageTrainRunner", "VAETrainingPlan"]
