"""The objective of the beta-Intact-VAE, and the one that its public code minimises."""

from __future__ import annotations

from math import log, pi
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvae.losses.dependence import SubspaceDependenceLoss
from medvae.losses.elbo import kl_normal

if TYPE_CHECKING:
    from medvae.networks.intact_vae import IntactVAEOutput

__all__ = ["IntactVAELoss", "PublicCodeLoss", "gaussian_nll"]


def gaussian_nll(outcome: Tensor, mean: Tensor, noise_log_var: Tensor) -> Tensor:
    r"""Return the negative log likelihood of outcomes with normal noise.

    .. math:: \sum_i \tfrac12 \left( (y_i - f_i)^2 e^{-s} + s + \log 2\pi \right)

    Args:
        outcome: shape (B, C, *S) or (B, C).
        mean: of the noise, same shape.
        noise_log_var: logarithm s of its variance, shape (C,).

    Returns:
        Nats per sample, summed over channels and voxels, shape (B,), in float32.
    """
    log_var = noise_log_var.float().reshape(1, -1, *(1,) * (outcome.dim() - 2))
    # float32 also under autocast: half precision overflows or stalls in a sum over 10^5 voxels
    squares = (outcome.float() - mean.float()).square() * torch.exp(-log_var)
    return 0.5 * (squares + log_var + log(2 * pi)).flatten(1).sum(1)


class IntactVAELoss(nn.Module):
    r"""Negative log likelihood of the outcome + beta KL (Wu and Fukumizu 2022, equation 4.7).

    .. math:: E_{z \sim q}[-\log p(y|z,t)] + \beta\, KL(q(z|x,y,t) \| p(z|x))
        + \lambda\, R\left(\frac{r - h(x)}{\sqrt{k(x)}}, t\right)

    The first terms are nats: summed over voxels, channels and latent axes, and averaged over the
    batch, so that beta means the same at every image size. A large beta pulls codes to what
    covariates tell, and so keeps the treatment out of them; 1 is the evidence lower bound. Choose
    it by `medvae.engines.choose_beta`, not by the reconstruction, which cannot tell.

    The third term, which is ours, keeps the treatment out of codes that tell much of the image: R
    is the `SubspaceDependenceLoss`, whitened, between the treatment and what the posterior's mean
    adds to the prior's, in units of the prior's standard deviation.

    Args:
        beta: weight of the divergence alone.
        balance_weight: lambda, in nats; 0: no such term.
        latent_dim: D of the network, with a balance.
        treatments: T of the network, with a balance.
        memory: codes of past batches that R is estimated with.
    """

    def __init__(
        self,
        beta: float = 10.0,
        balance_weight: float = 0.0,
        latent_dim: int = 1,
        treatments: int = 2,
        memory: int = 512,
    ) -> None:
        super().__init__()
        self.beta, self.balance_weight = beta, balance_weight
        self.balance: SubspaceDependenceLoss | None = None
        if balance_weight > 0:
            self.balance = SubspaceDependenceLoss([latent_dim, treatments], memory, whiten=True)

    def forward(
        self, output: IntactVAEOutput, outcome: Tensor, **targets: Any
    ) -> dict[str, Tensor]:
        """Return scalars `loss`, its terms (with their weights), and `noise_sd`.

        The terms are `nll`, `kl` and, where it has a weight, `balance`.

        Args:
            output: what the network returned.
            outcome: shape (B, C, *S) or (B, C).
            targets: the rest of the batch; for the balance `treatment`, (B,), is read and, where
                there is one, `subject`, (B,), whose each row is, as the memory may hold a subject
                several times (see `SubspaceDependenceLoss`).
        """
        nll = gaussian_nll(outcome, output.reconstruction, output.noise_log_var).mean()
        mean, log_var, prior_mean, prior_log_var = (
            part.float()
            for part in (output.mean, output.log_var, output.prior_mean, output.prior_log_var)
        )
        kl = self.beta * kl_normal(mean, log_var, prior_mean, prior_log_var).mean()
        terms = {"nll": nll, "kl": kl}
        if self.balance is not None:
            arms = F.one_hot(targets["treatment"], self.balance.sizes[1])
            # detached: a wide prior would hide what codes tell
            added = (mean - prior_mean) * torch.exp(-0.5 * prior_log_var.detach())
            found = self.balance([added, arms], subject=targets.get("subject"))["loss"]
            terms["balance"] = self.balance_weight * found
        noise = torch.exp(0.5 * output.noise_log_var.detach()).mean()
        return {"loss": torch.stack(list(terms.values())).sum(), **terms, "noise_sd": noise}


class PublicCodeLoss(nn.Module):
    """What the public convolutional code minimises, kept to be measured beside `IntactVAELoss`.

    The mean squared error plus `kl_scale` times the mean over latent axes of the divergence from a
    standard normal prior. The learned prior gets no gradient, that of the noise is 0, and most of a
    treatment effect is lost (see docs/intact_vae.md).

    Args:
        kl_scale: weight of the divergence.
    """

    def __init__(self, kl_scale: float = 1e-4) -> None:
        super().__init__()
        self.kl_scale = kl_scale

    def forward(
        self, output: IntactVAEOutput, outcome: Tensor, **targets: Any
    ) -> dict[str, Tensor]:
        """Return scalars `loss`, `mse` and `kl`; arguments as in `IntactVAELoss`."""
        mse = (output.reconstruction.float() - outcome.float()).square().mean()
        divergence = kl_normal(output.mean.float(), output.log_var.float())
        kl = self.kl_scale * (divergence / output.mean.shape[1]).mean()
        # not in the formula: DistributedDataParallel waits for a gradient of every parameter
        idle = 0 * output.noise_log_var.sum()
        return {"loss": mse + kl + idle, "mse": mse, "kl": kl}
