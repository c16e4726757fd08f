"""Training a beta-Intact-VAE, by MONAI's engines or on tensors in memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from torch import Tensor, nn
from tqdm import tqdm

from medvae.data import AttributeScaler
from medvae.engines.handlers import EpochScore
from medvae.engines.steps import PrepareAttributes, TrainingStep
from medvae.engines.writer import Row, TableWriter
from medvae.losses import IntactVAELoss, gaussian_nll, kl_normal
from medvae.networks import IntactVAE

__all__ = [
    "CounterfactualWriter",
    "IntactEvaluationStep",
    "IntactStep",
    "ObjectiveScore",
    "PrepareTreatment",
    "TreatmentData",
    "train_intact",
]

Prepare = Callable[..., tuple[Tensor, Mapping[str, Tensor]]]
CODES = ("mean", "log_var", "prior_mean", "prior_log_var")


class TreatmentData(NamedTuple):
    """Subjects in memory.

    Attributes:
        outcome: shape (N, C, *S) or (N, outcome_dim).
        treatment: arms, whole numbers, shape (N,).
        covariates: shape (N, K), NaN where missing.
        image: of the covariates, shape (N, C, *S); None: there is none.
    """

    outcome: Tensor
    treatment: Tensor
    covariates: Tensor
    image: Tensor | None = None

    def rows(self, index: Tensor) -> TreatmentData:
        """The chosen subjects: indices or booleans."""
        image = None if self.image is None else self.image[index]
        parts = (self.outcome[index], self.treatment[index], self.covariates[index])
        return TreatmentData(*parts, image)

    def to(self, device: str | torch.device) -> TreatmentData:
        """The same on a device."""
        image = None if self.image is None else self.image.to(device)
        outcome, treatment, covariates = (part.to(device) for part in self[:3] if part is not None)
        return TreatmentData(outcome, treatment, covariates, image)

    @classmethod
    def gathered(cls, batches: Iterable[Mapping[str, Any]], prepare: Prepare) -> TreatmentData:
        """All batches in one, on the CPU.

        Args:
            batches: as a loader gives them.
            prepare: such as a `PrepareTreatment`.
        """
        outcomes, targets = zip(*(prepare(batch, "cpu") for batch in batches), strict=True)
        keys = [key for key in ("treatment", "covariates", "image") if key in targets[0]]
        rest = {key: torch.cat([each[key] for each in targets]) for key in keys}
        return cls(torch.cat(outcomes), **rest)


class PrepareTreatment(PrepareAttributes):
    """Turn a batch into the outcome and a dictionary with `treatment` (B,), `covariates` (B, K).

    Where the batch has the key `outcome`, this is the outcome, (B, Q), and the image, where there
    is one, a covariate, (B, C, *S), which the dictionary has as `image`.

    Args:
        image_key: key of the image.
    """

    def __init__(self, image_key: str = "image") -> None:
        super().__init__(label=False, image_key=image_key)

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the outcome (B, C, *S) or (B, Q) and the dictionary."""
        numbers = batchdata.get("outcome")
        seen = self.image_key in batchdata
        # the one tensor that every system's batch has: an outcome without image takes its place
        given = batchdata if seen else {**batchdata, self.image_key: numbers}
        outcome, targets = super().__call__(given, device, non_blocking, **kwargs)
        targets["treatment"] = torch.as_tensor(batchdata["treatment"]).long().to(device)
        targets["covariates"] = torch.as_tensor(batchdata["covariates"]).float().to(device)
        if numbers is not None and seen:
            targets["image"] = outcome
            outcome = torch.as_tensor(numbers).float().to(device)
        return outcome, targets


class IntactStep(TrainingStep):
    """One iteration of training an `IntactVAE`; arguments as in `TrainingStep`."""

    def _outputs(self, engine: Any, image: Tensor, targets: Mapping[str, Tensor]) -> Any:
        return engine.inferer(image, engine.network, *_known(targets))


