"""Between AnnData and tensors: fields, checks, conditions by name, the latent data set, counts."""

from ._conditions import ConditionVocabulary
from ._counts import sample_counts, transport_counts
from ._fields import CONDITIONS_KEY, ConditionsField, CountsField, LabelsField, check_counts, scvi_fields
from ._latents import LatentData, TrainingTable
from ._perturbations import PerturbationCoder, Treatment

__all__ = [
    "CONDITIONS_KEY",
    "ConditionVocabulary",
    "ConditionsField",
    "CountsField",
    "LabelsField",
    "LatentData",
    "PerturbationCoder",
    "TrainingTable",
    "Treatment",
    "check_counts",
    "sample_counts",
    "scvi_fields",
    "transport_counts",
]
