"""What effects cannot be averaged over, said in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medvae.data import CohortError, Roles
from medvae.data.errors import listing, suggestion
from medvae.data.outcome import observed

__all__ = [
    "check_evaluation",
    "check_levels",
    "check_numbers",
    "check_outcome",
    "check_regions",
    "known_outcomes",
]

Array = npt.NDArray[np.float64]

LEAST = 5  # test subjects of an arm with their outcome, to score predictions by
MOST_LEVELS = 12  # of a column of groups: each is a map, or a row of a table


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
    check_levels(subjects, groups)


def check_levels(subjects: pd.DataFrame, groups: Sequence[str]) -> None:
    """Refuse a column of groups that is none of the table, or of too many levels.

    Raises:
        CohortError: in one sentence.
    """
    for name in groups:
        if name not in subjects:
            raise CohortError(
                f"Column '{name}' of groups is not in the table; "
                f"{suggestion(name, map(str, subjects))}"
            )
        if (count := subjects[name].nunique()) > MOST_LEVELS:
            raise CohortError(
                f"Column '{name}' of groups has {count} values; expected at most {MOST_LEVELS}, as "
                "the effect is written for each."
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


def check_outcome(
    outcome: Sequence[str] | str | None,
    image_covariate: bool = True,
    true_outcomes: Mapping[Any, Sequence[str]] | None = None,
    augmentation: Sequence[Any] = (),
    **of_images: Any,
) -> None:
    """Refuse keys of a bundle that make no sense together, before anything is read.

    Args:
        outcome: columns; None: the image.
        image_covariate: whether the image is a covariate of an outcome of columns.
        true_outcomes: see `NumberEvaluation`.
        augmentation: transforms of training images.
        of_images: keys that ask for what only an image as the outcome has, by their names.

    Raises:
        CohortError: in a sentence that names the keys.
    """
    if outcome is None:
        if not image_covariate:
            raise CohortError(
                "image_covariate is false and outcome is null, so that the image is the outcome; "
                "expected columns in outcome, or image_covariate true."
            )
        if true_outcomes:
            raise CohortError(
                "true_outcomes is given and outcome is null; expected columns in outcome, or for "
                "images the key truth."
            )
        return
    if not image_covariate:
        of_images = of_images | {"augmentation": augmentation}
    for key, value in of_images.items():
        if value:
            why = "and no image is read" if key == "augmentation" else "which are no image"
            raise CohortError(
                f"{key} is given and outcome is {outcome!r}, {why}; expected {key} empty, or "
                "outcome null."
            )


def check_numbers(
    roles: Roles,
    groups: Sequence[str] = (),
    true_outcomes: Mapping[Any, Sequence[str]] | None = None,
) -> None:
    """Refuse, before training, what a `NumberEvaluation` cannot compute.

    Raises:
        CohortError: too few test subjects of an arm have the outcome, a group is no column or one
            of too many levels, or true outcomes are not of every arm and outcome, or no numbers.
    """
    table = roles.cohort.subjects
    check_levels(table, groups)
    arms, test = roles.values(table)[0], (table["split"] == "test").to_numpy()
    for number, arm in enumerate(roles.arms):
        count = int((test & (arms == number) & np.isfinite(roles.numbers()).all(1)).sum())
        if count < LEAST:
            raise CohortError(
                f"{count} test row(s) of the arm {arm!r} have the outcome "
                f"{', '.join(roles.outcomes)}; expected at least {LEAST}."
            )
    known_outcomes(roles, true_outcomes)


def known_outcomes(roles: Roles, true_outcomes: Mapping[Any, Sequence[str]] | None) -> Array | None:
    """Return true outcomes in every arm, (T, N, Q), in their own units; None: not known."""
    if not true_outcomes:
        return None
    given = {str(arm): [c] if isinstance(c, str) else list(c) for arm, c in true_outcomes.items()}
    arms, count = [str(arm) for arm in roles.arms], len(roles.outcomes)
    if sorted(given) != sorted(arms) or any(len(columns) != count for columns in given.values()):
        raise CohortError(
            f"true_outcomes is {given}; expected for each of the arms {arms} one column for each "
            f"of the outcomes {list(roles.outcomes)}."
        )
    found = []
    for arm in arms:
        values = observed(roles.cohort.subjects, given[arm])
        for name, column in values.items():
            if column.isna().any():
                raise CohortError(f"The true outcome '{name}' is missing; expected all numbers.")
        found.append(values.to_numpy())
    return np.stack(found)
