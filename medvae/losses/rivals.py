"""Other ways to make subspaces independent, to compare the distance correlation with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from medvae.losses.factors import FactorLoss, Kind
from medvae.losses.gather import gather_batch

__all__ = ["AdversarialLeakageLoss", "HSICLoss", "reverse_gradient"]


class HSICLoss(nn.Module):
    r"""Mean normalised HSIC of all pairs of subspaces (Gretton et al. 2005).

    .. math:: \frac{\operatorname{tr}(K H L H)}
        {\sqrt{\operatorname{tr}(K H K H) \operatorname{tr}(L H L H)}}

    with Gaussian kernels of the median distance as width, and H the centring. Biased: above 0
    under independence.
    """

    def forward(self, subspaces: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the loss, and the same without gradient to log, for codes (B, d) each."""
        kernels = [_centred_kernel(gather_batch(part.float())) for part in subspaces]
        scales = [kernel.norm().clamp_min(1e-6) for kernel in kernels]
        values = [
            (kernels[s] * kernels[t]).sum() / (scales[s] * scales[t])
            for s, t in combinations(range(len(kernels)), 2)
        ]
        loss = torch.stack(values).mean()
        return {"loss": loss, "dependence": loss.detach()}


def _centred_kernel(codes: Tensor) -> Tensor:
    squares = (codes[:, None] - codes).square().sum(-1)
    width = squares.detach().median().clamp_min(1e-12)
    kernel = torch.exp(-squares / (2 * width))
    return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()


class AdversarialLeakageLoss(nn.Module):
    """An adversary on every subspace reads the factors of the others; its gradient is reversed.

    Ganin and Lempitsky 2015. The adversaries are part of this module, so the optimizer needs its
    parameters, too; they are trained to read while the encoder is trained to let nothing be read.

    Args:
        sizes: of the subspaces, in order; the labelled ones first.
        kinds: of every factor by its name, in order.
        outputs: logits of every factor.
        hidden: width of the adversaries' two hidden layers.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        kinds: Mapping[str, Kind],
        outputs: Mapping[str, int],
        hidden: int = 64,
    ) -> None:
        super().__init__()
        self.names = list(kinds)
        self.asks_factors = True
        self.loss = FactorLoss(kinds, outputs)
        self.adversaries = nn.ModuleList(
            nn.Sequential(
                nn.Linear(size, hidden),
                nn.ReLU(),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
                nn.Linear(hidden, sum(outputs.values())),
            )
            for size in sizes
        )

    def forward(self, subspaces: Sequence[Tensor], factors: Tensor) -> dict[str, Tensor]:
        """Return the adversaries' mean loss, with reversed gradients for the codes.

        Args:
            subspaces: codes, (B, d) each.
            factors: class numbers or standardised values, (B, K), NaN where missing.
        """
        losses = []
        for index, (part, adversary) in enumerate(zip(subspaces, self.adversaries, strict=True)):
            hidden = factors.clone()
            if index < len(self.names):
                hidden[:, index] = torch.nan  # its own factor is not to be unlearned
            losses.append(self.loss(adversary(reverse_gradient(part)), hidden)["loss"])
        loss = torch.stack(losses).mean()
        return {"loss": loss, "dependence": loss.detach()}


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


def reverse_gradient(x: Tensor) -> Tensor:
    """Return `x`; its gradient comes back with the other sign."""
    return _Reverse.apply(x)
