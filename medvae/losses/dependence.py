"""Subspaces of a latent code that do not tell of each other, and do not collapse over it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medvae.losses.distance import correlations, root
from medvae.losses.gather import gather_batch

__all__ = ["SubspaceDependenceLoss", "effective_rank"]

LEAST_ROWS = 8  # fewer are mostly noise: at 14 the standard deviation is still 0.1


def effective_rank(codes: Tensor) -> Tensor:
    r"""Return how many directions codes vary in, the participation ratio of their covariance.

    .. math:: \frac{(\sum_d \lambda_d)^2}{\sum_d \lambda_d^2}

    with the covariance's eigenvalues. It is differentiable without an eigenvalue decomposition,
    and never above the exponential of the eigenvalues' entropy (Roy and Vetterli 2007).

    Args:
        codes: shape (N, D).

    Returns:
        A scalar in [1, min(D, N - 1)]; 0 for constant codes.

    Raises:
        ValueError: if codes are not a matrix.
    """
    if codes.ndim != 2:
        raise ValueError(f"expected codes of shape (N, D), found {tuple(codes.shape)}")
    codes = codes if codes.dtype == torch.float64 else codes.float()
    codes = codes - codes.mean(0)
    scale = codes.detach().abs().amax()
    codes = codes / torch.where(scale < torch.finfo(codes.dtype).tiny ** 0.75, 1.0, scale)
    covariance = codes.T @ codes
    squares = covariance.square().sum()
    constant = squares <= torch.finfo(codes.dtype).tiny
    return torch.where(constant, 0.0, covariance.trace() ** 2 / torch.where(constant, 1.0, squares))


def whitened(codes: Tensor, ridge: float = 1e-3, weights: Tensor | None = None) -> Tensor:
    """Return codes (N, D) moved and turned to zero mean and, nearly, unit covariance.

    Args:
        codes: shape (N, D).
        ridge: added to the covariance, in units of its mean eigenvalue: directions with less than
            that share of the variance stay narrow, as there is nothing but rounding in them.
        weights: of the rows, shape (N,); None: all the same.
    """
    weights = torch.ones_like(codes[:, 0]) if weights is None else weights
    share = weights / weights.sum()
    centred = codes - share @ codes
    covariance = (centred.T * share) @ centred
    scale = covariance.diagonal().mean().clamp_min(torch.finfo(codes.dtype).tiny ** 0.5)
    identity = torch.eye(codes.shape[1], dtype=codes.dtype, device=codes.device)
    factor = torch.linalg.cholesky(covariance / scale + ridge * identity)
    return torch.linalg.solve_triangular(factor, centred.T / scale.sqrt(), upper=False).T


class SubspaceDependenceLoss(nn.Module):
    r"""Mean distance correlation of all pairs of subspaces, and a counterweight to collapse.

    .. math:: \frac{n_\text{total}}{n_\text{current}} \left(
        w \operatorname{mean}_{s<t} R(z_s, z_t)
        + v \operatorname{mean}_{s \ne t} R(z_s, y_t)
        + c \operatorname{mean}_s \max\left(0, 1 - \frac{r(z_s)}{\min(r_0, d_s)}\right) \right)

    R is the bias-corrected squared distance correlation or, as published (Müller et al. 2025), the
    distance correlation itself, whose estimate at independence depends on the rows and dimensions
    (see `distance_correlation`). r is the `effective_rank`.

    Memory. Few rows estimate R badly, and volumes come in small batches: in training mode the
    batch is joined by detached codes of the last ones. Rows of the batch receive the gradient that
    they would in a batch of n_total, which the factor restores to the scale of a batch's mean. The
    memory starts empty, is part of `state_dict`, and takes no rows with a code that is not finite;
    give it codes of real images only. In evaluation mode it is neither read nor written. Under
    torch.distributed the batch is that of all ranks, which must bring equally many rows.

    Repeats. A subject drawn twice, or again before the memory has forgotten it, has nearly the same
    code twice, which looks like dependence: of independent codes the bias-corrected R is then above
    0 (0.09 in 320 rows of 1269 subjects that a balanced sampler draws, 0.27 of 60 subjects,
    tests/benchmarks/bench_dependence.py). Given `subject`, one row of each counts, the newest, with
    the weight of all of its rows, so that batches stay balanced that repeat subjects for it. In the
    biased form all rows count, as published.

    Conditions. Where labels go together in the population, subspaces that tell of them are
    dependent, and should be. Given `label`, R is the mean over its classes, weighted by their
    rows, of R within the class: independence given the label. Given `covariates`, R is the partial
    distance correlation (Székely and Rizzo 2014): what is left of the distances once those in every
    single covariate, and in all of them standardised, are projected out. With both, it is the
    partial one within classes.
    Vanishing partial distance correlation is close to independence given the covariates, not the
    same. Rows whose label or covariate is missing are left out of R, and those whose target is
    missing out of the R of that target alone.

    Labels. What a subspace must not tell of is known: the labels of the others. Given `targets`,
    the loss holds every subspace against those, too, which leaves the subspace that does tell of
    the label free; between subspaces alone, both have to give way.

    Collapse. Minimised alone over linear maps of independent codes of 4 and 12 dimensions, where
    nothing is to be gained, the biased form ends at effective ranks of 1.0 and 1.0, the
    bias-corrected one at 2.2 and 4.3; with `spread=1, rank=3` both stay above 3 (means of 2 seeds,
    200 steps, tests/benchmarks/bench_dependence.py). Watch the effective ranks, and use `spread`
    where nothing else, such as a decoder, needs the directions.

    Args:
        sizes: the S subspaces' dimensions, at least two subspaces.
        memory: rows to remember.
        unbiased: the bias-corrected form.
        weight: of the dependence, w.
        spread: weight of the counterweight, c.
        rank: effective rank up to which the counterweight pushes, r_0.
        covariates: how many covariates `forward` is given.
        targets: columns of the targets of the first subspaces, one entry for each; the subspaces
            beyond have none.
        target_weight: of the dependence between subspaces and targets, v; 0 leaves it out.
        whiten: R is the affinely invariant distance correlation (Dueck et al. 2014): every
            subspace is whitened by the covariance of the rows first. Distances within a subspace
            are those along its widest directions, so that what the narrow ones tell goes unseen,
            but not by a probe that scales them.

    Raises:
        ValueError: for fewer than two subspaces, more targets than subspaces, or covariates in the
            biased form, which has no partial correlation.
    """

    past: Tensor
    filled: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        memory: int = 0,
        unbiased: bool = True,
        weight: float = 1.0,
        spread: float = 0.0,
        rank: float = 2.0,
        covariates: int = 0,
        targets: Sequence[int] = (),
        target_weight: float = 0.0,
        whiten: bool = False,
    ) -> None:
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(
                f"expected sizes of two subspaces or more, a free one included, found {list(sizes)}"
            )
        if len(targets) > len(sizes):
            raise ValueError(f"found {len(targets)} targets for {len(sizes)} subspaces")
        if covariates > 0 and not unbiased:
            raise ValueError("covariates need the bias-corrected form, found unbiased=False")
        self.sizes = list(sizes)
        self.memory, self.unbiased, self.covariates = memory, unbiased, covariates
        self.weight, self.spread, self.rank = weight, spread, rank
        self.targets, self.target_weight = list(targets), target_weight
        self.whiten = whiten
        self.columns = [*self.sizes, *self.targets, covariates, 1, 1]
        self.register_buffer("past", torch.zeros(memory, sum(self.columns)))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def forward(
        self,
        subspaces: Sequence[Tensor],
        label: Tensor | None = None,
        covariates: Tensor | None = None,
        targets: Tensor | None = None,
        subject: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the loss and what to log.

        Args:
            subspaces: codes, shapes (B, sizes[0]) to (B, sizes[S - 1]).
            label: class indices, shape (B,); -1 where unknown. None: nothing is conditioned on it.
            covariates: shape (B, `covariates` of the constructor), NaN where missing.
            targets: values or one-hot classes side by side, shape (B, sum of the constructor's
                `targets`), NaN where missing.
            subject: whole numbers below 2^24 that tell whose code a row is, shape (B,); -1 where
                unknown. None: every row is another's.

        Returns:
            loss: a scalar; 0 where fewer than 8 rows are left to estimate R from.
            dependence: mean of R over the pairs of subspaces, without weight, factor and gradient.
            target_dependence: the same of subspaces and other targets, where it has a weight.
            effective_rank_0, ...: of every subspace, without gradient; 0 for a single row.

        Raises:
            ValueError: for shapes other than these.
        """
        current = gather_batch(self._rows(subspaces, label, covariates, targets, subject))
        rows, live, weights = current, len(current), None
        if self.training and self.memory > 0:
            rows = torch.cat([current, self.past[: int(self.filled)].to(current.dtype)])
            self._remember(current.detach())
        factor = len(rows) / live
        if self.unbiased and subject is not None:
            newest, repeats = _once(rows[:, -1])
            if len(newest) < len(rows):
                live = int((newest < live).sum())
                rows, weights = rows[newest], repeats.to(rows.dtype)
                factor = float(weights.sum() / weights[:live].sum())
        *sets, known, group, _ = rows.split(self.columns, 1)
        codes = sets[: len(self.sizes)]
        if self.whiten:
            sets = [*(whitened(part, weights=weights) for part in codes), *sets[len(codes) :]]
            live = len(rows)  # the covariance leads from every row to those of the batch
        dependence, of_targets = self._dependence(sets, known, group[:, 0], live, weights)
        with torch.set_grad_enabled(self.spread > 0 and torch.is_grad_enabled()):
            ranks = torch.stack([effective_rank(subspace) for subspace in codes])
        total = self.weight * dependence + self.target_weight * of_targets
        if self.spread > 0:
            target = ranks.new_tensor(self.sizes).clamp_max(self.rank)
            total = total + self.spread * (1 - ranks / target).clamp_min(0).mean()
        logged = {f"effective_rank_{s}": rank for s, rank in enumerate(ranks.detach())}
        if self.targets and self.target_weight > 0:
            logged["target_dependence"] = of_targets.detach()
        return {"loss": factor * total, "dependence": dependence.detach(), **logged}

    def _rows(
        self,
        subspaces: Sequence[Tensor],
        label: Tensor | None,
        covariates: Tensor | None,
        targets: Tensor | None,
        subject: Tensor | None,
    ) -> Tensor:
        """Return codes, targets, covariates, label and subject side by side, (B, columns)."""
        count = len(subspaces[0]) if len(subspaces) > 0 else 0
        if covariates is None:
            covariates = subspaces[0].new_zeros(count, 0)
        if targets is None:
            targets = subspaces[0].new_zeros(count, 0)
        if label is None:
            label = subspaces[0].new_zeros(count)
        if subject is None:
            subject = subspaces[0].new_full((count,), -1)
        found = [tuple(part.shape) for part in (*subspaces, targets, covariates, label, subject)]
        widths = (*self.sizes, sum(self.targets), self.covariates)
        wanted = [(count, width) for width in widths] + [(count,), (count,)]
        if found != wanted or count == 0:
            raise ValueError(
                f"expected shapes {wanted} of the subspaces, targets, covariates, label and "
                f"subject, found {found}"
            )
        parts = [*subspaces, targets, covariates, label[:, None], subject[:, None]]
        exact = any(part.dtype == torch.float64 for part in subspaces)
        return torch.cat([part.to(torch.float64 if exact else torch.float32) for part in parts], 1)

    @torch.no_grad()
    def _remember(self, rows: Tensor) -> None:
        """Put the rows in front of the remembered ones; the oldest are forgotten."""
        rows = rows[rows[:, : sum(self.sizes)].isfinite().all(1)].to(self.past.dtype)
        rows = torch.cat([rows, self.past[: int(self.filled)]])[: self.memory]
        self.past[: len(rows)] = rows
        self.filled.fill_(len(rows))

    def _dependence(
        self,
        sets: Sequence[Tensor],
        covariates: Tensor,
        group: Tensor,
        live: int,
        weights: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the means of R over pairs of subspaces, and of subspaces and others' targets.

        Over the groups' rows; the first `live` rows are the batch.
        """
        count = len(self.sizes)
        targets = sets[count:] if self.target_weight > 0 else []
        group = torch.where(covariates.isnan().any(1), -1.0, group)
        groups = [torch.where(target.isnan().any(1), -1.0, group) for target in targets]
        jobs = [(group, list(range(len(targets))))]  # rows, and the targets that are known there
        if any((known != group).any() for known in groups):
            jobs = [(group, []), *((known, [t]) for t, known in enumerate(groups))]
        pairs = torch.triu_indices(count, count, 1, device=group.device)
        among: list[Tensor] = []
        across: list[Tensor] = []
        for known, chosen in jobs:
            parts = [*sets[:count], *(targets[t] for t in chosen)]
            found = self._correlations(parts, covariates, known, live, weights)
            if found is None:
                continue
            if known is group:
                among = [found[pairs[0], pairs[1]].mean()]
            for place, t in enumerate(chosen, start=count):
                across += [found[s, place] for s in range(count) if s != t]
        none = sets[0].sum() * 0.0  # keeps the codes in the graph
        return among[0] if among else none, torch.stack(across).mean() if across else none

    def _correlations(
        self,
        sets: Sequence[Tensor],
        covariates: Tensor,
        group: Tensor,
        live: int,
        weights: Tensor | None,
    ) -> Tensor | None:
        """Return R of all pairs of sets, its mean over the groups' rows; None for too few."""
        total, count = sets[0].new_zeros(()), 0
        for value in group[group >= 0].unique():
            chosen = group == value
            size = int(chosen.sum())
            if size < LEAST_ROWS:
                continue
            parts = [part[chosen] for part in sets] + _covariate_sets(covariates[chosen])
            # one subject must not weigh as much as all others, which leaves nothing to compare
            each = None if weights is None else weights[chosen].clamp_max(size / 4)
            found = correlations(parts, self.unbiased, int(chosen[:live].sum()), each)
            if self.covariates > 0:
                found = _partial(found, len(sets))
            total = total + size * (found if self.unbiased else root(found))
            count += size
        return total / count if count else None


def _once(subject: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first row of every subject, in rising order, and how many rows each has.

    A row of an unknown one, below 0, is another's than all others.
    """
    rows = torch.arange(len(subject), device=subject.device)
    names = torch.where(subject < 0, -1.0 - rows, subject)
    _, number, counts = names.unique(return_inverse=True, return_counts=True)
    first = torch.full_like(counts, len(rows)).scatter_reduce(0, number, rows, "amin")
    first, order = first.sort()
    return first, counts[order]


def _covariate_sets(covariates: Tensor) -> list[Tensor]:
    """Return every column, and all of them together in units of their standard deviations."""
    columns = list(covariates.split(1, 1)) if covariates.shape[1] > 0 else []
    if len(columns) < 2:
        return columns
    deviation = covariates.std(0)
    return [*columns, covariates / torch.where(deviation > 0, deviation, 1.0)]


def _partial(found: Tensor, count: int) -> Tensor:
    """Return the correlations of the first sets with the other sets projected out, (S, S)."""
    among, across, others = found[:count, :count], found[:count, count:], found[count:, count:]
    inverse = torch.linalg.pinv(others.detach(), rtol=1e-5, hermitian=True)  # constants, copies
    rest = among - across @ inverse @ across.T
    variance = rest.diagonal()
    explained = variance <= 1e-5  # of 1, by rounding errors
    scale = torch.where(explained, 1.0, variance).rsqrt()
    return torch.where(explained | explained[:, None], 0.0, rest * scale * scale[:, None])
