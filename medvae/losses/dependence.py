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


def whitened(codes: Tensor, ridge: float = 1e-3) -> Tensor:
    """Return codes (N, D) moved and turned to zero mean and, nearly, unit covariance.

    Args:
        codes: shape (N, D).
        ridge: added to the covariance, in units of its mean eigenvalue: directions with less than
            that share of the variance stay narrow, as there is nothing but rounding in them.
    """
    centred = codes - codes.mean(0)
    covariance = centred.T @ centred / len(codes)
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

    Conditions. Where labels go together in the population, subspaces that tell of them are
    dependent, and should be. Given `label`, R is the mean over its classes, weighted by their
    rows, of R within the class: independence given the label. Given `covariates`, R is the partial
    distance correlation (Székely and Rizzo 2014): what is left of the distances once those in every
    single covariate, and in all of them standardised, are projected out. With both, it is the
    partial one within classes.
    Vanishing partial distance correlation is close to independence given the covariates, not the
    same. Rows whose label or covariate is missing are left out of R.

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
        target_weight: of the dependence between subspaces and targets, v.
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
            raise ValueError(f"expected sizes of two subspaces or more, found {list(sizes)}")
        if len(targets) > len(sizes):
            raise ValueError(f"found {len(targets)} targets for {len(sizes)} subspaces")
        if covariates > 0 and not unbiased:
            raise ValueError("covariates need the bias-corrected form, found unbiased=False")
        self.sizes = list(sizes)
        self.memory, self.unbiased, self.covariates = memory, unbiased, covariates
        self.weight, self.spread, self.rank = weight, spread, rank
        self.targets, self.target_weight = list(targets), target_weight
        self.whiten = whiten
        self.columns = [*self.sizes, *self.targets, covariates, 1]
        self.register_buffer("past", torch.zeros(memory, sum(self.columns)))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def forward(
        self,
        subspaces: Sequence[Tensor],
        label: Tensor | None = None,
        covariates: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the loss and what to log.

        Args:
            subspaces: codes, shapes (B, sizes[0]) to (B, sizes[S - 1]).
            label: class indices, shape (B,); -1 where unknown. None: nothing is conditioned on it.
            covariates: shape (B, `covariates` of the constructor), NaN where missing.
            targets: values or one-hot classes side by side, shape (B, sum of the constructor's
                `targets`), NaN where missing.

        Returns:
            loss: a scalar; 0 where fewer than 8 rows are left to estimate R from.
            dependence: mean of R over the pairs of subspaces, without weight, factor and gradient.
            target_dependence: the same of subspaces and other targets, where there are targets.
            effective_rank_0, ...: of every subspace, without gradient; 0 for a single row.

        Raises:
            ValueError: for shapes other than these.
        """
        current = gather_batch(self._rows(subspaces, label, covariates, targets))
        rows = current
        if self.training and self.memory > 0:
            rows = torch.cat([current, self.past[: int(self.filled)].to(current.dtype)])
            self._remember(current.detach())
        *sets, known, group = rows.split(self.columns, 1)
        codes = sets[: len(self.sizes)]
        live = len(current)
        if self.whiten:
            sets = [*(whitened(part) for part in codes), *sets[len(codes) :]]
            live = len(rows)  # the covariance leads from every row to those of the batch
        dependence, of_targets = self._dependence(sets, known, group[:, 0], live)
        with torch.set_grad_enabled(self.spread > 0 and torch.is_grad_enabled()):
            ranks = torch.stack([effective_rank(subspace) for subspace in codes])
        total = self.weight * dependence + self.target_weight * of_targets
        if self.spread > 0:
            target = ranks.new_tensor(self.sizes).clamp_max(self.rank)
            total = total + self.spread * (1 - ranks / target).clamp_min(0).mean()
        logged = {f"effective_rank_{s}": rank for s, rank in enumerate(ranks.detach())}
        if self.targets:
            logged["target_dependence"] = of_targets.detach()
        factor = len(rows) / len(current)
        return {"loss": factor * total, "dependence": dependence.detach(), **logged}

    def _rows(
        self,
        subspaces: Sequence[Tensor],
        label: Tensor | None,
        covariates: Tensor | None,
        targets: Tensor | None,
    ) -> Tensor:
        """Return codes, targets, covariates and label side by side, (B, columns)."""
        count = len(subspaces[0]) if len(subspaces) > 0 else 0
        if covariates is None:
            covariates = subspaces[0].new_zeros(count, 0)
        if targets is None:
            targets = subspaces[0].new_zeros(count, 0)
        if label is None:
            label = subspaces[0].new_zeros(count)
        found = [tuple(part.shape) for part in (*subspaces, targets, covariates, label)]
        widths = (*self.sizes, sum(self.targets), self.covariates)
        wanted = [(count, width) for width in widths] + [(count,)]
        if found != wanted or count == 0:
            raise ValueError(
                f"expected shapes {wanted} of the subspaces, targets, covariates and label, found "
                f"{found}"
            )
        parts = [*subspaces, targets, covariates, label[:, None]]
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
        self, sets: Sequence[Tensor], covariates: Tensor, group: Tensor, live: int
    ) -> tuple[Tensor, Tensor]:
        """Return the means of R over pairs of subspaces, and of subspaces and others' targets.

        Over the groups' rows; the first `live` rows are the batch.
        """
        missing = torch.cat([*sets[len(self.sizes) :], covariates], 1).isnan().any(1)
        group = torch.where(missing, -1.0, group)
        none = sets[0].sum() * 0.0  # keeps the codes in the graph
        total, count = torch.stack([none, none]), 0
        for value in group[group >= 0].unique():
            chosen = group == value
            size = int(chosen.sum())
            if size < LEAST_ROWS:
                continue
            known = [part[chosen] for part in sets] + _covariate_sets(covariates[chosen])
            found = correlations(known, self.unbiased, live=int(chosen[:live].sum()))
            total = total + size * self._means(found)
            count += size
        among, across = (total / max(count, 1)).unbind()
        return among, across

    def _means(self, found: Tensor) -> Tensor:
        """Return both means; `found` are the correlations of subspaces, targets and covariates."""
        subspaces, targets = len(self.sizes), len(self.targets)
        if self.covariates > 0:
            found = _partial(found, subspaces + targets)
        values = found if self.unbiased else root(found)
        pairs = torch.triu_indices(subspaces, subspaces, 1, device=found.device)
        among = values[pairs[0], pairs[1]].mean()
        if targets == 0:
            return torch.stack([among, among.detach() * 0.0])
        others = ~torch.eye(subspaces, targets, dtype=torch.bool, device=found.device)
        across = values[:subspaces, subspaces : subspaces + targets][others]
        return torch.stack([among, across.mean()])


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
