"""Choosing beta by what the effect shows in: held-out likelihood per arm, and balanced codes.

The reconstruction error cannot be used: it is at the noise floor for every beta, also where most
of the effect is lost.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import list_data_collate
from torch import Tensor

from medvae.data import write_text
from medvae.engines.checkpoint import CHECKPOINT
from medvae.engines.intact import TreatmentData, train_intact
from medvae.explain.maps import evaluating
from medvae.losses import IntactVAELoss, gaussian_nll
from medvae.metrics import treatment_predictability
from medvae.metrics.intervals import rows_by_patient
from medvae.networks import IntactVAE

__all__ = [
    "BetaChoice",
    "BetaScore",
    "apply_rule",
    "beta_of_run",
    "choose_beta",
    "given_or_chosen",
    "known_columns",
    "log_likelihood",
]

Array = npt.NDArray[np.float64]

PREDICTABILITY = 0.02  # largest gain in the treatment's AUC by codes, beyond covariates

logger = logging.getLogger("medvae")


@dataclass(frozen=True)
class BetaScore:
    """What the rule sees of one beta.

    Attributes:
        beta: the weight.
        log_likelihood: held-out, nats per subject, the mean of the arms' means.
        by_arm: the same of each arm.
        deficit: how far it lies below the best of the balanced betas, paired by subjects.
        standard_error: of that, by patients.
        predictability: see `medvae.metrics.treatment_predictability`; chance is about 0.
        reconstruction: mean squared error, which does not enter the rule.
    """

    beta: float
    log_likelihood: float
    by_arm: tuple[float, ...]
    predictability: float
    reconstruction: float
    deficit: float = 0.0
    standard_error: float = 0.0

    @property
    def balanced(self) -> bool:
        """Whether the codes tell no more of the treatment than the rule allows."""
        return self.predictability <= PREDICTABILITY


@dataclass(frozen=True)
class BetaChoice:
    """The chosen beta and the scores of all.

    Attributes:
        beta: the chosen weight.
        balanced: False: no beta of the grid kept the treatment out of the codes; the one that did
            best was taken.
        scores: of the grid.
    """

    beta: float
    balanced: bool
    scores: tuple[BetaScore, ...]

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")


def choose_beta(
    make: Callable[[], IntactVAE],
    train: TreatmentData,
    val: TreatmentData,
    grid: Sequence[float] = (1.0, 2.0, 4.0, 8.0, 16.0),
    steps: int = 1000,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
    balance_weight: float = 0.0,
    patients: npt.ArrayLike | None = None,
) -> BetaChoice:
    """Train one network for each beta and choose by the rule.

    Of the betas whose codes tell the treatment no better than the covariates do (by at most 0.02
    in AUC; an image among them counts as the prior's mean), the largest whose held-out likelihood,
    averaged over the arms, is as good as the highest: it lies within log T nats of it, all that
    knowing one of T arms can be worth, or within one standard error. Of betas whose likelihood
    cannot tell whether codes carry the treatment, the one that keeps it out best is taken. Where
    none is balanced, the one whose codes tell least.

    Args:
        make: makes an untrained network.
        train: subjects to train on.
        val: subjects to judge by; all arms must occur.
        grid: weights to try.
        steps: see `train_intact`, as the following.
        batch_size: subjects in a batch.
        learning_rate: the highest of the cycle.
        seed: of weights, order and draws, the same for all.
        device: where to compute.
        progress: show bars.
        balance_weight: see `IntactVAELoss`.
        patients: patient of each row of `val`, shape (N,); None = one per row. Rows of one are not
            independent: a fold holds them all, and they count as one in the standard error.

    Raises:
        ValueError: for an empty grid, or another number of patients than rows.
    """
    if not grid:
        raise ValueError("grid is empty, expected at least one beta")
    scores, likelihoods = [], []
    for beta in grid:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = make()
        train_intact(
            network,
            train,
            IntactVAELoss(beta, balance_weight, network.latent_dim, network.treatments),
            steps,
            batch_size,
            learning_rate,
            seed=seed,
            device=device,
            progress=progress,
        )
        likelihoods.append(log_likelihood(network, val, seed=seed, device=device).cpu().numpy())
        scores.append(_score(network, val, beta, likelihoods[-1], seed, device, patients))
        logger.info(
            "beta %g: %.1f nats, codes tell the treatment by %.3f beyond the covariates",
            beta,
            scores[-1].log_likelihood,
            scores[-1].predictability,
        )
    return apply_rule(scores, likelihoods, val.treatment.cpu().numpy(), patients)


def given_or_chosen(
    beta: float | None,
    path: str | Path,
    network: IntactVAE,
    train: Iterable[Mapping[str, Any]],
    val: Iterable[Mapping[str, Any]],
    prepare_batch: Callable[..., tuple[Tensor, Mapping[str, Tensor]]],
    **options: Any,
) -> float:
    """Return a bundle's beta: the number that its configuration gives, or that of the rule.

    The choice is written beside the model, where a training that goes on finds it again.

    Args:
        beta: the number; None: by `choose_beta`.
        path: the JSON of the choice.
        network: untrained; copies of it are trained, each from the same weights.
        train: items of the training split.
        val: items of the validation split.
        prepare_batch: as in training.
        options: of `choose_beta`, such as `patients` of the validation items.
    """
    if beta is not None:
        return float(beta)
    if Path(path).is_file() and (Path(path).parent / CHECKPOINT).is_file():
        return float(json.loads(Path(path).read_text(encoding="utf-8"))["beta"])
    subjects, held_out = (
        TreatmentData.gathered((list_data_collate([item]) for item in items), prepare_batch)
        for items in (train, val)
    )
    choice = choose_beta(lambda: copy.deepcopy(network).cpu(), subjects, held_out, **options)
    choice.save(path)
    if not choice.balanced:
        logger.warning(
            "No beta of the grid kept the treatment out of the codes; beta %g did best. Larger "
            "ones may do, or more subjects.",
            choice.beta,
        )
    logger.info("beta %g, by held-out likelihood and balance (beta.json)", choice.beta)
    return choice.beta


def beta_of_run(path: str | Path, beta: float | None = None) -> float | None:
    """Return the beta of a finished run: the number of its configuration, or of its `beta.json`."""
    if beta is not None or not Path(path).is_file():
        return beta
    return float(json.loads(Path(path).read_text(encoding="utf-8"))["beta"])


def apply_rule(
    scores: Sequence[BetaScore],
    likelihoods: Sequence[Array],
    treatment: npt.NDArray[np.intp],
    patients: npt.ArrayLike | None = None,
) -> BetaChoice:
    """Choose among betas; see `choose_beta`.

    Args:
        scores: of each beta.
        likelihoods: of every subject by each beta, (N,).
        treatment: arms, (N,).
        patients: see `choose_beta`.
    """
    candidates = [i for i, score in enumerate(scores) if score.balanced]
    if not candidates:
        best = min(scores, key=lambda score: score.predictability)
        return BetaChoice(best.beta, False, tuple(scores))
    top = max(candidates, key=lambda i: scores[i].log_likelihood)
    arms = [treatment == arm for arm in np.unique(treatment)]
    judged = []
    for score, likelihood in zip(scores, likelihoods, strict=True):
        gap = likelihoods[top] - likelihood
        deficit = float(np.mean([gap[rows].mean() for rows in arms]))
        error = _standard_error(gap, arms, patients)
        judged.append(replace(score, deficit=deficit, standard_error=error))
    worth = log(len(arms))
    near = [i for i in candidates if judged[i].deficit <= max(judged[i].standard_error, worth)]
    return BetaChoice(max(judged[i].beta for i in near), True, tuple(judged))


def _standard_error(
    gap: Array, arms: Sequence[npt.NDArray[np.bool_]], patients: npt.ArrayLike | None
) -> float:
    """Of the mean of the arms' means, with rows of one patient as one draw (Liang, Zeger 1986)."""
    share = np.zeros(len(gap))  # what each row adds to the deficit, beyond its arm's mean
    for rows in arms:
        share[rows] = (gap[rows] - gap[rows].mean()) / (rows.sum() * len(arms))
    of_patients = [share[rows].sum() for rows in rows_by_patient(patients, len(gap))]
    return float(np.linalg.norm(of_patients))


def _score(
    network: IntactVAE,
    val: TreatmentData,
    beta: float,
    likelihood: Array,
    seed: int,
    device: str | torch.device,
    patients: npt.ArrayLike | None,
) -> BetaScore:
    """What the rule sees of a trained network."""
    arms = val.treatment.cpu().numpy()
    by_arm = tuple(float(likelihood[arms == arm].mean()) for arm in np.unique(arms))
    means, errors = [], []
    with torch.no_grad(), evaluating(network):
        for batch in _batches(val, device):
            output = network.autoencode(*batch)
            means.append(output.mean.cpu())
            errors.append((output.reconstruction - batch.outcome).square().flatten(1).mean(1).cpu())
    columns = known_columns(network, val, device)
    gain = treatment_predictability(torch.cat(means).numpy(), columns, arms, patients, seed)
    error = float(torch.cat(errors).mean())
    return BetaScore(beta, float(np.mean(by_arm)), by_arm, gain, error)


def known_columns(
    network: IntactVAE, data: TreatmentData, device: str | torch.device = "cpu"
) -> Array:
    """Return what a network knows of subjects before outcome and treatment, (N, P).

    The columns of the covariates and, where an image is one of them, the prior's mean: codes may
    tell of the treatment what the image tells, as they may what the columns do.
    """
    with torch.no_grad(), evaluating(network):
        parts = []
        for batch in _batches(data, device):
            known = [network.covariate_encoder(batch.covariates)]
            if batch.image is not None:
                known.append(network.prior(batch.covariates, batch.image)[0])
            parts.append(torch.cat(known, 1).cpu())
    columns: Array = torch.cat(parts).numpy()
    return columns


def log_likelihood(
    network: IntactVAE,
    data: TreatmentData,
    draws: int = 64,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Tensor:
    r"""Return a lower bound of log p(y|x,t) of each subject (Burda et al. 2016).

    .. math:: \log \frac1K \sum_k p(y|z_k,t)\, p(z_k|x) / q(z_k|x,y,t), \quad z_k \sim q

    Codes that carry the treatment lie where the prior, which does not know it, has little mass.

    Args:
        network: evaluated as it is.
        data: subjects.
        draws: K; the bound rises with it to the likelihood.
        seed: of the draws.
        device: where to compute.

    Returns:
        Nats, shape (N,).
    """
    generator, found = torch.Generator().manual_seed(seed), []
    with torch.no_grad(), evaluating(network):
        for batch in _batches(data, device):
            output = network.autoencode(*batch)
            weights = []
            for _ in range(draws):
                z = network.sample(output.mean, output.log_var, generator)
                decoded = network.decode(z, batch.treatment)
                weight = -gaussian_nll(batch.outcome, decoded, output.noise_log_var)
                weight += _log_normal(z, output.prior_mean, output.prior_log_var)
                weights.append(weight - _log_normal(z, output.mean, output.log_var))
            found.append(torch.stack(weights).logsumexp(0) - log(draws))
    return torch.cat(found)


def _log_normal(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Return log N(z; mean, exp(log_var)), (B,), less the constant that the ratio drops."""
    return -0.5 * ((z - mean).square() * torch.exp(-log_var) + log_var).sum(1)


def _batches(data: TreatmentData, device: str | torch.device) -> list[TreatmentData]:
    index = torch.arange(len(data.outcome)).split(64)
    return [data.rows(part).to(device) for part in index]
