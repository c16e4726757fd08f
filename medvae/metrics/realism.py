"""How real generated images look: distances between features of two sets, and diversity.

Features come from a network that must be named with the numbers (see
:class:`medvae.networks.FactorClassifier`, trained here); distances in the features of different
networks cannot be compared. No distance means anything by itself: :func:`realism_report` puts
each beside what two halves of the real images give, and degraded real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics import MultiScaleSSIMMetric
from monai.networks.layers import GaussianFilter
from scipy.spatial.distance import cdist

from .generation import image_pair
from .information import Array
from .intervals import json_number

__all__ = [
    "Kid",
    "PrecisionRecall",
    "degraded",
    "diversity",
    "fid",
    "kid",
    "ms_ssim",
    "precision_recall",
    "realism_report",
]

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003
WINDOW = 7


class Kid(NamedTuple):
    """Kernel distance and its standard error."""

    value: float
    error: float


class PrecisionRecall(NamedTuple):
    """Shares, in [0, 1], of generated images that look real and of real ones that are covered."""

    precision: float
    recall: float


def fid(features: npt.ArrayLike, real: npt.ArrayLike) -> float:
    r"""Fréchet distance of two normal distributions with the sets' moments (Heusel et al. 2017).

    .. math:: |\mu_1 - \mu_2|^2 + \operatorname{tr}(\Sigma_1 + \Sigma_2
        - 2 (\Sigma_1 \Sigma_2)^{1/2})

    The last trace is the sum of the singular values of the product of the centred sets: equal to
    MONAI's FIDMetric, but exact for fewer rows than features, where the matrix root of scipy is
    not, and without the argument of that root which SciPy 1.18 removes. The estimate is biased
    upwards, the more the fewer rows there are: compare at equal numbers only.

    Args:
        features: Of generated images, shape (N, d), N >= 2.
        real: Of real images, shape (M, d), M >= 2.

    Returns:
        At least 0, in squared units of the features.

    Raises:
        ValueError: If a set has fewer than two rows, widths differ or values are not finite.
    """
    sets = _checked(features, real, 2)
    shift = sets[0].mean(axis=0) - sets[1].mean(axis=0)
    # triangular factors of the centred sets: their Gram matrices are the covariances
    roots = [
        np.asarray(np.linalg.qr((x - x.mean(axis=0)) / np.sqrt(len(x) - 1), mode="r")) for x in sets
    ]
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    spread = sum(np.sum(root**2) for root in roots)
    return max(float(shift @ shift + spread - 2 * shared), 0.0)


def kid(features: npt.ArrayLike, real: npt.ArrayLike, subsets: int = 10, seed: int = 0) -> Kid:
    """Squared kernel distance with the kernel ((x y) / d + 1)^3 (Binkowski et al. 2018), unbiased.

    Args:
        features: Of generated images, shape (N, d).
        real: Of real images, shape (M, d).
        subsets: Disjoint random parts of both sets; fewer where a part would have less than two
            rows of each. The standard error is that of their mean distance, which is an upper
            bound of the error of the distance of all rows, which is the value.
        seed: Seed of the parts.

    Returns:
        The value is 0 on average for two sets of one distribution, and may be negative; the error
        is NaN where there are not two parts.

    Raises:
        ValueError: As :func:`fid`.
    """
    x, y = _checked(features, real, 2)
    generator = np.random.default_rng(seed)
    count = min(subsets, len(x) // 2, len(y) // 2)
    parts = [np.array_split(generator.permutation(z), max(count, 1)) for z in (x, y)]
    each = [_cubic_distance(a, b) for a, b in zip(*parts, strict=True)]
    error = np.std(each, ddof=1) / np.sqrt(count) if count > 1 else float("nan")
    return Kid(_cubic_distance(x, y), float(error))


def precision_recall(features: npt.ArrayLike, real: npt.ArrayLike, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019).

    Every set is taken to fill the balls around its members that reach their k-th nearest fellow.
    Precision is the share of generated images in the real ones' balls, recall that of real images
    in the generated ones'.

    Args:
        features: Of generated images, shape (N, d), N > k.
        real: Of real images, shape (M, d), M > k.
        k: Fellows.

    Raises:
        ValueError: If a set has no more than k rows, widths differ or values are not finite.
    """
    generated, reference = _checked(features, real, k + 1)
    between = cdist(generated, reference)
    reach = [np.partition(cdist(x, x), k, axis=1)[:, k] for x in (generated, reference)]
    return PrecisionRecall(
        float(np.mean((between <= reach[1]).any(axis=1))),
        float(np.mean((between <= reach[0][:, None]).any(axis=0))),
    )


