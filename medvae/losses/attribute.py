"""Attribute regularisation: latent axis k is made to follow attribute k.

Every function takes codes z and attributes a of shape (B, K), column k of one belonging to column
k of the other; NaN marks a missing attribute, which takes its row out of that column alone. Each
returns a scalar: the sum over K of a mean over pairs or rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _check(z: Tensor, attributes: Tensor) -> None:
    if z.ndim != 2 or z.shape != attributes.shape:
        raise ValueError(
            f"codes and attributes must both have shape (B, K), found {tuple(z.shape)} and "
            f"{tuple(attributes.shape)}: select the K regularised axes first"
        )


def _pairs(values: Tensor) -> Tensor:
    """Return values[i] - values[j], shape (B, B, K)."""
    return values.unsqueeze(1) - values.unsqueeze(0)


def _mean_where(values: Tensor, counted: Tensor) -> Tensor:
    """Sum over the last axis of the mean over all other axes where `counted`; empty means 0."""
    dims = tuple(range(values.ndim - 1))
    count = counted.sum(dims).clamp_min(1)
    # where, not multiplication: 0 * NaN is NaN in value and gradient
    return (torch.where(counted, values, torch.zeros_like(values)).sum(dims) / count).sum()


def attribute_regularization(z: Tensor, attributes: Tensor, delta: float = 1.0) -> Tensor:
    r"""Return the published loss of AR-VAE and Attri-VAE.

    .. math:: \sum_k \operatorname{mean}_{ij}
        \left|\tanh(\delta(z_{ik}-z_{jk})) - \operatorname{sgn}(a_{ik}-a_{jk})\right|

    over all pairs, the diagonal included (Pati and Lerch 2021; Attri-VAE equations 7 to 10). Its
    gradient vanishes for pairs that are badly misordered, and tied attributes pull their codes
    together.

    Args:
        z: codes of the regularised axes, shape (B, K).
        attributes: shape (B, K), NaN where missing; only their order matters.
        delta: slope of the comparison of codes.

    Returns:
        A scalar in [0, 2K].
    """
    _check(z, attributes)
    known = ~_pairs(attributes).isnan()
    order = torch.sign(_pairs(attributes.nan_to_num()))
    return _mean_where((torch.tanh(delta * _pairs(z)) - order).abs(), known)


def attribute_ranking(z: Tensor, attributes: Tensor, delta: float = 1.0) -> Tensor:
    r"""Return the logistic pairwise ranking loss (RankNet, Burges et al. 2005).

    .. math:: \sum_k \operatorname{mean}_{a_{ik}>a_{jk}} \log(1+e^{-\delta(z_{ik}-z_{jk})})

    The gradient of a misordered pair grows to delta instead of vanishing, and tied pairs cost
    nothing, so that the samples of one class of a binary attribute stay free to spread.

    Args:
        z: codes of the regularised axes, shape (B, K).
        attributes: shape (B, K), NaN where missing; only their order matters.
        delta: slope of the comparison of codes.
    """
    _check(z, attributes)
    above = _pairs(attributes) > 0  # False where either is NaN
    return _mean_where(F.softplus(-delta * _pairs(z)), above)


def attribute_correlation(z: Tensor, attributes: Tensor) -> Tensor:
    r"""Return :math:`\sum_k 1 - \rho(z_k, a_k)`, Pearson's correlation within the batch.

    Rewards linearity and leaves the scale of the axis to the prior. A column with fewer than two
    known values, or constant, costs 0.

    Args:
        z: codes of the regularised axes, shape (B, K).
        attributes: shape (B, K), NaN where missing.
    """
    _check(z, attributes)
    known = ~attributes.isnan()
    rho, defined = _correlation(z, attributes, known)
    return torch.where(defined, 1.0 - rho, torch.zeros_like(rho)).sum()


def attribute_regression(z: Tensor, attributes: Tensor) -> Tensor:
    r"""Return :math:`\sum_k \operatorname{mean}_i (z_{ik}-a_{ik})^2` over known attributes.

    With attributes scaled to zero mean and unit variance (`medvae.data.AttributeScaler`) the axis
    reads the attribute in units of its standard deviation, which suits a standard normal prior.

    Args:
        z: codes of the regularised axes, shape (B, K).
        attributes: scaled attributes, shape (B, K), NaN where missing.
    """
    _check(z, attributes)
    # the NaN must be gone before the subtraction: its gradient would outlive the mask
    return _mean_where((z - attributes.nan_to_num()).square(), ~attributes.isnan())


def _correlation(x: Tensor, y: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return column-wise Pearson correlations over known rows, and where they are defined."""
    count = known.sum(0).clamp_min(1)

    def centred(values: Tensor) -> Tensor:
        values = torch.where(known, values, torch.zeros_like(values))
        return torch.where(known, values - values.sum(0) / count, torch.zeros_like(values))

    x, y = centred(x), centred(y)
    variances = x.square().sum(0) * y.square().sum(0)
    defined = variances > 1e-12
    scale = torch.where(defined, variances, torch.ones_like(variances)).sqrt()
    return (x * y).sum(0) / scale, defined


