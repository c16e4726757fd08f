"""Mixed covariates as numbers that a network can read, missing ones included."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CovariateEncoder"]


class CovariateEncoder(nn.Module):
    """Turn covariates (B, K) with missing cells into columns (B, P) without; it learns nothing.

    A continuous covariate becomes its value, 0 where missing (the mean, if standardised), and an
    indicator of being missing. A categorical one becomes one column for each class and one for
    missing, an ordinal one a column for each step that it has reached, 1 for class 1 and above, 1
    for class 2 and above and so on, all 0 where missing, and one for missing. What follows can so
    learn what a missing cell tells, and is never given a NaN.

    Args:
        classes: of every covariate the number of its classes, negative for an ordinal one, 0 for a
            continuous one; or how many covariates there are, all continuous.
        reach: continuous values beyond plus or minus this count as it, so that one cell on a wild
            scale does not outweigh the others.

    Attributes:
        columns: how many there are, P.

    Raises:
        ValueError: one class only.
    """

    def __init__(self, classes: Sequence[int] | int, reach: float = 8.0) -> None:
        super().__init__()
        self.classes = (0,) * classes if isinstance(classes, int) else tuple(classes)
        wrong = [count for count in self.classes if abs(count) == 1]
        if wrong:
            raise ValueError(
                f"covariates must have 0 (continuous) or at least 2 classes, found {abs(wrong[0])}"
            )
        self.reach = reach
        self.columns = sum(_columns(count) for count in self.classes)

    def forward(self, values: Tensor) -> Tensor:
        """Return the columns.

        Args:
            values: standardised values or class numbers from 0, NaN where missing, shape (B, K).

        Raises:
            ValueError: for another number of covariates, or a value that is no class's number.
        """
        if values.dim() != 2 or values.shape[1] != len(self.classes):
            raise ValueError(
                f"covariates must have shape (B, {len(self.classes)}), found {tuple(values.shape)}"
            )
        parts = [values[:, :0]]
        for place, (value, count) in enumerate(zip(values.unbind(1), self.classes, strict=True)):
            missing = value.isnan()
            if count:
                _check_classes(value[~missing], abs(count), place)
            if count > 0:
                number = torch.where(missing, count, value).long()
                parts.append(F.one_hot(number, count + 1).to(values.dtype))
            elif count < 0:
                steps = torch.arange(1, -count, device=values.device)
                reached = [value[:, None] >= steps, missing[:, None]]  # NaN reaches none
                parts.append(torch.cat(reached, 1).to(values.dtype))
            else:
                known = value.clamp(-self.reach, self.reach).nan_to_num(nan=0.0)
                parts.append(torch.stack([known, missing.to(values.dtype)], 1))
        return torch.cat(parts, 1)


def _columns(count: int) -> int:
    if count > 0:
        return count + 1
    return -count if count else 2


def _check_classes(known: Tensor, count: int, place: int) -> None:
    wrong = known[(known != known.floor()) | (known < 0) | (known >= count)]
    if len(wrong):
        raise ValueError(
            f"covariate {place} must hold class numbers, 0 to {count - 1}, or NaN, found "
            f"{wrong[0]:g}"
        )
