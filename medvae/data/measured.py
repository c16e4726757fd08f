"""One pass over a cohort's files: each is read once, to be checked and to be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from medvae.attributes import feature_names, measure_labels
from medvae.data.errors import CohortError, FileError, first_of_a_kind, suggestion
from medvae.data.files import Volume, check_grid, read_image, read_mask

__all__ = ["MaskLabels", "check_and_measure"]

MaskLabels = Mapping[str, int | Sequence[int]]

ENOUGH_PROBLEMS = 20  # subjects; the rest of a large cohort need not be read to stop


def check_and_measure(
    subjects: pd.DataFrame,
    names: Sequence[str] = (),
    spatial_dims: int = 3,
    in_channels: int = 1,
    mask_labels: MaskLabels | None = None,
    needs_mask: bool | None = None,
    bin_count: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Read the image and mask of every subject.

    Args:
        subjects: a table, see :func:`medvae.data.load_subjects`.
        names: the attributes to measure, of ``medvae.attributes.feature_names(spatial_dims,
            mask_labels)``. Intensities of an image with several channels are those of their mean.
        spatial_dims: 2 or 3.
        in_channels: how many channels every image must have.
        mask_labels: the integers of the mask that each named label stands for; without them all
            that is not 0 is one object, whose features have no prefix.
        needs_mask: whether every subject must have a mask; ``None``: the table must if something
            is measured, and a subject without one has NaN; ``False``: masks are not even read,
            unless something is measured.
        bin_count: grey levels of the texture features, see :func:`medvae.attributes.measure`.
        progress: show a bar.

    Returns:
        A copy of ``subjects`` with a column of floats for every name. A label that is absent from
        a subject's mask leaves NaN.

    Raises:
        CohortError: the first problem in a file, with the subjects it recurs in.
    """
    known = feature_names(spatial_dims, mask_labels)
    for name in names:
        if name not in known:
            raise CohortError(f"Attribute '{name}' cannot be measured; {suggestion(name, known)}")
    if (names or needs_mask) and "mask" not in subjects:
        uses = "as the configuration uses masks (keys such as regions, region, measured, truth)"
        purpose = f"to measure '{names[0]}'" if names else uses
        raise CohortError(f"Column 'mask' is not in the table; expected one {purpose}.")
    read_masks = "mask" in subjects and (bool(names) or needs_mask is not False)
    problems: list[FileError] = []
    rows: list[dict[str, float]] = []
    title = "checking and measuring" if names else "checking"
    with tqdm(total=len(subjects), desc=title, unit="subject", disable=not progress) as bar:
        for row in subjects.to_dict("records"):
            try:
                image = read_image(row["image"], spatial_dims, in_channels)
                mask = _mask_of(row, image, bool(needs_mask)) if read_masks else None
            except FileError as problem:
                problem.subject = str(row["id"])
                problems.append(problem)
                if len(problems) == ENOUGH_PROBLEMS:
                    break
            else:
                rows.append(dict.fromkeys(names, np.nan))
                if names and mask is not None:
                    rows[-1] |= _measured(row["id"], image, mask, names, mask_labels, bin_count)
            bar.update()
    if problems:
        raise first_of_a_kind(problems, len(problems) == ENOUGH_PROBLEMS) from problems[0]
    measured = pd.DataFrame(rows, columns=list(names), index=subjects.index, dtype=float)
    return subjects.assign(**{name: measured[name] for name in names})


def _mask_of(row: Mapping[Any, Any], image: Volume, needed: bool) -> Volume | None:
    if pd.isna(row["mask"]):
        if needed:
            raise FileError("no mask", "image", row["image"], "has no mask", "one in column 'mask'")
        return None
    mask = read_mask(row["mask"], image.voxels.ndim - 1)
    check_grid(image, mask, row["image"], row["mask"])
    return mask


def _measured(
    subject: str,
    image: Volume,
    mask: Volume,
    names: Sequence[str],
    mask_labels: MaskLabels | None,
    bin_count: int | None,
) -> dict[str, float]:
    grey = image.voxels[0] if len(image.voxels) == 1 else image.voxels.mean(axis=0)
    spacing = image.spacing_mm(grey.ndim)
    try:
        return measure_labels(
            grey, mask.voxels, spacing, mask_labels, features=names, bin_count=bin_count
        )
    except ValueError as error:
        raise CohortError(f"Subject '{subject}' cannot be measured: {error}") from error
