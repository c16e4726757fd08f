"""What the bundles hand to MONAI's engines: the only training code."""

from medvae.engines.augment import DifferentiableAugmentation
from medvae.engines.beta import (
    BetaChoice,
    beta_of_run,
    choose_beta,
    given_or_chosen,
    known_columns,
    log_likelihood,
)
from medvae.engines.checkpoint import Checkpoint, check_run, finish_run
from medvae.engines.classifier import classify, image_features, train_classifier
from medvae.engines.edited import EditWriter, StylexEvaluationStep
from medvae.engines.encoder import EncoderEvaluationStep, FactorScore, factor_scores
from medvae.engines.explained import trained_classifier
from medvae.engines.gan import GanEvaluationStep, GanStep
from medvae.engines.handlers import (
    History,
    InterpretabilityMetric,
    PredictionWriter,
    ProgressBar,
    read_history,
)
from medvae.engines.intact import (
    CounterfactualWriter,
    IntactEvaluationStep,
    IntactStep,
    ObjectiveScore,
    PrepareTreatment,
    TreatmentData,
    train_intact,
)
from medvae.engines.segmentation import train_segmentation
from medvae.engines.steps import (
    EvaluationStep,
    PrepareAttributes,
    TrainingStep,
    class_probabilities,
)
from medvae.engines.stylex import StylexStep
from medvae.engines.tied import fit_decoder, fit_tied_axes, fit_trained_model

__all__ = [
    "BetaChoice",
    "Checkpoint",
    "CounterfactualWriter",
    "DifferentiableAugmentation",
    "EditWriter",
    "EncoderEvaluationStep",
    "EvaluationStep",
    "FactorScore",
    "GanEvaluationStep",
    "GanStep",
    "History",
    "IntactEvaluationStep",
    "IntactStep",
    "InterpretabilityMetric",
    "PredictionWriter",
    "ObjectiveScore",
    "PrepareAttributes",
    "PrepareTreatment",
    "ProgressBar",
    "StylexEvaluationStep",
    "StylexStep",
    "TrainingStep",
    "TreatmentData",
    "beta_of_run",
    "check_run",
    "choose_beta",
    "class_probabilities",
    "classify",
    "factor_scores",
    "finish_run",
    "fit_decoder",
    "fit_tied_axes",
    "fit_trained_model",
    "given_or_chosen",
    "image_features",
    "known_columns",
    "log_likelihood",
    "read_history",
    "train_classifier",
    "train_intact",
    "train_segmentation",
    "trained_classifier",
]
