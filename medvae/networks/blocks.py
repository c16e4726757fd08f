"""Convolution blocks for images and volumes, accurate and fast on CPU in channels-last memory.

`network.to(memory_format=torch.channels_last_3d)` (`channels_last` for images) makes a training
step on CPU about twice as fast. On large tensors of that format torch's own batch and group
normalisation are wrong in the third digit, because they add up naively in float32; this module's
are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any, Literal

import torch
import torch.nn.functional as F
from monai.networks.layers import Conv, get_act_layer, get_norm_layer, same_padding, split_args
from monai.networks.layers.convutils import stride_minus_kernel_padding
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["BatchNorm", "ConvBlock", "GroupNorm", "init_xavier_uniform"]

# Products are formed in tiles of 8 MiB, which stay in cache until they are added up.
_TILE_ELEMENTS = 2**21
# Few channels make short inner loops, so neighbouring voxels share a row of this size or more.
_ROW_ELEMENTS = 128


class ConvBlock(nn.Module):
    """Convolution, normalisation, activation, dropout: (B, C_in, *S) to (B, C_out, *S').

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: a number, or one number per axis.
        kernel_size: an odd number, or one per axis.
        resample: "down": S' is S / stride, rounded up. "up": transposed convolution, S' is
            S * stride. "smooth": likewise, averaged over windows of the stride, so that what is
            even stays even: a transposed convolution whose stride does not divide its kernel draws
            a checkerboard of it (Odena et al. 2016), on a CPU in half as much time again. "resize":
            nearest-neighbour upsampling before the convolution, S' is S * stride, in several times
            the time.
        norm: MONAI's name or (name, arguments) of the normalisation, such as "BATCH" or
            ("GROUP", {"num_groups": 4}); None for none.
        act: MONAI's name or (name, arguments) of the activation; None for none.
        dropout: probability with which an element of the output is zeroed in training.

    Raises:
        ValueError: for other values of spatial_dims or resample.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        stride: int | Sequence[int] = 1,
        kernel_size: int | Sequence[int] = 3,
        resample: Literal["down", "up", "smooth", "resize"] = "down",
        norm: str | tuple | None = "BATCH",
        act: str | tuple | None = "RELU",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, found {spatial_dims}")
        if resample not in ("down", "up", "smooth", "resize"):
            raise ValueError(
                f"resample must be 'down', 'up', 'smooth' or 'resize', found {resample!r}"
            )
        shape = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "kernel_size": kernel_size,
            "stride": 1 if resample == "resize" else stride,
            "padding": same_padding(kernel_size),
        }
        self.resize = _upsample(stride) if resample == "resize" else nn.Identity()
        self.conv: nn.Module
        if resample == "up":
            output_padding = stride_minus_kernel_padding(1, stride)
            self.conv = Conv["CONVTRANS", spatial_dims](**shape, output_padding=output_padding)
        elif resample == "smooth":
            self.conv = (_SmoothTranspose2d if spatial_dims == 2 else _SmoothTranspose3d)(**shape)
        else:
            self.conv = nn.Conv2d(**shape) if spatial_dims == 2 else _Conv3d(**shape)
        self.norm = _norm_layer(norm, spatial_dims, out_channels)
        self.act = nn.Identity() if act is None else get_act_layer(act)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for `x` of shape (B, C_in, *S)."""
        return self.dropout(self.act(self.norm(self.conv(self.resize(x)))))


def init_xavier_uniform(module: nn.Module) -> None:
    """Initialise a layer as Attri-VAE was: for `network.apply`.

    Xavier-uniform weights (Glorot and Bengio 2010); the bias is 0.01 in convolutions, transposed
    ones included, and 0 in linear layers. Other modules stay as they are.
    """
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        bias = 0.01
    elif isinstance(module, nn.Linear):
        bias = 0.0
    else:
        return
    nn.init.xavier_uniform_(module.weight)
    if module.bias is not None:
        nn.init.constant_(module.bias, bias)


class BatchNorm(_BatchNorm):
    """Batch normalisation of (B, C, *S): torch.nn.BatchNorm2d and 3d, accurate on CPU.

    torch's CPU kernel for channels-last tensors adds up a channel naively in float32: for
    16x8x80^3 its variance is off by 1 %, and depends on the number of threads.
    For batch statistics of such tensors this class adds up pairwise and combines in float64; for
    everything else, such as evaluation and other devices, it is torch's own. The arguments and
    the state_dict are torch's. A second derivative in training is not available.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` of shape (B, C, *S) normalised per channel."""
        self._check_input_dim(x)
        momentum = self._next_momentum()
        tracked = self.track_running_stats or not self.training
        running_mean = self.running_mean if tracked else None
        running_var = self.running_var if tracked else None
        of_batch = self.training or running_mean is None
        if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript compiles what `and` joins
            if of_batch and _is_cpu_channels_last(x):
                return self._normalise(x, running_mean, running_var, momentum)
        return F.batch_norm(
            x, running_mean, running_var, self.weight, self.bias, of_batch, momentum, self.eps
        )

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (4, 5):
            raise ValueError(f"BatchNorm takes (B, C, *S) of 4 or 5 axes, found {input.dim()}")

    def _next_momentum(self) -> float:
        """Count the batch in training; a momentum of None is a cumulative average, as in torch."""
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return 1.0 / float(self.num_batches_tracked)
        return 0.0 if self.momentum is None else self.momentum

    @torch.jit.unused
    def _normalise(
        self, x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float
    ) -> Tensor:
        channels, count = x.shape[1], x.numel() // x.shape[1]
        weight = x.new_ones(channels) if self.weight is None else self.weight
        bias = x.new_zeros(channels) if self.bias is None else self.bias
        y, mean, var = _ChannelsLastBatchNorm.apply(x, weight, bias, self.eps)
        if self.training and running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((var * count / (count - 1)).to(running_var), momentum)
        return y


