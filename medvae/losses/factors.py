"""What every labelled subspace must predict: masked losses of categorical to continuous factors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvae.data.factor import KINDS, Kind

__all__ = ["FactorLoss", "factor_predictions"]


class FactorLoss(nn.Module):
    r"""Mean over factors of the mean loss over the samples whose label is known.

    Categorical: cross-entropy of C logits. Ordinal: mean binary cross-entropy of the C - 1
    questions "is the class above c?", whose probabilities are sums of those of the C classes, so
    that a distant class costs more than a near one. Continuous: squared error of standardised
    values.

    Args:
        kinds: of every factor by its name, in the order of the columns of `factors`.
        outputs: logits of every factor: C, or 1 of a continuous one.

    Raises:
        ValueError: for an unknown kind or names that differ.
    """

    def __init__(self, kinds: Mapping[str, Kind], outputs: Mapping[str, int]) -> None:
        super().__init__()
        if list(kinds) != list(outputs):
            raise ValueError(f"kinds are of {list(kinds)} and outputs of {list(outputs)}")
        for name, kind in kinds.items():
            if kind not in KINDS:
                raise ValueError(f"factor '{name}' is {kind!r}; expected one of {KINDS}")
        self.kinds, self.outputs = dict(kinds), dict(outputs)

    def forward(self, logits: Tensor, factors: Tensor) -> dict[str, Tensor]:
        """Return the loss and what to log.

        Args:
            logits: of all heads side by side, shape (B, sum of outputs).
            factors: class numbers or standardised values, shape (B, K), NaN where missing.

        Returns:
            loss: a scalar; 0, with a gradient of 0, where no label is known.
            NAME: the loss of that factor, without gradient.
        """
        parts = logits.float().split(list(self.outputs.values()), 1)
        total, terms = logits.sum() * 0.0, {}
        for (name, kind), part, target in zip(
            self.kinds.items(), parts, factors.unbind(1), strict=True
        ):
            known = ~target.isnan()
            if not known.any():
                terms[name] = total.detach() * 0.0
                continue
            term = _loss(kind, part[known], target[known])
            total, terms[name] = total + term / len(self.kinds), term.detach()
        return {"loss": total, **terms}


def _loss(kind: Kind, logits: Tensor, target: Tensor) -> Tensor:
    if kind == "categorical":
        return F.cross_entropy(logits, target.long())
    if kind == "ordinal":
        return _ordinal(logits, target.long())
    return F.mse_loss(logits[:, 0], target.to(logits.dtype))


def _ordinal(logits: Tensor, target: Tensor) -> Tensor:
    log_p = logits.log_softmax(1)
    at_most = log_p.logcumsumexp(1)[:, :-1]
    above = log_p.flip(1).logcumsumexp(1).flip(1)[:, 1:]
    steps = torch.arange(above.shape[1], device=logits.device)
    return -torch.where(target[:, None] > steps, above, at_most).mean()


def factor_predictions(kind: Kind, logits: Tensor) -> Tensor:
    """Return class probabilities (B, C), or values (B, 1), from the logits of one factor."""
    return logits if kind == "continuous" else logits.softmax(1)
