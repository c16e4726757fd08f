"""All disentanglement scores of a set of codes, beside chance, ceiling and interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from .disentanglement import (
    AxisPair,
    at,
    choose,
    gap,
    information_gap,
    modularity_of,
    r_squared,
    rank_correlation,
)
from .importance import dci
from .information import (
    MIN_ROWS,
    Array,
    Bools,
    checked,
    discrete_columns,
    entropy,
    mutual_information,
)
from .intervals import (
    Interval,
    bootstrap_rows,
    half_sample_interval,
    half_sample_rows,
    json_number,
    percentile_interval,
    rows_by_patient,
)

__all__ = ["disentanglement_report"]

INFORMATION_HALVES = 100  # at most; 30 ms each at N = 200, D = 64, K = 6
DCI_PERMUTATIONS, DCI_HALVES = 5, 10  # at most; 0.5 s and 0.3 s each at that size

BOOTSTRAPPED = ("interpretability", "scc", "sap")
WHOLE = ("modularity", "dci_disentanglement")  # no value per attribute

Scores = dict[str, Array]  # (K,), or (1,) for what has no value per attribute


class _Chosen(NamedTuple):
    """The axes that the scores compare, by each of the three measures of dependence."""

    information: AxisPair
    rank: AxisPair
    r_squared: AxisPair


class _Cohort(NamedTuple):
    codes: Array
    attributes: Array
    discrete: Bools
    patients: Any  # one name per row, or None

    def take(self, rows: npt.NDArray[np.intp]) -> _Cohort:
        patients = None if self.patients is None else np.asarray(self.patients)[rows]
        return _Cohort(self.codes[rows], self.attributes[rows], self.discrete, patients)


def disentanglement_report(
    codes: npt.ArrayLike,
    attributes: npt.ArrayLike,
    names: Sequence[str],
    axes: Sequence[int] | None = None,
    discrete: npt.ArrayLike | None = None,
    patients: npt.ArrayLike | None = None,
    n_permutations: int = 100,
    n_resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Reports interpretability, SCC, SAP, MIG, modularity and DCI beside chance and ceiling.

    - ``chance`` and ``chance_p95``: mean and 95th percentile of the score when whole rows of
      attributes are permuted against the codes (DCI, whose chance varies little: at most 5).
    - ``ceiling``: the score of ideal codes, which hold the attributes themselves on the first K
      axes and permuted axes elsewhere: correlated or discrete attributes keep MIG and SAP below 1.
    - ``low`` and ``high``: an interval by patients for the axes that all rows select (with
      axes=None, the uncertainty of that selection shows in ``chance``, not here).
      Interpretability, SCC, SAP: percentile cluster bootstrap. MIG, modularity and DCI: random
      halves of the patients without replacement, at most 100 (DCI 10); see
      :mod:`medvae.metrics.intervals` for the rescaling.

    Takes about 20 s at N = 75, D = 32, K = 6 with 30 permutations and 200 resamples, most of it for
    DCI; N, D and K enter about linearly.

    Args:
        codes: Latent codes, shape (N, D), finite; the means, not samples.
        attributes: Shape (N, K); NaN = missing, masked per attribute.
        names: Names of the attributes.
        axes: For each attribute the axis tied to it; None = as published (the best).
        discrete: One boolean per attribute; None decides by :func:`is_discrete`.
        patients: Patient of each row; None = one patient per row.
        n_permutations: Permutations for the chance level; 0 leaves it out.
        n_resamples: Resamples for the intervals; 0 leaves them out.
        level: Coverage of the intervals.
        seed: Seed of permutations, resamples and forests.
        progress: Shows a progress bar.

    Returns:
        A dict that json can write; undefined numbers are None. ``scores[score]["mean"]`` is the
        mean over attributes, ``scores[score]["attributes"][name]`` the value of one (absent for
        modularity and dci_disentanglement), each with value, low, high, chance, chance_p95 and
        ceiling. ``attributes[name]`` says how many rows are observed, whether it was treated as
        discrete and which axis was scored; ``excluded`` why an attribute was left out.

    Raises:
        ValueError: If shapes disagree, codes are not finite, or every attribute has too few rows.
    """
    cohort, kept, excluded = _usable(codes, attributes, names, discrete, patients)
    if axes is not None and len(axes) != len(names):
        raise ValueError(
            f"axes has {len(axes)} entries, expected one for each of {len(names)} names."
        )
    tied = None if axes is None else np.asarray(axes)[kept]
    n_patients = len(rows_by_patient(cohort.patients, len(cohort.codes)))
    with tqdm(
        total=n_permutations + n_resamples + min(n_resamples, INFORMATION_HALVES) + 2,
        desc="disentanglement",
        disable=not progress,
    ) as bar:
        values, chosen = _all_scores(cohort, tied, seed)
        bar.update()
        ideal = cohort._replace(codes=_ideal_codes(cohort, seed))
        ceiling = _all_scores(ideal, np.arange(kept.size), seed)[0]
        bar.update()
        chance = _permuted(cohort, tied, n_permutations, seed, bar)
        bounds = _intervals(cohort, chosen, values, (n_resamples, level, n_patients, seed), bar)
    observed_names = [names[k] for k in kept]
    scores = {
        score: _entries(score, observed_names, values, bounds, chance, ceiling) for score in values
    }
    return {
        "rows": len(cohort.codes),
        "patients": n_patients,
        "axes": "most informative" if axes is None else "tied",
        "level": level,
        "n_permutations": n_permutations,
        "n_resamples": n_resamples,
        "seed": seed,
        "attributes": {
            name: {
                "observed": int(np.isfinite(cohort.attributes[:, k]).sum()),
                "discrete": bool(cohort.discrete[k]),
                "axis": int(chosen.information.first[k]),
            }
            for k, name in enumerate(observed_names)
        },
        "excluded": excluded,
        "scores": scores,
    }


