"""Distance correlation (Székely, Rizzo and Bakirov 2007), exact, differentiable and fast.

Distances within each set of codes are centred once and shared by all pairs of sets. They are
handled in blocks of the upper triangle: all else follows from symmetry, and where there are too
many to keep, a block is computed again whenever it is needed, which takes memory for one block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "correlations",
    "distance_correlation",
    "distance_correlation_sqr",
    "root",
    "u_distance_correlation_sqr",
]

BLOCK = 256  # rows and columns of a block of distances, about: it should fit a cache
KEEP = 1024  # up to so many rows distances are kept for the backward pass


def distance_correlation(x: Tensor, y: Tensor) -> Tensor:
    r"""Return the distance correlation of paired rows, the biased estimator, 0 to 1.

    .. math:: \operatorname{dCor} = \sqrt{\frac{\langle A, B\rangle}
        {\sqrt{\langle A, A\rangle\langle B, B\rangle}}}

    where A and B are the doubly centred matrices of Euclidean distances between the rows of x and
    of y (Székely, Rizzo and Bakirov 2007, definitions 4 and 5). In the population it is 0 only
    under independence, and 1 if y is x moved, rotated and scaled. The estimate is far above 0 under
    independence, the more so the fewer rows and the more dimensions there are: for normal codes of
    4 and of 12 dimensions about 0.80 with 14 rows, 0.51 with 70 and 0.16 with 1000 (measured by
    tests/benchmarks/bench_dependence.py). Compare only estimates of equal N, P and Q.

    Args:
        x: shape (N, P); half precision and integers are computed in float32.
        y: shape (N, Q).

    Returns:
        A scalar; 0 with zero gradient where x or y is constant, and where the square is not above
        the rounding error.

    Raises:
        ValueError: if x or y is not a matrix with at least one row and column, or N differs.
    """
    return root(distance_correlation_sqr(x, y))


def distance_correlation_sqr(x: Tensor, y: Tensor) -> Tensor:
    """Return the square of `distance_correlation`, which has a finite slope at independence.

    Args:
        x: shape (N, P); half precision and integers are computed in float32.
        y: shape (N, Q).

    Returns:
        A scalar in [0, 1] up to rounding; 0 with zero gradient where x or y is constant.

    Raises:
        ValueError: if x or y is not a matrix with at least one row and column, or N differs.
    """
    return correlations([x, y], unbiased=False)[0, 1]


def u_distance_correlation_sqr(x: Tensor, y: Tensor) -> Tensor:
    """Return the bias-corrected estimate of the squared distance correlation.

    The matrices of distances are U-centred (Székely and Rizzo 2014, definition 2), which makes the
    numerator's expectation 0 under independence for any N, P and Q. Single estimates are negative
    about as often as positive: never take the root.

    Args:
        x: shape (N, P), N of at least 4; half precision and integers are computed in float32.
        y: shape (N, Q).

    Returns:
        A scalar in [-1, 1]; 0 with zero gradient where the U-centred distances of x or of y
        vanish, as those of a constant do.

    Raises:
        ValueError: if N < 4, if x or y is not a matrix with at least one column, or N differs.
    """
    return correlations([x, y], unbiased=True)[0, 1]


def correlations(
    sets: Sequence[Tensor],
    unbiased: bool = True,
    live: int | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the squared distance correlations of all pairs of sets of codes.

    Args:
        sets: S sets of shapes (N, P_1) to (N, P_S).
        unbiased: `u_distance_correlation_sqr` of the pairs instead of `distance_correlation_sqr`.
        live: gradients are needed for so many rows, the first ones, and are 0 for the others;
            None: for all.
        weights: of the rows, (N,), above 0 and each below half of their sum, in the bias-corrected
            form alone: what a row counts that stands for several. Distances are then made free of
            what rows have in common under weights w_i w_j of the pairs, i and j different, which is
            U-centring where all are equal, and keeps 0 the expectation under independence.

    Returns:
        A symmetric (S, S); 1 on the diagonal, and 0 in rows and columns of constant sets.

    Raises:
        ValueError: as the functions of pairs do.
    """
    _check(sets, unbiased)
    dtype = torch.float32
    for codes in sets:
        dtype = torch.promote_types(dtype, codes.dtype)
    order = sorted(range(len(sets)), key=lambda s: -sets[s].shape[1])  # as _Distances wants it
    sets = [_standardised(sets[s].to(dtype)) for s in order]
    count = len(sets[0])
    if weights is not None:
        weights = weights.to(dtype)
    products = _Products.apply(unbiased, count if live is None else live, weights, *sets)
    variance = products.diagonal()
    # the sum of all squared distances, beside which a variance of rounding errors is known as such
    each = torch.ones_like(sets[0][:, 0]) if weights is None else weights
    total = torch.stack([2 * each.sum() * (each @ codes.detach().square()).sum() for codes in sets])
    constant = variance <= (64 * torch.finfo(dtype).eps) ** 2 * total
    scale = torch.where(constant, 1.0, variance).rsqrt()
    found = products * scale * scale[:, None]
    found = torch.where(constant | constant[:, None], 0.0, found)
    places = sorted(range(len(sets)), key=order.__getitem__)
    return found[places][:, places]


