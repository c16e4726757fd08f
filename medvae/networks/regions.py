"""Where the structures of the mask are, and what they add up to.

Attributes such as volumes, axis lengths and mean intensities are sums over a structure. A branch of
the encoder that finds the structures, and reads the attributes' axes off those sums alone, needs
neither to learn the sums nor to learn them again at every position and in every pose.
"""

from __future__ import annotations

import math
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
    """A way back up from the encoder's last features to the image's grid, as in a U-Net.

    From coarse to fine: upsample, convolve, add the encoder's features of that grid through a
    1x1 convolution (Ronneberger et al. 2015; Lin et al. 2017). The last step, from the grid of the
    encoder's first block to the image's, adds what the intensity of the voxel itself says, for a
    fraction of the time of a convolution.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
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
        in_channels: int,
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
        self.intensity = nn.Sequential(
            ConvBlock(spatial_dims, in_channels, 8, kernel_size=1, norm=None, act=act),
            pointwise(8, regions, kernel_size=1),
        )
        self.occupancy = nn.Sigmoid()  # of the logits; a layer with a name, for attribute maps
        self.mode = "bilinear" if spatial_dims == 2 else "trilinear"

    def forward(self, image: Tensor, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Find the structures.

        Args:
            image: shape (B, C, *S).
            features: the output of every block of the encoder.

        Returns:
            Logits of the structures, (B, R, *S), and features (B, channels, *S') on the grid of the
            encoder's first block.
        """
        found = self.top(features[-1])
        for index, (up, lateral) in enumerate(zip(self.up, self.lateral)):  # noqa: B905  TorchScript
            found = up(found) + lateral(features[-2 - index])
        found = self.fine(found)
        logits = F.interpolate(self.logits(found), size=image.shape[2:], mode=self.mode)
        # tissues differ by a tenth of the window; normalised, a voxel would depend on its batch
        return logits + self.intensity(10 * image), found


