"""Evaluating an encoder with subspaces, for MONAI's engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score, r2_score
from torch import Tensor

from medvae.data import Factors
from medvae.engines.handlers import EpochScore
from medvae.engines.steps import EvaluationStep
from medvae.losses import factor_predictions
from medvae.networks import Subspaces

__all__ = ["EncoderEvaluationStep", "FactorScore", "factor_scores"]


class EncoderEvaluationStep(EvaluationStep):
    """One batch through a `SubspaceEncoder` in evaluation, for `SupervisedEvaluator`.

    Returns `pred` (the logits), `logits` (the same), `mean` (the codes) and the batch's targets.

    Args:
        inferers: see `EvaluationStep`, such as `maps` by a `medvae.explain.AttributeMapInferer`.
    """

    def _outputs(self, network: Any, image: Tensor) -> dict[str, Tensor]:
        codes = network.encode(image)
        logits = network.classify(codes)
        return {"pred": logits, "logits": logits, "mean": codes}


def factor_scores(factors: Factors, logits: Tensor, values: np.ndarray) -> dict[str, float]:
    """Return balanced accuracy, or R2 of a continuous factor, of what the heads say.

    Args:
        factors: of the model.
        logits: of all heads side by side, shape (N, O).
        values: class numbers or standardised values, shape (N, K), NaN where missing.

    Returns:
        By the factors' names; NaN where fewer than two rows are known, or one value only.
    """
    parts = Subspaces(factors.outputs).split(logits)
    scores = {}
    for (name, kind), truth in zip(factors.kinds.items(), values.T, strict=True):
        known = ~np.isnan(truth)
        if len(np.unique(truth[known])) < 2:
            scores[name] = float("nan")
            continue
        found = factor_predictions(kind, parts[name][torch.from_numpy(known)]).cpu().numpy()
        if kind == "continuous":
            scores[name] = float(r2_score(truth[known], found[:, 0]))
        else:
            scores[name] = float(balanced_accuracy_score(truth[known], found.argmax(1)))
    return scores


class FactorScore(EpochScore):
    """Mean of `factor_scores` over an epoch, for model selection.

    It does not see leakage: where factors go together in the validation split, so may subspaces.

    Args:
        factors: of the model.
    """

    def __init__(self, factors: Factors) -> None:
        self.factors = factors
        super().__init__("logits", "factors")

    def scores(self, first: Tensor, second: Tensor) -> np.ndarray:
        """Return the score of every factor."""
        return np.array(list(factor_scores(self.factors, first, second.double().numpy()).values()))
