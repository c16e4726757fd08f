"""How good reconstructions and generated images are.

PSNR and SSIM are MONAI's, one number per subject; the RBF kernel discrepancy compares two sets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics import PSNRMetric, SSIMMetric

from .information import Array

__all__ = ["active_axes", "grain", "psnr", "rbf_mmd", "rbf_mmd_chance", "ssim"]


def active_axes(codes: npt.ArrayLike, threshold: float = 0.01) -> npt.NDArray[np.bool_]:
    """Return which latent axes say anything about an image (Burda et al. 2016, section 5.1).

    An axis whose posterior mean hardly varies between images has collapsed to the prior: the
    decoder gets nothing through it, whatever the number of axes.

    Args:
        codes: posterior means, shape (N, D).
        threshold: of the variance over images; the prior's is 1.

    Returns:
        Shape (D,).
    """
    return np.asarray(np.asarray(codes, dtype=np.float64).var(axis=0) > threshold)


def psnr(
    reconstruction: torch.Tensor | npt.ArrayLike,
    image: torch.Tensor | npt.ArrayLike,
    data_range: float = 1.0,
) -> Array:
    """Peak signal-to-noise ratio of each subject in decibels (MONAI's PSNRMetric).

    Args:
        reconstruction: Shape (B, C, *S), two or three spatial axes.
        image: The original, same shape.
        data_range: Largest minus smallest possible value of the images.

    Returns:
        Shape (B,); infinite for identical images.

    Raises:
        ValueError: If the shapes differ or have no two or three spatial axes.
    """
    pair = image_pair(reconstruction, image)
    return _per_subject(PSNRMetric(max_val=data_range, reduction="none")(*pair))


def grain(image: torch.Tensor | npt.ArrayLike) -> float:
    """Return how grainy images are: energy of neighbours' second over that of first differences.

    Near 0 where intensities change slowly, 3 for voxels that are independent of one another, 4 for
    a checkerboard, such as transposed convolutions can draw. Reconstructions with more than their
    images have a pattern of the decoder's, with less they are blurred.

    Args:
        image: Shape (B, C, *S), at least 3 voxels along one axis; the energies of all are added.

    Returns:
        A number, NaN where nothing changes.
    """
    voxels = np.asarray(image, dtype=np.float64)
    first, second = (
        sum(float(np.square(np.diff(voxels, order, axis)).sum()) for axis in range(2, voxels.ndim))
        for order in (1, 2)
    )
    return second / first if first > 0 else float("nan")


def ssim(
    reconstruction: torch.Tensor | npt.ArrayLike,
    image: torch.Tensor | npt.ArrayLike,
    data_range: float = 1.0,
    window: int = 11,
) -> Array:
    """Structural similarity of each subject, in [-1, 1] (MONAI's SSIMMetric, Gaussian 1.5 voxels).

    Args:
        reconstruction: Shape (B, C, *S), two or three spatial axes.
        image: The original, same shape.
        data_range: Largest minus smallest possible value of the images.
        window: Window width in voxels; on each axis shorter than that, the largest odd width that
            fits.

    Returns:
        Shape (B,).

    Raises:
        ValueError: If the shapes differ or have no two or three spatial axes.
    """
    pair = image_pair(reconstruction, image)
    sizes = tuple(pair[0].shape[2:])
    metric = SSIMMetric(
        spatial_dims=len(sizes),
        data_range=data_range,
        win_size=[min(window, size - 1 + size % 2) for size in sizes],
        reduction="none",
    )
    return _per_subject(metric(*pair))


def rbf_mmd(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    bandwidths: Sequence[float] | None = None,
    unbiased: bool = False,
) -> float:
    """Squared maximum mean discrepancy of two sets under a Gaussian kernel.

    Gretton et al., JMLR 13 (2012), equations 3 and 5, with the kernel exp(-d² / (2 w²)) averaged
    over the widths w. Absolute values depend on the kernel and the sample size: compare under equal
    settings only, beside :func:`rbf_mmd_chance`.

    Args:
        x: First set, shape (N, ...), flattened per sample, N >= 2.
        y: Second set, shape (M, ...), same sample size, M >= 2.
        bandwidths: Kernel widths; None = the median distance of the pooled samples. A published
            benchmark on cardiac images used 10, 15, 20 and 50.
        unbiased: Leaves the zero distances of samples with themselves out. The biased form is >= 0
            and exactly 0 for two copies of a set; the unbiased one is 0 on average for two sets
            from one distribution, and may be negative.

    Raises:
        ValueError: If a set has fewer than two samples, sample sizes differ, values are not finite
            or a width is not positive.
    """
    kernel, n = _kernel(x, y, bandwidths)
    return float(_discrepancy(kernel, np.arange(len(kernel))[None] < n, unbiased)[0])


def rbf_mmd_chance(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    bandwidths: Sequence[float] | None = None,
    unbiased: bool = False,
    n_permutations: int = 500,
    seed: int = 0,
) -> dict[str, float]:
    """Puts :func:`rbf_mmd` beside its chance level: the samples' set membership is permuted.

    Args:
        x: First set, shape (N, ...).
        y: Second set, shape (M, ...).
        bandwidths: As in :func:`rbf_mmd`; the median is that of the pooled samples, so that all
            permutations share one kernel.
        unbiased: As in :func:`rbf_mmd`.
        n_permutations: How many permutations, at least 1.
        seed: Seed of the permutations.

    Returns:
        ``value``, ``chance`` (mean of the permutations), ``chance_p95`` and ``p_value``, the share
        of permutations (the observed order counted as one) that reach the value.
    """
    kernel, n = _kernel(x, y, bandwidths)
    first = np.arange(len(kernel)) < n
    generator = np.random.default_rng(seed)
    members = np.stack([first, *(generator.permutation(first) for _ in range(n_permutations))])
    values = _discrepancy(kernel, members, unbiased)
    value, chance = values[0], values[1:]
    reached = np.sum(chance >= value - 1e-12 * abs(value))
    return {
        "value": float(value),
        "chance": float(chance.mean()),
        "chance_p95": float(np.quantile(chance, 0.95)),
        "p_value": float((1 + reached) / (1 + n_permutations)),
    }


def _kernel(
    x: npt.ArrayLike, y: npt.ArrayLike, bandwidths: Sequence[float] | None
) -> tuple[Array, int]:
    """Returns the mean kernel matrix of the pooled samples and the size of the first set."""
    sets = [np.asarray(samples, dtype=np.float64) for samples in (x, y)]
    if any(len(samples) < 2 for samples in sets) or sets[0].shape[1:] != sets[1].shape[1:]:
        raise ValueError(
            f"the sets have shapes {sets[0].shape} and {sets[1].shape}: expected at least two "
            "samples each, of equal size."
        )
    pooled = np.concatenate([samples.reshape(len(samples), -1) for samples in sets])
    if not np.isfinite(pooled).all():
        raise ValueError("the sets hold NaN or infinite values, expected finite ones.")
    pooled -= pooled.mean(axis=0)  # distances by the product lose digits far from the origin
    square = np.sum(pooled**2, axis=1)
    distance = np.maximum(square[:, None] + square - 2 * pooled @ pooled.T, 0.0)
    np.fill_diagonal(distance, 0.0)
    if bandwidths is None:
        median = float(np.sqrt(np.median(distance[np.triu_indices(len(pooled), 1)])))
        bandwidths = [median if median > 0 else 1.0]
    widths = np.asarray(bandwidths, dtype=np.float64)
    if not widths.size or (widths <= 0).any():
        raise ValueError(f"bandwidths = {list(bandwidths)}, expected positive widths.")
    kernel: Array = np.mean([np.exp(-distance / (2 * width**2)) for width in widths], axis=0)
    return kernel, len(sets[0])


def _discrepancy(kernel: Array, members: npt.NDArray[np.bool_], unbiased: bool) -> Array:
    """Returns the squared discrepancy for each row of membership (P, N + M) in the first set."""
    first = members.astype(np.float64)
    second = 1.0 - first
    n, m = first.sum(axis=1), second.sum(axis=1)
    to_first = first @ kernel
    xx, xy = np.sum(to_first * first, axis=1), np.sum(to_first * second, axis=1)
    yy = np.sum((second @ kernel) * second, axis=1)
    if unbiased:  # the kernel is 1 on the diagonal
        values = (xx - n) / (n * (n - 1)) + (yy - m) / (m * (m - 1)) - 2 * xy / (n * m)
    else:
        values = np.maximum(xx / n**2 + yy / m**2 - 2 * xy / (n * m), 0.0)
    result: Array = values
    return result


def image_pair(
    reconstruction: torch.Tensor | npt.ArrayLike, image: torch.Tensor | npt.ArrayLike
) -> tuple[torch.Tensor, torch.Tensor]:
    # plain tensors: MONAI's metadata does not survive the metrics' reductions
    pair = [
        torch.as_tensor(np.asarray(_detached(x)), dtype=torch.float32)
        for x in (reconstruction, image)
    ]
    if pair[0].shape != pair[1].shape or pair[0].ndim not in (4, 5):
        raise ValueError(
            f"reconstruction has shape {tuple(pair[0].shape)} and image {tuple(pair[1].shape)}: "
            "expected the same shape (B, C, H, W) or (B, C, H, W, D)."
        )
    return pair[0], pair[1]


def _detached(values: torch.Tensor | npt.ArrayLike) -> npt.ArrayLike:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values


def _per_subject(values: torch.Tensor) -> Array:
    return values.numpy().reshape(-1).astype(np.float64)