class GroupNorm(nn.GroupNorm):
    """torch.nn.GroupNorm, accurate on CPU.

    torch's CPU kernel for channels-last tensors adds up naively in float32: at 80^3 its output is
    off by 0.001 standard deviations. Its kernel for contiguous tensors is accurate.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` of shape (B, C, *S) normalised per group, in contiguous memory."""
        return F.group_norm(x.contiguous(), self.num_groups, self.weight, self.bias, self.eps)


class _Conv3d(nn.Conv3d):
    """torch.nn.Conv3d that keeps to oneDNN when inference is of one volume.

    For B = 1 and C * D * H <= 20480 torch takes a kernel that is up to 20 times slower.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript compiles what `and` joins
            if self._is_slow_in_torch(x):
                padding = self.padding
                assert not isinstance(padding, str)
                return torch.mkldnn_convolution(
                    x, self.weight, self.bias, padding, self.stride, self.dilation, self.groups
                )
        return self._conv_forward(x, self.weight, self.bias)

    @torch.jit.unused
    def _is_slow_in_torch(self, x: Tensor) -> bool:
        # oneDNN's operator is neither exported nor differentiated forward
        if torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return False
        return (
            len(x) == 1
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and torch.backends.mkldnn.is_available()
        )


class _SmoothTranspose2d(nn.ConvTranspose2d):
    """Transposed convolution whose output is averaged over windows of the stride.

    One convolution with the averaged kernel, of K + stride - 1, instead of two passes.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        # among the weights, so that those of a plain transposed convolution are not taken for these
        self.register_buffer("window", torch.tensor(self.stride))

    # torch's has an output_size, which here follows from the stride
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return `x` of shape (B, C_in, H, W) enlarged by the stride."""
        (h, w) = self.stride
        weight = F.pad(self.weight, [w - 1, w - 1, h - 1, h - 1])
        weight = F.avg_pool2d(weight, [h, w], stride=1)
        padding = self.padding
        assert not isinstance(padding, str)
        return F.conv_transpose2d(x, weight, self.bias, self.stride, padding)


class _SmoothTranspose3d(nn.ConvTranspose3d):
    """`_SmoothTranspose2d` of volumes."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.register_buffer("window", torch.tensor(self.stride))

    # torch's has an output_size, which here follows from the stride
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return `x` of shape (B, C_in, D, H, W) enlarged by the stride."""
        (d, h, w) = self.stride
        weight = F.pad(self.weight, [w - 1, w - 1, h - 1, h - 1, d - 1, d - 1])
        weight = F.avg_pool3d(weight, [d, h, w], stride=1)
        padding = self.padding
        assert not isinstance(padding, str)
        return F.conv_transpose3d(x, weight, self.bias, self.stride, padding)


class _ChannelsLastBatchNorm(torch.autograd.Function):
    """Normalises a dense channels-last tensor by its batch statistics.

    Returns the output, and the mean and the biased variance (C,) in float64. torch adds up rows
    pairwise, and columns are added in float64. Deviations from the mean are formed before they are
    squared or multiplied, so a mean far from 0 cancels nothing.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        channels, count = x.shape[1], x.numel() // x.shape[1]
        y, rows, out = _result_and_rows(x)
        mean = _total(rows.sum(0), channels) / count
        torch.sub(rows, _as_row(mean, out), out=out)
        var = _total(_sums_of_products(out, out), channels) / count
        scale = weight / torch.sqrt(var + eps)
        torch.addcmul(_as_row(bias, out), out, _as_row(scale, out), out=out)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        return y.to(x.dtype), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        channels, count = x.shape[1], x.numel() // x.shape[1]
        grad_x, rows, out = _result_and_rows(x)
        grad_rows = _as_rows(grad_y.to(out.dtype, memory_format=_channels_last(x)))

        torch.sub(rows, _as_row(mean, out), out=out)
        inverse_std = torch.rsqrt(var + ctx.eps)
        grad_bias = _total(grad_rows.sum(0), channels)
        grad_weight = _total(_sums_of_products(out, grad_rows), channels) * inverse_std

        # With x^ the normalised x: weight / std * (grad - mean(grad) - x^ mean(grad x^)).
        scale = weight * inverse_std
        slope, shift = -scale * inverse_std * grad_weight / count, -scale * grad_bias / count
        torch.addcmul(_as_row(shift, out), out, _as_row(slope, out), out=out)
        out.addcmul_(grad_rows, _as_row(scale, out))
        return grad_x.to(x.dtype), grad_weight.to(weight), grad_bias.to(weight), None


