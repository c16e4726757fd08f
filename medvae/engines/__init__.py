"""What the bundles hand to MONAI's engines: the only training code."""

from medvae.engines.augment import DifferentiableAugmentation
from medvae.engines.checkpoint import Checkpoint, check_run, finish_run
from medvae.engines.classifier import classify, image_features, train_classifier
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
from medvae.engines.segmentation import train_segmentation
from medvae.engines.steps import (
    EvaluationStep,
    PrepareAttributes,
    TrainingStep,
    class_probabilities,
)
from medvae.engines.stylex import StylexStep

__all__ = [
    "Checkpoint",
    "DifferentiableAugmentation",
    "EncoderEvaluationStep",
    "EvaluationStep",
    "FactorScore",
    "GanEvaluationStep",
    "GanStep",
    "History",
    "InterpretabilityMetric",
    "PredictionWriter",
    "PrepareAttributes",
    "ProgressBar",
    "StylexStep",
    "TrainingStep",
    "check_run",
    "class_probabilities",
    "classify",
    "factor_scores",
    "finish_run",
    "image_features",
    "read_history",
    "train_classifier",
    "train_segmentation",
    "trained_classifier",
]