def ms_ssim(
    image: torch.Tensor | npt.ArrayLike,
    other: torch.Tensor | npt.ArrayLike,
    data_range: float = 1.0,
) -> Array:
    """Multi-scale structural similarity of each pair (MONAI's MultiScaleSSIMMetric).

    The window is 7 voxels wide instead of 11, and of the five scales of Wang et al. (2003) only as
    many of the finest are used as the size allows, with their weights scaled to a sum of 1: one
    from 7 voxels on the shortest axis, two from 14, three from 28, four from 63, five from 112.

    Args:
        image: Shape (B, C, *S), two or three spatial axes.
        other: Same shape.
        data_range: Largest minus smallest possible value of the images.

    Returns:
        Shape (B,), in [0, 1].

    Raises:
        ValueError: If the shapes differ or an axis has fewer than 7 voxels.
    """
    first, second = image_pair(image, other)
    shortest = min(first.shape[2:])
    # the window must fit the coarsest scale, and MONAI asks for a square besides
    scales = [
        n
        for n in range(1, len(SCALE_WEIGHTS) + 1)
        if shortest // max(2 ** (n - 1), (n - 1) ** 2) >= WINDOW
    ]
    if not scales:
        raise ValueError(f"images have shape {tuple(first.shape)}, expected axes of {WINDOW} up.")
    weights = np.array(SCALE_WEIGHTS[: scales[-1]])
    metric = MultiScaleSSIMMetric(
        spatial_dims=first.ndim - 2,
        data_range=data_range,
        kernel_size=WINDOW,
        weights=(weights / weights.sum()).tolist(),
        reduction="none",
    )
    return np.asarray(metric(first, second).numpy().reshape(-1), dtype=np.float64)


def diversity(
    images: torch.Tensor | npt.NDArray[Any],
    pairs: int = 200,
    data_range: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
) -> dict[str, float]:
    """Mean MS-SSIM of random pairs of different images: the higher, the less diverse.

    A set that has collapsed to one image has 1; read it beside that of the real images.

    Args:
        images: Shape (N, C, *S), N >= 2.
        pairs: How many.
        data_range: As in :func:`ms_ssim`.
        seed: Seed of the pairs.
        batch_size: Pairs that are compared at once.

    Returns:
        ``ms_ssim``, the mean, and ``error``, its standard error as if pairs were independent.

    Raises:
        ValueError: If there are fewer than two images or :func:`ms_ssim` does not take them.
    """
    if len(images) < 2:
        raise ValueError(f"found {len(images)} image(s), expected at least two for a pair.")
    generator = np.random.default_rng(seed)
    first = generator.integers(len(images), size=pairs)
    second = (first + generator.integers(1, len(images), size=pairs)) % len(images)
    values = np.concatenate(
        [
            ms_ssim(
                images[first[i : i + batch_size]], images[second[i : i + batch_size]], data_range
            )
            for i in range(0, pairs, batch_size)
        ]
    )
    return {
        "ms_ssim": float(values.mean()),
        "error": float(values.std(ddof=1) / np.sqrt(pairs)) if pairs > 1 else float("nan"),
    }


