"""The objective of an Attri-VAE: the terms, their weights, and the balance between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvae.losses.attribute import attribute_leakage
from medvae.losses.elbo import gaussian_reconstruction, kl_divergence
from medvae.losses.gather import gather_batch
from medvae.networks.regions import on_grid

if TYPE_CHECKING:
    from medvae.networks import AttriVAEOutput


SCHEDULED = ("beta", "gamma", "alpha", "leakage", "region")  # the weights


def classification_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Return the mean cross-entropy over the samples whose label is known.

    Args:
        logits: shape (B, 1) for a binary head, (B, C) for C classes.
        label: class indices, shape (B,); -1 where unknown.

    Returns:
        A scalar in nats; 0 where no label is known.
    """
    known = label >= 0
    logits, label = logits.float()[known], label[known]
    if logits.shape[0] == 0:
        return logits.sum()  # 0, and keeps the head in the graph
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits.squeeze(1), label.to(logits.dtype))
    return F.cross_entropy(logits, label.long())


def region_loss(logits: Tensor, regions: Tensor) -> Tensor:
    """Return the cross-entropy of the regions, summed over the logits' grid, mean over samples.

    Args:
        logits: shape (B, R, *S'), of a grid as fine as the masks' or coarser.
        regions: 0 or 1, shape (B, R, *S); averaged to the grid of the logits.

    Returns:
        A scalar in nats; minus the log-likelihood of the masks where the grids are the same.
    """
    regions = on_grid(regions, logits)
    total = F.binary_cross_entropy_with_logits(logits.float(), regions.float(), reduction="sum")
    return total / len(logits)


class AttriVAELoss(nn.Module):
    """Reconstruction + beta KL + gamma attribute regularisation + alpha classification.

    The objective of Attri-VAE (Cetin et al. 2023, equation 1) with a further, optional term that
    keeps the attributes out of the free axes. Under torch.distributed all terms but the
    reconstruction are those of the ranks' joint batch, so that n ranks train as one with n times
    the batch. Weights are plain attributes, so that
    `monai.handlers.ParamSchedulerHandler` can warm them up.

    Args:
        attribute: the attribute regularisation, called with codes and attributes of shape (B, K);
            None leaves it out.
        beta: weight of the divergence.
        gamma: weight of the attribute regularisation.
        alpha: weight of the classification.
        leakage: weight of `attribute_leakage` on the means of the free axes.
        region: weight of `region_loss`, for a network with regions.
        reconstruction: the reconstruction term, summed over voxels.
        reconstruction_weight: its weight.
        capacity: see `kl_divergence`.
        free_bits: see `kl_divergence`.
        regularize_mean: regularise the posterior mean instead of the sampled code, which is what
            inference reads; the published models use the sample.
    """

    def __init__(
        self,
        attribute: Callable[[Tensor, Tensor], Tensor] | None = None,
        beta: float = 1.0,
        gamma: float = 1.0,
        alpha: float = 1.0,
        leakage: float = 0.0,
        region: float = 1.0,
        reconstruction: Callable[[Tensor, Tensor], Tensor] = gaussian_reconstruction,
        reconstruction_weight: float = 1.0,
        capacity: float = 0.0,
        free_bits: float = 0.0,
        regularize_mean: bool = False,
    ) -> None:
        super().__init__()
        self.attribute = attribute
        self.reconstruction = reconstruction
        self.reconstruction_weight = reconstruction_weight
        self.beta, self.gamma, self.alpha, self.leakage = beta, gamma, alpha, leakage
        self.region = region
        self.capacity, self.free_bits = capacity, free_bits
        self.regularize_mean = regularize_mean

    def get_extra_state(self) -> dict[str, float]:
        """The weights, which schedules change: part of `state_dict`."""
        return {name: float(getattr(self, name)) for name in SCHEDULED}

    def set_extra_state(self, state: dict[str, float]) -> None:
        """Take the weights of a `state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)

    def forward(
        self,
        output: AttriVAEOutput,
        image: Tensor,
        attributes: Tensor | None = None,
        label: Tensor | None = None,
        regions: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the weighted terms and their sum.

        Args:
            output: what the network returned.
            image: the target, shape (B, C, *S).
            attributes: scaled attributes, shape (B, K), NaN where missing.
            label: class indices, shape (B,), -1 where unknown.
            regions: occupancy of each structure, shape (B, R, *S).

        Returns:
            Scalars `loss`, `reconstruction`, `kl` and, where used, `attribute`, `leakage`,
            `classification` and `region`, each already multiplied by its weight.
        """
        mean, log_var = gather_batch(output.mean.float()), gather_batch(output.log_var.float())
        terms = {
            "reconstruction": self.reconstruction_weight
            * self.reconstruction(output.reconstruction, image),
            "kl": self.beta * kl_divergence(mean, log_var, self.capacity, self.free_bits),
        }
        if attributes is not None and attributes.shape[1] > 0:
            tied = attributes.shape[1]
            attributes = gather_batch(attributes)
            codes = mean if self.regularize_mean else gather_batch(output.z.float())
            if self.attribute is not None:
                terms["attribute"] = self.gamma * self.attribute(codes[:, :tied], attributes)
            if self.leakage > 0:
                terms["leakage"] = self.leakage * attribute_leakage(mean[:, tied:], attributes)
        if label is not None and output.logits.shape[1] > 0:
            logits, label = gather_batch(output.logits), gather_batch(label)
            terms["classification"] = self.alpha * classification_loss(logits, label)
        if regions is not None and output.regions is not None:
            terms["region"] = self.region * region_loss(output.regions, regions)
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}
