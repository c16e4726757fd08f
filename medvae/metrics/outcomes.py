"""Predictions of every factor from every subspace, kept so that any rows of them can be scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from .banks import Bank, Checked
from .information import Array
from .intervals import Rows
from .probes import PROBES, mean_recall, r2

__all__ = ["WHOLE", "Outcome", "best_probe", "checked_subspaces", "outcomes", "permuted", "points"]

WHOLE = "whole"  # the row of all subspaces together


class Outcome(NamedTuple):
    """Predictions of one factor from one subspace.

    Attributes:
        bank: natural or balanced.
        subspace: its name, or "whole".
        factor: its name.
        continuous: whether the factor is.
        rows: the test rows whose label is known, (n,).
        labels: of these rows, (n,).
        weights: of these rows, (n,).
        predictions: of every probe for these rows from every draw of the bank, (draws, n).
        reason: why there are none, else None.
    """

    bank: str
    subspace: str
    factor: str
    continuous: bool
    rows: Rows
    labels: Array
    weights: Array
    predictions: dict[str, Array]
    reason: str | None


def checked_subspaces(subspaces: Mapping[str, slice], dimensions: int) -> dict[str, slice]:
    """Return the subspaces followed by the whole code.

    Raises:
        ValueError: none, an empty one, one beyond the codes, or one called "whole".
    """
    for name, part in subspaces.items():
        size = len(range(*part.indices(dimensions)))
        if not size or (part.stop or 0) > dimensions or name == WHOLE:
            raise ValueError(
                f"subspace '{name}' is {part} of codes with {dimensions} dimensions: expected a "
                f"part of them, not empty, under another name than '{WHOLE}'."
            )
    if not subspaces:
        raise ValueError("subspaces: found none, expected at least one.")
    parts = {**subspaces, WHOLE: slice(dimensions)}
    return {name: slice(*part.indices(dimensions)[:2]) for name, part in parts.items()}


def outcomes(
    banks: Mapping[str, Sequence[Bank]],
    test: Checked,
    subspaces: Mapping[str, slice],
    kinds: Mapping[str, str],
    progress: bool,
) -> Iterator[Outcome]:
    """Fit every probe to every factor's banks in every subspace, and read the test rows."""
    jobs = [
        (column, factor, bank, subspace)
        for column, factor in enumerate(kinds)
        for bank in banks[factor]
        for subspace in subspaces
    ]
    for column, factor, bank, subspace in tqdm(jobs, desc="leakage", disable=not progress):
        part, continuous = subspaces[subspace], kinds[factor] == "continuous"
        rows = np.flatnonzero(~np.isnan(test.factors[:, column]))
        predictions = {}
        if bank.reason is None:
            x, y = bank.source.codes[:, part], bank.source.factors[:, column]
            x_new = test.codes[rows, part]
            predictions = {
                name: np.stack([probe(x[d], y[d], x_new, continuous, bank.k) for d in bank.draws])
                for name, probe in PROBES.items()
            }
        yield Outcome(
            bank.name,
            subspace,
            factor,
            continuous,
            rows,
            test.factors[rows, column],
            bank.weights[rows],
            predictions,
            bank.reason,
        )


def points(outcome: Outcome, probe: str, weights: Array) -> Array:
    """Points above chance: 100 x (balanced accuracy - 1 / classes), or 100 x R².

    Unlike accuracy's, balanced accuracy's chance is the same for every constant answer.

    Args:
        outcome: with predictions of that probe.
        probe: its name.
        weights: shape (R, n).

    Returns:
        Shape (R,); NaN where undefined.
    """
    found = outcome.predictions[probe]
    if outcome.continuous:
        return 100 * r2(outcome.labels, found, weights)
    member = outcome.labels[:, None] == np.unique(outcome.labels)
    count = np.maximum(((weights @ member) > 0).sum(axis=1), 1)
    return 100 * (mean_recall(outcome.labels, found, weights) - 1 / count)


def best_probe(outcome: Outcome) -> str | None:
    """Return the probe that tells most of the factor on all test rows; None without any."""
    found = {probe: points(outcome, probe, outcome.weights[None])[0] for probe in PROBES}
    known = {probe: value for probe, value in found.items() if not np.isnan(value)}
    return max(known, key=lambda probe: known[probe]) if known else None


def permuted(outcome: Outcome, n_permutations: int, seed: int) -> Array:
    """Return the points of the best probe against permuted test labels, (n_permutations,).

    Their mean is above 0 because the luckiest of three probes is taken.
    """
    generator = np.random.default_rng(seed)
    draws = np.full(n_permutations, np.nan)
    for index in range(n_permutations):
        shuffled = outcome._replace(labels=generator.permutation(outcome.labels))
        draws[index] = max(points(shuffled, probe, outcome.weights[None])[0] for probe in PROBES)
    return draws
