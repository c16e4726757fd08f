"""Axes that are linear in what was measured, fitted by least squares and not learned by steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LeastSquares", "Moments"]


class Moments:
    """Sums over rows of inputs x (N, P) and targets y (N, K), from which regressions follow.

    Added up in double precision, for each target over the rows where it is known; rows come in
    batches.

    Args:
        inputs: P.
        targets: K.
    """

    def __init__(self, inputs: int, targets: int) -> None:
        self.products = torch.zeros(targets, inputs + 2, inputs + 2, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows; NaN in y marks what is missing."""
        x, y = x.detach().double().cpu(), y.detach().double().cpu()
        for sums, column in zip(self.products, y.unbind(1), strict=True):
            known = ~column.isnan()
            rows = torch.cat([torch.ones(len(x), 1), x, column.unsqueeze(1)], 1)[known]
            sums += rows.T @ rows

    @property
    def mean(self) -> Tensor:
        """Means of the inputs (P,) over the rows of the target that most is known of."""
        sums = self._fullest
        return sums[0, 1:-1] / sums[0, 0]

    @property
    def variance(self) -> Tensor:
        """Their variances (P,)."""
        sums = self._fullest
        return (sums.diagonal()[1:-1] / sums[0, 0] - self.mean.square()).clamp_min(0)

    @property
    def _fullest(self) -> Tensor:
        return self.products[self.products[:, 0, 0].argmax()]

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        r"""Return slopes (K, P) and intercepts (K,) of the regressions.

        .. math:: \min_w \operatorname{mean}_i (y_i - w^\top\tilde x_i)^2 + \lambda |w|^2

        with standardised inputs :math:`\tilde x` (Hoerl and Kennard 1970). An input that does not
        vary has slope 0; so has every input of a target that is known of fewer than two rows.
        """
        targets, inputs = len(self.products), self.products.shape[1] - 2
        slopes = torch.zeros(targets, inputs, dtype=torch.float64)
        intercepts = torch.zeros(targets, dtype=torch.float64)
        for k, sums in enumerate(self.products):
            count = sums[0, 0]
            if count < 2:
                continue
            mean = sums[0] / count
            covariance = sums / count - torch.outer(mean, mean)
            x, y = slice(1, -1), -1
            scale = covariance.diagonal()[x].clamp_min(0).sqrt()
            varies = scale > 1e-5 * (mean[x].abs() + 1e-3)  # less is what float32 rounds
            scale = torch.where(varies, scale, torch.inf)
            correlation = covariance[x, x] / torch.outer(scale, scale)
            correlation += torch.diag(torch.where(varies, ridge, 1.0))
            slopes[k] = torch.linalg.solve(correlation, covariance[x, y] / scale) / scale
            intercepts[k] = mean[y] - slopes[k] @ mean[x]
        return slopes, intercepts


class LeastSquares(nn.Module):
    """Linear in standardised inputs (B, P): (B, K). Learned by steps, until `fit` solves for it.

    Where inputs go together as volumes, surfaces and axis lengths do, thousands of steps end far
    from the best slopes, on training subjects and more so on others. Until then the inputs are
    standardised by their batch, and a hidden layer is added to the line, which the steps get on
    with better.

    Args:
        inputs: P.
        outputs: K.
        hidden: width of the hidden layer.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int = 64) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(inputs)
        self.line = nn.Linear(inputs, outputs)
        self.rest = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, in single precision also under autocast."""
        if torch.jit.is_scripting():
            return self._forward(x)
        # half precision has three digits, and what nearly agrees is subtracted
        with torch.autocast(x.device.type, enabled=False):
            return self._forward(x.float())

    def _forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.line(x) + self.rest(x)

    @torch.jit.unused
    @torch.no_grad()
    def fit(self, moments: Moments, ridge: float = 1e-3) -> None:
        """Take the regressions that moments (of the inputs in evaluation mode) give."""
        mean, slopes, intercepts = moments.mean, *moments.solve(ridge)
        nn.init.ones_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)
        variance = moments.variance
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        self.norm.running_mean.copy_(mean)
        self.norm.running_var.copy_(variance)
        self.line.weight.copy_(slopes * (variance + self.norm.eps).sqrt())
        self.line.bias.copy_(intercepts + slopes @ mean)
        for parameter in self.rest[-1].parameters():
            nn.init.zeros_(parameter)
