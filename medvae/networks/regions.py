"""Where the structures of the mask are, and what they add up to.

Attributes such as volumes, axis lengths and mean intensities are sums over a structure. A branch of
the encoder that finds the structures, and reads the attributes' axes off those sums alone, needs
neither to learn the sums nor to learn them again at every position and in every pose.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import torch
import torch.nn.functional as F
from monai.networks.layers import Conv
from torch import Tensor, nn

from medvae.networks.blocks import ConvBlock

__all__ = ["RegionBranch", "RegionStatistics", "on_grid"]


def on_grid(values: Tensor, like: Tensor) -> Tensor:
    """Average (B, C, *S) over the voxels of a coarser grid, that of `like` (B, R, *S')."""
    size = like.shape[2:]
    if len(size) == 2:
        return F.adaptive_avg_pool2d(values, (size[0], size[1]))
    return F.adaptive_avg_pool3d(values, (size[0], size[1], size[2]))


class RegionBranch(nn.Module):
    """A way back up from the encoder's last features to the grid of its first, as in a U-Net.

    From coarse to fine: upsample, convolve, add the encoder's features of that grid through a
    1x1 convolution (Ronneberger et al. 2015; Lin et al. 2017). A voxel of that grid holds a share
    of a structure, so that sums are as exact as on the image's grid, for a fraction of the time.

    Args:
        spatial_dims: 2 or 3.
        encoder_channels: of the encoder's blocks, in their order.
        strides: of the encoder's blocks, one tuple each.
        regions: structures to find.
        channels: of the branch.
        norm: MONAI's name or (name, arguments) of the normalisation.
        act: MONAI's name of the activation.
    """

    def __init__(
        self,
        spatial_dims: int,
        encoder_channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        regions: int,
        channels: int = 16,
        norm: str | tuple | None = "BATCH",
        act: str | tuple = "RELU",
    ) -> None:
        super().__init__()
        pointwise = Conv["CONV", spatial_dims]
        self.top = pointwise(encoder_channels[-1], channels, kernel_size=1)
        # coarse to fine, as they are used
        self.lateral = nn.ModuleList(
            pointwise(c, channels, kernel_size=1) for c in encoder_channels[-2::-1]
        )
        self.up = nn.ModuleList(
            ConvBlock(spatial_dims, channels, channels, s, resample="resize", norm=norm, act=act)
            for s in strides[:0:-1]
        )
        self.fine = ConvBlock(spatial_dims, channels, channels, norm=norm, act=act)
        self.logits = pointwise(channels, regions, kernel_size=1)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Find the structures.

        Args:
            features: the output of every block of the encoder.

        Returns:
            Logits of each structure's share of a voxel, (B, R, *S), and features
            (B, channels, *S), on the grid of the encoder's first block.
        """
        found = self.top(features[-1])
        for index, (up, lateral) in enumerate(zip(self.up, self.lateral)):  # noqa: B905  TorchScript
            found = up(found) + lateral(features[-2 - index])
        found = self.fine(found)
        return self.logits(found), found


class RegionStatistics(nn.Module):
    r"""The moments of every region.

    With occupancy :math:`p` at the N voxels, :math:`v=\sum p` and
    :math:`\langle g\rangle=\sum p\,g/(v+1)`: the share :math:`v/N` and :math:`\log(1+v)`; the
    mean and the variance of the image's channels; the mean of the features; the mean and the
    covariances of the position, in units of half the grid.

    Args:
        image_size: spatial size of the grid.
    """

    def __init__(self, image_size: Sequence[int]) -> None:
        super().__init__()
        self.moments: Tensor  # of the positions, (N, number of moments)
        dims = len(image_size)
        axes = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in image_size]
        position = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)  # (n, N)
        self.pairs = list(combinations_with_replacement(range(dims), 2))
        products = torch.stack([position[i] * position[j] for i, j in self.pairs])
        self.first, self.second = [i for i, _ in self.pairs], [j for _, j in self.pairs]
        self.register_buffer("moments", torch.cat([position, products]).T, persistent=False)
        self.dims = dims

    def count(self, image_channels: int, channels: int) -> int:
        """Return how many numbers there are for each region."""
        return 2 + 2 * image_channels + channels + self.dims + len(self.pairs)

    def forward(self, occupancy: Tensor, image: Tensor, features: Tensor) -> Tensor:
        """Return the moments.

        Args:
            occupancy: of R regions, in [0, 1], shape (B, R, *S).
            image: shape (B, C, *S).
            features: shape (B, F, *S).

        Returns:
            Shape (B, R * count), in float32.
        """
        share = occupancy.float().flatten(2)
        image = image.float()
        values = torch.cat([image, image.square(), features.float()], 1).flatten(2)
        total = share.sum(2, keepdim=True)
        sums, moments = self._sums(share, values)
        mean, moments = sums / (total + 1), moments / (total + 1)
        channels = image.shape[1]
        variance = mean[:, :, channels : 2 * channels] - mean[:, :, :channels].square()
        centre = moments[:, :, : self.dims]
        spread = moments[:, :, self.dims :] - centre[:, :, self.first] * centre[:, :, self.second]
        found = [
            total / share.shape[2],
            total.log1p(),
            mean[:, :, :channels],
            variance,
            mean[:, :, 2 * channels :],
            centre,
            spread,
        ]
        return torch.cat(found, 2).flatten(1)

    def _sums(self, share: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if torch.jit.is_scripting():
            return torch.bmm(share, values.transpose(1, 2)), torch.matmul(share, self.moments)
        # half precision has three digits, too few for a volume
        with torch.autocast(share.device.type, enabled=False):
            return torch.bmm(share, values.transpose(1, 2)), torch.matmul(share, self.moments)
