"""The two terms of the evidence lower bound: reconstruction and Kullback-Leibler divergence.

`log_var` is the logarithm of a variance here and everywhere else in the package.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def kl_normal_per_axis(
    mean: Tensor,
    log_var: Tensor,
    prior_mean: Tensor | None = None,
    prior_log_var: Tensor | None = None,
) -> Tensor:
    """Return KL(N(mean, exp(log_var)) || prior) of every latent axis; see `kl_normal`."""
    prior_mean = torch.zeros_like(mean) if prior_mean is None else prior_mean
    prior_log_var = torch.zeros_like(log_var) if prior_log_var is None else prior_log_var
    log_ratio = log_var - prior_log_var
    distance = (mean - prior_mean).square() * torch.exp(-prior_log_var)
    return 0.5 * (log_ratio.exp() + distance - 1.0 - log_ratio)


def kl_normal(
    mean: Tensor,
    log_var: Tensor,
    prior_mean: Tensor | None = None,
    prior_log_var: Tensor | None = None,
) -> Tensor:
    r"""Return the divergence of diagonal normal posteriors from a diagonal normal prior.

    .. math:: \sum_d \tfrac12\left(e^{s_d - t_d} + (m_d - n_d)^2 e^{-t_d} - 1 - (s_d - t_d)\right)

    with posterior mean m and log variance s, prior mean n and log variance t (Kingma and Welling
    2014, appendix B, for the standard normal prior).

    Args:
        mean: posterior mean, shape (B, D).
        log_var: logarithm of the posterior variance, shape (B, D).
        prior_mean: shape broadcastable to (B, D); None is 0.
        prior_log_var: shape broadcastable to (B, D); None is 0, a standard normal prior.

    Returns:
        Nats per sample, summed over the latent axes, shape (B,), not negative.
    """
    return kl_normal_per_axis(mean, log_var, prior_mean, prior_log_var).sum(-1)


def kl_divergence(
    mean: Tensor, log_var: Tensor, capacity: float = 0.0, free_bits: float = 0.0
) -> Tensor:
    """Return the batch's divergence from the standard normal prior, as the objective uses it.

    Args:
        mean: posterior mean, shape (B, D).
        log_var: logarithm of the posterior variance, shape (B, D).
        capacity: target C of |KL - C| in nats, summed over axes (Burgess et al. 2018); 0 is the
            plain divergence.
        free_bits: nats that each axis may use at no cost (Kingma et al. 2016): the mean
            divergence of an axis counts only where it exceeds this.

    Returns:
        A scalar in nats: the mean over the batch of the sum over axes.
    """
    per_axis = kl_normal_per_axis(mean, log_var).mean(0)
    if free_bits > 0:
        per_axis = per_axis.clamp_min(free_bits)
    total = per_axis.sum()
    return (total - capacity).abs() if capacity > 0 else total


def gaussian_reconstruction(reconstruction: Tensor, image: Tensor) -> Tensor:
    """Return the squared error, summed over voxels and channels, averaged over the batch.

    Up to a constant the negative log likelihood of a Gaussian with variance 1/2 per voxel
    (Attri-VAE, Cetin et al. 2023, equation 4).

    Args:
        reconstruction: shape (B, C, *S).
        image: the target, same shape.
    """
    # float32 also under autocast: half precision overflows or stalls in a sum over 10^5 voxels
    return (reconstruction.float() - image.float()).square().flatten(1).sum(1).mean()


def bernoulli_reconstruction(reconstruction: Tensor, image: Tensor) -> Tensor:
    """Return the binary cross-entropy, summed over voxels and channels, averaged over the batch.

    Args:
        reconstruction: probabilities in (0, 1), shape (B, C, *S).
        image: the target in [0, 1], same shape.
    """
    with torch.autocast(image.device.type, enabled=False):
        loss = F.binary_cross_entropy(reconstruction.float(), image.float(), reduction="none")
    return loss.flatten(1).sum(1).mean()