def root(squares: Tensor) -> Tensor:
    """Return square roots; 0 with zero gradient where a square is not above rounding errors."""
    dependent = ~(squares <= torch.finfo(squares.dtype).eps)  # NaN stays NaN
    # where before the root, too: the root's slope at 0 is infinite, and 0 times it NaN
    return torch.where(dependent, torch.where(dependent, squares, 1.0).sqrt(), 0.0)


def _check(sets: Sequence[Tensor], unbiased: bool) -> None:
    shapes = [tuple(codes.shape) for codes in sets]
    if any(len(shape) != 2 or 0 in shape for shape in shapes):
        raise ValueError(f"expected codes of shape (N, P), N and P at least 1, found {shapes}")
    if len({len(codes) for codes in sets}) != 1:
        raise ValueError(f"expected paired rows, the same N in every set, found shapes {shapes}")
    if unbiased and len(sets[0]) < 4:
        raise ValueError(f"the bias-corrected form needs at least 4 rows, found {len(sets[0])}")


def _standardised(codes: Tensor) -> Tensor:
    """Move and scale to [-1, 1], so that squares neither overflow nor lose digits.

    Distance correlations do not depend on either, so that their gradients need not know of it.
    """
    codes = codes - codes.detach().mean(0)
    scale = codes.detach().abs().amax()
    least = torch.finfo(codes.dtype).tiny ** 0.75  # below, the gradient could not be represented
    return codes / torch.where(scale < least, 1.0, scale)


class _Products(torch.autograd.Function):
    """Inner products of the S centred matrices of distances, (S, S).

    Centring a matrix is an orthogonal projection, both ways of doing it: the gradient of <A, B>
    with respect to the distances behind A is B itself.
    """

    @staticmethod
    def forward(
        ctx: Any, unbiased: bool, live: int, weights: Tensor | None, *sets: Tensor
    ) -> Tensor:
        distances = _Distances(sets)
        means = _row_means(distances, unbiased, weights)
        roots = None if weights is None else weights.sqrt()
        parts = []
        for rows, columns in distances.blocks():
            centred = distances.centred(distances.block(rows, columns), means, rows, columns)
            if unbiased and rows == columns:
                centred.diagonal(dim1=1, dim2=2).zero_()
            _weigh(centred, roots, rows, columns)
            parts.append(_dots(centred) * (1 if rows == columns else 2))
        ctx.distances, ctx.means, ctx.live, ctx.roots = distances, means, live, roots
        ctx.save_for_backward(*sets)
        return torch.stack(parts).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sets = ctx.saved_tensors
        mixture = (2 * (grad + grad.T)).tolist()  # 2, since every distance is there twice
        # ones, so that one product has the weighted sum of codes and the sum of weights
        padded = [torch.cat([codes, codes.new_ones(len(codes), 1)], 1) for codes in sets]
        sums = [torch.zeros_like(codes) for codes in padded]
        wanted = [s for s in range(len(sets)) if ctx.needs_input_grad[3 + s]]
        for rows, columns in ctx.distances.blocks(ctx.live):
            distances = ctx.distances.block(rows, columns)
            centred = ctx.distances.centred(distances, ctx.means, rows, columns)
            _weigh(centred, ctx.roots, rows, columns)
            for s in wanted:
                pull = _mixed(centred, mixture[s]).div_(distances[s])
                _weigh(pull, ctx.roots, rows, columns)
                pull.nan_to_num_(0.0, 0.0, 0.0)  # between equal codes, where 0 is one of the slopes
                with torch.autocast(pull.device.type, enabled=False):
                    sums[s][rows] += pull @ padded[s][columns]
                    if rows != columns:
                        sums[s][columns] += pull.T @ padded[s][rows]
        grads: list[Tensor | None] = [None] * len(sets)
        for s in wanted:
            slope = sums[s][:, -1:] * sets[s] - sums[s][:, :-1]
            slope[ctx.live :] = 0.0
            grads[s] = slope
        return (None, None, None, *grads)


