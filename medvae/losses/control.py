"""Does the decoder draw what an axis says? The encoder is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss

from medvae.losses.gather import deal_rows, gather_batch

__all__ = ["ControlLoss", "companions"]


class Autoencoder(Protocol):
    """What has `encode` and `decode`, such as an `AttriVAE`."""

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance."""

    def decode(self, z: Tensor) -> Tensor:
        """Images."""


class ControlLoss(nn.Module):
    r"""Move one axis of every code, decode, encode again: the axes should be where they were put.

    .. math:: \sum_k \operatorname{mean}_i
        h\left(\mu_k(\operatorname{dec}(z_i')) - z_{ik}'\right)

    over the tied axes k, where :math:`h(e)` is :math:`e^2` up to 1 and :math:`2|e| - 1` beyond
    (Huber 1964): squared, single images that the judge has never seen the like of broke decoders
    at high learning rates. z' is the posterior mean with one of them, drawn at random, taken
    from another sample. The other tied axes follow by a share, drawn from [0, 1], of what their
    regression on it over the batch predicts, because there is no nodule of a large volume and a
    small diameter. A reconstruction loss alone is
    indifferent to which axis the decoder listens to, where several know the same; a traversal of
    the tied axis then moves little. Only the decoder learns from this: the encoder, which learns
    from true images alone, is the judge, in evaluation mode. Codes are recovered from decoded
    images in InfoGAN (Chen et al. 2016) and BicycleGAN (Zhu et al. 2017), too; there the encoder
    learns from them as well. Of several ranks each decodes its part of one draw from the joint
    batch.

    Args:
        tied: number of axes that belong to attributes, the first ones.
        weight: of the term.
        share: of the batch that is moved, which saves time.
    """

    def __init__(self, tied: int, weight: float = 1.0, share: float = 0.5) -> None:
        super().__init__()
        self.tied, self.weight, self.share = tied, weight, share

    def get_extra_state(self) -> float:
        """The weight, which schedules change: part of `state_dict`."""
        return float(self.weight)

    def set_extra_state(self, state: float) -> None:
        """Take the weight of a `state_dict`."""
        self.weight = state

    def forward(self, network: Autoencoder, mean: Tensor) -> Tensor:
        """Return the weighted term for posterior means (B, D); 0 for a batch of one.

        Without a weight, as in the first epoch of a schedule that starts at 0, nothing is decoded.
        """
        count = round(self.share * len(mean))
        if not self.weight or self.tied < 1 or count < 1 or len(mean) < 2:
            return mean.new_zeros(())
        moved = deal_rows(self.move(gather_batch(mean.detach().float())), count)
        image = network.decode(moved)
        with _judging(network):
            read = network.encode(image)[0].float()
        error = huber_loss(read[:, : self.tied], moved[:, : self.tied], reduction="none")
        return self.weight * 2 * error.mean(0).sum()

    def move(self, codes: Tensor) -> Tensor:
        """Return codes (B, D) of which one tied axis is another sample's, and others follow."""
        rows = torch.arange(len(codes), device=codes.device)
        axes = torch.randint(self.tied, (len(codes),), device=codes.device)
        others = (rows + torch.randint(1, len(codes), (1,), device=codes.device)) % len(codes)
        step = codes[others, axes] - codes[rows, axes]
        slopes = companions(codes[:, : self.tied])[axes]
        slopes = slopes * torch.rand_like(step)[:, None]
        moved = codes.clone()
        moved[:, : self.tied] += step[:, None] * slopes
        moved[rows, axes] = codes[others, axes]
        return moved


def companions(values: Tensor) -> Tensor:
    """Return by how much each column of (N, K) changes per unit of another: (K, K).

    Row k holds the slopes of the regressions on column k; the diagonal is 1, and 0 throughout for
    a column that does not vary.
    """
    centred = values - values.mean(0)
    products = centred.T @ centred
    variance = products.diagonal()[:, None]
    return torch.where(variance > 0, products / variance.clamp_min(1e-12), 0.0)


@contextmanager
def _judging(network: Autoencoder) -> Iterator[None]:
    """Evaluation mode and no gradients for the weights inside; all as it was outside."""
    assert isinstance(network, nn.Module)
    modes = [(module, module.training) for module in network.modules()]
    learning = [p for p in network.parameters() if p.requires_grad]
    network.eval()
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in learning:
            parameter.requires_grad_(True)
