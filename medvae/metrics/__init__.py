"""Metrics of codes, images, class predictions and maps, each beside its chance.

Numpy in, numbers out; those of maps, which ask the network again, take and give tensors.
"""

from .banks import Sample
from .classification import accuracy, balanced_accuracy, classification_report, roc_auc
from .counterfactual import (
    EditChanges,
    associations,
    attribute_stability,
    co_acting,
    mean_with_interval,
)
from .dependence import dependence_report
from .disentanglement import (
    interpretability,
    mig,
    modularity,
    sap,
    scc,
)
from .effect_baselines import (
    combat,
    difference_of_means,
    inverse_propensity,
    regression,
    t_learner,
)
from .effects import (
    EffectEstimate,
    ate,
    e_value,
    effect_report,
    estimate_ate,
    marginal_sensitivity,
    pehe,
    region_means,
)
from .generation import active_axes, grain, psnr, rbf_mmd, rbf_mmd_chance, ssim
from .importance import DCI, dci
from .information import entropy, is_discrete, mutual_information
from .intervals import (
    Interval,
    bootstrap_rows,
    half_sample_interval,
    half_sample_rows,
    percentile_interval,
)
from .leakage import leakage_matrix, leakage_report
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
from .neighbours import KnnLeakage, knn_leakage
from .overlap import (
    Propensity,
    outside_overlap,
    overlap_report,
    propensity,
    treatment_predictability,
)
from .peer import raw_attribute_classifier
from .prediction import prediction_r2
from .raters import agreement_report, fleiss_kappa, krippendorff_alpha
from .realism import (
    Kid,
    PrecisionRecall,
    degraded,
    diversity,
    fid,
    kid,
    ms_ssim,
    precision_recall,
    realism_report,
)
from .report import disentanglement_report
from .swaps import judge_swaps

__all__ = [
    "Agreement",
    "DCI",
    "EditChanges",
    "EffectEstimate",
    "Interval",
    "Kid",
    "KnnLeakage",
    "PrecisionRecall",
    "Propensity",
    "Sample",
    "accuracy",
    "active_axes",
    "agreement",
    "agreement_report",
    "associations",
    "attribute_stability",
    "ate",
    "balanced_accuracy",
    "bootstrap_rows",
    "change_outside",
    "classification_report",
    "co_acting",
    "combat",
    "control",
    "dci",
    "degraded",
    "deletion_area",
    "dependence_report",
    "difference_of_means",
    "disentanglement_report",
    "diversity",
    "e_value",
    "effect_report",
    "entropy",
    "estimate_ate",
    "fid",
    "fleiss_kappa",
    "grain",
    "half_sample_interval",
    "half_sample_rows",
    "interpretability",
    "inverse_propensity",
    "is_discrete",
    "judge_swaps",
    "kid",
    "knn_leakage",
    "krippendorff_alpha",
    "leakage_matrix",
    "leakage_report",
    "localisation",
    "manipulation_report",
    "marginal_sensitivity",
    "mean_with_interval",
    "mig",
    "modularity",
    "ms_ssim",
    "mutual_information",
    "natural_effects",
    "outside_overlap",
    "overlap_report",
    "pehe",
    "percentile_interval",
    "precision_recall",
    "prediction_r2",
    "propensity",
    "psnr",
    "raw_attribute_classifier",
    "rbf_mmd",
    "rbf_mmd_chance",
    "real_range",
    "realism_report",
    "region_means",
    "regression",
    "return_error",
    "roc_auc",
    "sap",
    "scc",
    "ssim",
    "sweep_effects",
    "t_learner",
    "treatment_predictability",
]
