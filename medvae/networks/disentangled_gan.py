"""The disentangled GAN as inference uses it: an autoencoder with named subspaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from medvae.networks.style_discriminator import StyleDiscriminator
from medvae.networks.stylegan import StyleGenerator

__all__ = ["DisentangledGAN"]


class DisentangledGAN(nn.Module):
    """Generator and discriminator as an autoencoder of images in [0, 1]: tensor in, tensor out.

    What inference needs: the encoder of the discriminator, and the generator, usually the running
    average of the one that was trained. Their own images are in [-1, 1].

    Args:
        spatial_dims: 2 or 3.
        sizes: dimensions of the subspaces, in order; the one without a label is named "free".
        outputs: logits of every labelled subspace, see `medvae.data.Factors`.
        image_size: S, one number or one for each axis, divisible by 2^(R - 1).
        channels: of the R grids, from the coarsest to the image.
        in_channels: C, of the image and of its reconstruction.
        mapping_layers: fully connected layers of each mapping network.
        separate: a mapping network for every subspace.
        faithful: the published networks, see `StyleGenerator` and `StyleDiscriminator`.

    Raises:
        ValueError: for sizes that do not fit each other.
    """

    def __init__(
        self,
        spatial_dims: int,
        sizes: Mapping[str, int],
        outputs: Mapping[str, int],
        image_size: Sequence[int] | int,
        channels: Sequence[int],
        in_channels: int = 1,
        mapping_layers: int = 8,
        separate: bool = True,
        faithful: bool = False,
    ) -> None:
        super().__init__()
        self.generator = StyleGenerator(
            spatial_dims,
            sizes,
            image_size,
            channels,
            in_channels,
            mapping_layers,
            separate,
            faithful,
        )
        self.discriminator = StyleDiscriminator(
            spatial_dims, sizes, outputs, image_size, channels, in_channels, faithful
        )
        self.subspaces = self.generator.subspaces

    @property
    def latent_dim(self) -> int:
        """Dimensions D of the codes."""
        return self.subspaces.latent_dim

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """Names of the factors, which `medvae.explain.attribute_maps` takes."""
        return self.discriminator.heads.outputs.names

    def encode(self, image: Tensor) -> Tensor:
        """Return codes (B, D) of images (B, C, *S) in [0, 1]."""
        return self.discriminator.encode(2 * image - 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return images (B, C, *S), limited to [0, 1], for codes (B, D)."""
        return ((self.generator.synthesis(codes) + 1) / 2).clamp(0, 1)

    def classify(self, codes: Tensor) -> Tensor:
        """Return the heads' logits (B, O) for codes (B, D)."""
        return self.discriminator.heads(codes)

    def evidence(self, codes: Tensor, name: str) -> Tensor:
        """Return what the head of a factor says as one number (B,), see `SubspaceHeads`."""
        return self.discriminator.heads.evidence(codes, name)

    def map_codes(self, z: Tensor) -> Tensor:
        """Return codes (B, D) as the generator's prior has them, for normal z (B, D)."""
        return self.generator.mapping(z)

    def forward(self, image: Tensor) -> Tensor:
        """Return the reconstruction (B, C, *S) of images in [0, 1]."""
        return self.decode(self.encode(image))
