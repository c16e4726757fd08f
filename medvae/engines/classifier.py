"""A short training of a small classifier, the external judge of generated images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from medvae.networks.classifier import FactorClassifier

__all__ = ["classify", "image_features", "train_classifier"]

SHIFT = 1 / 16  # largest move of an image along an axis, as a share of the axis
MISSING = -1
LEAST_SIZE = 8  # voxels of an axis: the network halves three times


def train_classifier(
    images: Tensor,
    labels: Mapping[str, Tensor],
    channels: Sequence[int] = (8, 16, 32, 64),
    steps: int = 600,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> FactorClassifier:
    """Train a classifier of all factors and return it frozen, in evaluation mode.

    It must share nothing with the model it is to judge, and see real images of that model's
    training subjects only: of reconstructions it would learn how the model marks a class, and find
    the mark again in images that look like none of it. Factors that go together in its training
    set would be read from each other: where cohorts are confounded, give it rows in which they are
    balanced. Images are moved by up to 1/16 of their size, never mirrored (the side of the body is
    a factor).

    Args:
        images: of the subjects, (N, C, *S).
        labels: class numbers from 0 of every factor by its name, shape (N,); NaN or negative where
            missing.
        channels: see `FactorClassifier`.
        steps: batches to train on.
        batch_size: images in each.
        learning_rate: the highest of the cycle.
        seed: of weights and draws.
        device: where to compute.
        progress: show a bar.

    Raises:
        ValueError: images and labels of different numbers, an axis below 8 voxels, a label that
            is not a whole number, or a factor with one class only.
    """
    images = torch.as_tensor(images)
    targets = {name: _classes(name, label) for name, label in labels.items()}
    _check(images, targets)
    network = FactorClassifier(
        images.ndim - 2,
        images.shape[1],
        {name: int(target.max()) + 1 for name, target in targets.items()},
        channels,
        seed,
    ).to(device)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    network.train()
    bar = tqdm(range(steps), desc="training the judge", unit="batch", disable=not progress)
    for _ in bar:
        rows = torch.randint(len(images), (batch_size,), generator=generator)
        logits = network(_moved(images[rows].float(), generator).to(device))
        loss = torch.stack(
            [_cross_entropy(logits[name], target[rows]) for name, target in targets.items()]
        ).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return network.eval().requires_grad_(False)


def classify(
    network: FactorClassifier, images: Tensor, batch_size: int = 64
) -> dict[str, npt.NDArray[np.int64]]:
    """Return the most probable class (N,) of every factor for images (N, C, *S)."""
    found: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in network.classes}
    for batch in _batches(network, images, batch_size):
        for name, logits in network(batch).items():
            found[name].append(logits.argmax(1).cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def image_features(
    network: FactorClassifier, images: Tensor, batch_size: int = 64
) -> npt.NDArray[np.float64]:
    """Return features (N, d) of images (N, C, *S), for `medvae.metrics.realism_report`."""
    parts = [
        network.features(batch).cpu().numpy() for batch in _batches(network, images, batch_size)
    ]
    return np.concatenate(parts).astype(np.float64)


def _batches(network: FactorClassifier, images: Tensor, batch_size: int) -> Iterator[Tensor]:
    device = next(network.parameters()).device
    network.eval()
    with torch.no_grad():
        for batch in torch.as_tensor(images).split(batch_size):
            yield batch.float().to(device)


def _classes(name: str, label: Tensor) -> Tensor:
    """Return class numbers, -1 where missing."""
    values = torch.as_tensor(label).double()
    values = torch.where(values.isnan() | (values < 0), float(MISSING), values)
    classes = values.unique()
    if not torch.equal(values, values.round()) or len(classes[classes >= 0]) < 2:
        raise ValueError(
            f"factor '{name}' has the labels {classes.tolist()[:10]}, expected two or more classes "
            "as whole numbers from 0"
        )
    return values.long()


def _check(images: Tensor, targets: Mapping[str, Tensor]) -> None:
    shape = tuple(images.shape)
    counts = {name: tuple(target.shape) for name, target in targets.items()}
    wrong = len(shape) not in (4, 5) or set(counts.values()) != {shape[:1]}
    if wrong or min(shape[2:]) < LEAST_SIZE:
        raise ValueError(
            f"images have the shape {shape} and labels {counts}, expected (N, C, *S) with axes of "
            f"{LEAST_SIZE} voxels or more, and (N,) of at least one factor"
        )


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean over known labels, 0 without any."""
    target = target.to(logits.device)
    total = F.cross_entropy(logits, target, ignore_index=MISSING, reduction="sum")
    return total / (target != MISSING).sum().clamp_min(1)


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images each moved by whole voxels, edges repeated."""
    sizes = images.shape[2:]
    for axis, size in enumerate(sizes, start=2):
        reach = int(size * SHIFT)
        offset = torch.randint(-reach, reach + 1, (len(images), 1), generator=generator)
        index = (torch.arange(size) + offset).clamp(0, size - 1)
        shape = [len(images), *[1] * (images.ndim - 1)]
        shape[axis] = size
        images = images.gather(axis, index.view(shape).expand_as(images))
    return images
