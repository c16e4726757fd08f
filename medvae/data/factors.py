"""The labelled factors of a cohort: what its subspaces are about."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.utils.data import WeightedRandomSampler

from medvae.data.cohort import Cohort
from medvae.data.confounding import confounded_rows, joint_classes
from medvae.data.errors import CohortError, suggestion
from medvae.data.factor import Factor, Kind, defined
from medvae.data.output import write_text

__all__ = ["Factors", "balanced_sampler"]

# subspaces of another meaning, and what losses call their terms
RESERVED = ("free", "whole", "loss", "factors", "dependence", "weighted", "target_dependence")
Array = npt.NDArray[np.float64]


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
