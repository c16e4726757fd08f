"""How dependent subspaces are, beside the estimators' floor, and whether they have collapsed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medvae.losses import effective_rank
from medvae.losses.distance import correlations

from .information import Array

__all__ = ["dependence_report"]

FORMS = ("bias_corrected", "biased")
LEAST_ROWS = 4  # of the bias-corrected form
DEMAND = 0.75  # effective dimensions of a labelled subspace, per class but one


def dependence_report(
    codes: npt.ArrayLike,
    subspaces: Mapping[str, slice],
    classes: Mapping[str, int] | None = None,
    n_permutations: int = 100,
    seed: int = 0,
) -> dict[str, Any]:
    """Reports distance correlations of all pairs of subspaces and every effective rank.

    ``bias_corrected`` estimates the squared distance correlation (0 on average under independence),
    ``biased`` is the published one, whose floor is high. The floor is what the same rows give when
    each subspace's are permuted by themselves. Near 0 does not mean that nothing leaks.

    Time grows with N²: 100 permutations of three subspaces take about 12 s at N = 1000.

    Args:
        codes: Shape (N, D), finite, N >= 4.
        subspaces: Where each subspace lies in the codes.
        classes: Number of classes of the factors that subspaces are named after; effective rank
            is demanded of more than two: 0.75 x (classes - 1).
        n_permutations: Permutations for the floor; 0 leaves it out.
        seed: Seed of the permutations.

    Returns:
        A dict that json can write: ``rows``, ``pairs["a|b"][form]`` with value, floor (mean) and
        floor_p95, and ``effective_rank[subspace]`` with value, dimensions, demand and met.

    Raises:
        ValueError: If codes are not a finite matrix of at least four rows.
    """
    z = np.asarray(codes, dtype=np.float64)
    if z.ndim != 2 or len(z) < LEAST_ROWS or not np.isfinite(z).all():
        raise ValueError(
            f"codes have shape {z.shape} or values that are not finite: expected finite (N, D), "
            f"N >= {LEAST_ROWS}."
        )
    table = torch.from_numpy(z)
    parts = [table[:, part] for part in subspaces.values()]
    generator = torch.Generator().manual_seed(seed)
    value = _both(parts)
    floors = np.array(
        [
            _both([part[torch.randperm(len(z), generator=generator)] for part in parts])
            for _ in range(n_permutations)
        ]
    )
    names = list(subspaces)
    return {
        "rows": len(z),
        "n_permutations": n_permutations,
        "pairs": {
            f"{names[s]}|{names[t]}": {
                form: _entry(value[f, s, t], floors[:, f, s, t] if n_permutations else None)
                for f, form in enumerate(FORMS)
            }
            for s, t in combinations(range(len(names)), 2)
        },
        "effective_rank": {
            name: _rank(part, (classes or {}).get(name))
            for name, part in zip(names, parts, strict=True)
        },
    }


def _both(parts: list[Tensor]) -> Array:
    """Return both forms of all pairs, (2, S, S): squared and corrected; biased and not squared."""
    corrected, squared = correlations(parts, unbiased=True), correlations(parts, unbiased=False)
    return np.stack([corrected.numpy(), squared.clamp_min(0).sqrt().numpy()])


def _entry(value: float, floor: Array | None) -> dict[str, float | None]:
    return {
        "value": float(value),
        "floor": None if floor is None else float(floor.mean()),
        "floor_p95": None if floor is None else float(np.quantile(floor, 0.95)),
    }


def _rank(part: Tensor, classes: int | None) -> dict[str, Any]:
    value = float(effective_rank(part))
    demand = DEMAND * (classes - 1) if classes is not None and classes > 2 else None
    return {
        "value": value,
        "dimensions": part.shape[1],
        "demand": demand,
        "met": None if demand is None else value >= demand,
    }
