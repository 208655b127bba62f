"""Splits, baselines, the benchmark runner and HTML reports."""

from ._baselines import BASELINES, IndependentNB, SCVIGaussianMixture, SCVIPrior
from ._report import write_report
from ._runner import Diffvi, run_generation, split_cells

__all__ = [
    "BASELINES",
    "Diffvi",
    "IndependentNB",
    "SCVIGaussianMixture",
    "SCVIPrior",
    "run_generation",
    "split_cells",
    "write_report",
]
