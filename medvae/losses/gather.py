"""Batches of several ranks as one, so that losses over pairs of subjects see them all."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["gather_batch"]


class _Gather(torch.autograd.Function):
    """All ranks' rows in the order of the ranks; the gradient of a row is summed over the ranks.

    Where every rank computes the same loss from the gathered rows, the sum is n times the wanted
    gradient, which DistributedDataParallel's mean over n ranks makes right.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        start = dist.get_rank() * ctx.count
        return grad[start : start + ctx.count]


def gather_batch(rows: Tensor) -> Tensor:
    """Return the rows (B, ...) of all ranks, (n B, ...), with gradients; of one rank, the rows.

    The loss computed from them is to be averaged over the ranks, as DistributedDataParallel does.
    Every rank must have the same B: the data loader's drop_last sees to it.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    return _Gather.apply(rows)
