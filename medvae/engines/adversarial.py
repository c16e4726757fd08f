"""What one iteration of every adversarial training does: refuse, update, average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medvae.data import CohortError
from medvae.engines.steps import average_gradients, check_finite, rank_count

__all__ = ["Terms", "average_gradients", "check_images", "due", "move_average", "update"]

Terms = dict[str, Tensor]


def update(
    optimizer: torch.optim.Optimizer,
    terms: Terms,
    which: str,
    every: Mapping[str, Sequence[str]],
    engine: Any,
) -> Terms:
    """Minimise the sum of the terms, and return them detached, 0 where one is not due.

    Args:
        optimizer: whose parameters are updated.
        terms: weighted, scalars by their names.
        which: the network's letter, which begins the names of what is returned.
        every: names of all terms that there may be, by the letter.
        engine: of which iteration and batch are named where a term is not finite.

    Raises:
        FloatingPointError: where a term is not finite.
    """
    named = {f"{which}_{name}": value for name, value in terms.items()}
    total = torch.stack(list(named.values())).sum()
    check_finite({"loss": total, **named}, engine)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    # of these alone: the other network is only passed through
    total.backward(inputs=parameters)
    average_gradients(parameters)
    optimizer.step()
    names = [f"{which}_{name}" for name in every[which]]
    return {name: named.get(name, total.new_zeros(())).detach() for name in names}


def check_images(image: Tensor, batchdata: Mapping[str, Any]) -> None:
    """Refuse images that are not finite, by their subjects' names.

    Raises:
        CohortError: where one is not.
    """
    finite = image.flatten(1).isfinite().all(1).tolist()
    if not all(finite):
        names = batchdata.get("id", range(len(finite)))
        wrong = [str(name) for name, right in zip(names, finite, strict=True) if not right]
        raise CohortError(
            f"The images of {', '.join(wrong)} have voxels that are not finite; expected numbers, "
            "so look at the files or the preprocessing."
        )


def due(iteration: int, interval: int) -> bool:
    """Return whether what comes every `interval` iterations comes now; 0: never."""
    return interval > 0 and iteration % interval == 0


@torch.no_grad()
def move_average(
    mean: nn.Module, network: nn.Module, half_life: float, count: int, iteration: int
) -> None:
    """Move the running average of a network's parameters, after `count` images a rank.

    Args:
        mean: of the same kind as the network.
        network: that is trained.
        half_life: images after which a network counts half, shorter in the beginning; 0: the
            average is the last network.
        count: images of the iteration.
        iteration: from 1.
    """
    images = count * rank_count()
    # a fixed half-life would average over the random start for long
    half_life = min(half_life, 0.05 * images * iteration)
    kept = 0.5 ** (images / half_life) if half_life > 0 else 0.0
    for average, value in zip(mean.parameters(), network.parameters(), strict=True):
        average.lerp_(value, 1 - kept)
