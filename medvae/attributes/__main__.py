"""The command ``medvae-attributes``: adds measured attributes to a table of subjects."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medvae.attributes import ejection_fraction, feature_names
from medvae.data.errors import CohortError, listing, or_exit
from medvae.data.measured import MaskLabels, check_and_measure
from medvae.data.output import check_overwrite, check_writable, write_text
from medvae.data.subjects import FILE_COLUMNS, load_subjects, read_table

__all__ = ["add_attributes", "main"]


def add_attributes(
    csv: str | Path,
    output: str | Path,
    mask_labels: MaskLabels | None = None,
    features: Sequence[str] | None = None,
    spatial_dims: int = 3,
    in_channels: int = 1,
    bin_count: int | None = None,
    pair: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Write a copy of a subjects table with a column for every measured attribute.

    All other cells stay as they are, but for relative paths, which are rewritten where ``output``
    lies in another folder. A subject without a mask, or without a label, has empty cells.

    Args:
        csv: the table, see :func:`medvae.data.load_subjects`.
        output: the table to write, whole or not at all.
        mask_labels: the integers of the mask that each named label stands for; without them all
            that is not 0 is one object.
        features: the features to measure, each on every label; by default all but the wall
            thickness.
        spatial_dims: 2 or 3.
        in_channels: channels that every image must have.
        bin_count: grey levels of the texture features, see :func:`medvae.attributes.measure`.
        pair: the column that has one value in both rows of a heart, its phases: adds
            `ejection_fraction` of every label's voxel volume, to both.
        overwrite: replace ``output`` if it exists, and columns of the same name.
        progress: show a bar.

    Returns:
        The subjects with the new columns, as :func:`medvae.data.check_and_measure`.

    Raises:
        CohortError: bad input, in one sentence; nothing is written then.
    """
    check_writable(Path(output).parent)
    check_overwrite([output], overwrite)
    subjects, table = load_subjects(csv), read_table(csv, dtype=str, na_values=[])
    names = _names(spatial_dims, mask_labels, features)
    volumes = _paired_volumes(names, subjects, pair) if pair else []
    fractions = [name.replace("voxel_volume_ml", "ejection_fraction") for name in volumes]
    present = [name for name in [*names, *fractions] if name in table]
    if present and not overwrite:
        raise CohortError(
            f"The table '{csv}' already has the columns {listing(present)}; "
            "expected other features, or the option overwrite."
        )
    measured = check_and_measure(
        subjects,
        names,
        spatial_dims,
        in_channels,
        mask_labels,
        bin_count=bin_count,
        progress=progress,
    )
    for name, volume in zip(fractions, volumes, strict=True):
        measured[name] = measured.groupby(pair)[volume].transform(_ejected)
    source, target = Path(csv).absolute().parent, Path(output).absolute().parent
    for column in (column for column in FILE_COLUMNS if column in table):
        table[column] = [_moved(cell, source, target) for cell in table[column]]
    cells = {
        name: ["" if np.isnan(x) else repr(x) for x in measured[name]]
        for name in [*names, *fractions]
    }
    separator = "\t" if str(output).lower().endswith(".tsv") else ","
    write_text(output, table.assign(**cells).to_csv(index=False, sep=separator))
    return measured


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; bad input ends it with one sentence and exit code 1."""
    parser = argparse.ArgumentParser(prog="medvae-attributes", description=__doc__)
    parser.add_argument("csv", help="table with the columns id, image, mask and any others")
    parser.add_argument("--output", required=True, help="table to write")
    parser.add_argument(
        "--label",
        action="append",
        metavar="NAME=VALUE[,VALUE]",
        help="a mask label to measure, e.g. lv=3; repeat for others (default: all that is not 0)",
    )
    parser.add_argument(
        "--features", nargs="+", metavar="FEATURE", help="default: all but wall_thickness_mm"
    )
    parser.add_argument("--spatial-dims", type=int, choices=(2, 3), default=3)
    parser.add_argument("--in-channels", type=int, default=1)
    parser.add_argument("--bin-count", type=int, help="grey levels of texture (default: 25 wide)")
    parser.add_argument(
        "--pair",
        metavar="COLUMN",
        help="has one value in both phases of a heart, such as patient: adds ejection fractions",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    options = vars(parser.parse_args(arguments))
    or_exit(_run, **options)


def _run(label: Sequence[str] | None, **options: object) -> None:
    labels = dict(_parse_label(text) for text in label) if label else None
    add_attributes(mask_labels=labels, **options)  # type: ignore[arg-type]


def _parse_label(text: str) -> tuple[str, list[int]]:
    name, _, values = text.partition("=")
    try:
        numbers = [int(value) for value in values.split(",")]
    except ValueError:
        numbers = []
    if not name or not numbers:
        raise CohortError(f"The label is given as '{text}'; expected a name and numbers, as lv=3.")
    return name, numbers


def _names(
    spatial_dims: int, mask_labels: MaskLabels | None, features: Sequence[str] | None
) -> list[str]:
    """The attributes to measure: every feature on every label."""
    if features is None:  # a thickness makes sense for shells only
        features = [name for name in feature_names(spatial_dims) if name != "wall_thickness_mm"]
    prefixes = [""] if mask_labels is None else [f"{label}_" for label in mask_labels]
    return [f"{prefix}{feature}" for prefix in prefixes for feature in features]


def _paired_volumes(names: Sequence[str], subjects: pd.DataFrame, pair: str) -> list[str]:
    """The volumes of which pairs of rows have an ejection fraction."""
    volumes = [name for name in names if name.endswith("voxel_volume_ml")]
    if not volumes:
        raise CohortError("Ejection fractions are of voxel_volume_ml; expected it as a feature.")
    if pair not in subjects:
        raise CohortError(
            f"Column '{pair}' is not in the table; expected one of {listing(subjects.columns)}."
        )
    if not subjects[pair].value_counts().eq(2).any():
        raise CohortError(
            f"No value of column '{pair}' is in exactly two rows; expected the column that both "
            "phases of a heart share, such as patient."
        )
    return volumes


def _ejected(volumes_ml: pd.Series) -> float:
    """The ejection fraction of two phases, the larger being diastole; of other counts, NaN."""
    if len(volumes_ml) != 2 or volumes_ml.isna().any() or volumes_ml.min() <= 0:
        return np.nan
    return ejection_fraction(float(volumes_ml.max()), float(volumes_ml.min()))


def _moved(cell: str, source: Path, target: Path) -> str:
    """A path relative to one folder, relative to another; absolute paths stay."""
    if not cell.strip() or source == target or Path(cell).is_absolute():
        return cell
    return Path(os.path.relpath(source / cell.strip(), target)).as_posix()


if __name__ == "__main__":
    main()
