"""What trains a generator and a discriminator against each other, and what keeps them smooth.

Second derivatives are of float32 at least, whatever the networks computed in.
"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvae.losses.gather import gather_batch

__all__ = ["PathLength", "discriminator_loss", "generator_loss", "r1_penalty"]


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    r"""Return the mean of softplus(-real) and softplus(fake), halved (Goodfellow et al. 2014).

    Its gradient does not vanish where the discriminator is sure and wrong.

    Args:
        real: logits of being real, of real images, shape (B, 1).
        fake: of generated ones, shape (B', 1).
    """
    return (F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()) / 2


def generator_loss(fake: Tensor) -> Tensor:
    """Return the mean of softplus(-fake), the non-saturating loss (Goodfellow et al. 2014)."""
    return F.softplus(-fake.float()).mean()


def r1_penalty(score: Tensor, image: Tensor) -> Tensor:
    r"""Return how steep the discriminator is at real images (R1, Mescheder et al. 2018).

    .. math:: \frac1B \sum_b \lVert \nabla_{x_b} \text{score} \rVert^2

    It is computed from the pass that also gives the loss: no second one is needed.

    Args:
        score: of the images, shape (B, 1).
        image: that requires a gradient and that the score was computed from, (B, C, *S).
    """
    with torch.autocast(image.device.type, enabled=False):
        (grad,) = torch.autograd.grad(score.float().sum(), image, create_graph=True)
        return grad.float().square().flatten(1).sum(1).mean()


class PathLength(nn.Module):
    r"""Squared deviation of the generator's path lengths from their running mean.

    .. math:: \operatorname{mean}_b (\lVert J_{w_b}^T y_b \rVert - a)^2,
        \quad y \sim N(0, 1) / \sqrt{\text{voxels}}

    with the square of the length averaged over the copies of w (Karras et al. 2020). A fixed step
    in w then changes the image by a fixed amount, wherever it is taken. The running mean is that
    of all ranks' images, and part of `state_dict`.

    Args:
        decay: share of the running mean that a batch replaces.
    """

    mean: Tensor

    def __init__(self, decay: float = 0.01) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, image: Tensor, w: Tensor) -> Tensor:
        """Return the penalty, a scalar.

        Args:
            image: generated from `w`, shape (B, C, *S).
            w: shape (B, copies, D), requires a gradient.
        """
        lengths = path_lengths(image, w)
        mean = self.mean.lerp(gather_batch(lengths).mean(), self.decay)
        if self.training:
            self.mean.copy_(mean.detach())
        return (lengths - mean).square().mean()


def path_lengths(image: Tensor, w: Tensor) -> Tensor:
    """Return the length of one random direction of every image in w, (B,)."""
    noise = torch.randn_like(image, dtype=torch.float32) / prod(image.shape[2:]) ** 0.5
    with torch.autocast(image.device.type, enabled=False):
        (grad,) = torch.autograd.grad((image.float() * noise).sum(), w, create_graph=True)
        # the constant keeps the root's slope finite where w changes nothing yet
        return (grad.float().square().sum(2).mean(1) + 1e-12).sqrt()
