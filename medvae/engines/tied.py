"""Fitting the attributes' axes of a model with regions, when its regions have been learned.

And then the decoder to the codes that this makes, which are not those that it has learned with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose
from monai.utils import set_determinism
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from medvae.engines.checkpoint import write_weights
from medvae.engines.steps import PrepareAttributes
from medvae.losses import AttriVAELoss
from medvae.networks import load_weights
from medvae.networks.attri_vae import AttriVAE

__all__ = ["fit_decoder", "fit_tied_axes", "fit_trained_model"]


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

    Each axis keeps its mean and standard deviation over these images, which the decoder knows. A
    linear head that reads these axes alone is fitted to them as well, by logistic regression with
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
    wanted = _as_spread(attributes, network.tied_mean(statistics))
    network.tied_mean.fit(statistics, wanted, ridge)
    if network.head is not None and network.head_axes <= attributes.shape[1]:
        codes = network.tied_mean(statistics)[:, : network.head_axes]
        _fit_head(network.head, codes[labels >= 0], labels[labels >= 0], ridge)
    network.train(training)


def _as_spread(attributes: Tensor, codes: Tensor) -> Tensor:
    """Shift and scale attributes (N, K) to the means and standard deviations of K axes.

    Losses that rank or correlate leave these free, and a regression shrinks them; the decoder has
    learned them as they are.
    """
    wanted = attributes.clone()
    for k, values in enumerate(attributes.T):
        known = ~values.isnan()
        y, z = values[known], codes[known, k].to(values)
        if len(y) > 1 and y.std() > 0 and z.std() > 1e-3:  # an axis that says nothing has no spread
            wanted[known, k] = z.mean() + (y - y.mean()) * (z.std() / y.std())
    return wanted


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


def fit_decoder(
    network: nn.Module,
    data: DataLoader,
    prepare_batch: PrepareAttributes,
    loss: AttriVAELoss,
    device: torch.device | str = "cpu",
    epochs: int = 1,
    learning_rate: float = 2e-3,
    autocast: torch.dtype | None = None,
) -> None:
    """Train the decoder with the codes as they are now; all else stays as it is.

    The axes that `fit_tied_axes` makes say more than those that the decoder has learned with, and
    go together otherwise: one decoder of nodules drew stripes of such codes.

    Args:
        network: an `AttriVAE`, or one in DistributedDataParallel.
        data: batches of training images, shuffled.
        prepare_batch: as in training.
        loss: whose term of the reconstruction is minimised, and no other.
        device: of the network.
        epochs: over the data; 0 leaves the decoder as it is.
        learning_rate: the highest of the cycle.
        autocast: a half precision for the network's passes; None: none.
    """
    network = getattr(network, "module", network)
    assert isinstance(network, AttriVAE)
    training = network.training
    parts = nn.ModuleList([network.expand, network.decoder])
    optimizer = torch.optim.AdamW(parts.parameters(), learning_rate)
    steps = max(epochs * len(data), 2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.2)
    network.eval()
    parts.train()
    kind = torch.device(device).type
    for epoch in range(epochs):
        for batch in tqdm(data, desc=f"fitting the decoder, {epoch + 1} of {epochs}", unit="batch"):
            image, _ = prepare_batch(batch, device)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(kind, autocast, enabled=autocast is not None):
                with torch.no_grad():
                    mean, log_var = network.encode(image)
                    z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
                again = network.decode(z)
            loss.reconstruction(again.float(), image).backward()
            optimizer.step()
            schedule.step()
    network.train(training)
    network.zero_grad(set_to_none=True)


def fit_trained_model(
    network: nn.Module,
    data: Iterable[Mapping[str, Any]],
    prepare_batch: PrepareAttributes,
    model: str | Path,
    transform: Compose | None = None,
    device: torch.device | str = "cpu",
    passes: int = 4,
    seed: int = 0,
    decoder: Callable[..., None] | None = None,
) -> None:
    """Fit the attributes' axes of a trained model and write it back: the last step of a training.

    The same bits however often it is run, as after an interruption: what is random in the data's
    order and transforms follows from the seed, and a model that has been fitted stays as it is.

    Args:
        network: whose weights `model` holds.
        data: see `fit_tied_axes`.
        prepare_batch: see `fit_tied_axes`.
        model: path of the weights.
        transform: of the training images; its random transforms are seeded.
        device: of the network.
        passes: see `fit_tied_axes`.
        seed: of the order and the transforms.
        decoder: `fit_decoder` with what it takes beyond the arguments above; None leaves the
            decoder as it is.

    Raises:
        CohortError: where the weights cannot be read or written.
    """
    network = getattr(network, "module", network)
    assert isinstance(network, AttriVAE)
    if network.branch is None:
        return
    load_weights(network, model, device)
    if network.tied_mean.fitted:
        return
    set_determinism(seed)
    if transform is not None:
        transform.set_random_state(seed)
    shown = tqdm(data, desc="fitting the attributes' axes", unit="batch")
    fit_tied_axes(network, shown, prepare_batch, device, passes)
    if decoder is not None:
        decoder(network=network, data=data, prepare_batch=prepare_batch, device=device)
    write_weights(network, model)
