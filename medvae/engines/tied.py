"""Fitting the attributes' axes of a model with regions, when its regions have been learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose
from monai.utils import set_determinism
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from tqdm import tqdm

from medvae.engines.checkpoint import write_weights
from medvae.engines.steps import PrepareAttributes
from medvae.networks import load_weights
from medvae.networks.attri_vae import AttriVAE

__all__ = ["fit_tied_axes", "fit_trained_model"]


@torch.no_grad()
def fit_tied_axes(
    network: nn.Module,
    data: Iterable[Mapping[str, Any]],
    prepare_batch: PrepareAttributes,
    device: torch.device | str = "cpu",
    passes: int = 1,
    ridge: float = 1e-3,
) -> None:
    """Fit the attributes' axes to the moments of regions: a ridge regression over training images.

    A linear head that reads these axes alone is fitted to them as well, by logistic regression with
    the same penalty. In evaluation mode, so that axes mean the same there.

    Args:
        network: an `AttriVAE`, or one in DistributedDataParallel; one without regions stays as it
            is.
        data: batches of training images.
        prepare_batch: as in training; gives the scaled attributes.
        device: of the network.
        passes: over the data, whose transforms may be random.
        ridge: see `medvae.networks.least_squares.LeastSquares.fit`.
    """
    network = getattr(network, "module", network)
    assert isinstance(network, AttriVAE)
    if network.branch is None:
        return
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    training = network.training
    network.eval()
    for _ in range(passes):
        for batch in data:
            image, targets = prepare_batch(batch, device)
            unknown = torch.full((len(image),), -1, device=image.device)
            parts = targets["attributes"], targets.get("label", unknown)
            found.append((network.region_statistics(image), *parts))
    statistics, attributes, labels = (torch.cat(part) for part in zip(*found, strict=True))
    network.tied_mean.fit(statistics, attributes, ridge)
    if network.head is not None and network.head_axes <= attributes.shape[1]:
        codes = network.tied_mean(statistics)[:, : network.head_axes]
        _fit_head(network.head, codes[labels >= 0], labels[labels >= 0], ridge)
    network.train(training)


def _fit_head(head: nn.Sequential, codes: Tensor, labels: Tensor, ridge: float) -> None:
    last = head[-1]
    assert isinstance(last, nn.Linear)
    found = labels.unique()
    if len(head) > 1 or len(found) < max(2, last.out_features):  # hidden layers; a class nobody has
        return
    model = LogisticRegression(C=1 / (ridge * len(codes)), max_iter=5000)
    model.fit(codes.double().cpu().numpy(), labels.cpu().numpy())
    last.weight.copy_(torch.as_tensor(model.coef_))
    last.bias.copy_(torch.as_tensor(model.intercept_))


def fit_trained_model(
    network: nn.Module,
    data: Iterable[Mapping[str, Any]],
    prepare_batch: PrepareAttributes,
    model: str | Path,
    transform: Compose | None = None,
    device: torch.device | str = "cpu",
    passes: int = 4,
    seed: int = 0,
) -> None:
    """Fit the attributes' axes of a trained model and write it back: the last step of a training.

    The same bits however often it is run, as after an interruption: what is random in the data's
    transforms follows from the seed.

    Args:
        network: whose weights `model` holds.
        data: see `fit_tied_axes`; not shuffled.
        prepare_batch: see `fit_tied_axes`.
        model: path of the weights.
        transform: of the training images; its random transforms are seeded.
        device: of the network.
        passes: see `fit_tied_axes`.
        seed: of the transforms.

    Raises:
        CohortError: where the weights cannot be read or written.
    """
    network = getattr(network, "module", network)
    assert isinstance(network, AttriVAE)
    if network.branch is None:
        return
    load_weights(network, model, device)
    set_determinism(seed)
    if transform is not None:
        transform.set_random_state(seed)
    shown = tqdm(data, desc="fitting the attributes' axes", unit="batch")
    fit_tied_axes(network, shown, prepare_batch, device, passes)
    write_weights(network, model)
