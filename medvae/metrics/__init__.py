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
from .generation import active_axes, psnr, rbf_mmd, rbf_mmd_chance, ssim
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
from .manipulation import (
    Agreement,
    agreement,
    change_outside,
    control,
    manipulation_report,
    natural_effects,
    real_range,
    return_error,
    sweep_effects,
)
from .peer import raw_attribute_classifier
from .prediction import prediction_r2
from .report import disentanglement_report

__all__ = [
    "DCI",
    "Agreement",
    "Interval",
    "accuracy",
    "active_axes",
    "agreement",
    "balanced_accuracy",
    "bootstrap_rows",
    "change_outside",
    "classification_report",
    "control",
    "dci",
    "deletion_area",
    "disentanglement_report",
    "entropy",
    "half_sample_interval",
    "half_sample_rows",
    "interpretability",
    "is_discrete",
    "localisation",
    "manipulation_report",
    "mig",
    "modularity",
    "mutual_information",
    "natural_effects",
    "percentile_interval",
    "prediction_r2",
    "psnr",
    "raw_attribute_classifier",
    "rbf_mmd",
    "rbf_mmd_chance",
    "real_range",
    "return_error",
    "roc_auc",
    "sap",
    "scc",
    "ssim",
    "sweep_effects",
]
