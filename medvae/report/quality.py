"""Five axes of counterfactual images, from composition to minimality.

As benchmarks of counterfactual image models define them (Monteiro et al. 2023 for the first three),
in 2D and 3D. No axis is enough: a network that changes nothing is perfect on all but effectiveness.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medvae.engines import TreatmentData, classify, image_features, train_classifier
from medvae.explain import counterfactual
from medvae.metrics import balanced_accuracy, estimate_ate, realism_report, region_means
from medvae.metrics.intervals import json_number
from medvae.networks import IntactVAE

__all__ = ["decoded", "quality_report"]

PASSES = 3
BATCH = 64


def decoded(network: IntactVAE, data: TreatmentData, target: Tensor, device: Any = "cpu") -> Tensor:
    """Return every subject's image (N, C, *S) under an arm (N,), on the CPU."""
    found = []
    for index in torch.arange(len(data.outcome)).split(BATCH):
        part = data.rows(index).to(device)
        wanted = target[index].to(device)
        found.append(
            counterfactual(
                network, part.outcome, part.covariates, part.treatment, wanted, samples=0
            ).outcome.cpu()
        )
    return torch.cat(found)


def quality_report(
    network: IntactVAE,
    train: TreatmentData,
    test: TreatmentData,
    region: npt.NDArray[np.bool_] | None = None,
    patients: Sequence[Any] | None = None,
    judge_steps: int = 400,
    n_resamples: int = 200,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Report the five axes on test subjects; the target is the next arm.

    Errors and changes are mean absolute differences per voxel, with intervals by patients.

    Args:
        network: trained.
        train: the subjects whose images the external classifier of the treatment learns from.
        test: those that are judged.
        region: where a change is expected, (N, *S); None leaves its share out.
        patients: of the test subjects.
        judge_steps: batches that the classifier is trained for.
        n_resamples: for intervals.
        seed: of classifier and resamples.
        device: where to compute.

    Returns:
        A dict that json can write: ``composition`` (image against reconstruction, after 1 and 3
        passes), ``reversibility`` (image against there and back), ``effectiveness`` (balanced
        accuracy of the classifier on real images, reconstructions and counterfactuals, of the arm
        that each should show; chance 1 / T; where reconstructions do worse than real images, what
        the network draws is not what the classifier knows), ``realism`` (see `realism_report`),
        ``minimality``
        (change, and the share of it outside the region).
    """
    own, target = test.treatment, (test.treatment + 1) % network.treatments
    names = None if patients is None else np.asarray(patients)

    def entry(values: Tensor) -> dict[str, float | None]:
        per_subject = values.flatten(1).mean(1).double().numpy()
        found = estimate_ate(per_subject, names, n_resamples, seed=seed)
        return {k: json_number(v) for k, v in zip(("value", "low", "high"), found, strict=True)}

    passes = [test.outcome]
    for _ in range(PASSES):
        passes.append(decoded(network, test._replace(outcome=passes[-1]), own, device))
    changed = decoded(network, test, target, device)
    back = decoded(network, test._replace(outcome=changed, treatment=target), own, device)
    report: dict[str, Any] = {
        "composition": {
            "one_pass": entry((passes[1] - test.outcome).abs()),
            f"{PASSES}_passes": entry((passes[-1] - test.outcome).abs()),
        },
        "reversibility": entry((back - test.outcome).abs()),
        "minimality": {"change": entry((changed - passes[1]).abs())},
    }
    if region is not None:
        change = (changed - passes[1]).abs().numpy()
        total = change.reshape(len(change), -1).sum(1)
        size = region.reshape(len(region), -1).sum(1) * change.shape[1]
        within = np.nan_to_num(region_means(change, region)).mean(1) * size
        outside = 1 - within.sum() / max(float(total.sum()), 1e-12)
        report["minimality"]["share_outside_region"] = float(outside)
    if min(test.outcome.shape[2:]) >= 8:
        images = {"real": test.outcome, "reconstruction": passes[1], "counterfactual": changed}
        report |= _judged(network, train, images, own, target, judge_steps, seed, device)
    return report


def _judged(
    network: IntactVAE,
    train: TreatmentData,
    images: dict[str, Tensor],
    own: Tensor,
    target: Tensor,
    steps: int,
    seed: int,
    device: str | torch.device,
) -> dict[str, Any]:
    """Effectiveness and realism by a classifier that shares nothing with the network."""
    judge = train_classifier(
        train.outcome,
        {"treatment": train.treatment},
        steps=steps,
        seed=seed,
        device=device,
        progress=False,
    )
    effectiveness: dict[str, float] = {"chance": 1 / network.treatments}
    for name, batch in images.items():
        wanted = target if name == "counterfactual" else own
        found = np.eye(network.treatments)[classify(judge, batch)["treatment"]]
        effectiveness[name] = balanced_accuracy(found, wanted.numpy())
    features = {name: image_features(judge, batch) for name, batch in images.items()}
    report: dict[str, Any] = {"effectiveness": effectiveness}
    if len(own) >= 16:
        report["realism"] = {
            name: realism_report(features[name], features["real"], "classifier of the treatment")
            for name in ("reconstruction", "counterfactual")
        }
    return report