class RegionStatistics(nn.Module):
    r"""The moments of every region.

    With occupancy :math:`p` at the N voxels, :math:`v=\sum p` and
    :math:`\langle g\rangle=\sum p\,g/(v+0.1)`: the share :math:`v/N` and :math:`\log(1+v)`; the
    mean and the variance of the image's channels; the mean of the features. These are expectations
    where p is a probability. The rest is of an occupancy of three times the logit,
    :math:`p^3/(p^3+(1-p)^3)`, because a background of 0.001 per voxel outweighs a small structure's
    second moments: the covariance :math:`\Sigma` of the position, in units of half the grid's
    longest side; the logarithms of the eigenvalues of :math:`\Sigma` plus that of a voxel,
    in descending order, which neither turn nor mirror image changes: axis lengths, elongation and
    flatness are functions of them; :math:`\log(1+A)` of the surface :math:`A=\sum|\nabla p|`, the
    total variation of the occupancy, in voxels of the shortest side: sphericity is a function of A
    and v. Where the structure lies is left out: no attribute is a function of it, and in centred
    images it varies by so little that a decoder could buy a reading with a small shift.

    Args:
        image_size: spatial size of the grid.
        spacing: of its voxels, one for each axis; None for 1.
    """

    def __init__(self, image_size: Sequence[int], spacing: Sequence[float] | None = None) -> None:
        super().__init__()
        self.moments: Tensor  # of the positions, (N, number of moments)
        self.voxel: Tensor  # variances of the position within a voxel, (dims,)
        dims = len(image_size)
        steps = torch.tensor([1.0] * dims if spacing is None else list(spacing))
        steps = 2 * steps / (steps * torch.tensor(image_size)).max()
        axes = [steps[i] * (torch.arange(n) - (n - 1) / 2) for i, n in enumerate(image_size)]
        position = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)  # (dims, N)
        self.pairs = list(combinations_with_replacement(range(dims), 2))
        products = torch.stack([position[i] * position[j] for i, j in self.pairs])
        self.first, self.second = [i for i, _ in self.pairs], [j for _, j in self.pairs]
        self.steps = (steps / steps.min()).tolist()
        self.volume = math.prod(self.steps)  # of a voxel
        self.register_buffer("moments", torch.cat([position, products]).T, persistent=False)
        self.register_buffer("voxel", steps.square() / 12, persistent=False)
        self.dims = dims

    def count(self, image_channels: int, channels: int) -> int:
        """Return how many numbers there are for each region."""
        return 3 + 2 * image_channels + channels + self.dims + len(self.pairs)

    def forward(self, share: Tensor, image: Tensor, features: Tensor) -> Tensor:
        """Return the moments.

        Args:
            share: the occupancies of R regions, in [0, 1], shape (B, R, *S).
            image: shape (B, C, *S).
            features: shape (B, F, *S'), on that grid or a coarser one.

        Returns:
            Shape (B, R * count), in float32.
        """
        image, share = image.float(), share.float()
        inside, outside = share**3, (1 - share) ** 3
        sharp = inside / (inside + outside)  # their sum is 1/4 at least
        total = share.flatten(2).sum(2, keepdim=True)
        values = torch.cat([image, image.square()], 1).flatten(2).transpose(1, 2)
        mean, square = (self._product(share.flatten(2), values) / (total + 0.1)).chunk(2, 2)
        sums = self._product(sharp.flatten(2), self.moments)
        count = sharp.flatten(2).sum(2, keepdim=True)
        moments = sums / (count + 0.1)
        centre = sums[:, :, : self.dims] / (count + 1e-6)
        first, spread = moments[:, :, : self.dims], moments[:, :, self.dims :]
        spread = spread - first[:, :, self.first] * centre[:, :, self.second]
        found = [
            total / self.moments.shape[0],
            total.log1p(),
            mean,
            square - mean.square(),
            self._of_features(share, features.float()),
            spread,
            self.eigenvalues(spread).log(),
            self._surface(sharp).log1p(),
        ]
        return torch.cat(found, 2).flatten(1)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return torch.matmul(a, b)
        # half precision has three digits, too few for a volume
        with torch.autocast(a.device.type, enabled=False):
            return torch.matmul(a, b)

    def _of_features(self, share: Tensor, features: Tensor) -> Tensor:
        """Return the features' means over every region (B, R, F)."""
        coarse = on_grid(share, features).flatten(2)
        sums = self._product(coarse, features.flatten(2).transpose(1, 2))
        return sums / (coarse.sum(2, keepdim=True) + 0.1)

    def _surface(self, share: Tensor) -> Tensor:
        """Return every region's surface (B, R, 1)."""
        square = torch.full_like(share, 1e-10)  # the root has no derivative at 0
        for axis, step in enumerate(self.steps):
            square = square + torch.gradient(share, spacing=step, dim=2 + axis)[0].square()
        return square.sqrt().flatten(2).sum(2, keepdim=True) * self.volume

    def eigenvalues(self, spread: Tensor) -> Tensor:
        """Return the eigenvalues of covariances (..., pairs), largest first, (..., dims).

        In closed form, which exports. Equal ones, where it has no derivative, come out apart: a
        sphere's by 0.2 % of them, a rod's by 0.5 % of what the third differs by.
        """
        if self.dims == 2:
            x, xy, y = spread.unbind(-1)
            x, y = x + self.voxel[0], y + self.voxel[1]
            middle, half = (x + y) / 2, (x - y) / 2
            radius = (half.square() + xy.square() + (1e-3 * middle).square()).sqrt()
            return torch.stack([middle + radius, middle - radius], -1)
        x, xy, xz, y, yz, z = spread.unbind(-1)
        x, y, z = x + self.voxel[0], y + self.voxel[1], z + self.voxel[2]
        middle = (x + y + z) / 3
        x, y, z = x - middle, y - middle, z - middle
        off = xy.square() + xz.square() + yz.square()
        scale = ((x.square() + y.square() + z.square() + 2 * off) / 6).add((1e-3 * middle).square())
        scale = scale.sqrt()
        det = x * (y * z - yz.square()) - xy * (xy * z - yz * xz) + xz * (xy * yz - y * xz)
        angle = (det / (2 * scale**3)).clamp(-0.9999, 0.9999).acos() / 3
        largest = middle + 2 * scale * angle.cos()
        smallest = middle + 2 * scale * (angle + 2 * math.pi / 3).cos()
        return torch.stack([largest, 3 * middle - largest - smallest, smallest], -1)
