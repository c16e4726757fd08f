"""The same subject under another treatment: image, signed difference and uncertainty.

For networks with a prior that sees no treatment, such as `medvae.networks.IntactVAE`. A subject is
encoded with the treatment that it had, and only decoded under another: a code made with the wrong
treatment would explain the image by it, and lose much of the effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from monai.inferers import Inferer
from torch import Tensor

from medvae.explain.maps import evaluating

if TYPE_CHECKING:
    from medvae.networks import IntactVAE

__all__ = ["Counterfactual", "CounterfactualInferer", "counterfactual", "from_covariates"]


class Counterfactual(NamedTuple):
    """Outcomes under a treatment that was not given, in the outcome's unit.

    Attributes:
        outcome: the mean outcome under the target, shape (B, C, *S) or (B, outcome_dim).
        difference: target minus own treatment, both as the network decodes them, same shape. Of
            subjects without an image, target minus arm 0.
        uncertainty: standard deviation of the difference over posterior samples and networks, same
            shape: what is unknown of the code and of the weights, not the outcome's noise.
        outside: whether each subject lies outside the overlap, so that nobody like it was treated
            so, (B,); all False where no propensity was given.
        extrapolated: whether the strength lies outside what was observed.
    """

    outcome: Tensor
    difference: Tensor
    uncertainty: Tensor
    outside: Tensor
    extrapolated: bool


def counterfactual(
    network: IntactVAE | Sequence[IntactVAE],
    image: Tensor,
    covariates: Tensor,
    treatment: Tensor,
    target: int | Tensor,
    strength: float = 1.0,
    extrapolate: bool = False,
    samples: int = 16,
    probabilities: Tensor | None = None,
    limit: float = 0.05,
    context: Tensor | None = None,
    seed: int = 0,
    keep_noise: bool = False,
) -> Counterfactual:
    """Decode each subject's code under another treatment.

    Codes are posterior means, given the treatment that the subject had. With the own treatment as
    target the outcome is the reconstruction bit for bit, or the image where the noise is kept, and
    the difference 0.

    Args:
        network: trained, or several of them (an ensemble); left in the mode they were in.
        image: the outcome, shape (B, C, *S), or (B, outcome_dim).
        covariates: shape (B, K), see `medvae.networks.CovariateEncoder`.
        treatment: the arm each subject was in, (B,), whole numbers.
        target: the arm asked for, one for all or one each.
        strength: how far from the own arm (0) to the target (1).
        extrapolate: allow a strength outside [0, 1], which no subject had.
        samples: draws from each network's posterior for the uncertainty; 0: it is only that
            between networks.
        probabilities: propensity of every arm, (B, T), for `outside`.
        limit: the least probability of an arm inside the overlap.
        context: an image among the covariates, where the network has one.
        seed: of the draws.
        keep_noise: add to the outcome what the network leaves out of the subject's own image, which
            is then the image plus the difference: the counterfactual under additive noise, which
            the treatment does not change (abduction, action, prediction: Pearl 2009).

    Raises:
        ValueError: for a strength outside [0, 1] unless asked for, or an arm that does not exist.
    """
    networks = _networks(network)
    arms = networks[0].treatments
    own = _arms(treatment, arms, len(covariates), covariates.device)
    asked = _arms(target, arms, len(covariates), covariates.device)
    _check_strength(strength, extrapolate)
    with _quiet(networks):
        codes = [each.encode(image, own, covariates, context) for each in networks]
        found = _decoded(networks, codes, own, asked, strength, samples, seed, probabilities, limit)
    return found._replace(outcome=image + found.difference) if keep_noise else found


def from_covariates(
    network: IntactVAE | Sequence[IntactVAE],
    covariates: Tensor,
    target: int | Tensor,
    strength: float = 1.0,
    extrapolate: bool = False,
    samples: int = 16,
    probabilities: Tensor | None = None,
    limit: float = 0.05,
    context: Tensor | None = None,
    seed: int = 0,
) -> Counterfactual:
    """What subjects would look like under a treatment, by their covariates alone.

    Codes are the prior's means: what the covariates do not tell is left at its average, and is
    part of the uncertainty of the outcome (not of the difference), which is much larger than with
    an image.

    Args:
        network: as in `counterfactual`, as all others.
        covariates: shape (B, K).
        target: the arm asked for.
        strength: how far from arm 0 (0) to the target (1).
        extrapolate: allow a strength outside [0, 1], which no subject had.
        samples: draws from the prior.
        probabilities: propensity of every arm, (B, T).
        limit: the least probability of an arm inside the overlap.
        context: an image among the covariates, where the network has one.
        seed: of the draws.

    Returns:
        With the difference to arm 0; the uncertainty is that of the outcome.

    Raises:
        ValueError: for a strength outside [0, 1] unless asked for, or an arm that does not exist.
    """
    networks = _networks(network)
    asked = _arms(target, networks[0].treatments, len(covariates), covariates.device)
    _check_strength(strength, extrapolate)
    with _quiet(networks):
        codes = [each.prior(covariates, context) for each in networks]
        zero = torch.zeros_like(asked)
        return _decoded(
            networks, codes, zero, asked, strength, samples, seed, probabilities, limit, False
        )


def _decoded(
    networks: Sequence[IntactVAE],
    codes: Sequence[tuple[Tensor, Tensor]],
    own: Tensor,
    target: Tensor,
    strength: float,
    samples: int,
    seed: int,
    probabilities: Tensor | None,
    limit: float,
    of_difference: bool = True,
) -> Counterfactual:
    """Decode codes under both treatments; the mean over networks, and the spread over draws."""
    arms = networks[0].treatments
    start, end = (F.one_hot(arm, arms).float() for arm in (own, target))
    shares = torch.lerp(start, end, strength) if strength != 1 else end
    outcome, difference, draws = [], [], []
    generator = torch.Generator().manual_seed(seed)
    for network, (mean, log_var) in zip(networks, codes, strict=True):
        outcome.append(network.decode(mean, shares))
        difference.append(outcome[-1] - network.decode(mean, start))
        if not samples:
            draws.append(difference[-1] if of_difference else outcome[-1])
        for _ in range(samples):
            z = network.sample(mean, log_var, generator)
            found = network.decode(z, shares)
            draws.append(found - network.decode(z, start) if of_difference else found)
    outside = torch.zeros(len(own), dtype=torch.bool, device=own.device)
    if probabilities is not None:
        outside = probabilities.to(own.device).amin(1) < limit
    return Counterfactual(
        _mean(outcome),
        _mean(difference),
        _spread(draws),
        outside,
        not 0 <= strength <= 1,
    )


def _spread(draws: Sequence[Tensor]) -> Tensor:
    if len(draws) == 1:
        return torch.zeros_like(draws[0])
    return torch.stack(list(draws)).std(0, correction=0)


def _mean(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).mean(0)


def _networks(network: IntactVAE | Sequence[IntactVAE]) -> list[IntactVAE]:
    networks = list(network) if isinstance(network, Sequence) else [network]
    if not networks:
        raise ValueError("network is empty, expected at least one")
    return networks


@contextmanager
def _quiet(networks: Sequence[IntactVAE]) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for network in networks:
            stack.enter_context(evaluating(network))
        yield


def _arms(arm: int | Tensor, count: int, rows: int, device: torch.device) -> Tensor:
    """Return arms as whole numbers (B,)."""
    numbers = torch.as_tensor(arm, device=device)
    if numbers.is_floating_point():
        raise ValueError("treatment and target are numbers of arms, found floats; see strength")
    numbers = numbers.long().expand(rows) if numbers.dim() == 0 else numbers.long()
    if numbers.shape != (rows,) or ((numbers < 0) | (numbers >= count)).any():
        raise ValueError(
            f"arms must be whole numbers from 0 to {count - 1}, one for each of the {rows} "
            f"subjects, found {numbers.tolist()[:5]}"
        )
    return numbers


def _check_strength(strength: float, extrapolate: bool) -> None:
    if not 0 <= strength <= 1 and not extrapolate:
        raise ValueError(
            f"strength is {strength}, outside of [0, 1], where subjects were observed; "
            "extrapolate=True asks for it"
        )


class CounterfactualInferer(Inferer):
    """Each subject of a batch under another arm, for `medvae.engines.IntactEvaluationStep`.

    Args:
        target: number of the arm that is asked for.
        strength: see `counterfactual`, as the following.
        extrapolate: allow a strength that no subject had.
        samples: draws for the uncertainty.
        members: further networks of an ensemble.
        probabilities: from covariates (B, K) to the propensity of every arm, (B, T); None: the
            overlap is not known, and `outside` is False for all.
        alone: decode the prior of the covariates, and leave the image unread.
        limit: the least probability of an arm inside the overlap.
        seed: of the draws.
        keep_noise: see `counterfactual`.

    Raises:
        ValueError: for a strength outside [0, 1] that is not asked for by `extrapolate`, or noise
            to keep of an image that is not read.
    """

    def __init__(
        self,
        target: int,
        strength: float = 1.0,
        extrapolate: bool = False,
        samples: int = 16,
        members: Sequence[IntactVAE] = (),
        probabilities: Callable[[Tensor], Tensor] | None = None,
        alone: bool = False,
        limit: float = 0.05,
        seed: int = 0,
        keep_noise: bool = False,
    ) -> None:
        _check_strength(strength, extrapolate)
        if alone and keep_noise:
            raise ValueError("keep_noise needs the image, which alone leaves unread; choose one")
        self.target, self.strength, self.extrapolate = target, strength, extrapolate
        self.samples, self.members, self.alone = samples, list(members), alone
        self.probabilities, self.limit, self.seed = probabilities, limit, seed
        self.keep_noise = keep_noise

    def __call__(
        self,
        image: Tensor,
        network: IntactVAE,
        treatment: Tensor,
        covariates: Tensor,
        context: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return `counterfactual`, `difference`, `uncertainty`, and `outside` (B,).

        The first three have the outcome's shape; arguments as in `counterfactual`.
        """
        networks = [network, *self.members]
        options: dict[str, Any] = {
            "target": self.target,
            "strength": self.strength,
            "extrapolate": self.extrapolate,
            "samples": self.samples,
            "probabilities": None if self.probabilities is None else self.probabilities(covariates),
            "limit": self.limit,
            "seed": self.seed,
            "context": context,
        }
        if self.alone:
            found = from_covariates(networks, covariates, **options)
        else:
            noise = self.keep_noise
            found = counterfactual(
                networks, image, covariates, treatment, **options, keep_noise=noise
            )
        return {
            "counterfactual": found.outcome,
            "difference": found.difference,
            "uncertainty": found.uncertainty,
            "outside": found.outside,
        }
