"""Simple estimators of an effect beside a network's: on a region's mean, and in every voxel.

Means and weights of both arms say one effect for all the subjects they are of, those of all splits.
Estimators that give every subject an effect are fitted on all splits, too, and averaged over the
test subjects, as the network is and as a known truth is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from medvae.metrics import (
    combat,
    difference_of_means,
    inverse_propensity,
    marginal_sensitivity,
    propensity,
    regression,
    t_learner,
)
from medvae.metrics.intervals import json_number

__all__ = ["estimated_images", "simple_effects"]

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
STRENGTHS = (1.0, 1.5, 2.0)  # of a hidden confounder, in the odds of treatment
LEAST = 0.01  # propensity that the bounds are computed with


def simple_effects(
    values: Array,
    arms: npt.NDArray[Any],
    columns: Array,
    patients: npt.NDArray[Any],
    arm: int,
    test: Bools,
) -> dict[str, Any]:
    """Effect of an arm against the control on a number of each subject.

    Args:
        values: shape (N,), NaN where not defined; known to some subjects of both arms.
        arms: whole numbers, shape (N,).
        columns: covariates, shape (N, P), without NaN.
        patients: shape (N,).
        arm: which, above 0.
        test: the rows of the test split, shape (N,).

    Returns:
        A dict that json can write. ``simple[method]``: ``effect``, the ``split`` of the subjects
        whose effects it is the mean of, "test" or "all", and their number, ``subjects``.
        ``sensitivity[strength]``: bounds of `marginal_sensitivity`.
    """
    rows = ((arms == 0) | (arms == arm)) & np.isfinite(values)
    asked = test & np.isfinite(values)
    y, t, x, names = values[rows], (arms[rows] == arm).astype(int), columns[rows], patients[rows]
    under = combat(y[:, None], t, x)
    of_everybody = {
        "difference of means": difference_of_means(y, t),
        "inverse propensity": inverse_propensity(y, t, x, names),
    }
    of_each = {
        "linear regression": regression(y, t, x, columns[asked]),
        "T-learner": t_learner(y, t, x, at=columns[asked]),
        "ComBat": (under[1] - under[0])[test[rows]],  # it moves the two arms' subjects alone
    }
    e = propensity(x, t, names)[:, 1].clip(LEAST, 1 - LEAST)
    bounds = {strength: marginal_sensitivity(y, t, e, strength) for strength in STRENGTHS}
    return {
        "simple": {name: _entry(effect, len(y), "all") for name, effect in of_everybody.items()}
        | {name: _entry(each, len(each), "test") for name, each in of_each.items()},
        "sensitivity": {
            f"{strength:g}": [json_number(low), json_number(high)]
            for strength, (low, high) in bounds.items()
        },
    }


def estimated_images(
    outcome: npt.NDArray[Any],
    arms: npt.NDArray[Any],
    columns: Array,
    patients: npt.NDArray[Any],
    test: Bools,
) -> Iterator[tuple[str, Array]]:
    """Yield methods by name, with the test subjects' images (M, C, *S) under the other of two arms.

    Every voxel is estimated for itself, from the images of all splits; but for ComBat, a subject's
    image is its own plus or minus the estimated effect. One method at a time, as each takes several
    times the memory of all images.

    Args:
        outcome: images of all subjects, shape (N, C, *S).
        arms: 0 or 1, shape (N,).
        columns: covariates, shape (N, P), without NaN.
        patients: shape (N,).
        test: the rows of the test split, shape (N,).
    """
    to_treated = (arms[test] == 0).reshape(-1, *(1,) * (outcome.ndim - 1))
    estimates = {
        "difference of means": lambda: difference_of_means(outcome, arms),
        "inverse propensity": lambda: inverse_propensity(outcome, arms, columns, patients),
        "linear regression": lambda: regression(outcome, arms, columns, columns[test]),
        "T-learner": lambda: t_learner(outcome, arms, columns, at=columns[test]),
    }
    for name, estimate in estimates.items():
        yield name, outcome[test] + np.where(to_treated, 1.0, -1.0) * estimate()
    under = [images[test] for images in combat(outcome, arms, columns)]
    yield "ComBat", np.where(to_treated, under[1], under[0])


def _entry(effects: Array, subjects: int, split: str) -> dict[str, Any]:
    effect = json_number(effects.mean()) if effects.size else None
    return {"effect": effect, "subjects": subjects, "split": split}