def degraded(
    images: torch.Tensor, blur_voxels: float = 1.0, noise_sd: float = 0.1, seed: int = 0
) -> torch.Tensor:
    """Return images blurred and made noisy: a reference of what is clearly not real.

    Args:
        images: shape (N, C, *S).
        blur_voxels: sd of the Gaussian.
        noise_sd: of normal noise, in units of the images' standard deviation.
        seed: of the noise.
    """
    plain = torch.as_tensor(images, dtype=torch.float32)
    noise = torch.randn(plain.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        blurred: torch.Tensor = GaussianFilter(plain.ndim - 2, blur_voxels)(plain)
    return blurred + noise_sd * plain.std() * noise


def realism_report(
    features: npt.ArrayLike,
    real: npt.ArrayLike,
    network: str,
    degraded_real: npt.ArrayLike | None = None,
    k: int = 3,
    splits: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Reports FID, KID, precision and recall of generated images beside a floor and a ceiling.

    All depend on the number of rows, so all are measured with the same n = min(N, M / 2) against
    the same half of the real images: n generated ones, the other real half (``floor``: nothing
    looks more real than that) and n degraded real ones (``ceiling``). Means over random halves.

    Args:
        features: Of generated images, shape (N, d).
        real: Of real images that the generator was not trained on, shape (M, d).
        network: What computed the features, for the record.
        degraded_real: Features of degraded real images, such as :func:`degraded`'s, shape (L, d).
        k: As in :func:`precision_recall`.
        splits: Random halves.
        seed: Seed of the halves.

    Returns:
        A dict that json can write: ``network``, ``features`` (d), ``rows`` (n), ``real_rows``,
        ``splits``, and for ``fid``, ``kid``, ``precision`` and ``recall``: value, sd over the
        splits, floor and ceiling (None without degraded images); ``kid`` also its mean standard
        error within a split.

    Raises:
        ValueError: If fewer than k + 1 rows would be compared, widths differ, or values are not
            finite.
    """
    generated, reference = _checked(features, real, k + 1)
    sets = {"value": generated}
    if degraded_real is not None:
        sets["ceiling"] = _checked(degraded_real, real, k + 1)[0]
    rows = min([len(reference) // 2, *map(len, sets.values())])
    if rows <= k:
        raise ValueError(
            f"{len(generated)} generated and {len(reference)} real images leave {rows} to compare, "
            f"expected more than k = {k}."
        )
    found: dict[str, list[dict[str, float]]] = {"value": [], "floor": [], "ceiling": []}
    for half, other, generator in _halves(reference, rows, splits, seed):
        found["floor"].append(_distances(other, half, k, seed))
        for name, candidates in sets.items():
            drawn = generator.permutation(candidates)[:rows]
            found[name].append(_distances(drawn, half, k, seed))
    report: dict[str, Any] = {
        "network": network,
        "features": generated.shape[1],
        "rows": rows,
        "real_rows": len(reference),
        "splits": splits,
    }
    for metric in ("fid", "kid", "precision", "recall"):
        draws = {name: np.array([s[metric] for s in each]) for name, each in found.items()}
        report[metric] = {
            name: json_number(each.mean()) if each.size else None for name, each in draws.items()
        } | {"sd": json_number(draws["value"].std(ddof=1)) if splits > 1 else None}
    report["kid"]["error"] = json_number(np.mean([s["kid_error"] for s in found["value"]]))
    return report


def _halves(
    real: Array, rows: int, splits: int, seed: int
) -> Iterator[tuple[Array, Array, np.random.Generator]]:
    generator = np.random.default_rng(seed)
    for _ in range(splits):
        shuffled = generator.permutation(real)
        yield shuffled[:rows], shuffled[rows : 2 * rows], generator


def _distances(features: Array, real: Array, k: int, seed: int) -> dict[str, float]:
    distance, balls = kid(features, real, seed=seed), precision_recall(features, real, k)
    return {
        "fid": fid(features, real),
        "kid": distance.value,
        "kid_error": distance.error,
        **balls._asdict(),
    }


def _cubic_distance(x: Array, y: Array) -> float:
    def kernel(a: Array, b: Array) -> Array:
        values: Array = (a @ b.T / a.shape[1] + 1) ** 3
        return values

    n, m = len(x), len(y)
    xx, yy = kernel(x, x), kernel(y, y)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * kernel(x, y).mean())


def _checked(features: npt.ArrayLike, real: npt.ArrayLike, least: int) -> tuple[Array, Array]:
    x, y = np.asarray(features, dtype=np.float64), np.asarray(real, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1:] != y.shape[1:] or min(len(x), len(y)) < least:
        raise ValueError(
            f"features have shapes {x.shape} and {y.shape}: expected (N, d) and (M, d) of at least "
            f"{least} images each."
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features: found NaN or infinite values, expected finite ones.")
    return x, y
