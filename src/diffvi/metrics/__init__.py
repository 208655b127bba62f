"""Scores of generated and predicted cells against held-out real ones: plain functions on arrays and AnnData."""

from ._classifiers import classifier_two_sample, label_agreement, silhouette
from ._counts import (
    correlation_agreement,
    expression,
    fold_change_agreement,
    gene_wasserstein,
    library_size_ks,
    log_normalise,
    mean_variance_distance,
    zero_fraction_difference,
)
from ._distances import (
    Manifold,
    energy_distance,
    manifold_scores,
    memorisation_ratio,
    mmd,
    nearest_neighbour_test,
    sliced_wasserstein,
    wasserstein,
)
from ._evaluate import evaluate_generation
from ._evaluate_tasks import evaluate_perturbation, evaluate_space, evaluate_trajectory, evaluate_translation
from ._perturbation import (
    DEAgreement,
    calibration_curve,
    de_agreement,
    discrimination,
    effect_distance,
    effect_norm_ratio,
    fold_change_nmae,
    interval_coverage,
    pearson_delta,
    scaled_score,
    variance_r2,
)
from ._programs import gene_set_agreement
from ._resampling import half_sample_intervals
from ._space import moran_i, spatial_gene_agreement, variance_ratio
from ._trajectory import composition_distance, fate_auroc, fate_correlation, resample_weighted
from ._translation import bimodality, cross_correlation_agreement, feature_correlation, feature_rmse

__all__ = [
    "DEAgreement",
    "Manifold",
    "bimodality",
    "calibration_curve",
    "classifier_two_sample",
    "composition_distance",
    "correlation_agreement",
    "cross_correlation_agreement",
    "de_agreement",
    "discrimination",
    "effect_distance",
    "effect_norm_ratio",
    "energy_distance",
    "evaluate_generation",
    "evaluate_perturbation",
    "evaluate_space",
    "evaluate_trajectory",
    "evaluate_translation",
    "expression",
    "fate_auroc",
    "fate_correlation",
    "feature_correlation",
    "feature_rmse",
    "fold_change_agreement",
    "fold_change_nmae",
    "gene_set_agreement",
    "gene_wasserstein",
    "half_sample_intervals",
    "interval_coverage",
    "label_agreement",
    "library_size_ks",
    "log_normalise",
    "manifold_scores",
    "mean_variance_distance",
    "memorisation_ratio",
    "mmd",
    "moran_i",
    "nearest_neighbour_test",
    "pearson_delta",
    "resample_weighted",
    "scaled_score",
    "silhouette",
    "sliced_wasserstein",
    "spatial_gene_agreement",
    "variance_r2",
    "variance_ratio",
    "wasserstein",
    "zero_fraction_difference",
]
