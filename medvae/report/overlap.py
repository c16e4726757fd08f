"""What is assumed, and whether arms overlap, said before anything is trained."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medvae.data import CohortError, Roles, write_text
from medvae.metrics import Propensity, overlap_report
from medvae.networks import CovariateEncoder

__all__ = [
    "announce_overlap",
    "covariate_columns",
    "load_propensity",
    "network_propensity",
    "patients_of",
]

logger = logging.getLogger("medvae")

# An AUC from which arms count as told apart. Covariates that decide the arm give 1, or a little
# less, as every fold draws its own limit (0.995 to 1 in 40 cohorts of 80). Confounding that leaves
# half of the subjects in the overlap gives 0.95, at most 0.99 by chance with 80; noise stays below
# 0.81, also with as many covariates as subjects.
SEPARATED = 0.995


def covariate_columns(roles: Roles, covariates: np.ndarray) -> np.ndarray:
    """Return covariates (N, K) as the columns (N, P) that the network reads, without NaN."""
    encoder = CovariateEncoder(roles.classes)
    return encoder(torch.from_numpy(covariates.astype(np.float32))).numpy().astype(np.float64)


def patients_of(roles: Roles, split: str | None = None) -> np.ndarray:
    """Return the patient of every row of a split, or of all; the row where no column names one."""
    table, column = roles.cohort.subjects, roles.cohort.patient
    table = table if split is None else table[table["split"] == split]
    return table[column if column in table else "id"].to_numpy()


def announce_overlap(roles: Roles, path: str | Path) -> dict[str, Any]:
    """Say the assumed graph and the overlap of the arms, and write the latter as JSON.

    Args:
        roles: of the cohort.
        path: the JSON to write.

    Returns:
        See `medvae.metrics.overlap_report`.

    Raises:
        CohortError: covariates say the treatment, and no method can tell its effect from theirs:
            they tell it with a cross-fitted AUC of 0.995 or more, or all subjects lie outside the
            overlap.
    """
    arms, covariates = roles.values(roles.cohort.subjects)
    names = [str(arm) for arm in roles.arms]
    columns = covariate_columns(roles, covariates)
    report = overlap_report(columns, arms, names, patients_of(roles))
    logger.info(roles.graph())
    counts = ", ".join(f"{name}: {count}" for name, count in report["arms"].items())
    logger.info(
        "Arms of %s: %s. Covariates tell the arm with AUC %.2f (chance 0.5); %.0f %% of the "
        "subjects lie outside the overlap (an arm with probability below %g).",
        roles.treatment,
        counts,
        report["auc"],
        100 * report["outside"],
        report["limit"],
    )
    if report["auc"] >= SEPARATED or report["outside"] == 1:
        raise CohortError(
            f"The covariates {list(roles.names)} predict the treatment '{roles.treatment}' for all "
            f"subjects or nearly all (AUC {report['auc']:.3f}, no overlap at all); expected "
            "subjects alike in both arms, by leaving out a covariate that is no cause of "
            f"{' and '.join(roles.outcomes) or 'the image'}."
        )
    train = (roles.cohort.subjects["split"] == "train").to_numpy()
    fitted = Propensity.fitted(columns[train], arms[train])
    write_text(path, json.dumps({**report, "propensity": asdict(fitted)}, indent=1) + "\n")
    return report


def load_propensity(path: str | Path) -> Propensity:
    """Read the propensity that `announce_overlap` wrote beside a model.

    Raises:
        CohortError: no such file, or not one that it wrote.
    """
    try:
        return Propensity(**json.loads(Path(path).read_text(encoding="utf-8"))["propensity"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CohortError(
            f"The overlap '{path}' cannot be read ({type(error).__name__}); expected the file that "
            "training wrote beside its model."
        ) from error


def network_propensity(path: str | Path, roles: Roles) -> Callable[[Tensor], Tensor]:
    """Return the propensity of what a network reads: from covariates (B, K) to (B, T).

    Args:
        path: what `announce_overlap` wrote beside the model.
        roles: of the model.

    Raises:
        CohortError: see `load_propensity`.
    """
    fitted = load_propensity(path)

    def probabilities(covariates: Tensor) -> Tensor:
        columns = covariate_columns(roles, covariates.cpu().numpy())
        return torch.from_numpy(fitted.probabilities(columns)).to(covariates)

    return probabilities
