"""Generators with known potential outcomes: a table, images and volumes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medvae.engines import TreatmentData

WEIGHTS = (1.0, -0.7, 0.5)  # of the covariates in the prognostic score and in the propensity


class Truth(NamedTuple):
    """Subjects, what would have been under either arm without noise, and the score m(x)."""

    data: TreatmentData
    potential: Tensor  # (N, 2, ...)
    score: Tensor
    propensity: Tensor


def tabular(n: int = 1500, overlap: float = 1.0, seed: int = 0) -> Truth:
    """Score m = x a, effect 2 + m / 2, noise 0.5; the treatment's logit is `overlap` times m."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, 3))
    m, treatment, propensity = _assigned(x, overlap, generator)
    potential = np.stack([m, m + 2 + 0.5 * m], 1)[:, :, None]
    outcome = potential[np.arange(n), treatment] + 0.5 * generator.normal(size=(n, 1))
    return _truth(outcome, treatment, x, potential, m, propensity)


def discs(
    n: int = 1500,
    size: int = 16,
    spatial_dims: int = 2,
    overlap: float = 1.0,
    effect: float = 2.0,
    seed: int = 0,
    noise: float = 0.3,
) -> Truth:
    """Images with the score m as the brightness of one ball and an individual detail in another.

    The treatment adds `effect` in the first; the detail is not in the covariates.
    """
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, 3))
    m, treatment, propensity = _assigned(x, overlap, generator)
    detail = generator.normal(size=n)
    one, other = (ball[None].astype(float) for ball in balls(size, spatial_dims))
    axes = (slice(None), *(None,) * spatial_dims)
    control = m[axes] * one + detail[axes] * other
    potential = np.stack([control, control + effect * one], 1)[:, :, None]
    outcome = potential[np.arange(n), treatment]
    outcome = outcome + noise * generator.normal(size=outcome.shape)
    return _truth(outcome, treatment, x, potential, m, propensity)


def balls(size: int, spatial_dims: int) -> tuple[np.ndarray, np.ndarray]:
    """The region of the effect and that of the individual detail, booleans of the image's shape."""
    grid = np.stack(np.meshgrid(*[np.arange(size)] * spatial_dims, indexing="ij"))
    centres = (np.full(spatial_dims, 0.3), np.full(spatial_dims, 0.7))
    one, other = (
        ((grid - (c * size).reshape(-1, *(1,) * spatial_dims)) ** 2).sum(0) < (0.19 * size) ** 2
        for c in centres
    )
    return one, other


def _assigned(
    x: np.ndarray, overlap: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    m = x @ np.array(WEIGHTS)
    propensity = 1 / (1 + np.exp(-overlap * m))
    return m, (generator.uniform(size=len(x)) < propensity).astype(np.int64), propensity


def _truth(
    outcome: np.ndarray,
    treatment: np.ndarray,
    x: np.ndarray,
    potential: np.ndarray,
    m: np.ndarray,
    propensity: np.ndarray,
) -> Truth:
    outcome, x, potential, m, propensity = (
        torch.from_numpy(np.asarray(part, dtype=np.float32))
        for part in (outcome, x, potential, m, propensity)
    )
    data = TreatmentData(outcome, torch.from_numpy(treatment), x)
    return Truth(data, potential, m, propensity)