def _channels_last(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


def _is_cpu_channels_last(x: Tensor) -> bool:
    if x.device.type != "cpu" or x.dim() not in (4, 5) or torch.compiler.is_compiling():
        return False
    return not x.is_contiguous() and x.is_contiguous(memory_format=_channels_last(x))


def _as_rows(x: Tensor) -> Tensor:
    """View channels-last (B, C, *S) as (rows, lanes * C); a lane holds one voxel's channels."""
    channels = x.shape[1]
    # the factor finds divisors of sizes that are not powers of 2
    lanes = gcd(x.numel() // channels, max(1, _ROW_ELEMENTS // channels) * 15)
    return x.movedim(1, -1).view(-1, lanes * channels)


def _result_and_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return memory for a result like `x`, and the rows of `x` and of the result.

    Of at least single precision; the rows of a half-precision `x` are converted in the result's.
    """
    result = torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    rows, out = _as_rows(x), _as_rows(result)
    return result, rows if rows.dtype == out.dtype else out.copy_(rows), out


def _as_row(values: Tensor, rows: Tensor) -> Tensor:
    """Repeat `values` per channel (C,) to the width and type of `rows`."""
    return values.to(rows.dtype).repeat(rows.shape[1] // len(values))


def _sums_of_products(rows: Tensor, others: Tensor) -> Tensor:
    """Return the column sums of `rows * others`, one for each tile."""
    size = max(1, _TILE_ELEMENTS // rows.shape[1])
    tiles = zip(rows.split(size), others.split(size), strict=True)
    buffer = torch.empty_like(rows[:size])
    return torch.stack([torch.mul(a, b, out=buffer[: len(a)]).sum(0) for a, b in tiles])


def _total(column_sums: Tensor, channels: int) -> Tensor:
    """Add up the sums of a channel's columns in float64: (C,)."""
    return column_sums.view(-1, channels).sum(0, dtype=torch.float64)


def _upsample(stride: int | Sequence[int]) -> nn.Module:
    scale = float(stride) if isinstance(stride, int) else tuple(float(s) for s in stride)
    return nn.Upsample(scale_factor=scale)


def _norm_layer(norm: str | tuple | None, spatial_dims: int, channels: int) -> nn.Module:
    """Make MONAI's layer of that name, with this module's batch and group normalisation."""
    if norm is None:
        return nn.Identity()
    name, arguments = split_args(norm)
    if name.upper() == "BATCH":
        return BatchNorm(num_features=channels, **arguments)
    if name.upper() == "GROUP":
        return GroupNorm(num_channels=channels, **arguments)
    return get_norm_layer(norm, spatial_dims, channels)
