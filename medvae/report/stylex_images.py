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

__all__ = ["Encoded", "encode_images", "in_batches", "probabilities_of", "some_rows"]

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

    def some(self, count: int, seed: int) -> Encoded:
        """Return so many of them, see `some_rows`."""
        rows = some_rows(len(self.ids), count, seed)
        which = torch.as_tensor(rows)
        return Encoded(
            [self.ids[n] for n in rows],
            self.images[which],
            self.again[which],
            self.logits[rows],
            self.logits_again[rows],
            self.w[which.to(self.w.device)],
            self.styles[which.to(self.styles.device)],
        )


@torch.no_grad()
def encode_images(
    network: StylEx,
    classifier: nn.Module,
    data: Iterable[Mapping[str, Any]],
    prepare_batch: Callable[..., tuple[Tensor, Mapping[str, Tensor]]],
    device: str | torch.device = "cpu",
) -> Encoded:
    """Encode subjects and generate them again.

    Args:
        network: in any mode; it is run in evaluation mode.
        classifier: images in [0, 1] to logits.
        data: batches with the key `id`.
        prepare_batch: gives images (B, C, *S) in [0, 1].
        device: where to compute.

    Raises:
        CohortError: no subject.
    """
    network.eval()
    ids: list[str] = []
    parts: list[tuple[Tensor, ...]] = []
    for batch in data:
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
        torch.cat(column) for column in zip(*parts, strict=True)
    )
    return Encoded(
        ids,
        images.cpu(),
        again.cpu(),
        logits.float().cpu().numpy(),
        logits_again.float().cpu().numpy(),
        w,
        styles,
    )


def some_rows(total: int, count: int, seed: int) -> npt.NDArray[np.intp]:
    """Return row numbers (min(total, count),) drawn of all, in order; a table may be sorted."""
    rows: npt.NDArray[np.intp] = np.sort(np.random.default_rng(seed).permutation(total)[:count])
    return rows


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
