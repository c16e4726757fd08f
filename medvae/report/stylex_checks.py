"""What cannot be explained, said before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from medvae.data import CohortError, Factors
from medvae.data.errors import listing, suggestion

__all__ = ["check_explanation"]


def check_explanation(
    factors: Factors,
    heads: Mapping[str, int],
    task: str | None = None,
    covariates: Sequence[str] = (),
    confounders: Sequence[str] = (),
    measured: Sequence[str] = (),
) -> None:
    """Refuse an explanation that names what is not there, or heads that their labels do not fit.

    Args:
        factors: of the cohort, with the labels of heads by their names; a head may have none.
        heads: outputs of every head of the classifier by its name; 1 is a binary head.
        task: head to explain; None: the first.
        covariates: columns and attributes of the cohort's table to compare with.
        confounders: those of them, and heads, that should not decide.
        measured: attributes that are measured again in edited images, for which masks are needed.

    Raises:
        CohortError: in one sentence that names the key.
    """
    if task is not None and task not in heads:
        raise CohortError(f"task is '{task}', which is no head; {suggestion(task, heads)}")
    table = factors.cohort.subjects
    for name in covariates:
        if name not in table:
            raise CohortError(
                f"The covariate '{name}' is not in the table; expected covariates out of "
                f"{[c for c in table if c not in ('id', 'image', 'mask', 'split')]}, or a "
                "measured attribute that `attributes` also names."
            )
    known = (*covariates, *heads)
    for name in confounders:
        if name not in known:
            raise CohortError(
                f"The confounder '{name}' is neither a covariate nor a head; expected confounders "
                f"out of {list(known)}."
            )
    if measured:
        _check_masks(factors.pool.subjects, measured[0])
    for name in set(factors.names).intersection(heads):
        _check_labels(name, heads[name], factors)


def _check_masks(table: pd.DataFrame, name: str) -> None:
    """Refuse subjects that have no mask to learn from or to be measured in."""
    without = table if "mask" not in table else table[table["mask"].isna()]
    if len(without):
        raise CohortError(
            f"Column 'mask' has none for {listing(without['id'])}; expected a mask of every "
            f"subject, as measured names '{name}', or measured: []."
        )


def _check_labels(name: str, outputs: int, factors: Factors) -> None:
    if factors.kinds[name] == "continuous":
        raise CohortError(
            f"The factor '{name}' is continuous; expected classes, as a head of the classifier has "
            "them, by bins and the kind ordinal."
        )
    classes = factors.classes[name]
    if max(2, outputs) != len(classes):
        raise CohortError(
            f"The head '{name}' has {outputs} output(s) and its labels are the {len(classes)} "
            f"classes {list(classes)}; expected an output in heads for each class, or one for two."
        )
