"""Are maps true? Where their mass lies, and what the target loses with the voxels they point at."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["deletion_area", "localisation"]


def localisation(maps: Tensor, structures: Tensor) -> Tensor:
    """Return how much of each map's mass lies in its structure, in multiples of chance.

    1 is chance, the share of an even map; the ceiling is the grid's size over the structure's.

    Args:
        maps: shape (B, K, *S), not negative.
        structures: where the attribute is, boolean, same shape.

    Returns:
        Shape (B, K); NaN for a map that is zero everywhere or a structure that is not there.

    Raises:
        ValueError: for other shapes or negative maps.
    """
    if maps.shape != structures.shape or maps.ndim < 3:
        raise ValueError(
            f"maps and structures must both have shape (B, K, *S), found {tuple(maps.shape)} and "
            f"{tuple(structures.shape)}"
        )
    if maps.min() < 0:
        raise ValueError("maps must not be negative; leave out signed=True, or clip")
    maps, inside = maps.double().flatten(2), structures.flatten(2).double()
    return (maps * inside).sum(2) / maps.sum(2) / inside.mean(2)


def deletion_area(
    target: Callable[[Tensor], Tensor],
    image: Tensor,
    maps: Tensor,
    baseline: Tensor | float = 0.0,
    steps: int = 20,
    insertion: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    r"""Return how fast a target falls while voxels are deleted in the order of its map.

    The highest voxels of a map become the baseline first (RISE, Petsiuk et al. 2018). With
    :math:`z_s` the target after the share s, the area is
    :math:`\operatorname{mean}_s (z_0-z_s)/|z_0-z_1|`: the share of the whole change that has
    happened, on average over the way, with its sign: positive where deleting lowers the target.
    With `insertion` the baseline is filled with the image instead. A map that is zero in places
    ranks those voxels at random.

    Args:
        target: images (B, C, *S) to one number each, (B,).
        image: shape (B, C, *S).
        maps: one map for each image, shape (B, *S).
        baseline: what a deleted voxel becomes; a number or an image such as a blurred one.
        steps: of the curve.
        insertion: insert instead of deleting.
        seed: of the random order that the chance level has.

    Returns:
        The areas in the map's order and in random order, each of shape (B,).
    """
    noise = torch.rand(maps.shape, generator=torch.Generator().manual_seed(seed)).to(maps.device)
    tiny = maps.flatten(1).amax(1).clamp_min(1e-30).view(-1, *[1] * (maps.ndim - 1)) * 1e-6
    blank = torch.as_tensor(baseline, dtype=image.dtype, device=image.device).expand_as(image)
    first, last = (blank, image) if insertion else (image, blank)
    areas = []
    for order in (maps + tiny * noise, noise):
        ranks = order.flatten(1).argsort(1, descending=True).argsort(1).view_as(maps)
        shares = (ranks + 0.5).unsqueeze(1) / ranks[0].numel()
        values = torch.stack(
            [target(torch.where(shares <= s / steps, last, first)) for s in range(steps + 1)]
        ).double()
        areas.append(((values[0] - values) / (values[0] - values[-1]).abs()).mean(0))
    return areas[0], areas[1]