def _usable(
    codes: npt.ArrayLike,
    attributes: npt.ArrayLike,
    names: Sequence[str],
    discrete: npt.ArrayLike | None,
    patients: npt.ArrayLike | None,
) -> tuple[_Cohort, npt.NDArray[np.intp], dict[str, str]]:
    """Returns the cohort, the attributes with enough rows, and why the others are left out."""
    z, y = checked(codes, attributes)
    if len(names) != y.shape[1]:
        raise ValueError(
            f"names has {len(names)} entries, expected one for each of {y.shape[1]} attributes."
        )
    observed = np.isfinite(y).sum(axis=0)
    excluded = {
        name: f"{count} rows observed, expected at least {MIN_ROWS}"
        for name, count in zip(names, observed, strict=True)
        if count < MIN_ROWS
    }
    kept = np.flatnonzero(observed >= MIN_ROWS)
    if not kept.size:
        raise ValueError(f"attributes: {excluded}; no attribute is left to score.")
    flags = discrete_columns(y, discrete)
    return _Cohort(z, y[:, kept], flags[kept], patients), kept, excluded


def _correlation_scores(linear: Array, rank: Array, chosen: _Chosen) -> Scores:
    return {
        "interpretability": at(linear, chosen.information.first),
        "scc": at(rank, chosen.rank.first),
        "sap": gap(linear, chosen.r_squared),
    }


def _information_scores(cohort: _Cohort, information: Array, chosen: _Chosen) -> Scores:
    entropies = entropy(cohort.attributes, cohort.discrete)
    return {
        "mig": information_gap(information, entropies, chosen.information),
        "modularity": np.array([modularity_of(information)]),
    }


def _dci_scores(cohort: _Cohort, seed: int) -> Scores:
    result = dci(*cohort, seed=seed)
    return {
        "dci_disentanglement": np.array([result.disentanglement]),
        "dci_completeness": result.completeness_of,
        "dci_informativeness": result.informativeness_of,
    }


def _all_scores(
    cohort: _Cohort, axes: npt.NDArray[np.intp] | None, seed: int, with_dci: bool = True
) -> tuple[Scores, _Chosen]:
    """Scores the cohort and returns the axes it selected; each matrix is computed once."""
    information = mutual_information(*cohort[:3])
    linear = r_squared(cohort.codes, cohort.attributes)
    rank = rank_correlation(cohort.codes, cohort.attributes)
    chosen = _Chosen(*(choose(matrix, axes) for matrix in (information, rank, linear)))
    scores = _correlation_scores(linear, rank, chosen)
    scores |= _information_scores(cohort, information, chosen)
    return (scores | _dci_scores(cohort, seed) if with_dci else scores), chosen


