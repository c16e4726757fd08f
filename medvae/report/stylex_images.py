"""A cohort's images as StylEx and its classifier see them, before and after edits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medvae.data import CohortError
from medvae.explain import class_log_odds
from medvae.networks import StylEx

__all__ = ["Encoded", "encode_images", "in_batches", "probabilities_of"]

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Encoded:
    """Images, their codes and what is said of them and of their reconstructions.

    Attributes:
        ids: of the N subjects.
        images: in [0, 1], on the CPU, shape (N, C, *S).
        again: their reconstructions.
        logits: the classifier's of the images, shape (N, O).
        logits_again: of the reconstructions.
        w: codes with class probabilities, shape (N, D + K).
        styles: shape (N, S').
    """

    ids: list[str]
    images: Tensor
    again: Tensor
    logits: Array
    logits_again: Array
    w: Tensor
    styles: Tensor


@torch.no_grad()
def encode_images(
    network: StylEx,
    classifier: nn.Module,
    data: Iterable[Mapping[str, Any]],
    prepare_batch: Callable[..., tuple[Tensor, Mapping[str, Tensor]]],
    device: str | torch.device = "cpu",
    count: int | None = None,
) -> Encoded:
    """Encode subjects and generate them again.

    Args:
        network: in any mode; it is run in evaluation mode.
        classifier: images in [0, 1] to logits.
        data: batches with the key `id`.
        prepare_batch: gives images (B, C, *S) in [0, 1].
        device: where to compute.
        count: the first so many subjects; None: all.

    Raises:
        CohortError: no subject.
    """
    network.eval()
    ids: list[str] = []
    parts: list[tuple[Tensor, ...]] = []
    for batch in data:
        if count is not None and len(ids) >= count:
            break
        image, _ = prepare_batch(batch, device)
        logits = classifier(image)
        w = network.encode(image, network.probabilities(logits))
        again = network.decode(w)
        styles = network.generator.styles(w)
        parts.append((image, again, logits, classifier(again), w, styles))
        ids += [str(name) for name in batch["id"]]
    if not ids:
        raise CohortError("There are no images to explain; expected subjects in their split.")
    images, again, logits, logits_again, w, styles = (
        torch.cat(column)[:count] for column in zip(*parts, strict=True)
    )
    return Encoded(
        ids[:count],
        images.cpu(),
        again.cpu(),
        logits.float().cpu().numpy(),
        logits_again.float().cpu().numpy(),
        w,
        styles,
    )


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], values: Tensor, size: int = 32) -> Tensor:
    """Return a function of rows (N, ...), computed batch by batch, on the CPU."""
    return torch.cat([function(part).cpu() for part in values.split(size)])


def probabilities_of(logits: Array, heads: Mapping[str, int], name: str) -> Array:
    """Return the class probabilities (N, K) of one head from logits (N, O)."""
    first = list(heads).index(name)
    sizes: Sequence[int] = list(heads.values())
    start = sum(sizes[:first])
    odds = class_log_odds(logits[..., start : start + sizes[first]]).astype(np.float64)
    found: Array = (0.5 * (1 + np.tanh(odds / 2))).astype(np.float32)
    return found
