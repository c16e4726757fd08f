"""Axes that are linear in what was measured, fitted by least squares and not learned by steps."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

__all__ = ["LeastSquares"]

UNBOUNDED = 1e6  # finite: of infinities a difference is NaN


class LeastSquares(nn.Module):
    """Linear in standardised inputs (B, P): (B, K). Learned by steps, until `fit` solves for it.

    Where inputs go together as volumes, surfaces and axis lengths do, thousands of steps end far
    from the best slopes, on training subjects and more so on others. Until then the inputs are
    standardised by their batch, and a hidden layer is added to the line, which the steps get on
    with better.

    A line fitted to many inputs that go together says anything of a subject unlike all others.
    So what it says beyond the range of what it was fitted to, and says of these rows, grows as a
    logarithm alone.

    Args:
        inputs: P.
        outputs: K.
        hidden: width of the hidden layer.
    """

    __jit_unused_properties__ = ("fitted",)

    def __init__(self, inputs: int, outputs: int, hidden: int = 64) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(inputs)
        self.line = nn.Linear(inputs, outputs)
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", torch.full((outputs,), -UNBOUNDED))
        self.register_buffer("high", torch.full((outputs,), UNBOUNDED))
        self.rest = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    @property
    def fitted(self) -> bool:
        """Whether `fit` has been called."""
        return bool((self.low > -UNBOUNDED).any())

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, in single precision also under autocast."""
        if torch.jit.is_scripting():
            return self._forward(x)
        # half precision has three digits, and what nearly agrees is subtracted
        with torch.autocast(x.device.type, enabled=False):
            return self._forward(x.float())

    def _forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        found = self.line(x) + self.rest(x)
        within = found.clamp(self.low, self.high)
        over = found - within
        scale = 0.1 * (self.high - self.low).clamp_min(1e-6)  # of what is known of nobody it is 0
        return within + scale * over.sign() * torch.log1p(over.abs() / scale)

    @torch.jit.unused
    @torch.no_grad()
    def fit(self, x: Tensor, y: Tensor, ridge: float = 1e-3) -> None:
        r"""Solve for the line, and leave out the hidden layer.

        .. math:: \min_w \operatorname{mean}_i (y_i - w^\top\tilde x_i)^2 + \lambda |w|^2

        for each output over the rows where it is known, with standardised inputs
        :math:`\tilde x` (Hoerl and Kennard 1970). An input that does not vary has slope 0; so has
        every input of an output that is known of fewer than two rows.

        Args:
            x: inputs (N, P), as they are in evaluation mode.
            y: outputs (N, K), NaN where missing.
            ridge: the penalty lambda.
        """
        rows, wanted = (part.detach().double().cpu().numpy() for part in (x, y))
        scaler = StandardScaler().fit(rows)
        # what varies less is what single precision rounds
        varies = np.sqrt(scaler.var_) > 1e-5 * (np.abs(scaler.mean_) + 1e-3)
        rows = scaler.transform(rows) * varies
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        self.norm.running_mean.copy_(torch.from_numpy(scaler.mean_))
        self.norm.running_var.copy_(torch.from_numpy(scaler.var_))
        nn.init.ones_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)
        own_scale = np.sqrt(scaler.var_ + self.norm.eps) / scaler.scale_
        for values in (*self.line.parameters(), *self.rest[-1].parameters(), self.low, self.high):
            nn.init.zeros_(values)
        for k, column in enumerate(wanted.T):
            known = ~np.isnan(column)
            if known.sum() > 1:
                model = Ridge(alpha=ridge * known.sum()).fit(rows[known], column[known])
                self.line.weight[k] = torch.from_numpy(model.coef_ * own_scale)
                self.line.bias[k] = float(model.intercept_)
                seen = np.append(model.predict(rows), column[known])
                self.low[k], self.high[k] = float(seen.min()), float(seen.max())
