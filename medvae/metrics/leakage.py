"""Leakage: what the subspaces of a code tell of factors that are not theirs.

Probes are fitted on the codes of a *bank* of training rows and read the codes of test rows. A bank
in which factors go together hides leakage: told by its neighbours what usually comes along, a probe
of the wrong factor is drawn to the right one's answer, and fails on a balanced test. So every
number exists for the bank as it is ("natural", as published) and balanced. No number is leakage by
itself: points are those above chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .banks import Bank, Checked, Plan, Sample, balanced_bank, checked, natural_bank
from .dependence import dependence_report
from .information import Array
from .intervals import bootstrap_rows, json_number, percentile_interval, rows_by_patient
from .neighbours import majority
from .outcomes import WHOLE, Outcome, best_probe, checked_subspaces, outcomes, permuted, points
from .probes import PROBES, mean_recall
from .subgroups import leakage_by_group

__all__ = ["leakage_matrix", "leakage_report"]

BANKS = ("natural", "balanced")


def leakage_report(
    bank: Sample,
    test: Sample,
    subspaces: Mapping[str, slice],
    kinds: Mapping[str, str],
    n_permutations: int = 100,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Reports leakage, the dependence of subspaces and their effective ranks.

    Args:
        bank: As in :func:`leakage_matrix`.
        test: Its codes are also those whose dependence and rank are measured.
        subspaces: As in :func:`leakage_matrix`.
        kinds: As in :func:`leakage_matrix`.
        n_permutations: Permutations of both.
        seed: Seed of both.
        **options: All others of :func:`leakage_matrix`.

    Returns:
        The dict of :func:`leakage_matrix` and, under ``dependence``, that of
        :func:`dependence_report`.
    """
    report = leakage_matrix(
        bank, test, subspaces, kinds, n_permutations=n_permutations, seed=seed, **options
    )
    classes = {
        name: len(factor["bank"])
        for name, factor in report["factors"].items()
        if factor["kind"] != "continuous"
    }
    dependence = dependence_report(test.codes, subspaces, classes, n_permutations, seed)
    return report | {"dependence": dependence}


