"""What the bundles hand to MONAI's engines: the only training code."""

from medvae.engines.checkpoint import Checkpoint, check_run, finish_run
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

__all__ = [
    "Checkpoint",
    "EvaluationStep",
    "History",
    "InterpretabilityMetric",
    "PredictionWriter",
    "PrepareAttributes",
    "ProgressBar",
    "TrainingStep",
    "check_run",
    "class_probabilities",
    "finish_run",
    "read_history",
    "train_segmentation",
]
