"""The roles of a cohort's columns in a causal question: outcome, treatment, covariates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit

from medvae.data.cohort import Cohort
from medvae.data.errors import CohortError, listing, suggestion
from medvae.data.factor import Factor, defined
from medvae.data.outcome import check_observed, fitted_outcome, observed
from medvae.data.output import write_text
from medvae.data.scaler import AttributeScaler
from medvae.data.split import patient_of
from medvae.data.subjects import load_subjects

__all__ = ["Roles", "assign_treatment"]

Array = npt.NDArray[np.float64]

JUDGED = 2  # patients of an arm in a split: one to judge by a model that has seen the other
WILD = 10.0  # interquartile ranges from the median: 13 sd of a normal distribution


class Roles:
    """Which columns are treatment, covariates and outcome; fitted on the training rows.

    Covariates must be causes of the treatment or of the outcome, and nothing that the treatment
    changes: adjusting for such a descendant takes part of the effect away.

    Args:
        cohort: checked and split; its images are the outcome, or covariates of one of numbers.
        treatment: a column of classes, the arms.
        covariates: for every column by its name a dictionary of `medvae.data.Factor`'s attributes,
            such as `{kind: continuous}`; an empty one is a categorical column.
        descendants: columns that the treatment changes, which are refused as covariates.
        control: the class that is arm 0; None: the first in order.
        min_arm: the least number of training rows of every arm. Of val and test it must have 2
            patients each, where there are such rows.
        state: the roles of a trained model, or their file; nothing is fitted then.
        untreated: whether rows may lack treatment and outcome, as those that are not encoded.
        outcome: numeric columns, standardised by mean and sd of the training rows; None: the
            image. Rows of the test split may lack them.

    Attributes:
        cohort: the cohort.
        treatment: the treatment's column.
        arms: its classes in the order of their numbers.
        outcome: the numbers that are the outcome, with their units; None: it is the image.

    Raises:
        CohortError: one arm only, or one too small, a row without treatment, a covariate that is
            the treatment, a declared descendant, unknown or never given, a descendant that is
            no column, or an outcome that is unknown, of another role, no number, constant in the
            training rows or missing in one of training or validation.
    """

    outcome: AttributeScaler | None

    def __init__(
        self,
        cohort: Cohort,
        treatment: str | None = None,
        covariates: Mapping[str, Mapping[str, Any] | None] | None = None,
        descendants: Sequence[str] = (),
        control: int | str | None = None,
        min_arm: int = 20,
        state: str | Path | None = None,
        untreated: bool = False,
        outcome: str | Sequence[str] | None = None,
    ) -> None:
        self.cohort, self.untreated = cohort, untreated
        if state is not None:
            self._load(Path(state))
            self.values(cohort.subjects)  # an arm or a class that was not trained is refused now
            self.numbers()
            return
        if treatment is None:
            raise CohortError("treatment is empty; expected a column of the table.")
        self.descendants = tuple(descendants)
        train = cohort.subjects[cohort.subjects["split"] == "train"]
        self._treatment = _with_control(Factor(treatment).fitted(train), control)
        chosen = [defined(name, given or {}) for name, given in (covariates or {}).items()]
        self._check(chosen)
        self._covariates = tuple(_fitted(factor, train) for factor in chosen)
        self._check_arms(min_arm)
        self.outcome = None
        if outcome is not None:
            names = [outcome] if isinstance(outcome, str) else list(outcome)
            self.outcome = fitted_outcome(cohort.subjects, names, self._roles())

    @property
    def treatment(self) -> str:
        """The treatment's column."""
        return self._treatment.name

    @property
    def arms(self) -> tuple[int | str, ...]:
        """Classes of the treatment in the order of their numbers; the first is the control."""
        return self._treatment.classes

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the covariates, in order."""
        return tuple(factor.name for factor in self._covariates)

    @property
    def classes(self) -> tuple[int, ...]:
        """Classes of each covariate as `CovariateEncoder` counts them: negative if ordinal."""
        sign = {"continuous": 0, "ordinal": -1, "categorical": 1}
        return tuple(sign[factor.kind] * factor.outputs for factor in self._covariates)

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Columns of the outcome, in order; none where it is the image."""
        return () if self.outcome is None else self.outcome.names

    def arm(self, name: int | str) -> int:
        """The number of an arm by its class.

        Raises:
            CohortError: no such arm: nothing was learned about it.
        """
        known = {str(arm): number for number, arm in enumerate(self.arms)}
        if str(name) not in known:
            raise CohortError(
                f"The arm {name!r} of the treatment '{self.treatment}' was not seen in training; "
                f"{suggestion(str(name), known)}"
            )
        return known[str(name)]

    def values(self, subjects: pd.DataFrame) -> tuple[npt.NDArray[np.int64], Array]:
        """Arms (N,) and covariates (N, K): class numbers or standardised, NaN where missing.

        An arm is -1 where it is missing and may be.

        Raises:
            CohortError: a row without treatment that must have it, or with a class that no
                training row has.
        """
        arms = self._treatment.values(subjects)
        if np.isnan(arms).any() and not self.untreated:
            empty = subjects["id"][np.isnan(arms)]
            raise CohortError(
                f"The treatment '{self.treatment}' is missing in {listing(empty)}; expected an arm "
                "for every row, since an image is read by the treatment that was given."
            )
        columns = [factor.values(subjects) for factor in self._covariates]
        covariates = np.stack(columns, 1) if columns else np.zeros((len(subjects), 0))
        return np.nan_to_num(arms, nan=-1).astype(np.int64), covariates

    def numbers(self) -> Array:
        """Outcomes (N, Q) of the cohort's rows in their own units, NaN where missing.

        Raises:
            CohortError: no such column, unless rows may lack it, or a cell that is no number.
        """
        table = self.cohort.subjects
        if self.untreated:
            table = table.assign(**{n: np.nan for n in self.outcomes if n not in table})
        values: Array = observed(table, self.outcomes).to_numpy()
        return values

    def check_encoded(self) -> None:
        """Refuse rows without their outcome, where each is to be encoded.

        Raises:
            CohortError: how many there are, and which.
        """
        check_observed(self.cohort.subjects, self.outcomes)

    def datalist(self, split: str | None = None) -> list[dict[str, Any]]:
        """The cohort's items with more keys; see `Cohort.datalist`.

        `treatment`, a number, `covariates`, (K,) floats, `subject`, the number of its row, for
        losses that must know an item again, and, where the outcome is numbers, these standardised
        as `outcome`, (Q,) floats.
        """
        table = self.cohort.subjects
        arms, covariates = self.values(table)
        columns = {"treatment": arms.tolist(), "covariates": covariates.astype(np.float32)}
        columns["subject"] = list(range(len(table)))
        if self.outcome is not None:
            columns["outcome"] = self.outcome.transform(self.numbers()).astype(np.float32)
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        found = dict(zip(table["id"], rows, strict=True))
        return [item | found[item["id"]] for item in self.cohort.datalist(split)]

    def graph(self) -> str:
        """The causal graph that is assumed, as text."""
        seen = ["image"] if self.outcome is not None and "image" in self.cohort.subjects else []
        names = ", ".join([*self.names, *seen]) or "nothing"
        outcome = ", ".join(self.outcomes) or "image"
        lines = [
            "Assumed, and not testable by the data:",
            f"  {names} -> {self.treatment}",
            f"  {names} -> {outcome}",
            f"  {self.treatment} -> {outcome}   ({' / '.join(str(arm) for arm in self.arms)})",
        ]
        if self.descendants:
            lines.append(
                f"  {self.treatment} -> {', '.join(self.descendants)}   (not adjusted for)"
            )
        whole = outcome if self.outcomes else "the image"
        lines.append(f"  nothing else causes both {self.treatment} and {whole}")
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write what a trained model needs to know of its roles, as JSON."""
        state = {
            "treatment": asdict(self._treatment),
            "covariates": [asdict(factor) for factor in self._covariates],
            "descendants": list(self.descendants),
            "outcome": None if self.outcome is None else self.outcome.state_dict(),
        }
        write_text(path, json.dumps(state, indent=1) + "\n")

    def _load(self, path: Path) -> None:
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            self._treatment = Factor.from_state(state["treatment"])
            self._covariates = tuple(Factor.from_state(entry) for entry in state["covariates"])
            self.descendants = tuple(state["descendants"])
            outcome = state.get("outcome")  # none in models of images before there was a choice
            self.outcome = None if outcome is None else AttributeScaler.from_state_dict(outcome)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CohortError(
                f"The roles '{path}' cannot be read ({type(error).__name__}); expected the file "
                "that training wrote beside its model."
            ) from error

    def _roles(self) -> dict[str, str]:
        """What every column with a role is, by its name."""
        found = {name: "declared as a descendant of the treatment" for name in self.descendants}
        for factor in self._covariates:
            found |= {name: "a covariate" for name in (factor.name, factor.column) if name}
        return found | {self.treatment: "the treatment"}

    def _check_arms(self, min_arm: int) -> None:
        """Refuse an arm that is too small to train on, or in a split to be judged there."""
        table = self.cohort.subjects
        numbers, patients = self.values(table)[0], np.array(patient_of(table, self.cohort.patient))
        for number, arm in enumerate(self.arms):
            rows = {
                split: (numbers == number) & (table["split"] == split).to_numpy()
                for split in table["split"].unique()
            }
            if (count := int(rows["train"].sum())) < min_arm:
                raise CohortError(
                    f"The arm {arm!r} of the treatment '{self.treatment}' has {count} training "
                    f"row(s); expected at least {min_arm} (min_arm)."
                )
            for split in ("val", "test"):
                if split in rows and (count := len(set(patients[rows[split]]))) < JUDGED:
                    raise CohortError(
                        f"The arm {arm!r} of the treatment '{self.treatment}' has {count} "
                        f"patient(s) in the split '{split}'; expected at least {JUDGED}, by more "
                        "subjects, other fractions or another split_seed."
                    )

    def _check(self, covariates: Sequence[Factor]) -> None:
        known = [*map(str, self.cohort.subjects), *(factor.name for factor in covariates)]
        for name in self.descendants:
            if name not in known:
                raise CohortError(
                    f"The descendant '{name}' of the treatment '{self.treatment}' is not in the "
                    f"table; {suggestion(name, known)}"
                )
        for factor in covariates:
            column = factor.column or factor.name
            if column == self.treatment:
                raise CohortError(
                    f"The covariate '{factor.name}' is the treatment; expected other columns."
                )
            if column in self.descendants or factor.name in self.descendants:
                raise CohortError(
                    f"The covariate '{factor.name}' is declared as a descendant of the treatment "
                    f"'{self.treatment}', and adjusting for it would take part of the effect away; "
                    "expected causes only."
                )


def assign_treatment(
    subjects: str | Path | pd.DataFrame,
    covariates: Sequence[str],
    strength: float = 1.0,
    column: str = "assigned",
    seed: int = 0,
) -> pd.DataFrame:
    """Give every subject of a real table an arm by its covariates, for semi-synthetic truth.

    The probability of arm 1 is ``expit(strength * s)`` with s the standardised sum of the
    standardised covariates: 0 is a randomised trial, 1 confounds with good overlap, and with 4
    about half of the subjects lie outside [0.05, 0.95]. Text counts by the order of its classes,
    a missing cell as the mean.

    Args:
        subjects: a CSV or table, see :func:`medvae.data.load_subjects`.
        covariates: columns that decide.
        strength: of the confounding, not negative.
        column: to be added, with 0 and 1; rows of a patient get the same draw, but not the same
            probability where their covariates differ.
        seed: of the draw.

    Returns:
        The table with the columns `column` and `column_propensity`.

    Raises:
        CohortError: no such column, one that does not vary, or a negative strength.
    """
    table = load_subjects(subjects)
    if strength < 0 or not covariates:
        raise CohortError(
            f"strength is {strength} and covariates are {list(covariates)}; expected 0 or more, "
            "and at least one column."
        )
    score = np.zeros(len(table))
    for name in covariates:
        if name not in table:
            raise CohortError(
                f"Column '{name}' is not in the table; {suggestion(name, map(str, table))}"
            )
        cells = table[name]
        numeric = pd.api.types.is_numeric_dtype(cells)
        values = cells if numeric else pd.Series(pd.Categorical(cells).codes).replace(-1, np.nan)
        score += _standard(np.asarray(values, dtype=np.float64), name)
    probability = expit(strength * _standard(score, "of the sum of covariates"))
    patients = pd.factorize(table["patient"] if "patient" in table else table["id"])[0]
    draws = np.random.default_rng(seed).random(patients.max() + 1)[patients]
    return table.assign(
        **{column: (draws < probability).astype(int), f"{column}_propensity": probability}
    )


def _standard(values: Array, name: str) -> Array:
    spread = np.nanstd(values)
    if not spread > 0:
        raise CohortError(f"Column '{name}' does not vary; expected at least two values.")
    found: Array = np.nan_to_num((values - np.nanmean(values)) / spread)
    return found


def _fitted(factor: Factor, train: pd.DataFrame) -> Factor:
    """The factor with the mean and sd of its cells, without those on a wild scale.

    A sentinel such as 9999 among ages would else make all other subjects alike. Where half of the
    rows are equal there is no scale to tell it by, and all cells count.
    """
    found = factor.fitted(train)
    if found.kind != "continuous":
        return found
    known = found.values(train)
    known = known[~np.isnan(known)]
    low, middle, high = np.quantile(known, [0.25, 0.5, 0.75])
    kept = known[np.abs(known - middle) <= WILD * (high - low)]
    if high == low or len(kept) == len(known):
        return found
    mean, sd = found.mean + found.sd * float(kept.mean()), found.sd * float(kept.std())
    return replace(found, mean=mean, sd=sd)


def _with_control(factor: Factor, control: int | str | None) -> Factor:
    if control is None:
        return factor
    if control not in factor.classes:
        raise CohortError(
            f"The control is {control!r}; expected one of the arms {list(factor.classes)} of "
            f"'{factor.name}'."
        )
    return replace(factor, classes=(control, *(arm for arm in factor.classes if arm != control)))
