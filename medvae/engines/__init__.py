"""What the bundles hand to MONAI's engines: the only training code."""

from medvae.engines.handlers import (
    History,
    InterpretabilityMetric,
    PredictionWriter,
    ProgressBar,
    read_history,
)
from medvae.engines.steps import (
    EvaluationStep,
    PrepareAttributes,
    TrainingStep,
    class_probabilities,
)

__all__ = [
    "EvaluationStep",
    "History",
    "InterpretabilityMetric",
    "PredictionWriter",
    "PrepareAttributes",
    "ProgressBar",
    "TrainingStep",
    "class_probabilities",
    "read_history",
]