def attribute_leakage(free: Tensor, attributes: Tensor) -> Tensor:
    r"""Return how much of the attributes the free axes can be read for, linearly.

    .. math:: \sum_k \sum_d \max(0, \rho(f_d, a_k)^2 - 1/(n-1))

    the squared correlations in the batch less their expectation under independence.

    Args:
        free: codes of the axes tied to no attribute, shape (B, D).
        attributes: shape (B, K), NaN where missing.

    Returns:
        A scalar in [0, D K].
    """
    total = free.new_zeros(())
    for column in attributes.unbind(1):
        known = ~column.isnan()
        count = known.sum().clamp_min(2)
        rho, defined = _correlation(
            free, column.unsqueeze(1).expand_as(free), known.unsqueeze(1).expand_as(free)
        )
        excess = (rho.square() - 1.0 / (count - 1)).clamp_min(0)
        total = total + torch.where(defined, excess, torch.zeros_like(excess)).sum()
    return total


class AttributeRegularizationLoss(nn.Module):
    """Weighted sum of the forms of attribute regularisation; a weight of 0 leaves a form out.

    Binary attributes take the ranking form in place of `correlation` and `regression`, at their
    summed weight: those two would pull every sample of a class to one point.

    Args:
        published: weight of `attribute_regularization`.
        ranking: weight of `attribute_ranking`.
        correlation: weight of `attribute_correlation`.
        regression: weight of `attribute_regression`.
        delta: slope in the published and the ranking form.
        binary: for each of the K attributes whether it has two values; None: none has.
    """

    def __init__(
        self,
        published: float = 0.0,
        ranking: float = 0.0,
        correlation: float = 0.0,
        regression: float = 0.0,
        delta: float = 1.0,
        binary: Sequence[bool] | None = None,
    ) -> None:
        super().__init__()
        if published <= 0 and ranking <= 0 and correlation <= 0 and regression <= 0:
            raise ValueError("at least one form of attribute regularisation needs a weight above 0")
        self.published, self.ranking = published, ranking
        self.correlation, self.regression = correlation, regression
        self.delta = delta
        self.binary = None if binary is None else tuple(bool(b) for b in binary)

    def _linear(self, z: Tensor, attributes: Tensor) -> Tensor:
        total = z.new_zeros(())
        if self.correlation > 0:
            total = total + self.correlation * attribute_correlation(z, attributes)
        if self.regression > 0:
            total = total + self.regression * attribute_regression(z, attributes)
        return total

    def forward(self, z: Tensor, attributes: Tensor) -> Tensor:
        """Return the weighted sum for codes and attributes of shape (B, K)."""
        _check(z, attributes)
        z = z.float()
        total = z.new_zeros(())
        if self.published > 0:
            total = total + self.published * attribute_regularization(z, attributes, self.delta)
        if self.ranking > 0:
            total = total + self.ranking * attribute_ranking(z, attributes, self.delta)
        if self.correlation <= 0 and self.regression <= 0:
            return total
        if self.binary is None or not any(self.binary):
            return total + self._linear(z, attributes)
        binary = torch.tensor(self.binary, device=z.device)
        weight = self.correlation + self.regression
        ranked = attribute_ranking(z[:, binary], attributes[:, binary], self.delta)
        return total + self._linear(z[:, ~binary], attributes[:, ~binary]) + weight * ranked