def _ideal_codes(cohort: _Cohort, seed: int) -> Array:
    """Puts the attributes themselves on the first axes and permuted rows on the others."""
    y = cohort.attributes
    filled = np.where(np.isnan(y), np.nanmedian(y, axis=0), y)
    # units are free: without this a small unit would look like a collapsed axis
    spread = filled.std(axis=0)
    filled = (filled - filled.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    others = np.random.default_rng(seed).permutation(cohort.codes)
    n_axes = max(cohort.codes.shape[1], y.shape[1])
    return np.hstack((filled, others))[:, :n_axes]


def _permuted(
    cohort: _Cohort, axes: npt.NDArray[np.intp] | None, n: int, seed: int, bar: tqdm[Any]
) -> Scores:
    generator = np.random.default_rng(seed)
    draws = []
    for index in range(n):
        rows = generator.permutation(len(cohort.codes))
        shuffled = cohort._replace(attributes=cohort.attributes[rows])
        draws.append(_all_scores(shuffled, axes, seed, with_dci=index < DCI_PERMUTATIONS)[0])
        bar.update()
    return _stacked(draws)


def _intervals(
    cohort: _Cohort,
    chosen: _Chosen,
    values: Scores,
    plan: tuple[int, float, int, int],
    bar: tqdm[Any],
) -> dict[str, tuple[Interval, Interval]]:
    """Returns for each score the interval per attribute and that of the mean."""
    n_resamples, level, n_patients, seed = plan
    n_rows, n_halves = len(cohort.codes), min(n_resamples, INFORMATION_HALVES)
    draws: list[Scores] = []
    for rows in bootstrap_rows(cohort.patients, n_rows, n_resamples, seed):
        z, y = cohort.codes[rows], cohort.attributes[rows]
        draws.append(_correlation_scores(r_squared(z, y), rank_correlation(z, y), chosen))
        bar.update()
    for index, rows in enumerate(half_sample_rows(cohort.patients, n_rows, n_halves, seed)):
        half = cohort.take(rows)
        draws.append(_information_scores(half, mutual_information(*half[:3]), chosen))
        if index < DCI_HALVES:
            draws.append(_dci_scores(half, seed))
        bar.update()
    stacked, result = _stacked(draws), {}
    for score, value in values.items():
        table = stacked.get(score, np.empty((0, value.size)))
        if score in BOOTSTRAPPED:
            pair = [percentile_interval(t, level) for t in (table, _mean(table))]
        else:
            each = half_sample_interval(value, table, n_patients, level)
            pair = [each, half_sample_interval(_mean(value), _mean(table), n_patients, level)]
        result[score] = (pair[0], pair[1])
    return result


def _stacked(draws: Iterable[Scores]) -> Scores:
    lists: dict[str, list[Array]] = {}
    for draw in draws:
        for score, values in draw.items():
            lists.setdefault(score, []).append(values)
    return {score: np.stack(values) for score, values in lists.items()}


def _mean(values: Array) -> Array:
    """Means over attributes, NaN left out."""
    known = ~np.isnan(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0.0).sum(axis=-1)
    mean: Array = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean


def _entries(
    score: str,
    names: Sequence[str],
    values: Scores,
    bounds: dict[str, tuple[Interval, Interval]],
    chance: Scores,
    ceiling: Scores,
) -> dict[str, Any]:
    value, each, overall = values[score], *bounds[score]
    permuted = chance.get(score, np.empty((0, value.size)))
    entry: dict[str, Any] = {
        "mean": _entry(
            _mean(value), overall.low, overall.high, _mean(permuted), _mean(ceiling[score])
        )
    }
    if score not in WHOLE:
        columns = zip(names, value, each.low, each.high, permuted.T, ceiling[score], strict=True)
        entry["attributes"] = {name: _entry(*numbers) for name, *numbers in columns}
    return entry


def _entry(value: Array, low: Array, high: Array, chance: Array, ceiling: Array) -> dict[str, Any]:
    known = chance[~np.isnan(chance)]
    return {
        "value": json_number(value),
        "low": json_number(low),
        "high": json_number(high),
        "chance": json_number(known.mean()) if known.size else None,
        "chance_p95": json_number(np.quantile(known, 0.95)) if known.size else None,
        "ceiling": json_number(ceiling),
    }
