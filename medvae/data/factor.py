"""One labelled factor: which column it is of, and the numbers of its classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from medvae.data.errors import CohortError, suggestion
from medvae.data.subjects import class_values, numeric_column, sorted_classes

__all__ = ["KINDS", "Factor", "Kind", "defined"]

Kind = Literal["categorical", "ordinal", "continuous"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Factor:
    """One labelled factor.

    Attributes:
        name: of the factor and of its subspace.
        column: of the table; the name where it is empty.
        kind: categorical, ordinal or continuous.
        size: dimensions of its subspace.
        bins: rising limits that turn a number into an ordinal or categorical class; a limit
            belongs to the class above it.
        valid: a column that is 0 where the factor's cell is not to be believed.
        classes: class values in the order of their numbers, of the training rows. Not fitted: all
            values that the column may hold, in their order, which an ordinal text cannot do
            without; empty: whole numbers by size, text by alphabet.
        mean: of a continuous factor's training rows.
        sd: of the same.
    """

    name: str
    column: str = ""
    kind: Kind = "categorical"
    size: int = 4
    bins: tuple[float, ...] = ()
    valid: str | None = None
    classes: tuple[int | str, ...] = ()
    mean: float = 0.0
    sd: float = 1.0

    @property
    def outputs(self) -> int:
        """Logits of the factor's head."""
        return 1 if self.kind == "continuous" else len(self.classes)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Factor:
        """The factor whose fields are given, as JSON knows them."""
        return cls(**{**state, **{key: tuple(state[key]) for key in ("bins", "classes")}})

    def fitted(self, train: pd.DataFrame) -> Factor:
        """The factor with the classes, or the mean and spread, of the training rows.

        Raises:
            CohortError: one class only, nothing known, a class that is not among those declared,
                or ordinal text whose order nothing tells.
        """
        if self.kind == "continuous":
            known = self._numbers(train)
            known = known[~np.isnan(known)]
            if len(known) < 2 or np.ptp(known) == 0:
                raise CohortError(
                    f"The factor '{self.name}' has {len(known)} known training row(s) and "
                    f"{len(np.unique(known))} value(s); expected at least two different values."
                )
            return replace(self, mean=float(known.mean()), sd=float(known.std()))
        known_classes = {value for value in self._classes(train) if value is not None}
        if self.bins:
            classes: tuple[int | str, ...] = tuple(
                c for c in self._bin_names() if c in known_classes
            )
        else:
            classes = self._ordered(sorted_classes(self._believed(train), self._column))
        if len(classes) < 2:
            raise CohortError(
                f"The factor '{self.name}' has the class(es) {list(classes)} in the training rows; "
                "expected at least two."
            )
        return replace(self, classes=classes)

    def _ordered(self, found: tuple[int | str, ...]) -> tuple[int | str, ...]:
        """The classes found in the training rows in the order that was declared, if one was."""
        if not self.classes:
            if self.kind == "ordinal" and any(isinstance(value, str) for value in found):
                raise CohortError(
                    f"The factor '{self.name}' is ordinal and its classes are text, {list(found)}; "
                    "expected all of them in their order, by classes: [...]."
                )
            return found
        unknown = [value for value in found if value not in self.classes]
        if unknown:
            raise CohortError(
                f"The factor '{self.name}' is {unknown[0]!r} in a training row; expected one of "
                f"its classes {list(self.classes)}."
            )
        return tuple(value for value in self.classes if value in found)

    def values(self, subjects: pd.DataFrame) -> Array:
        """Class numbers or standardised values (N,), NaN where missing.

        Raises:
            CohortError: no such column, a cell that is no number where one is needed, or a class
                that no training row has.
        """
        if self.kind == "continuous":
            return (self._numbers(subjects) - self.mean) / self.sd
        numbers = {value: number for number, value in enumerate(self.classes)}
        found = np.full(len(subjects), np.nan)
        for row, value in enumerate(self._classes(subjects)):
            if value is None:
                continue
            if value not in numbers:
                raise CohortError(
                    f"The factor '{self.name}' is {value!r} in row '{subjects['id'].iloc[row]}', a "
                    f"class that no training row has; expected one of {list(self.classes)}, by "
                    "another split or made_confounding, or by leaving the cell empty."
                )
            found[row] = numbers[value]
        return found

    @property
    def _column(self) -> str:
        return self.column or self.name

    def _believed(self, subjects: pd.DataFrame) -> pd.DataFrame:
        """The table with the factor's cells empty where they are not to be believed."""
        for column in filter(None, (self._column, self.valid)):
            if column not in subjects:
                raise CohortError(
                    f"Column '{column}' of the factor '{self.name}' is not in the table; "
                    f"{suggestion(column, subjects.columns)}"
                )
        if self.valid is None:
            return subjects
        cells = subjects[self._column].where(numeric_column(subjects, self.valid) != 0)
        return subjects.assign(**{self._column: cells})

    def _numbers(self, subjects: pd.DataFrame) -> Array:
        return numeric_column(self._believed(subjects), self._column).to_numpy()

    def _classes(self, subjects: pd.DataFrame) -> list[int | str | None]:
        if not self.bins:
            return class_values(self._believed(subjects), self._column)
        names, numbers = self._bin_names(), self._numbers(subjects)
        found = np.digitize(numbers, self.bins)
        return [
            None if np.isnan(x) else names[c] for x, c in zip(numbers, found.tolist(), strict=True)
        ]

    def _bin_names(self) -> list[str]:
        limits = [f"{limit:g}" for limit in self.bins]
        between = [f"{low} to {high}" for low, high in zip(limits, limits[1:], strict=False)]
        return [f"below {limits[0]}", *between, f"{limits[-1]} and above"]


def defined(name: str, given: Mapping[str, Any]) -> Factor:
    """The factor of a configuration's settings, not fitted yet.

    Raises:
        CohortError: an unknown setting, or one out of its range.
    """
    allowed = ("column", "kind", "size", "bins", "valid", "classes")
    for key in given:
        if key not in allowed:
            raise CohortError(
                f"The factor '{name}' has a setting '{key}'; {suggestion(key, allowed)}"
            )
    lists = {key: tuple(given.get(key) or ()) for key in ("bins", "classes")}
    factor = Factor(name, **{**given, **lists})
    if factor.kind not in KINDS:
        raise CohortError(
            f"The factor '{name}' is of kind {factor.kind!r}; expected one of {KINDS}."
        )
    if factor.size < 1:
        raise CohortError(f"The factor '{name}' has size {factor.size}; expected at least 1.")
    if list(factor.bins) != sorted(set(factor.bins)):
        raise CohortError(
            f"The factor '{name}' has bins {list(factor.bins)}; expected rising ones."
        )
    classes = list(factor.classes)
    if len(set(classes)) < len(classes) or (
        classes and (factor.bins or factor.kind == "continuous")
    ):
        raise CohortError(
            f"The factor '{name}' has classes {classes}; expected every one once, and none "
            "beside bins or of a continuous factor."
        )
    return factor
