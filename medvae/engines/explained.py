"""A classifier to explain, for those who have none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medvae.data.output import explained, replacing
from medvae.engines.classifier import train_classifier
from medvae.networks.checkpoint import load_weights
from medvae.networks.classifier import FactorClassifier

__all__ = ["trained_classifier"]


def trained_classifier(
    path: str | Path,
    data: Iterable[Mapping[str, Any]],
    classes: Mapping[str, int],
    prepare_batch: Callable[..., tuple[Tensor, Mapping[str, Tensor]]],
    channels: Sequence[int] = (8, 16, 32, 64),
    steps: int = 600,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Load the classifier of an earlier start of a run, or train one and keep it.

    Args:
        path: of its weights.
        data: batches of the training subjects, with their factors.
        classes: of every factor by its name, in the order of the factors.
        prepare_batch: gives images (B, C, *S) in [0, 1] and the target `factors`, (B, K).
        channels: see `medvae.networks.FactorClassifier`.
        steps: batches to train on.
        seed: of weights and draws.
        device: where to compute.

    Raises:
        CohortError: the file holds another classifier.
    """
    target = Path(path)
    if target.exists():
        first = prepare_batch(next(iter(data)), "cpu")[0]
        network = FactorClassifier(first.ndim - 2, first.shape[1], classes, channels, seed)
        return load_weights(network, target, device).to(device)
    batches = [prepare_batch(batch, "cpu") for batch in data]
    images = torch.cat([image for image, _ in batches])
    factors = torch.cat([targets["factors"] for _, targets in batches])
    labels = dict(zip(classes, factors.T, strict=True))
    network = train_classifier(images, labels, channels, steps=steps, seed=seed, device=device)
    with explained(target), replacing(target) as temporary, temporary.open("wb") as file:
        torch.save(network.state_dict(), file)
    return network
