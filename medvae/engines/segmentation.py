"""A short training of a small segmentation network, for measuring what a decoder draws."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from monai.networks.layers import separable_filtering
from torch import Tensor, nn
from tqdm import tqdm

__all__ = ["train_segmentation"]

DEFORMATION = 0.12  # sd of the entries of the random linear map that is added to the identity
BRIGHTNESS = 0.15  # largest share by which intensities are stretched, and half of it shifted
BLUR = 1.5  # largest sd of the Gaussian that batches are smoothed by, in voxels: decoders blur
# decoders leave faint patches: sd of what is added, and points of its grid along an axis
HAZE, HAZE_GRID = 0.05, 5
# what a network was trained with: other values make another instrument
AUGMENTATION = (DEFORMATION, BRIGHTNESS, BLUR, HAZE, HAZE_GRID)


def train_segmentation(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    steps: int = 1000,
    batch_size: int = 8,
    learning_rate: float = 4e-3,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> nn.Module:
    """Train a network to segment, by Dice and cross-entropy, and leave it in evaluation mode.

    Every batch is mirrored and linearly deformed (scaled, sheared, turned), made brighter or
    darker, as a whole and in patches, and blurred, at random: few subjects must do, and decoders
    show what none looks like.

    Args:
        network: images to logits of C classes.
        images: in [0, 1], shape (N, channels, *S).
        labels: class of every voxel, 0 for the background, whole numbers, shape (N, *S).
        steps: batches to train on.
        batch_size: images in each.
        learning_rate: the highest of the cycle.
        seed: of the draws.
        device: where to compute.
        progress: show a bar.

    Raises:
        ValueError: images and labels of different numbers or sizes.
    """
    if images.shape[:1] + images.shape[2:] != labels.shape:
        raise ValueError(
            f"images have shape {tuple(images.shape)} and labels {tuple(labels.shape)}, expected "
            "(N, channels, *S) and (N, *S)"
        )
    generator = torch.Generator().manual_seed(seed)
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    network.train()
    bar = tqdm(range(steps), desc="training the instrument", unit="batch", disable=not progress)
    for _ in bar:
        rows = torch.randint(len(labels), (batch_size,), generator=generator)
        image, label = _augmented(images[rows], labels[rows], generator)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_function(network(image.to(device)), label.to(device))
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return network.eval()


def _augmented(image: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return images (B, channels, *S) and labels (B, 1, *S), changed alike."""
    batch, dims = len(image), image.ndim - 2
    linear = torch.eye(dims) + DEFORMATION * torch.randn(batch, dims, dims, generator=generator)
    mirrored = torch.randint(0, 2, (batch, 1, dims), generator=generator) * 2.0 - 1.0
    theta = torch.cat([linear * mirrored, torch.zeros(batch, dims, 1)], 2)
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    image = F.grid_sample(image, grid, "bilinear", "border", align_corners=False)
    label = F.grid_sample(label[:, None].float(), grid, "nearest", "border", align_corners=False)
    stretch, shift = BRIGHTNESS * (
        2 * torch.rand(2, batch, *[1] * (dims + 1), generator=generator) - 1
    )
    blurred = _blurred(image, BLUR * float(torch.rand((), generator=generator)))
    coarse = torch.randn(batch, 1, *[HAZE_GRID] * dims, generator=generator)
    mode = "bilinear" if dims == 2 else "trilinear"
    haze = HAZE * F.interpolate(coarse, image.shape[2:], mode=mode, align_corners=True)
    return (blurred * (1 + stretch) + shift / 2 + haze).clamp(0, 1), label


def _blurred(image: Tensor, sd: float) -> Tensor:
    """Smooth images (B, channels, *S) by a Gaussian of that sd in voxels; edges go on outside."""
    radius = round(3 * sd)
    if radius == 0:
        return image
    kernel = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * sd**2))
    return separable_filtering(image, kernel / kernel.sum(), mode="replicate")
