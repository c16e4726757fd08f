"""Dividing a cohort by patients, so that no patient is on both sides of a comparison."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd

from medvae.data.errors import CohortError, listing, suggestion

__all__ = ["SPLITS", "split_subjects"]

SPLITS = ("train", "val", "test")


def split_subjects(
    subjects: pd.DataFrame,
    fractions: Sequence[float] = (0.6, 0.15, 0.25),
    patient: str | None = "patient",
    label: str | None = None,
    seed: int = 0,
    split_column: str | None = None,
) -> pd.DataFrame:
    """Assign every patient to train, val or test.

    Patients are put in an order that only their names and the seed decide, class by class, and
    dealt one after the other to the split that is furthest below its share. So the result does not
    depend on the order of rows, and every class is divided about as the whole.

    Args:
        subjects: a table with an ``id`` column, see :func:`medvae.data.load_subjects`.
        fractions: shares of the patients for train, val and test; a share of 0 leaves a split
            empty.
        patient: the column that says which rows belong to one patient. ``None``, or the default
            where there is no such column: each row is a patient.
        label: the class column to stratify by; a patient counts for its most frequent class.
        seed: another seed gives another division.
        split_column: take the splits from this column instead (train, val or test in each row).

    Returns:
        A copy of ``subjects`` with the column ``split``.

    Raises:
        CohortError: too few patients, an unknown column or split, a row without a patient, or a
            patient in two splits.
    """
    groups = patient_of(subjects, patient)
    if split_column is not None:
        return subjects.assign(split=_given_splits(subjects, groups, split_column))
    shares = _checked(fractions)
    strata = _strata(subjects, groups, label)
    needed = int((shares > 0).sum())
    if len(strata) < needed:
        parts = ", ".join(name for name, share in zip(SPLITS, shares, strict=True) if share > 0)
        raise CohortError(
            f"The cohort has {len(strata)} patient(s) in {len(subjects)} row(s); "
            f"expected at least {needed}, one for each of {parts}."
        )
    ordered = sorted(strata, key=lambda name: (strata[name], _shuffle_key(seed, name)))
    assigned = _deal([strata[name] for name in ordered], shares)
    split_of = {name: SPLITS[split] for name, split in zip(ordered, assigned, strict=True)}
    return subjects.assign(split=[split_of[name] for name in groups])


def patient_of(subjects: pd.DataFrame, patient: str | None) -> list[str]:
    """The patient of every row, as text."""
    if patient is None or (patient == "patient" and patient not in subjects):
        return [str(name) for name in subjects["id"]]
    if patient not in subjects:
        raise CohortError(
            f"The patient column '{patient}' is not in the table; "
            f"{suggestion(patient, subjects.columns)}"
        )
    missing = subjects.loc[subjects[patient].isna(), "id"]
    if len(missing):
        raise CohortError(
            f"Column '{patient}' is empty in row {listing(missing)}; "
            "expected a patient in every row, or two splits could share one."
        )
    return [str(name) for name in subjects[patient]]


def _checked(fractions: Sequence[float]) -> np.ndarray:
    shares = np.asarray(fractions, dtype=float)
    valid = shares.shape == (3,) and (shares >= 0).all() and shares[0] > 0
    if not valid or abs(shares.sum() - 1) > 1e-6:
        raise CohortError(
            f"The split fractions are {list(fractions)}; "
            "expected three numbers for train, val and test that sum to 1, train above 0."
        )
    return shares


def _given_splits(subjects: pd.DataFrame, groups: list[str], column: str) -> list[str]:
    if column not in subjects:
        raise CohortError(
            f"The split column '{column}' is not in the table; "
            f"{suggestion(column, subjects.columns)}"
        )
    split_of: dict[str, str] = {}
    for name, group, split in zip(subjects["id"], groups, subjects[column], strict=True):
        if split not in SPLITS:
            raise CohortError(
                f"Column '{column}' holds {split!r} in row '{name}'; expected train, val or test."
            )
        if split_of.setdefault(group, split) != split:
            raise CohortError(
                f"Patient '{group}' is in {split_of[group]} and in {split} of column '{column}'; "
                "expected one split per patient."
            )
    for needed in SPLITS[:2]:
        if needed not in split_of.values():
            raise CohortError(f"Column '{column}' has no row in {needed}; expected at least one.")
    return [str(split) for split in subjects[column]]


def _strata(subjects: pd.DataFrame, groups: list[str], label: str | None) -> dict[str, str]:
    """The class of every patient: its most frequent one, the first in order if several are."""
    if label is None:
        return dict.fromkeys(groups, "")
    votes: dict[str, dict[str, int]] = {}
    for group, value in zip(groups, subjects[label], strict=True):
        counts = votes.setdefault(group, {})
        if pd.notna(value):
            counts[str(value)] = counts.get(str(value), 0) + 1
    return {
        group: min(counts, key=lambda value: (-counts[value], value), default="")
        for group, counts in votes.items()
    }


def _shuffle_key(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def _deal(strata: Sequence[Hashable], shares: np.ndarray) -> list[int]:
    """The split of every patient, given their strata in one contiguous run each."""
    whole = np.zeros(3)
    assigned: list[int] = []
    part = np.zeros(3)
    for i, stratum in enumerate(strata):
        if i == 0 or stratum != strata[i - 1]:
            part = np.zeros(3)
            split = 0  # a class that training has not seen could not be predicted
        else:
            short = (shares * (i + 1) - whole) + (shares * (part.sum() + 1) - part)
            split = int(np.argmax(short))
        whole[split] += 1
        part[split] += 1
        assigned.append(split)
    for empty in np.flatnonzero((shares > 0) & (whole == 0)).tolist():
        largest = int(np.argmax(whole))
        moved = len(assigned) - 1 - assigned[::-1].index(largest)
        whole += np.eye(3)[empty] - np.eye(3)[largest]
        assigned[moved] = empty
    return assigned
