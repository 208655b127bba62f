"""Plots of generated cells, trained models and benchmark results."""

from ._generation import library_sizes, losses, marker_dotplot, mean_variance, umap
from ._scores import calibration, guidance_diversity, nfe_quality, score_table
from ._space import spatial
from ._style import PALETTE
from ._trajectories import fate_probabilities, population_over_time, trajectories

__all__ = [
    "PALETTE",
    "calibration",
    "fate_probabilities",
    "guidance_diversity",
    "library_sizes",
    "losses",
    "marker_dotplot",
    "mean_variance",
    "nfe_quality",
    "population_over_time",
    "score_table",
    "spatial",
    "trajectories",
    "umap",
]