class IntactEvaluationStep:
    """One batch through an `IntactVAE` in evaluation, for `SupervisedEvaluator`.

    Returns `pred` (the factual reconstruction), `mean`, `log_var`, `prior_mean`, `prior_log_var`,
    `nll` and `kl` (of each subject, nats) and the batch's targets. Codes are posterior means.

    Args:
        inferer: what is added for each batch, such as by a `medvae.explain.CounterfactualInferer`.
            One whose `alone` is true reads neither outcome nor own arm: what is of these is left
            out.
    """

    def __init__(self, inferer: Callable[..., dict[str, Tensor]] | None = None) -> None:
        self.inferer = inferer

    def __call__(self, engine: Any, batchdata: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs of a batch as a dictionary of tensors."""
        outcome, targets = engine.prepare_batch(
            batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs
        )
        network = getattr(engine.network, "module", engine.network)  # under DDP
        network.eval()
        given = _known(targets)
        alone = getattr(self.inferer, "alone", False)
        output = {} if alone else self._factual(network, outcome, *given)
        if self.inferer is not None:
            output |= self.inferer(outcome, network, *given)
        engine.state.output = {**output, **targets}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    @staticmethod
    def _factual(network: Any, outcome: Tensor, *given: Tensor | None) -> dict[str, Tensor]:
        with torch.no_grad():
            found = network.autoencode(outcome, *given)
        output = {name: getattr(found, name) for name in CODES}
        output["pred"] = found.reconstruction
        output["nll"] = gaussian_nll(outcome, found.reconstruction, found.noise_log_var)
        output["kl"] = kl_normal(*(output[name].float() for name in CODES))
        return output


def _known(targets: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return treatment, covariates and, where it is one of them, the image."""
    return targets["treatment"], targets["covariates"], targets.get("image")


class ObjectiveScore(EpochScore):
    """Minus the mean objective over an epoch, for model selection: it rises as the model improves.

    Args:
        beta: weight of the divergence, as in training.
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta
        super().__init__("nll", "kl")

    def scores(self, first: Tensor, second: Tensor) -> np.ndarray:
        """Return minus the objective of every subject."""
        return -(first + self.beta * second).double().numpy()


class CounterfactualWriter(TableWriter):
    """Handler that writes one row of a CSV for each subject: what was asked, and can it be said.

    Columns: id, the arm that was given (`own`, empty where unknown) and asked for (`target`),
    `strength`, `extrapolated`, `outside_overlap`, `mean_difference` (of the network's image) and
    the `grid` that images are written on: the subject's, or the network's where it has no image.

    Of an outcome of numbers, in place of the last two, for each by its NAME, in its own unit:
    `NAME_own`, predicted in the own arm (`NAME_control`, in the first, of subjects that are not
    encoded), `NAME_target`, `NAME_difference` and `NAME_sd`, the `uncertainty` of the inferer.

    Args:
        path: the CSV.
        arms: names of the arms in the order of their numbers.
        target: number of the arm that is asked for.
        strength: how far towards it.
        overwrite: replace an existing file.
        imageless: ids of the subjects that have no image.
        outcome: the numbers that are the outcome; None: it is the image.
        alone: whether subjects are not encoded.
    """

    def __init__(
        self,
        path: str | Path,
        arms: Sequence[object],
        target: int,
        strength: float = 1.0,
        overwrite: bool = False,
        imageless: Collection[str] = (),
        outcome: AttributeScaler | None = None,
        alone: bool = False,
    ) -> None:
        super().__init__(path, overwrite)
        self.arms, self.target, self.strength = tuple(arms), target, strength
        self.imageless = frozenset(imageless)
        self.outcome, self.alone = outcome, alone

    def rows(self, engine: Engine) -> list[Row]:
        """Return a row for each subject."""
        output, ids = engine.state.output, engine.state.batch["id"]
        own, outside = output["treatment"].tolist(), output["outside"].tolist()
        found = self._images(ids, output) if self.outcome is None else self._numbers(output)
        return [
            {
                "id": subject,
                "own": self.arms[arm] if arm >= 0 else None,
                "target": self.arms[self.target],
                "strength": self.strength,
                "extrapolated": not 0 <= self.strength <= 1,
                "outside_overlap": out,
                **row,
            }
            for subject, arm, out, row in zip(ids, own, outside, found, strict=True)
        ]

    def _images(self, ids: Sequence[str], output: Mapping[str, Tensor]) -> list[Row]:
        means = output["difference"].flatten(1).mean(1).tolist()
        return [
            {"mean_difference": m, "grid": "network" if name in self.imageless else "subject"}
            for name, m in zip(ids, means, strict=True)
        ]

    def _numbers(self, output: Mapping[str, Tensor]) -> list[Row]:
        """Predictions in the outcome's own units; differences and sds have no mean to add."""
        assert self.outcome is not None
        asked, change, spread = (
            output[key].double().cpu().numpy()
            for key in ("counterfactual", "difference", "uncertainty")
        )
        columns = {
            "control" if self.alone else "own": self.outcome.inverse(asked - change),
            "target": self.outcome.inverse(asked),
            "difference": change * self.outcome.sd,
            "sd": spread * self.outcome.sd,
        }
        return [
            {
                f"{name}_{kind}": float(values[row, k])
                for k, name in enumerate(self.outcome.names)
                for kind, values in columns.items()
            }
            for row in range(len(asked))
        ]


def train_intact(
    network: IntactVAE,
    data: TreatmentData,
    loss: nn.Module | None = None,
    steps: int = 1000,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    max_grad_norm: float = 10.0,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> IntactVAE:
    """Train on subjects in memory, and leave the network in evaluation mode.

    Args:
        network: freshly made.
        data: the training subjects.
        loss: None is `IntactVAELoss` with its default beta.
        steps: batches to train on; every subject comes once before any comes again.
        batch_size: subjects in each.
        learning_rate: the highest of the cycle, of Adam.
        max_grad_norm: gradients longer than this are scaled down to it.
        seed: of the order and of the codes that are drawn.
        device: where to compute.
        progress: show a bar.

    Raises:
        FloatingPointError: where the loss is not finite.
    """
    objective = (IntactVAELoss() if loss is None else loss).to(device)
    network, data = network.to(device).train(), data.to(device)
    if network.in_channels:
        planar = len(network.image_size) == 2
        faster: Any = network  # the type of Module.to does not know memory formats
        faster.to(memory_format=torch.channels_last if planar else torch.channels_last_3d)
    batch_size = min(batch_size, len(data.outcome))
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=max(steps, 10), pct_start=0.2
    )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.outcome), generator=generator)
    bar = tqdm(range(steps), desc="training", unit="batch", disable=not progress)
    with torch.random.fork_rng(devices=_cuda(device)):
        torch.manual_seed(seed)
        for _ in bar:
            if len(order) < batch_size:
                order = torch.randperm(len(data.outcome), generator=generator)
            index, order = order[:batch_size].to(device), order[batch_size:]
            batch = data.rows(index)
            known = {"treatment": batch.treatment, "subject": index}
            terms = objective(network(*batch), batch.outcome, **known)
            if not torch.isfinite(terms["loss"]):
                raise FloatingPointError("the loss is not finite; lower the learning rate")
            optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()
            nn.utils.clip_grad_norm_(network.parameters(), max_grad_norm)
            optimizer.step()
            schedule.step()
    return network.eval()


def _cuda(device: str | torch.device) -> list[int]:
    found = torch.device(device)
    return [found.index or 0] if found.type == "cuda" else []
