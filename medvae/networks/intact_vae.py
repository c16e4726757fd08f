"""The beta-Intact-VAE: a learned prognostic score from which every treatment arm is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from monai.networks.nets import FullyConnectedNet
from torch import Tensor, nn

from medvae.networks.blocks import ConvBlock, init_xavier_uniform
from medvae.networks.covariates import CovariateEncoder

__all__ = ["IntactVAE", "IntactVAEOutput", "IntactVAEReconstruction"]

LOG_VAR = 10.0  # largest absolute log variance of a latent axis
NOISE_GAIN = 5.0  # how much faster the noise learns than a weight: it is to keep up with the error


class IntactVAEOutput(NamedTuple):
    """What an `IntactVAE` computes from a batch.

    Attributes:
        reconstruction: mean of the outcome in the factual arm, shape of the outcome.
        mean: posterior mean, shape (B, D).
        log_var: logarithm of the posterior variance, shape (B, D).
        z: the code that was decoded, (B, D): a sample in training, the mean in evaluation.
        prior_mean: of p(z|x), shape (B, D).
        prior_log_var: logarithm of the prior's variance, shape (B, D).
        noise_log_var: logarithm of the outcome's noise variance, one for each channel, (C,).
    """

    reconstruction: Tensor
    mean: Tensor
    log_var: Tensor
    z: Tensor
    prior_mean: Tensor
    prior_log_var: Tensor
    noise_log_var: Tensor


class IntactVAE(nn.Module):
    r"""Conditional VAE whose prior is a balanced prognostic score (Wu and Fukumizu 2022).

    With covariates x, treatment t and outcome y,

    .. math:: p(z|x) = N(h(x), k(x)), \quad p(y|z,t) = N(f_t(z), g), \quad
        q(z|x,y,t) = N(r(x,y,t), s(x,y,t))

    The prior sees no treatment, so that a code means the same in both arms; x reaches the decoder
    through z alone. The encoder's network gives r and log s relative to h and log k, so that the
    likelihood teaches the prior, too (Vahdat and Kautz 2020): without, a large beta holds the
    posterior to a prior that knows nothing yet, and some trainings never leave it.

    Train it with `medvae.losses.IntactVAELoss`. A counterfactual encodes with the treatment that
    was given and decodes with another: `medvae.explain.counterfactual`.

    The treatment joins the code, and scales and shifts every channel of the decoder's blocks (Perez
    et al. 2018): a change of texture such as blur is local, and need not pass through the code.

    The outcome is an image, or numbers where `outcome_dim` is set; an image may then join the
    covariates. Convolutions see the image alone; covariates and treatment join their flattened
    output, not as planes of its size.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image; 0 with `outcome_dim`: there is no image.
        image_size: spatial size, divisible by the product of the strides along every axis.
        covariates: see `CovariateEncoder`.
        treatments: number T of arms, at least 2.
        latent_dim: number D of latent axes.
        channels: channels of the encoder's convolutions; the decoder mirrors them.
        strides: their strides, one for each, the same along all axes.
        hidden_channels: widths of the fully connected layers of the posterior, and in reverse of
            the decoder.
        prior_channels: widths of the prior's hidden layers.
        outcome_dim: numbers of a tabular outcome; None: the outcome is the image.
        learned_prior: False is the ablation with a standard normal prior.
        noise_log_var: the learned noise's logarithm of the variance before training.
        noise_range: its bounds.
        norm: MONAI's name or (name, arguments) of the convolutions' normalisation.
        act: MONAI's name of all activations.

    Raises:
        ValueError: for sizes, strides or numbers that do not fit each other.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        image_size: Sequence[int] | int = (64, 64, 64),
        covariates: Sequence[int] | int = 1,
        treatments: int = 2,
        latent_dim: int = 16,
        channels: Sequence[int] = (16, 32, 64, 16),
        strides: Sequence[int] = (2, 2, 2, 2),
        hidden_channels: Sequence[int] = (128,),
        prior_channels: Sequence[int] = (128, 128),
        outcome_dim: int | None = None,
        learned_prior: bool = True,
        noise_log_var: float = 0.0,
        noise_range: tuple[float, float] = (-12.0, 4.0),
        norm: str | tuple | None = None,
        act: str | tuple = "ELU",
    ) -> None:
        super().__init__()
        sizes = (image_size,) * spatial_dims if isinstance(image_size, int) else image_size
        self.image_size = tuple(int(n) for n in sizes)
        self.in_channels, self.outcome_dim = in_channels, outcome_dim
        self.treatments, self.latent_dim = treatments, latent_dim
        self.learned_prior, self.noise_range = learned_prior, noise_range
        _check_arguments(self, spatial_dims, channels, strides)

        self.covariate_encoder = CovariateEncoder(covariates)
        grid = [n // prod(strides) for n in self.image_size]
        self.bottleneck_shape = (channels[-1], *grid)
        flat = prod(self.bottleneck_shape)
        self.encoder = nn.Sequential()
        if in_channels:
            widths = [in_channels, *channels]
            self.encoder = nn.Sequential(
                *(
                    ConvBlock(spatial_dims, i, o, s, norm=norm, act=act)
                    for (i, o), s in zip(pairwise(widths), strides, strict=True)
                ),
                nn.Flatten(),
            )
        known = self.covariate_encoder.columns  # what the prior may see
        features = flat if outcome_dim is None else outcome_dim
        if outcome_dim is not None and in_channels:
            self.image_head = nn.Sequential(nn.Linear(flat, prior_channels[-1]), nn.ELU())
            known += prior_channels[-1]

        self.prior_net = FullyConnectedNet(known, 2 * latent_dim, prior_channels, act=act)
        joined = features + known + treatments
        self.posterior_net = FullyConnectedNet(joined, 2 * latent_dim, hidden_channels, act=act)
        outputs = flat if outcome_dim is None else outcome_dim
        self.expand = FullyConnectedNet(
            latent_dim + treatments, outputs, hidden_channels[::-1], act=act
        )
        self.decoder, self.arm_scales = nn.Sequential(), nn.ModuleList()
        if outcome_dim is None:
            self.decoder = _decoder(spatial_dims, in_channels, channels, strides, norm, act)
            widths = [*channels[-2::-1], channels[0]]
            self.arm_scales.extend(nn.Linear(treatments, 2 * n, bias=False) for n in widths)
        count = in_channels if outcome_dim is None else outcome_dim
        self.raw_noise = nn.Parameter(torch.full((count,), noise_log_var / NOISE_GAIN))
        self.apply(init_xavier_uniform)
        for scales in self.arm_scales:
            nn.init.zeros_(cast(nn.Linear, scales).weight)  # arms start alike
        if not learned_prior:
            self.prior_net.requires_grad_(False)

    @property
    def noise_log_var(self) -> Tensor:
        """Logarithm of the outcome's noise variance within its bounds, one per channel, (C,)."""
        return (NOISE_GAIN * self.raw_noise).clamp(*self.noise_range)

    def prior(self, covariates: Tensor, image: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of p(z|x), each (B, D): no treatment enters.

        Args:
            covariates: shape (B, K), see `CovariateEncoder`.
            image: of the covariates, (B, C, *S), where the outcome is tabular and has one.

        Raises:
            ValueError: for covariates that are no class's number, see `CovariateEncoder`.
        """
        return self._prior(self._known(covariates, image))

    def encode(
        self,
        outcome: Tensor,
        treatment: Tensor,
        covariates: Tensor,
        image: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of q(z|x,y,t), each (B, D).

        Args:
            outcome: shape (B, C, *S), or (B, outcome_dim).
            treatment: the arm each subject was in, whole numbers from 0, shape (B,). It is never
                the arm that is asked for.
            covariates: as in `prior`.
            image: as in `prior`.

        Raises:
            ValueError: for a treatment that is no arm's number, or covariates as in `prior`.
        """
        known = self._known(covariates, image)
        return self._posterior(outcome, treatment, known, self._prior(known))

    def decode(self, z: Tensor, treatment: Tensor) -> Tensor:
        """Return the mean outcome for codes (B, D) under a treatment.

        Args:
            z: codes, shape (B, D).
            treatment: numbers of arms, shape (B,), or shares of the arms, floats of shape (B, T):
                between arms a share of each; beyond them shares below 0 and above 1.

        Raises:
            ValueError: for a treatment that is no arm's number, or another shape.
        """
        arms = self._arms(treatment).to(z.dtype)
        found = self.expand(torch.cat([z, arms], 1))
        if self.outcome_dim is not None:
            return found
        *blocks, last = self.decoder
        x = found.unflatten(1, self.bottleneck_shape)
        for block, scales in zip(blocks, self.arm_scales, strict=True):
            x = block(x)
            scale, shift = scales(arms)[(...,) + (None,) * (x.dim() - 2)].chunk(2, 1)
            x = torch.addcmul(shift, x, 1 + scale)
        return last(x)

    def autoencode(
        self,
        outcome: Tensor,
        treatment: Tensor,
        covariates: Tensor,
        image: Tensor | None = None,
    ) -> IntactVAEOutput:
        """Encode, sample (in training) and decode in the factual arm; arguments as in `encode`."""
        known = self._known(covariates, image)
        prior = self._prior(known)
        mean, log_var = self._posterior(outcome, treatment, known, prior)
        z = self.sample(mean, log_var) if self.training else mean
        decoded = self.decode(z, treatment)
        return IntactVAEOutput(decoded, mean, log_var, z, *prior, self.noise_log_var)

    def forward(
        self,
        outcome: Tensor,
        treatment: Tensor,
        covariates: Tensor,
        image: Tensor | None = None,
    ) -> IntactVAEOutput:
        """Return what `autoencode` returns."""
        return self.autoencode(outcome, treatment, covariates, image)

    @staticmethod
    def sample(mean: Tensor, log_var: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one code for each row of a normal distribution, shape (B, D).

        Args:
            mean: shape (B, D).
            log_var: logarithm of the variance, shape (B, D).
            generator: of the draw, on the CPU, so that all devices draw the same; None: torch's.
        """
        if generator is None:
            noise = torch.randn_like(mean)
        else:
            noise = torch.randn(mean.shape, generator=generator).to(mean)
        return mean + torch.exp(0.5 * log_var) * noise

    def _known(self, covariates: Tensor, image: Tensor | None) -> Tensor:
        """Return what is known before treatment: covariates and, where it is one, the image."""
        columns = self.covariate_encoder(covariates)
        if self.outcome_dim is None or not self.in_channels:
            return columns
        if image is None:
            raise ValueError("this network has an image among its covariates, found none")
        return torch.cat([columns, self.image_head(self.encoder(image))], 1)

    def _prior(self, known: Tensor) -> tuple[Tensor, Tensor]:
        if not self.learned_prior:
            zeros = known.new_zeros(len(known), self.latent_dim)
            return zeros, zeros
        mean, log_var = self.prior_net(known).chunk(2, 1)
        return mean, _bounded(log_var)

    def _posterior(
        self, outcome: Tensor, treatment: Tensor, known: Tensor, prior: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        if treatment.is_floating_point():
            raise ValueError(
                "encode takes the arm each subject was in, whole numbers (B,), found floats"
            )
        features = self.encoder(outcome) if self.outcome_dim is None else outcome
        arms = self._arms(treatment).to(features.dtype)
        mean, log_var = self.posterior_net(torch.cat([features, known, arms], 1)).chunk(2, 1)
        return prior[0] + mean, _bounded(prior[1] + log_var)

    def _arms(self, treatment: Tensor) -> Tensor:
        """Return the share of every arm, (B, T)."""
        if treatment.is_floating_point():
            if treatment.shape[-1:] != (self.treatments,) or treatment.dim() != 2:
                raise ValueError(
                    f"shares of arms must have shape (B, {self.treatments}), found "
                    f"{tuple(treatment.shape)}"
                )
            return treatment
        if treatment.dim() != 1:
            raise ValueError(f"treatment must have shape (B,), found {tuple(treatment.shape)}")
        if ((treatment < 0) | (treatment >= self.treatments)).any():
            raise ValueError(
                f"treatment must hold numbers of arms, 0 to {self.treatments - 1}, found "
                f"{treatment.min()} to {treatment.max()}"
            )
        return F.one_hot(treatment.long(), self.treatments).float()


class IntactVAEReconstruction(IntactVAE):
    """An `IntactVAE` that returns the reconstruction alone: tensor in, tensor out.

    What MONAI's bundle commands expect of a `network_def`. They know images only: an image without
    more is taken for one of arm 0 of whose covariates nothing is known. The weights have the same
    names as those of `IntactVAE`, and all its methods are there as well.
    """

    # a tensor in place of all that an IntactVAE returns is what this class is for
    def forward(  # type: ignore[override]
        self,
        outcome: Tensor,
        treatment: Tensor | None = None,
        covariates: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Tensor:
        """Return the reconstruction from the posterior mean, shape of the outcome."""
        if treatment is None:
            treatment = torch.zeros(len(outcome), dtype=torch.long, device=outcome.device)
        if covariates is None:
            count = len(self.covariate_encoder.classes)
            covariates = outcome.new_full((len(outcome), count), float("nan"))
        return self.decode(self.encode(outcome, treatment, covariates, image)[0], treatment)


def _bounded(log_var: Tensor) -> Tensor:
    """Keep a log variance where its exponential is a finite number."""
    return log_var.clamp(-LOG_VAR, LOG_VAR)


def _decoder(
    spatial_dims: int,
    in_channels: int,
    channels: Sequence[int],
    strides: Sequence[int],
    norm: str | tuple | None,
    act: str | tuple,
) -> nn.Sequential:
    """Mirror the encoder; the last convolution is linear, as outcomes have any sign and scale."""
    widths = [*channels[::-1], channels[0]]
    blocks = [
        ConvBlock(spatial_dims, i, o, s, resample="up" if s > 1 else "down", norm=norm, act=act)
        for (i, o), s in zip(pairwise(widths), strides[::-1], strict=True)
    ]
    return nn.Sequential(
        *blocks, ConvBlock(spatial_dims, channels[0], in_channels, act=None, norm=None)
    )


def _check_arguments(
    network: IntactVAE, spatial_dims: int, channels: Sequence[int], strides: Sequence[int]
) -> None:
    size, stride = network.image_size, prod(strides)
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, found {spatial_dims}")
    if len(size) != spatial_dims:
        raise ValueError(f"image_size must have {spatial_dims} entries, found {size}")
    if len(strides) != len(channels):
        raise ValueError(
            f"strides must have one entry for each of the {len(channels)} channels, found "
            f"{list(strides)}"
        )
    if network.in_channels and any(n % stride for n in size):
        raise ValueError(
            f"image_size must be divisible by the product of the strides, {stride}, found {size}"
        )
    if network.treatments < 2:
        raise ValueError(f"treatments must be at least 2, found {network.treatments}")
    if not network.in_channels and network.outcome_dim is None:
        raise ValueError("in_channels is 0 and outcome_dim None: there is no outcome")
