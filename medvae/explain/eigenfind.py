"""EigenFind: a quick look along the few directions that the style layers read most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medvae.explain.attfind import style_range
from medvae.explain.maps import evaluating
from medvae.explain.style_effects import StyleEffects, moved

__all__ = ["eigen_directions", "eigenfind"]


def eigen_directions(generator: Any, count: int = 20, mapped: int | None = None) -> Tensor:
    """Return directions of w (count, D) that change the style coordinates most, orthonormal.

    Right singular vectors of the weights by which all convolutions read w (Atad et al. 2022,
    arXiv:2207.07553, after Shen and Zhou 2021).

    Args:
        generator: a `medvae.networks.StyleGenerator`.
        count: directions, the strongest first.
        mapped: only the first so many entries of w, without the joined probabilities; None: all.
    """
    weights = [conv.style.weight * conv.style.gain for conv in generator.convs]
    matrix = torch.cat(weights)[:, :mapped].detach().float()
    vectors = torch.linalg.svd(matrix, full_matrices=False).Vh[:count]
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return vectors * largest.sign()  # the sign of a singular vector is arbitrary


@torch.no_grad()
def eigenfind(
    generator: Any,
    classifier: Callable[[Tensor], Tensor],
    w: Tensor,
    heads: Mapping[str, int],
    count: int = 20,
    mapped: int | None = None,
    quantiles: tuple[float, float] = (0.0, 1.0),
    shift: float = 1.0,
) -> StyleEffects:
    """Move codes along a few directions, and record what is then classified.

    A search of minutes where `attfind` takes hours. Its table has directions in the place of
    coordinates, and `medvae.explain.select` reads it alike; a direction moves many style
    coordinates together, so what it shows is less specific.

    Args:
        generator: a `medvae.networks.StyleGenerator`.
        classifier: see `medvae.explain.attfind`.
        w: codes of N images, shape (N, D).
        heads: see `medvae.explain.attfind`.
        count: directions.
        mapped: see `eigen_directions`.
        quantiles: of the codes' positions along a direction, which it is moved to.
        shift: share of the way that is gone.
    """
    directions = eigen_directions(generator, count, mapped)
    read = w[:, : directions.shape[1]].float() @ directions.T
    low, high = style_range(read, quantiles)
    values = read.cpu().numpy()
    steps = np.stack([moved(values, end, shift) - values for end in (low, high)], 1)
    module = isinstance(generator, nn.Module)
    base, edited = [], []
    with evaluating(generator) if module else nullcontext():
        for code, step in zip(w, torch.as_tensor(steps, device=w.device), strict=True):
            codes = code.repeat(2, len(directions), 1)
            codes[..., : directions.shape[1]] += step[..., None] * directions
            codes = torch.cat([code[None], codes.flatten(0, 1)])
            logits = classifier(generator.synthesis(codes)).float().cpu().numpy()
            base.append(logits[0])
            edited.append(logits[1:].reshape(2, len(directions), -1))
    searched = np.ones(len(directions), dtype=bool)
    tables = np.stack(base), np.stack(edited)
    return StyleEffects(values, low, high, *tables, dict(heads), searched, shift)
