"""Scores of generated cells against held-out real ones: plain functions on arrays."""

from ._classifiers import classifier_two_sample, label_agreement
from ._counts import (
    correlation_agreement,
    fold_change_agreement,
    library_size_ks,
    log_normalise,
    mean_variance_distance,
    zero_fraction_difference,
)
from ._distances import energy_distance, memorisation_ratio, mmd, precision_recall_coverage, wasserstein
from ._evaluate import evaluate_generation

__all__ = [
    "classifier_two_sample",
    "correlation_agreement",
    "energy_distance",
    "evaluate_generation",
    "fold_change_agreement",
    "label_agreement",
    "library_size_ks",
    "log_normalise",
    "mean_variance_distance",
    "memorisation_ratio",
    "mmd",
    "precision_recall_coverage",
    "wasserstein",
    "zero_fraction_difference",
]
