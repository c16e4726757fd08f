"""Numbers as the outcome of a causal question: which columns may be, and their units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from medvae.data.errors import CohortError, listing, suggestion
from medvae.data.scaler import AttributeScaler
from medvae.data.subjects import numeric_column

__all__ = ["check_observed", "fitted_outcome", "observed"]


def fitted_outcome(
    subjects: pd.DataFrame, names: Sequence[str], roles: Mapping[str, str]
) -> AttributeScaler:
    """Check the columns of an outcome, and take their means and sds from the training rows.

    Args:
        subjects: the table with the column `split`.
        names: of the columns.
        roles: what a column is already, such as "the treatment", by its name.

    Raises:
        CohortError: no column, one that is unknown, named twice, of another role or not numeric,
            one that is missing in a training or validation row, or constant in those of training.
    """
    if not names:
        raise CohortError(
            "outcome is empty; expected null, for the image, or columns of the table."
        )
    for name in names:
        if name in roles:
            raise CohortError(f"The outcome '{name}' is {roles[name]}; expected another column.")
        if list(names).count(name) > 1:
            raise CohortError(f"The outcome '{name}' is named twice; expected every column once.")
    values = observed(subjects, names)
    check_observed(subjects, names, ("train", "val"))
    train = values[(subjects["split"] == "train").to_numpy()]
    for name, column in zip(names, train.to_numpy().T, strict=True):
        if np.ptp(column) <= 1e-9 * np.abs(column).max():
            raise CohortError(
                f"The outcome '{name}' is {column[0]:g} in all {len(column)} training rows; "
                "expected at least two different values."
            )
    return AttributeScaler(names).fit(train)


def observed(subjects: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The columns of an outcome as floats in their own units, NaN where a cell is empty.

    Raises:
        CohortError: no such column, or a cell that is no number.
    """
    for name in names:
        if name not in subjects:
            raise CohortError(
                f"The outcome '{name}' is not in the table; {suggestion(name, map(str, subjects))}"
            )
    columns = {name: numeric_column(subjects, name) for name in names}
    return pd.DataFrame(columns, subjects.index)


def check_observed(
    subjects: pd.DataFrame, names: Sequence[str], splits: Sequence[str] | None = None
) -> None:
    """Refuse rows without their outcome, where it is learned from or encoded.

    Args:
        subjects: the table.
        names: columns of the outcome.
        splits: whose rows; None: all rows.

    Raises:
        CohortError: how many there are, and which.
    """
    asked = pd.Series(True, subjects.index) if splits is None else subjects["split"].isin(splits)
    for name, column in observed(subjects, names).items():
        empty = subjects["id"][asked & column.isna()]
        if len(empty):
            where = "" if splits is None else f" of the splits {' and '.join(splits)}"
            raise CohortError(
                f"The outcome '{name}' is missing in {len(empty)} row(s){where}, {listing(empty)}; "
                "expected a number in each, by leaving these rows out or choosing another column."
            )
