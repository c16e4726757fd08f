"""The objective of encoders with subspaces: every factor in its own, and none in the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvae.losses.dependence import SubspaceDependenceLoss
from medvae.losses.factors import FactorLoss

if TYPE_CHECKING:
    from medvae.networks import SubspaceOutput

__all__ = ["LabelledDependence", "SubspaceLoss", "encode_factors"]


class LabelledDependence(nn.Module):
    """A dependence loss of subspaces that is told what it asks for of the labels.

    Args:
        dependence: called with the codes of all subspaces and, as it asks, `label`, `targets` or
            `factors`; such as `SubspaceDependenceLoss`.
        classes: how many classes every factor has, in order; 1 for a continuous one.
        given: factors given which the subspaces are to be independent, because they go together in
            the population: within combinations of classes, and of continuous ones as covariates, of
            which the `SubspaceDependenceLoss` must have been told how many.

    Raises:
        ValueError: for a factor in `given` that is unknown, or a loss that takes no conditions.
    """

    def __init__(
        self, dependence: nn.Module, classes: Mapping[str, int], given: Sequence[str] = ()
    ) -> None:
        super().__init__()
        for name in given:
            if name not in classes:
                raise ValueError(f"given has '{name}'; expected factors among {list(classes)}")
        names = list(classes)
        self._covariates = [names.index(name) for name in given if classes[name] == 1]
        taken = getattr(dependence, "covariates", None)
        if given and taken != len(self._covariates):
            raise ValueError(
                f"given is {list(given)}, of which {len(self._covariates)} continuous; expected a "
                f"SubspaceDependenceLoss with as many covariates, found "
                f"{type(dependence).__name__} with {taken}"
            )
        self.dependence, self.classes, self.given = dependence, dict(classes), tuple(given)

    def forward(
        self, subspaces: Sequence[Tensor], factors: Tensor, subject: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the loss and what to log.

        Args:
            subspaces: codes, (B, d) each.
            factors: class numbers or standardised values, shape (B, K), NaN where missing.
            subject: see `SubspaceDependenceLoss`; other losses do not ask for it.
        """
        conditions: dict[str, Any] = {}
        if isinstance(self.dependence, SubspaceDependenceLoss):
            conditions["subject"] = subject
        if any(self.classes[name] > 1 for name in self.given):
            conditions["label"] = self._cell(factors)
        if self._covariates:
            conditions["covariates"] = factors[:, self._covariates]
        if getattr(self.dependence, "targets", None):
            conditions["targets"] = encode_factors(factors, list(self.classes.values()))
        if getattr(self.dependence, "asks_factors", False):
            conditions["factors"] = factors
        return self.dependence(subspaces, **conditions)

    def _cell(self, factors: Tensor) -> Tensor:
        """Return the number of each sample's combination of classes; -1 where one is missing."""
        cell = torch.zeros_like(factors[:, 0])
        for name, count in self.classes.items():
            if name in self.given and count > 1:
                cell = cell * count + factors[:, list(self.classes).index(name)]
        return torch.where(cell.isnan(), -1.0, cell)


class SubspaceLoss(nn.Module):
    """Mean loss of the factors + dependence of the subspaces.

    Args:
        factor_loss: of the heads.
        dependence: see `LabelledDependence`; None: none.
        sizes: of the subspaces, in the order of the codes.
        classes: see `LabelledDependence`.
        weight: of the dependence; schedules change it.
        given: see `LabelledDependence`.

    Raises:
        ValueError: see `LabelledDependence`.
    """

    def __init__(
        self,
        factor_loss: FactorLoss,
        dependence: nn.Module | None,
        sizes: Mapping[str, int],
        classes: Mapping[str, int],
        weight: float = 1.0,
        given: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.factor_loss = factor_loss
        self.dependence = (
            None if dependence is None else LabelledDependence(dependence, classes, given)
        )
        self.sizes, self.weight = list(sizes.values()), weight

    def get_extra_state(self) -> dict[str, float]:
        """Return the weight, as schedules have changed it."""
        return {"weight": self.weight}

    def set_extra_state(self, state: dict[str, float]) -> None:
        """Go on from the weight of a checkpoint."""
        self.weight = state["weight"]

    def forward(
        self,
        output: SubspaceOutput,
        image: Tensor,
        factors: Tensor,
        subject: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the loss and its terms.

        Args:
            output: of a `SubspaceEncoder`.
            image: not needed; what the encoder was given.
            factors: class numbers or standardised values, shape (B, K), NaN where missing.
            subject: whose image each is, see `SubspaceDependenceLoss`; None: not known.

        Returns:
            loss: a scalar. factors, NAME, dependence, effective_rank_0, ...: to log.
        """
        of_factors = self.factor_loss(output.logits, factors)
        terms = {"factors": of_factors.pop("loss"), **of_factors}
        if self.dependence is None:
            return {"loss": terms["factors"], **terms}
        found = self.dependence(output.codes.split(self.sizes, 1), factors, subject)
        dependence = self.weight * found.pop("loss")
        return {"loss": terms["factors"] + dependence, **terms, "weighted": dependence, **found}


def encode_factors(factors: Tensor, classes: Sequence[int]) -> Tensor:
    """Return factors side by side as sets of columns, NaN where missing.

    Distances between one-hot classes are all the same, as those of classes without order should be.

    Args:
        factors: class numbers or standardised values, shape (B, K), NaN where missing.
        classes: how many classes each has; 1 for a continuous one, which stays as it is.

    Returns:
        Shape (B, sum of `classes`).
    """
    columns = []
    for values, count in zip(factors.unbind(1), classes, strict=True):
        if count == 1:
            columns.append(values[:, None])
            continue
        one_hot = F.one_hot(values.nan_to_num(0.0).long(), count).to(values.dtype)
        columns.append(torch.where(values.isnan()[:, None], torch.nan, one_hot))
    return torch.cat(columns, 1)
