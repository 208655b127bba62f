"""Plots of generated cells, trained models and benchmark results."""

from ._generation import library_sizes, losses, marker_dotplot, mean_variance, umap
from ._scores import calibration, guidance_diversity, nfe_quality, score_table

__all__ = [
    "calibration",
    "guidance_diversity",
    "library_sizes",
    "losses",
    "marker_dotplot",
    "mean_variance",
    "nfe_quality",
    "score_table",
    "umap",
]
