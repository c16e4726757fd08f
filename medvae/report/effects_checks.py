"""What effects cannot be averaged over, said in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from medvae.data import CohortError
from medvae.data.errors import listing, suggestion

__all__ = ["check_evaluation", "check_regions"]

MOST_LEVELS = 12  # of a column of groups: each is a map


def check_evaluation(
    subjects: pd.DataFrame, region: Sequence[int] | None = None, groups: Sequence[str] = ()
) -> None:
    """Refuse, before training, what an `EffectEvaluation` cannot average over.

    Args:
        subjects: the cohort's table.
        region: see `EffectEvaluation`, as the next.
        groups: columns.

    Raises:
        CohortError: masks are missing where a region is asked for, or of some subjects alone: the
            region would be the whole image; or a group is no column, or one of too many levels.
    """
    has = subjects["mask"].notna() if "mask" in subjects else pd.Series(False, subjects.index)
    if not has.all() and (has.any() or region is not None):
        asked = "the mask" if region is None else f"region {list(region)} of the mask"
        raise CohortError(
            f"Column 'mask' has none for {listing(subjects['id'][~has])}, and effects are averaged "
            f"in {asked}; expected a mask of every subject"
            + (", or of none." if region is None else ".")
        )
    for name in groups:
        if name not in subjects:
            raise CohortError(
                f"Column '{name}' of groups is not in the table; "
                f"{suggestion(name, map(str, subjects))}"
            )
        if (count := subjects[name].nunique()) > MOST_LEVELS:
            raise CohortError(
                f"Column '{name}' of groups has {count} values; expected at most {MOST_LEVELS}, as "
                "a map of the effect is written for each."
            )


def check_regions(
    regions: npt.NDArray[np.float64],
    parts: Mapping[str, npt.NDArray[np.bool_]],
    region: Sequence[int] | None = None,
) -> None:
    """Refuse a region that no mask of a part of the subjects has.

    Args:
        regions: 1 inside and 0 outside, shape (N, *S).
        parts: rows of each part by its name, shape (N,).
        region: the mask's values; None: all but 0.

    Raises:
        CohortError: in one sentence that names the key.
    """
    found = regions.reshape(len(regions), -1).max(1) > 0
    asked = "all but 0" if region is None else list(region)
    for name, rows in parts.items():
        if not found[rows].any():
            raise CohortError(
                f"The region is {asked}, and no mask {name} has it; expected values of the "
                "mask (key region) that subjects of every arm have."
            )
