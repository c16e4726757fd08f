"""Batches of several ranks as one, so that losses over pairs of subjects see them all."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["deal_rows", "gather_batch"]


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
    return _Gather.apply(rows) if _several() else rows


def deal_rows(rows: Tensor, count: int) -> Tensor:
    """Return the next `count` rows for each rank, of those (M, ...) that the first rank has.

    What every rank draws at random from a joint batch thus becomes one draw, which the ranks share
    the work on.
    """
    if not _several():
        return rows[:count]
    dist.broadcast(rows, 0)
    start = dist.get_rank() * count
    return rows[start : start + count]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
