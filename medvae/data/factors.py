"""The labelled factors of a cohort: what its subspaces are about."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.utils.data import WeightedRandomSampler

from medvae.data.cohort import Cohort
from medvae.data.confounding import confounded_rows, joint_classes
from medvae.data.errors import CohortError, suggestion
from medvae.data.output import write_text
from medvae.data.subjects import class_values, numeric_column, sorted_classes

__all__ = ["KINDS", "Factor", "Factors", "Kind", "balanced_sampler"]

Kind = Literal["categorical", "ordinal", "continuous"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# subspaces of another meaning, and what losses call their terms
RESERVED = ("free", "whole", "loss", "factors", "dependence", "weighted", "target_dependence")
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


class Factors:
    """The factors of a cohort, fitted on its training rows, and the subspaces they ask for.

    Args:
        cohort: checked and split.
        definitions: for every factor by its name a dictionary of `Factor`'s attributes; an empty
            one is a categorical column of that name.
        free_size: dimensions of the subspace that has no label.
        confounding: arguments of `medvae.data.confounded_rows`, which leaves rows out so that two
            factors go together in training and not in the test; None: the cohort as it is.
        state: the factors of a trained model, or their file; nothing is fitted then.

    Attributes:
        cohort: the cohort, without the rows that made confounding leaves out.
        pool: the cohort with them.

    Raises:
        CohortError: no factor, an unknown setting or column, a name that means something else, one
            class only, or a class that no training row has that made confounding leaves.
    """

    def __init__(
        self,
        cohort: Cohort,
        definitions: Mapping[str, Mapping[str, Any] | None] | None = None,
        free_size: int = 16,
        confounding: Mapping[str, Any] | None = None,
        state: str | Path | None = None,
    ) -> None:
        self.cohort = self.pool = cohort
        if state is not None:
            self._load(Path(state))
            chosen = None
        else:
            self.free_size = free_size
            chosen = [defined(name, given or {}) for name, given in (definitions or {}).items()]
            check_names([factor.name for factor in chosen])
            self._fit(chosen)
        if confounding is not None:
            self.cohort = self._confounded(**checked_confounding(confounding))
            if chosen is not None:
                self._fit(chosen)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the factors, in order."""
        return tuple(self._factors)

    @property
    def kinds(self) -> dict[str, Kind]:
        """What each factor is."""
        return {name: factor.kind for name, factor in self._factors.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """Dimensions of every subspace, the free one last; without, where its size is 0."""
        free = {"free": self.free_size} if self.free_size else {}
        return {name: factor.size for name, factor in self._factors.items()} | free

    @property
    def outputs(self) -> dict[str, int]:
        """Logits of every labelled subspace."""
        return {name: factor.outputs for name, factor in self._factors.items()}

    @property
    def classes(self) -> dict[str, tuple[int | str, ...]]:
        """Class values of every factor in the order of their numbers; empty if continuous."""
        return {name: factor.classes for name, factor in self._factors.items()}

    def own_unit(self, name: str, value: float) -> float:
        """A continuous factor's standardised value in its own unit."""
        factor = self._factors[name]
        return value * factor.sd + factor.mean

    def values(self, subjects: pd.DataFrame | None = None) -> Array:
        """Class numbers or standardised values (N, K) of a table's rows; None: the cohort's."""
        table = self.cohort.subjects if subjects is None else subjects
        return np.stack([factor.values(table) for factor in self._factors.values()], 1)

    def datalist(self, split: str | None = None) -> list[dict[str, Any]]:
        """The cohort's items with two more keys; see `Cohort.datalist`.

        `factors`, (K,) floats, and `subject`, the number of its row, for losses that must know an
        item again.
        """
        values = self.values().astype(np.float32)
        number = {name: row for row, name in enumerate(self.cohort.subjects["id"])}
        return [
            item | {"factors": values[number[item["id"]]], "subject": number[item["id"]]}
            for item in self.cohort.datalist(split)
        ]

    def cells(self, names: Sequence[str], split: str | None = None) -> npt.NDArray[np.int64]:
        """The number of each row's combination of classes, -1 where one is missing, (N,).

        Raises:
            CohortError: no such factor, or a continuous one, which has no classes.
        """
        self._check_classes(names, "to balance by")
        table = self.cohort.subjects
        rows = table if split is None else table[table["split"] == split]
        return joint_classes(self.values(rows), [self._index(name) for name in names])

    def save(self, path: str | Path) -> None:
        """Write what a trained model needs to know of its factors, as JSON."""
        state = {
            "free_size": self.free_size,
            "factors": [asdict(factor) for factor in self._factors.values()],
        }
        write_text(path, json.dumps(state, indent=1) + "\n")

    def _confounded(self, between: Sequence[str], **options: Any) -> Cohort:
        columns = [self._index(name) for name in between]
        self._check_classes(between, "to make confounding between")
        splits = self.cohort.subjects["split"].tolist()
        return self.cohort.chosen(
            confounded_rows(self.values()[:, columns], splits, **options).tolist()
        )

    def _check_classes(self, names: Sequence[str], purpose: str) -> None:
        for name in names:
            if self.kinds[self.names[self._index(name)]] == "continuous":
                raise CohortError(
                    f"The factor '{name}' is continuous; expected one with classes {purpose}."
                )

    def _fit(self, factors: Sequence[Factor]) -> None:
        table = self.cohort.subjects
        train = table[table["split"] == "train"]
        self._factors = {factor.name: factor.fitted(train) for factor in factors}
        # a class that no training row has is refused now, and not when the pool is evaluated
        self.values(self.pool.subjects)

    def _load(self, path: Path) -> None:
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            self.free_size = int(state["free_size"])
            factors = [Factor.from_state(entry) for entry in state["factors"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CohortError(
                f"The factors '{path}' cannot be read ({type(error).__name__}); expected the file "
                "that training wrote beside its model."
            ) from error
        self._factors = {factor.name: factor for factor in factors}

    def _index(self, name: str) -> int:
        if name not in self._factors:
            raise CohortError(f"There is no factor '{name}'; {suggestion(name, self._factors)}")
        return self.names.index(name)


def balanced_sampler(cells: Sequence[int], processes: int = 1) -> WeightedRandomSampler:
    """Draw as many rows as there are, with replacement, every cell equally often.

    Factors that go together in the cohort are then independent in what the network sees, so that
    nothing is to be gained from reading one as a sign of the other. Rows of a cell of few subjects
    come often: augment.

    Args:
        cells: of each row, as by `Factors.cells`; -1, unknown, counts as a cell of average rows.
        processes: among which the rows of an epoch are shared; each draws its own.
    """
    numbers = np.asarray(cells)
    known, counts = np.unique(numbers[numbers >= 0], return_counts=True)
    share = dict(zip(known.tolist(), (1 / counts).tolist(), strict=True))
    average = len(known) / max(int(counts.sum()), 1)
    weights = torch.tensor([share.get(int(cell), average or 1.0) for cell in numbers])
    return WeightedRandomSampler(weights.tolist(), len(numbers) // processes)


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


def check_names(names: Sequence[str]) -> None:
    """Refuse no factor at all, or one whose name means something else.

    Raises:
        CohortError: in one sentence.
    """
    if not names:
        raise CohortError("factors is empty; expected at least one column of the table.")
    for name in names:
        if name in RESERVED:
            raise CohortError(
                f"A factor is called '{name}', which means something else; expected another name, "
                f"with the setting {{column: {name}}}."
            )


def checked_confounding(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of made confounding, see `medvae.data.confounded_rows`.

    Raises:
        CohortError: an unknown or missing setting, or not two names.
    """
    allowed = ("between", "strength", "seed")
    for key in given:
        if key not in allowed:
            raise CohortError(f"made_confounding has a setting '{key}'; {suggestion(key, allowed)}")
    between = given.get("between")
    if isinstance(between, str) or len(set(between or ())) != 2 or given.get("strength") is None:
        raise CohortError(
            f"made_confounding is {dict(given)}; expected the names of two factors in 'between', "
            "and a 'strength' of 0 to 1."
        )
    return dict(given)