def leakage_matrix(
    bank: Sample,
    test: Sample,
    subspaces: Mapping[str, slice],
    kinds: Mapping[str, str],
    balance: Mapping[str, Sequence[str]] | None = None,
    pool: Sample | None = None,
    balance_test: bool = False,
    groups: Mapping[str, Sequence[Any]] | None = None,
    least_group: int = 20,
    k: int = 30,
    draws: int = 5,
    least_cell: int = 5,
    n_permutations: int = 100,
    n_resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Reports what every subspace, and the whole code, tells of every factor.

    Three probes (:mod:`medvae.metrics.probes`) are fitted on two banks: ``natural``, all rows whose
    label is known, and ``balanced``, drawn so that the factor is independent of the others
    (:mod:`medvae.metrics.balance`). Scores of several draws are averaged. Points above chance are
    100 x (balanced accuracy - 1 / classes), or 100 x R² of a continuous factor; the best probe is
    the one with most points on the test rows, which luck flatters by ``chance``.

    What cannot be measured is None beside its ``reason``: one class only, a label missing for
    everybody, no stratum that can be balanced. A test row of a class that the bank lacks counts as
    wrong (``absent_from_bank`` names it). Constant codes tell nothing: 0 points. Neighbours are at
    most the rows of the bank, in the balanced one at most those of a class.

    Boosting takes nearly all of the time: (S + 1) x K x (1 + draws) fits of about 0.15 s on a core
    for S subspaces and K factors, 13 s for four subspaces and three factors.

    Args:
        bank: Codes of training subjects, their factors as columns in the order of ``kinds``.
        test: Codes of subjects that no part of the model was fitted on.
        subspaces: Where each subspace lies in the codes; one named like a factor is meant to tell
            of it, the others (such as "free") of none.
        kinds: Of every factor by its name: categorical, ordinal (scored as categorical) or
            continuous (balanced by thirds).
        balance: For a factor, the others to balance it against; a factor that is not named, or
            None: against all others.
        pool: What balanced banks are drawn from; None: the bank. Where the bank is confounded its
            rare cells are small: training subjects that were left out of it make better banks.
        balance_test: Weighs the test rows, too, so that all cells are equally frequent.
        groups: Columns of the test rows, (N,) each, by whose levels performance and leakage are
            reported under ``groups``; see :func:`leakage_by_group`.
        least_group: Rows that a level needs.
        k: Neighbours.
        draws: Balanced banks, where the smallest cell has fewer than 100 rows.
        least_cell: Rows that every cell of a stratum needs in the bank.
        n_permutations: Permutations of test labels for the chance level; 0 leaves it out.
        n_resamples: Bootstrap resamples of test patients for intervals; 0 leaves them out.
        level: Coverage of the intervals.
        seed: Seed of all draws.
        progress: Shows a progress bar.

    Returns:
        A dict that json can write: ``matrix[bank][subspace][factor]`` holds for every probe
        accuracy, balanced_accuracy (or r2) and points, and ``best``: probe, points, low, high,
        chance and chance_p95 (of the permuted best probe). ``chance[bank][factor]`` the accuracy
        of the bank's most frequent class and 1 / classes. ``summary[bank]`` the points of own
        factors, of cross factors (labelled subspaces) and of subspaces without factor: mean and
        worst. ``factors`` and ``banks`` say what was there.

    Raises:
        ValueError: If shapes disagree, codes are not finite, a class is not a whole number, a
            subspace is not part of the codes, or a name is unknown.
    """
    source, cohort = checked(bank, kinds), checked(test, kinds)
    drawn = source if pool is None else checked(pool, kinds)
    dimensions = {sample.codes.shape[1] for sample in (source, cohort, drawn)}
    if len(dimensions) > 1:
        raise ValueError(f"codes have {sorted(dimensions)} dimensions, expected equally many.")
    parts = checked_subspaces(subspaces, dimensions.pop())
    plan, others = Plan(k, draws, least_cell, balance_test, seed), _others(kinds, balance)
    banks = {
        name: (
            natural_bank(source, cohort, column, kind, plan),
            balanced_bank(drawn, cohort, column, others[name], list(kinds.values()), plan),
        )
        for column, (name, kind) in enumerate(kinds.items())
    }
    found = list(outcomes(banks, cohort, parts, kinds, progress))
    resamples = _resamples(cohort, n_resamples, seed)
    scored = [_scored(outcome, resamples, n_permutations, seed) for outcome in found]
    report: dict[str, Any] = {
        "rows": {"bank": len(source.codes), "pool": len(drawn.codes), "test": len(cohort.codes)},
        "patients": len(rows_by_patient(cohort.patients, len(cohort.codes))),
        "level": level,
        "seed": seed,
        "subspaces": {
            name: {"columns": [part.start, part.stop], "factor": name if name in kinds else None}
            for name, part in parts.items()
        },
        "factors": {
            name: _factor(source.factors[:, c], cohort.factors[:, c], kind)
            for c, (name, kind) in enumerate(kinds.items())
        },
        "banks": {},
        "chance": {},
        "matrix": _nested(scored, level),
        "summary": {},
    }
    for b, which in enumerate(BANKS):
        report["banks"][which] = {name: _bank(banks[name][b]) for name in kinds}
        report["chance"][which] = {
            name: _chance(banks[name][b], cohort, c, kind)
            for c, (name, kind) in enumerate(kinds.items())
        }
        of_bank = [item for item in scored if item.outcome.bank == which]
        report["summary"][which] = _summary(of_bank, kinds, level)
    if groups:
        fair = [s.outcome for s in scored if s.outcome.bank == "balanced"]
        report["groups"] = leakage_by_group(fair, groups, len(cohort.codes), least_group)
    return report


class _Scored(NamedTuple):
    outcome: Outcome
    probe: str | None  # the best one
    points: float
    spread: Array  # the points on resamples of the patients
    luck: Array  # the points of the best probe against permuted labels


def _others(
    kinds: Mapping[str, str], balance: Mapping[str, Sequence[str]] | None
) -> dict[str, list[int]]:
    """Return for every factor the columns of those that it is to be balanced against."""
    names = list(kinds)
    asked = {name: [n for n in names if n != name] for name in names} | dict(balance or {})
    for name, others in asked.items():
        if not {name, *others} <= set(names) or name in others:
            raise ValueError(
                f"balance: '{name}' against {list(others)}, expected others of the factors {names}."
            )
    return {name: [names.index(other) for other in others] for name, others in asked.items()}


def _resamples(test: Checked, n_resamples: int, seed: int) -> Array:
    """Return how often each resample of the patients holds each row, (R, N)."""
    n_rows = len(test.codes)
    drawn = bootstrap_rows(test.patients, n_rows, n_resamples, seed)
    counts = [np.bincount(rows, minlength=n_rows) for rows in drawn]
    return np.array(counts, dtype=np.float64).reshape(len(counts), n_rows)


def _scored(outcome: Outcome, resamples: Array, n_permutations: int, seed: int) -> _Scored:
    nothing = np.empty(0)
    probe = best_probe(outcome) if outcome.predictions else None
    if probe is None:
        return _Scored(outcome, None, float("nan"), nothing, nothing)
    value = float(points(outcome, probe, outcome.weights[None])[0])
    spread = points(outcome, probe, resamples[:, outcome.rows] * outcome.weights)
    return _Scored(outcome, probe, value, spread, permuted(outcome, n_permutations, seed))


def _nested(scored: Sequence[_Scored], level: float) -> dict[str, Any]:
    matrix: dict[str, Any] = {bank: {} for bank in BANKS}
    for item in scored:
        bank, subspace, factor = item.outcome[:3]
        matrix[bank].setdefault(subspace, {})[factor] = _entry(item, level)
    return matrix


def _entry(item: _Scored, level: float) -> dict[str, Any]:
    outcome = item.outcome
    entry: dict[str, Any] = {"test_rows": int(outcome.rows.size), "reason": outcome.reason}
    for probe in PROBES:
        entry[probe] = _scores(outcome, probe) if item.probe else None
    entry["best"] = _best([item], level) | {"probe": item.probe}
    return entry


def _scores(outcome: Outcome, probe: str) -> dict[str, float | None]:
    weights, found = outcome.weights, outcome.predictions[probe]
    above = points(outcome, probe, weights[None])[0]
    if outcome.continuous:
        return {"r2": json_number(above / 100), "points": json_number(above)}
    right = np.mean(found == outcome.labels, axis=0)
    return {
        "accuracy": json_number(np.average(right, weights=weights)),
        "balanced_accuracy": json_number(mean_recall(outcome.labels, found, weights[None])[0]),
        "points": json_number(above),
    }


def _best(items: Sequence[_Scored], level: float) -> dict[str, float | None]:
    """Return the mean points of cells with their interval and chance; None where undefined."""
    known = [item for item in items if item.probe is not None]
    if not known:
        return dict.fromkeys(("points", "low", "high", "chance", "chance_p95"))
    spread, luck = (np.mean([getattr(i, part) for i in known], 0) for part in ("spread", "luck"))
    low, high = percentile_interval(spread, level)
    return {
        "points": json_number(np.mean([item.points for item in known])),
        "low": json_number(low),
        "high": json_number(high),
        "chance": json_number(luck.mean()) if luck.size else None,
        "chance_p95": json_number(np.quantile(luck, 0.95)) if luck.size else None,
    }


def _summary(scored: Sequence[_Scored], kinds: Mapping[str, str], level: float) -> dict[str, Any]:
    parts: dict[str, list[_Scored]] = {"own": [], "cross": [], "free": []}
    for item in scored:
        subspace, factor = item.outcome.subspace, item.outcome.factor
        if subspace != WHOLE:
            part = "own" if subspace == factor else "cross" if subspace in kinds else "free"
            parts[part].append(item)
    summary = {}
    for part, items in parts.items():
        known = [item for item in items if item.probe is not None]
        pick = min if part == "own" else max
        worst = pick(known, key=lambda item: item.points) if known else None
        summary[part] = {
            "mean": _best(items, level),
            "worst": worst
            and _best([worst], level)
            | {"subspace": worst.outcome.subspace, "factor": worst.outcome.factor},
        }
    return summary


def _factor(bank: Array, test: Array, kind: str) -> dict[str, Any]:
    known = {name: y[~np.isnan(y)] for name, y in (("bank", bank), ("test", test))}
    entry: dict[str, Any] = {
        "kind": kind,
        "missing": {"bank": int(np.isnan(bank).sum()), "test": int(np.isnan(test).sum())},
    }
    if kind == "continuous":
        return entry
    for name, labels in known.items():
        classes, counts = np.unique(labels.astype(int), return_counts=True)
        entry[name] = dict(zip(map(str, classes), map(int, counts), strict=True))
    entry["absent_from_bank"] = [c for c in entry["test"] if c not in entry["bank"]]
    return entry


def _bank(bank: Bank) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "rows": int(bank.draws[0].size) if bank.draws else 0,
        "neighbours": bank.k,
        "reason": bank.reason,
    }
    if bank.cells is not None:
        entry |= {"draws": len(bank.draws), "strata": bank.cells.strata}
        entry["strata_left_out"] = bank.cells.left_out
    return entry


def _chance(bank: Bank, test: Checked, column: int, kind: str) -> dict[str, float] | None:
    if bank.reason is not None:
        return None
    if kind == "continuous":
        return {"r2": 0.0}
    y = test.factors[:, column]
    rows = np.flatnonzero(~np.isnan(y) & (bank.weights > 0))
    frequent = majority(bank.source.factors[bank.draws[0], column])
    accuracy = np.average(y[rows] == frequent, weights=bank.weights[rows])
    return {"accuracy": float(accuracy), "balanced_accuracy": 1 / np.unique(y[rows]).size}
