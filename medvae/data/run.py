"""Whether a cohort and the settings of a training fit each other, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

from medvae.data.cohort import Cohort
from medvae.data.errors import CohortError, suggestion
from medvae.data.factors import Factors

__all__ = ["check_factor_training", "check_groups", "check_split_sizes", "check_training"]

KNOWN = 5  # medvae.metrics scores no attribute that is known less often


def check_training(
    cohort: Cohort, batch_size: int, max_epochs: int, val_interval: int = 1, n_permutations: int = 1
) -> None:
    """Refuse a training without a batch, an epoch, a validation, a score or a test subject.

    Args:
        cohort: checked and split.
        batch_size: at least 2: attributes are compared in pairs, and the head normalises by batch.
        max_epochs: at least 1.
        val_interval: epochs between validations, at most ``max_epochs``: only they keep a model.
        n_permutations: of the chance levels, at least 1.

    Raises:
        CohortError: in one sentence that names the key.
    """
    if not cohort.attribute_names:
        raise CohortError("attributes is empty; expected at least one name for the latent axes.")
    rows = _rows(cohort)
    _check_limits(rows["train"], batch_size, max_epochs, val_interval, n_permutations)
    _check_known(cohort, rows)


def check_factor_training(
    factors: Factors,
    batch_size: int,
    max_epochs: int,
    val_interval: int = 1,
    groups: Sequence[str] = (),
    balance: Sequence[str] | None = None,
) -> None:
    """Refuse a training of subspaces without a batch, an epoch, or a subject to test it on.

    And names that only its sampler or its evaluation would ask for.

    Args:
        factors: of the cohort.
        batch_size: at least 2: codes are compared and normalised within a batch.
        max_epochs: at least 1.
        val_interval: epochs between validations, at most ``max_epochs``.
        groups: columns that results are to be reported by.
        balance: factors that batches are to be balanced by; None: none.

    Raises:
        CohortError: in one sentence that names the key.
    """
    check_split_sizes(factors.cohort, batch_size, max_epochs, val_interval)
    check_groups(factors.pool, groups)
    if balance is not None:
        factors.cells(balance)


def check_groups(cohort: Cohort, groups: Sequence[str]) -> None:
    """Refuse a group that is no column of the cohort's table.

    Raises:
        CohortError: for the first one.
    """
    for name in groups:
        if name not in cohort.subjects:
            raise CohortError(
                f"groups has '{name}', which is not a column of the table; "
                f"{suggestion(name, cohort.subjects.columns)}"
            )


def check_split_sizes(
    cohort: Cohort, batch_size: int, max_epochs: int, val_interval: int = 1
) -> None:
    """Refuse a training without a batch, an epoch, or a subject to select or test it by.

    Args:
        cohort: checked and split.
        batch_size: at least 2.
        max_epochs: at least 1.
        val_interval: epochs between validations, at most ``max_epochs``.

    Raises:
        CohortError: in one sentence that names the key.
    """
    rows = _rows(cohort)
    _check_limits(rows["train"], batch_size, max_epochs, val_interval)
    for split in ("val", "test"):
        if rows[split] < KNOWN:
            raise CohortError(
                f"The split '{split}' has {rows[split]} row(s); expected at least {KNOWN}, by more "
                "subjects or a larger share in fractions."
            )


def _rows(cohort: Cohort) -> dict[str, int]:
    counts = cohort.subjects["split"].value_counts()
    return {split: int(counts.get(split, 0)) for split in ("train", "val", "test")}


def _check_limits(
    train: int, batch_size: int, max_epochs: int, val_interval: int, n_permutations: int = 1
) -> None:
    for name, value, low, high, why in (
        ("batch_size", batch_size, 2, train, "the training rows"),
        ("max_epochs", max_epochs, 1, None, ""),
        ("val_interval", val_interval, 1, max_epochs, "max_epochs"),
        ("n_permutations", n_permutations, 1, None, ""),
    ):
        if value < low or (high is not None and value > high):
            limit = f"at least {low}" + (f" and at most {high}, {why}" if high is not None else "")
            raise CohortError(f"{name} is {value}; expected {limit}.")


def _check_known(cohort: Cohort, rows: dict[str, int]) -> None:
    for split, purpose in (("val", "select a model by"), ("test", "score it on")):
        part = cohort.subjects[cohort.subjects["split"] == split]
        known = part[list(cohort.attribute_names)].notna().sum().max() if len(part) else 0
        if known < KNOWN:
            raise CohortError(
                f"The split '{split}' has {rows[split]} row(s), {known} with a known attribute to "
                f"{purpose}; expected at least {KNOWN}, by more subjects or a larger share in "
                "fractions."
            )