class _Distances:
    """Euclidean distances within each of S sets by blocks (S, rows, columns).

    The sets come with falling dimensions, so that those that have an axis are the first ones.
    A block is valid until the next one is asked for: unless it is kept, its memory is used again,
    since to obtain memory takes as long as to compute with it.
    """

    def __init__(self, sets: Sequence[Tensor]) -> None:
        self.count = len(sets[0])
        self.axes = [  # (sets that have it, N) for every axis
            torch.stack([codes.detach()[:, axis] for codes in sets if codes.shape[1] > axis])
            for axis in range(sets[0].shape[1])
        ]
        self.sets = len(sets)
        self.kept: dict[tuple[int, int], Tensor] = {}
        self.side = math.ceil(self.count / max(1, round(self.count / BLOCK)))
        self.memory = sets[0].new_empty(2, len(sets) * self.side**2)

    def blocks(self, live: int | None = None) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of the blocks in the upper triangle that hold any of the live rows."""
        starts = range(0, self.count, self.side)
        slices = [slice(start, min(start + self.side, self.count)) for start in starts]
        for k, rows in enumerate(slices):
            if live is None or rows.start < live:
                for columns in slices[k:]:
                    yield rows, columns

    def _space(self, index: int, rows: slice, columns: slice) -> Tensor:
        shape = (self.sets, rows.stop - rows.start, columns.stop - columns.start)
        return self.memory[index, : math.prod(shape)].view(shape)

    def block(self, rows: slice, columns: slice) -> Tensor:
        key = (rows.start, columns.start)
        if key in self.kept:
            return self.kept[key]
        found, steps = self._space(0, rows, columns), self._space(1, rows, columns)
        if self.count <= KEEP:
            self.kept[key] = found = torch.empty_like(found)
        # not by products of codes, as cdist does it: they leave a distance between equal codes
        for number, axis in enumerate(self.axes):
            step = steps[: len(axis)] if number else found
            torch.sub(axis[:, rows, None], axis[:, None, columns], out=step)
            if number:
                found[: len(axis)].addcmul_(step, step)
            else:
                found.square_()
        found.sqrt_()
        return found

    def centred(
        self, distances: Tensor, means: tuple[Tensor, Tensor], rows: slice, columns: slice
    ) -> Tensor:
        of_rows, of_all = means
        found = self._space(1, rows, columns)
        torch.sub(distances, of_rows[:, rows, None], out=found)
        return found.sub_((of_rows[:, columns] - of_all)[:, None])


def _weigh(block: Tensor, roots: Tensor | None, rows: slice, columns: slice) -> None:
    """Multiply a block by the roots of its pairs' weights."""
    if roots is not None:
        block.mul_(roots[rows, None]).mul_(roots[columns])


def _row_means(
    distances: _Distances, unbiased: bool, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return what centring subtracts from rows, (S, N), and adds to all, (S, 1)."""
    count = distances.count
    sums = distances.memory.new_zeros(distances.sets, count)
    for rows, columns in distances.blocks():
        block = distances.block(rows, columns)
        sums[:, rows] += block.sum(2) if weights is None else block @ weights[columns]
        if rows != columns:
            sums[:, columns] += block.sum(1) if weights is None else weights[rows] @ block
    if weights is not None:  # r_i (W - 2 w_i) + sum_j w_j r_j = sum_j w_j a_ij
        room = weights.sum() - 2 * weights
        common = (sums @ (weights / room)) / (1 + (weights / room).sum())
        return (sums - common[:, None]) / room, sums.new_zeros(len(sums), 1)
    total = sums.sum(1, keepdim=True)
    if unbiased:
        return sums / (count - 2), total / ((count - 1) * (count - 2))
    return sums / count, total / count**2


def _dots(centred: Tensor) -> Tensor:
    """Return the inner products (S, S) of S matrices."""
    flat = centred.flatten(1)
    products = centred.new_empty(len(flat), len(flat))
    for s in range(len(flat)):
        for t in range(s + 1):
            products[s, t] = products[t, s] = torch.dot(flat[s], flat[t])
    return products


def _mixed(centred: Tensor, weights: Sequence[float]) -> Tensor:
    mixed = centred[0] * weights[0]
    for matrix, weight in zip(centred[1:], weights[1:], strict=True):
        mixed.add_(matrix, alpha=weight)
    return mixed
