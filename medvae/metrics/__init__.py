"""Metrics of codes, images, class predictions and maps, each beside its chance.

Numpy in, numbers out; those of maps, which ask the network again, take and give tensors.
"""

from .classification import accuracy, balanced_accuracy, classification_report, roc_auc
from .disentanglement import (
    interpretability,
    mig,
    modularity,
    sap,
    scc,
)
from .generation import psnr, rbf_mmd, rbf_mmd_chance, ssim
from .importance import DCI, dci
from .information import entropy, is_discrete, mutual_information
from .intervals import (
    Interval,
    bootstrap_rows,
    half_sample_interval,
    half_sample_rows,
    percentile_interval,
)
from .localisation import deletion_area, localisation
from .peer import raw_attribute_classifier
from .prediction import prediction_r2
from .report import disentanglement_report

__all__ = [
    "DCI",
    "Interval",
    "accuracy",
    "balanced_accuracy",
    "bootstrap_rows",
    "classification_report",
    "dci",
    "deletion_area",
    "disentanglement_report",
    "entropy",
    "half_sample_interval",
    "half_sample_rows",
    "interpretability",
    "is_discrete",
    "localisation",
    "mig",
    "modularity",
    "mutual_information",
    "percentile_interval",
    "prediction_r2",
    "psnr",
    "raw_attribute_classifier",
    "rbf_mmd",
    "rbf_mmd_chance",
    "roc_auc",
    "sap",
    "scc",
    "ssim",
]
