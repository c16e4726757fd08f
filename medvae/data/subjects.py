"""The subjects table: one row per image, read from a CSV or made by hand."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medvae.data.errors import CohortError, listing, suggestion
from medvae.data.output import file_stem

__all__ = ["class_values", "datalist", "load_subjects", "numeric_column"]

FILE_COLUMNS = ("image", "mask")
MAX_ID_BYTES = 120  # leaves room for the attribute in the names of files, which end at 255
MISSING = ["", "NA", "N/A", "NaN", "nan"]  # not "None" or "null": these may be classes


def load_subjects(csv: str | Path | pd.DataFrame, needs_image: bool = True) -> pd.DataFrame:
    """Read and check a cohort's table.

    Args:
        csv: a file with the columns ``id`` (unique) and ``image``, an optional ``mask`` and any
            further ones; commas, or tabs in a ``.tsv``. ``image`` is a NIfTI file, a folder with
            one DICOM series, a PNG or a JPEG; paths are relative to the CSV. Or a table, whose
            relative paths are then relative to the working directory.
        needs_image: False: no image is read, and the columns ``image`` and ``mask`` are left out.

    Returns:
        The table with ids as text and absolute paths; empty cells are NaN.

    Raises:
        CohortError: unreadable file, missing columns, no rows, an empty or duplicate id, a row
            without an image, or an image or mask that does not exist.
    """
    if isinstance(csv, pd.DataFrame):
        name, table, root = "the table", csv.copy(), Path()
    else:
        name, table, root = f"'{csv}'", read_table(csv), Path(csv).parent
    if not needs_image:
        table = table.drop(columns=[column for column in FILE_COLUMNS if column in table])
    for column in ("id", "image") if needs_image else ("id",):
        if column not in table:
            raise CohortError(
                f"Column '{column}' is not in {name}; "
                f"expected it among its columns {listing(table.columns)}."
            )
    if table.empty:
        raise CohortError(f"There is no subject in {name}; expected at least one row.")
    table["id"] = _checked_ids(table["id"], name)
    for column in FILE_COLUMNS:
        if column in table:
            table[column] = _resolved(table, column, root.absolute(), name)
    return table.reset_index(drop=True)


def read_table(csv: str | Path, **kwargs: Any) -> pd.DataFrame:
    """The table as it stands in the file, ids as text."""
    if not Path(csv).is_file():
        raise CohortError(f"The table '{csv}' does not exist; expected a CSV file.")
    separator = "\t" if str(csv).lower().endswith(".tsv") else ","
    options: dict[str, Any] = {"dtype": {"id": str, "image": str, "mask": str}, **kwargs}
    try:
        table = pd.read_csv(
            csv,
            sep=separator,
            skipinitialspace=True,
            keep_default_na=False,
            na_values=options.pop("na_values", MISSING),
            **options,
        )
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        reason = (str(error) or type(error).__name__).strip().splitlines()[0].strip(" .")
        raise CohortError(
            f"The table '{csv}' cannot be read ({reason}); expected a CSV file with a header."
        ) from error
    return table.rename(columns=lambda column: str(column).strip())


def _checked_ids(ids: pd.Series, name: str) -> pd.Series:
    empty = np.flatnonzero(ids.isna())
    if len(empty):
        raise CohortError(f"Column 'id' of {name} is empty in row {empty[0] + 1}; expected a name.")
    text = ids.astype(str).str.strip()
    repeated = text[text.duplicated()].unique()
    if len(repeated):
        raise CohortError(
            f"Column 'id' of {name} holds {listing(repeated)} more than once; "
            "expected every id in one row only."
        )
    stems = text.map(file_stem)
    clashing = text[stems.duplicated(keep=False)]
    if len(clashing):
        raise CohortError(
            f"Column 'id' of {name} holds {listing(clashing)}, which would share one file name, as "
            "'/' becomes '_'; expected ids that differ otherwise."
        )
    unfit = text[stems.isin([".", ".."]) | text.str.contains("[\\x00-\\x1f\\\\]", regex=True)]
    unfit = pd.concat([unfit, text[stems.map(lambda stem: len(stem.encode()) > MAX_ID_BYTES)]])
    if len(unfit):
        shown = listing([ascii(text)[1:41] for text in unfit])
        raise CohortError(
            f"Column 'id' of {name} holds {shown}; expected ids that can begin the name of "
            "a file: no control character or backslash, neither '.' nor '..', "
            f"and at most {MAX_ID_BYTES} bytes."
        )
    return text


def _resolved(table: pd.DataFrame, column: str, root: Path, name: str) -> list[str | float]:
    """Absolute paths; NaN stays, but only in the mask column."""
    paths: list[str | float] = []
    absent: list[str] = []
    for subject, cell in zip(table["id"], table[column], strict=True):
        if pd.isna(cell):
            if column == "image":
                raise CohortError(
                    f"Column 'image' of {name} is empty in row '{subject}'; expected a path."
                )
            paths.append(np.nan)
            continue
        path = root / str(cell).strip()
        paths.append(str(path))
        if not path.exists():
            absent.append(str(path))
    if absent:
        more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        raise CohortError(
            f"The {column} '{absent[0]}' named in {name} does not exist{more}; "
            f"expected a path relative to '{root}'."
        )
    return paths


def numeric_column(subjects: pd.DataFrame, column: str) -> pd.Series:
    """A column as floats, NaN where a cell is empty; true and false are 1 and 0.

    Raises:
        CohortError: a cell that is not a finite number.
    """
    cells = subjects[column]
    numbers = pd.to_numeric(cells, errors="coerce").astype(float)
    bad = (cells.notna() & numbers.isna()) | np.isinf(numbers)
    if bad.any():
        row = subjects.loc[bad].iloc[0]
        raise CohortError(
            f"Column '{column}' holds {str(row[column])!r} in row '{row['id']}'; "
            "expected a number, or an empty cell where it is missing."
        )
    return numbers


def class_values(subjects: pd.DataFrame, label: str) -> list[int | str | None]:
    """The class of every row as a whole number or text, ``None`` where the cell is empty.

    Raises:
        CohortError: no such column, or numbers that are not whole.
    """
    if label not in subjects:
        raise CohortError(
            f"The label column '{label}' is not in the table; {suggestion(label, subjects.columns)}"
        )
    cells = [None if pd.isna(cell) else cell for cell in subjects[label]]
    known = [cell for cell in cells if cell is not None]
    if not all(isinstance(cell, (bool, int, float, np.generic)) for cell in known):
        return [None if cell is None else str(cell) for cell in cells]
    for subject, cell in zip(subjects["id"], cells, strict=True):
        if cell is not None and cell != int(cell):
            raise CohortError(
                f"The label column '{label}' holds {cell:g} in row '{subject}'; "
                "expected classes, that is whole numbers or text."
            )
    return [None if cell is None else int(cell) for cell in cells]


def datalist(
    subjects: pd.DataFrame,
    attributes: Sequence[str] = (),
    label: str | None = None,
    split: str | None = None,
    classes: Sequence[Hashable] | None = None,
) -> list[dict[str, Any]]:
    """One dictionary per row, as MONAI's datasets take them.

    Args:
        subjects: a table, see :func:`load_subjects`.
        attributes: numeric columns to list, in their own units; NaN where a cell is empty.
        label: the class column.
        split: only the rows of this split.
        classes: the classes in the order of their numbers; all of the table's, sorted, by default.

    Returns:
        Dictionaries with the keys ``id``, ``image`` (where images are read), ``mask`` (if every
        listed subject has one: a batch needs the same keys), each attribute, ``label`` (the class's
        number, -1 where it is missing) and ``split`` (where the table has that column).

    Raises:
        CohortError: a column that is not there, or a cell that is no number or no known class.
    """
    unknown = [name for name in attributes if name not in subjects]
    if unknown:
        raise CohortError(
            f"Attribute '{unknown[0]}' is not a column of the table; "
            f"{suggestion(unknown[0], subjects.columns)}"
        )
    columns: dict[str, list[Any]] = {
        name: [str(cell) for cell in subjects[name]] for name in ("id", "image") if name in subjects
    }
    for name in attributes:
        columns[name] = numeric_column(subjects, name).tolist()
    if label is not None:
        columns["label"] = class_numbers(subjects, label, classes)
    if "split" in subjects:
        columns["split"] = subjects["split"].tolist()
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    if split is not None:
        rows = [row for row in rows if row.get("split") == split]
    return _with_masks(rows, subjects)


def _with_masks(rows: list[dict[str, Any]], subjects: pd.DataFrame) -> list[dict[str, Any]]:
    if "mask" not in subjects:
        return rows
    mask_of = dict(zip(subjects["id"].astype(str), subjects["mask"], strict=True))
    if any(pd.isna(mask_of[row["id"]]) for row in rows):
        return rows
    return [{**row, "mask": mask_of[row["id"]]} for row in rows]


def sorted_classes(subjects: pd.DataFrame, label: str) -> tuple[int | str, ...]:
    """The classes of a column in order: whole numbers by size, text by alphabet."""
    values = {value for value in class_values(subjects, label) if value is not None}
    return tuple(sorted(values, key=lambda value: (value if isinstance(value, int) else 0, value)))


def class_numbers(
    subjects: pd.DataFrame, label: str, classes: Sequence[Hashable] | None = None
) -> list[int]:
    """The place of every row's class in ``classes``, -1 where it is missing."""
    values = class_values(subjects, label)
    classes = sorted_classes(subjects, label) if classes is None else classes
    number = {value: i for i, value in enumerate(classes)}
    for subject, value in zip(subjects["id"], values, strict=True):
        if value is not None and value not in number:
            raise CohortError(
                f"The label column '{label}' holds {value!r} in row '{subject}'; "
                f"expected one of the classes seen in training, {list(classes)}."
            )
    return [-1 if value is None else number[value] for value in values]
