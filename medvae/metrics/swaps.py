"""Swapped images judged by a classifier that had no part in the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .information import Array
from .intervals import bootstrap_rows, json_number, percentile_interval
from .probes import mean_recall

__all__ = ["judge_swaps"]


def judge_swaps(
    judged: Mapping[str, npt.ArrayLike],
    factor: str,
    labels: Mapping[str, npt.ArrayLike],
    donor_labels: Mapping[str, npt.ArrayLike],
    references: Mapping[str, Mapping[str, npt.ArrayLike]],
    unswapped: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    patients: npt.ArrayLike | None = None,
    n_resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Reports whether swapped images follow their donor and keep everything else.

    A label is judged only where the donor has *another* one than the recipient: where both have the
    same, an image that follows and one that keeps cannot be told apart, and neither can fail.

    Args:
        judged: The frozen classifier's class of every factor for the swapped images, (N,) each, as
            of :func:`medvae.engines.classify`.
        factor: Whose subspace was taken from the donor.
        labels: True classes of the N recipients by factor; NaN or negative = missing.
        donor_labels: True classes of their donors by factor, (N,) each.
        references: The same classifier's classes for the recipients' images without a swap, by
            name, such as ``real`` and ``reconstruction``: what it says of those bounds what it can
            say of the swapped ones.
        unswapped: The classifier's classes of `factor` for the reconstructions of the recipients
            and of their donors, (N,) each; None leaves ``agrees`` out.
        patients: Patient of each recipient, for the intervals; None = one patient per row.
        n_resamples: Bootstrap resamples of patients; 0 leaves the intervals out.
        level: Coverage of the intervals.
        seed: Seed of the draws.

    Returns:
        A dict that json can write. ``follows``: share judged to be of the donor's class.
        ``stays``: share of the same rows judged to be of the recipient's class. ``agrees``: share
        judged as the donor's reconstruction is, among the rows whose own is judged otherwise; for
        labels that images do not tell for certain, which bounds ``follows``. ``keeps[other]``:
        share judged to be of the recipient's class of every other factor, among the rows whose
        donor is of another class of *that* factor. ``references[name][factor]``: share of these
        same rows judged right without a swap, which bounds ``keeps``. Each with rows, value, low,
        high, balanced (mean over classes) and ``chance``, the share of the most frequent class,
        which a judge reaches that always says the same. None where no row is left.

    Raises:
        ValueError: If a factor was not judged or numbers of rows differ.
    """
    truth = {name: _classes(values) for name, values in labels.items()}
    given: dict[str, Mapping[str, npt.ArrayLike]] = {
        "swapped": judged,
        "donor": donor_labels,
        **references,
    }
    unjudged = {who: [name for name in truth if name not in part] for who, part in given.items()}
    sizes = {np.shape(v) for part in (labels, *given.values()) for v in part.values()}
    sizes |= {np.shape(part) for part in unswapped or ()}
    if any(unjudged.values()) or factor not in truth or len(sizes) != 1:
        raise ValueError(
            f"swapped '{factor}', labels {list(labels)}, not judged {unjudged}, shapes "
            f"{sorted(sizes)}: expected '{factor}' among the labels, all judged, of one shape (N,)."
        )
    donor = {name: _classes(donor_labels[name]) for name in truth}
    count = len(donor[factor])
    draws = list(bootstrap_rows(patients, count, n_resamples, seed))
    resamples = np.array([np.bincount(rows, minlength=count) for rows in draws], dtype=float)
    resamples = resamples.reshape(-1, count)

    def share(said: npt.ArrayLike, wanted: Array, rows: npt.NDArray[np.bool_]) -> dict[str, Any]:
        found = np.asarray(said, dtype=np.float64)[rows]
        return _share(found, wanted[rows], resamples[:, rows], level)

    differ = {
        name: ~np.isnan(own) & ~np.isnan(donor[name]) & (own != donor[name])
        for name, own in truth.items()
    }
    report: dict[str, Any] = {
        "factor": factor,
        "follows": share(judged[factor], donor[factor], differ[factor]),
        "stays": share(judged[factor], truth[factor], differ[factor]),
    }
    if unswapped is not None:
        before, after = (np.asarray(part, dtype=float) for part in unswapped)
        report["agrees"] = share(judged[factor], after, before != after)
    kept = [name for name in truth if name != factor]
    report["keeps"] = {name: share(judged[name], truth[name], differ[name]) for name in kept}
    report["references"] = {
        who: {name: share(part[name], truth[name], differ[name]) for name in truth}
        for who, part in references.items()
    }
    return report


def _classes(values: npt.ArrayLike) -> Array:
    labels = np.array(values, dtype=np.float64)
    labels[labels < 0] = np.nan
    return labels


def _share(said: Array, wanted: Array, weights: Array, level: float) -> dict[str, Any]:
    if not wanted.size:
        return {"rows": 0} | dict.fromkeys(("value", "low", "high", "balanced", "chance"))
    right = (said == wanted).astype(np.float64)
    mass = weights.sum(axis=1)
    low, high = percentile_interval((weights @ right)[mass > 0] / mass[mass > 0], level)
    return {
        "rows": int(wanted.size),
        "value": float(right.mean()),
        "low": json_number(low),
        "high": json_number(high),
        "balanced": json_number(mean_recall(wanted, said[None], np.ones((1, wanted.size)))[0]),
        "chance": float(np.unique(wanted, return_counts=True)[1].max() / wanted.size),
    }
