"""Splits, baselines, the benchmark runner and HTML reports."""

from ._diffvi import Diffvi
from ._files import FromFile, export_splits, score_file
from ._generation_baselines import (
    GENERATION_BASELINES,
    BootstrapCells,
    IndependentNB,
    SCVIGaussianMixture,
    SCVIPosteriorPredictive,
    SCVIPrior,
)
from ._options import Options
from ._perturbation_baselines import (
    PERTURBATION_BASELINES,
    Additive,
    BilinearRidge,
    LatentShift,
    MatchingMean,
    MeanEffect,
    NoChange,
)
from ._report import write_report
from ._runner import run_task
from ._space_baselines import IDW, SPACE_BASELINES, FourierRidge, GPSpace, KNNSpace, NeighbourSample
from ._splits import split_cells
from ._task import Split, Task
from ._tasks import TASKS
from ._trajectory_baselines import TRAJECTORY_BASELINES, CopyNext, CopyPrevious, OTLinear, Pooled, UnbalancedOT
from ._translation_baselines import (
    TRANSLATION_BASELINES,
    KernelRidgeTranslation,
    KNNTranslation,
    MOFATranslation,
    RidgeTranslation,
    TotalVITranslation,
)

__all__ = [
    "GENERATION_BASELINES",
    "IDW",
    "PERTURBATION_BASELINES",
    "SPACE_BASELINES",
    "TASKS",
    "TRAJECTORY_BASELINES",
    "TRANSLATION_BASELINES",
    "Additive",
    "BilinearRidge",
    "BootstrapCells",
    "CopyNext",
    "CopyPrevious",
    "Diffvi",
    "FourierRidge",
    "FromFile",
    "GPSpace",
    "IndependentNB",
    "KNNSpace",
    "KNNTranslation",
    "KernelRidgeTranslation",
    "LatentShift",
    "MOFATranslation",
    "MatchingMean",
    "MeanEffect",
    "NeighbourSample",
    "NoChange",
    "OTLinear",
    "Options",
    "Pooled",
    "RidgeTranslation",
    "SCVIGaussianMixture",
    "SCVIPosteriorPredictive",
    "SCVIPrior",
    "Split",
    "Task",
    "TotalVITranslation",
    "UnbalancedOT",
    "export_splits",
    "run_task",
    "score_file",
    "split_cells",
    "write_report",
]
