"""Training a beta-Intact-VAE, by MONAI's engines or on tensors in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from monai.engines.utils import IterationEvents
from torch import Tensor, nn
from tqdm import tqdm

from medvae.engines.steps import PrepareAttributes, TrainingStep
from medvae.losses import IntactVAELoss
from medvae.networks import IntactVAE

__all__ = [
    "IntactEvaluationStep",
    "IntactStep",
    "PrepareTreatment",
    "TreatmentData",
    "train_intact",
]


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
        return TreatmentData(*(part[index] for part in self[:3]), image)

    def to(self, device: str | torch.device) -> TreatmentData:
        """The same on a device."""
        image = None if self.image is None else self.image.to(device)
        return TreatmentData(*(part.to(device) for part in self[:3]), image)


class PrepareTreatment(PrepareAttributes):
    """Turn a batch into the outcome and a dictionary with `treatment` (B,), `covariates` (B, K).

    Args:
        image_key: key of the outcome.
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
        """Return the outcome (B, C, *S) and the dictionary."""
        image, targets = super().__call__(batchdata, device, non_blocking, **kwargs)
        targets["treatment"] = torch.as_tensor(batchdata["treatment"]).long().to(device)
        targets["covariates"] = torch.as_tensor(batchdata["covariates"]).float().to(device)
        return image, targets


class IntactStep(TrainingStep):
    """One iteration of training an `IntactVAE`; arguments as in `TrainingStep`."""

    def _outputs(self, engine: Any, image: Tensor, targets: Mapping[str, Tensor]) -> Any:
        return engine.inferer(image, engine.network, targets["treatment"], targets["covariates"])


class IntactEvaluationStep:
    """One batch through an `IntactVAE` in evaluation, for `SupervisedEvaluator`.

    Returns `pred` (the factual reconstruction), the fields of the network's output, the outcome
    under `image` and the batch's targets. Codes are posterior means.
    """

    def __call__(self, engine: Any, batchdata: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs of a batch as a dictionary of tensors."""
        image, targets = engine.prepare_batch(
            batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs
        )
        network = getattr(engine.network, "module", engine.network)  # under DDP
        network.eval()
        with torch.no_grad():
            output = network(image, targets["treatment"], targets["covariates"])
        fields = output._asdict()
        fields["noise_log_var"] = output.noise_log_var.expand(len(image), -1)
        engine.state.output = {"pred": output.reconstruction, "image": image, **fields, **targets}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


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
    objective = IntactVAELoss() if loss is None else loss
    network, data = network.to(device).train(), data.to(device)
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
            terms = objective(network(*batch), batch.outcome)
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
