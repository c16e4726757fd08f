"""Generators with known potential outcomes: a table, images and volumes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medvae.engines import TreatmentData

# shares of ones of eighteen binary covariates: mothers' education and habits, sites, ...
INFANTS = (0.5, 0.5, 0.35, 0.3, 0.2, 0.35, 0.5, 0.15, 0.05, 0.6, 0.95, *(0.13,) * 6, 0.1)
WEIGHTS = (1.0, -0.7, 0.5)  # of the covariates in the prognostic score and in the propensity


class Truth(NamedTuple):
    """Subjects, what would have been under either arm without noise, and the score m(x)."""

    data: TreatmentData
    potential: Tensor  # (N, 2, ...)
    score: Tensor
    propensity: Tensor
    scale: float = 1.0  # that outcomes were divided by


def tabular(n: int = 1500, overlap: float = 1.0, seed: int = 0) -> Truth:
    """Score m = x a, effect 2 + m / 2, noise 0.5; the treatment's logit is `overlap` times m."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, 3))
    m, treatment, propensity = _assigned(x, overlap, generator)
    potential = np.stack([m, m + 2 + 0.5 * m], 1)[:, :, None]
    outcome = potential[np.arange(n), treatment] + 0.5 * generator.normal(size=(n, 1))
    return _truth(outcome, treatment, x, potential, m, propensity)


def infants(seed: int = 0) -> Truth:
    """About 747 infants, 139 of them treated, as in the IHDP's response surface B (Hill 2011).

    The covariates of that trial are in no package: these are drawn, six normal and nineteen
    binary ones. As there, a trial is made observational: of 985 children 38 % are treated, and the
    treated whose first binary covariate is 0 are removed, so that their like are in one arm alone.
    With b of {0, .1, .2, .3, .4} by (.6, .1, .1, .1, .1), the mean is exp((x + 0.5) b) of controls,
    x b - w of the treated, w so that their mean effect is 4, and the noise's variance 1.
    """
    generator = np.random.default_rng(seed)
    n = 985
    shared = generator.normal(size=(n, 1))  # covariates of a child go together
    hidden = 0.3 * shared + np.sqrt(1 - 0.09) * generator.normal(size=(n, 25))
    shares = np.array([0.37, *INFANTS])
    binary = hidden[:, 6:] > np.quantile(hidden[:, 6:], 1 - shares, axis=0).diagonal()
    x = np.concatenate([hidden[:, :6], binary], 1)
    treatment = (generator.uniform(size=n) < 0.383).astype(np.int64)
    kept = (treatment == 0) | (x[:, 6] == 1)
    x, treatment = x[kept], treatment[kept]
    b = generator.choice([0, 0.1, 0.2, 0.3, 0.4], size=25, p=[0.6, 0.1, 0.1, 0.1, 0.1])
    control, treated = np.exp((x + 0.5) @ b), x @ b
    treated = treated + 4 - (treated - control)[treatment == 1].mean()
    potential = np.stack([control, treated], 1)[:, :, None]
    rows = np.arange(len(x))
    outcome = potential[rows, treatment] + generator.normal(size=(len(x), 1))
    scale = float(outcome.std())
    probability = np.where(x[:, 6] == 1, 0.383, 0.0)
    truth = _truth(outcome / scale, treatment, x, potential / scale, x @ b, probability)
    return truth._replace(scale=scale)


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
