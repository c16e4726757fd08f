"""Whether codes tell the treatment, which they must not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medvae.engines import TreatmentData, log_likelihood
from medvae.explain.maps import evaluating
from medvae.metrics import treatment_predictability
from medvae.metrics.intervals import json_number
from medvae.networks import IntactVAE

__all__ = ["balance_report"]

BATCH, DRAWS = 64, 16


def balance_report(
    network: IntactVAE,
    data: TreatmentData,
    columns: npt.NDArray[np.float64],
    patients: npt.NDArray[Any],
    arms: Sequence[object],
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Report whether codes tell the treatment beyond what is known, and each arm's likelihood.

    Args:
        network: trained.
        data: subjects with their outcomes.
        columns: what is known of them before treatment and outcome, (N, P).
        patients: of each, (N,).
        arms: names of the arms in the order of their numbers.
        seed: of the draws.
        device: where to compute.

    Returns:
        A dict that json can write: ``predictability`` in AUC (see `treatment_predictability`), its
        ``chance``, and by arm ``log_likelihood``, nats per subject.
    """
    with torch.no_grad(), evaluating(network):
        codes = [
            network.encode(*data.rows(rows).to(device))[0].cpu()
            for rows in torch.arange(len(data.outcome)).split(BATCH)
        ]
    likelihood = log_likelihood(network, data, DRAWS, seed, device).cpu().numpy()
    treatment = data.treatment.numpy()
    gain = treatment_predictability(torch.cat(codes).numpy(), columns, treatment, patients)
    return {
        "predictability": gain,
        "chance": 0.0,
        "log_likelihood": {
            str(name): json_number(likelihood[treatment == arm].mean())
            for arm, name in enumerate(arms)
            if (treatment == arm).any()
        },
    }
