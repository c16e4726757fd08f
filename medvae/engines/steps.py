"""Batches, and one iteration of training and of evaluation, for MONAI's engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from medvae.data import AttributeScaler
from medvae.engines.augment import DifferentiableAugmentation

__all__ = ["EvaluationStep", "PrepareAttributes", "TrainingStep", "class_probabilities"]


class PrepareAttributes:
    """Turn a batch of a cohort's datalist into tensors on the device.

    Args:
        scaler: the cohort's scaler; its names are the columns of the attributes. None: the batch
            has no attributes.
        label: whether the batch has class numbers under the key `label`.
        image_key: key of the image.
        mask_labels: the mask's value or values of every region that the network finds, by name, in
            the order of the network's regions; empty: none.
        mask_key: key of the mask (B, 1, *S), read for regions alone.
    """

    def __init__(
        self,
        scaler: AttributeScaler | None = None,
        label: bool = True,
        image_key: str = "image",
        mask_labels: Mapping[str, int | Sequence[int] | None] | None = None,
        mask_key: str = "mask",
    ) -> None:
        self.scaler = scaler
        self.label = label
        self.image_key = image_key
        self.mask_labels = mask_labels or {}
        self.mask_key = mask_key

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the image (B, C, *S) and a dictionary of the targets.

        The targets are `attributes`, scaled, (B, K) with NaN where missing, `label`, class
        numbers (B,) with -1 where unknown, `regions`, 0 or 1, (B, R, *S), and as the batch has them
        `factors`, (B, K) with NaN where missing, and `subject`, (B,) (see `medvae.data.Factors`).
        """
        image = torch.as_tensor(batchdata[self.image_key]).as_subclass(Tensor)
        image = image.to(device, non_blocking=non_blocking, **kwargs)
        targets: dict[str, Tensor] = {}
        if self.scaler is not None and self.scaler.names:
            columns = [
                torch.as_tensor(batchdata[n], dtype=torch.float32) for n in self.scaler.names
            ]
            targets["attributes"] = self.scaler.transform(torch.stack(columns, 1)).to(device)
        if self.label:
            targets["label"] = torch.as_tensor(batchdata["label"]).to(device)
        if self.mask_labels and self.mask_key in batchdata:
            mask = torch.as_tensor(batchdata[self.mask_key]).as_subclass(Tensor).to(device)
            regions = [region_of(mask, values) for values in self.mask_labels.values()]
            targets["regions"] = torch.cat(regions, 1).float()
        if "factors" in batchdata:
            targets["factors"] = torch.as_tensor(batchdata["factors"]).to(device).float()
        if "subject" in batchdata:
            targets["subject"] = torch.as_tensor(batchdata["subject"]).to(device)
        return image, targets


def region_of(mask: Tensor, values: int | Sequence[int] | None) -> Tensor:
    """Return where a mask has one of the values; None: any but 0."""
    if values is None:
        return mask != 0
    wanted = [values] if isinstance(values, int) else list(values)
    return torch.isin(mask, torch.tensor(wanted, dtype=mask.dtype, device=mask.device))


class TrainingStep:
    """One iteration of training a VAE, for `SupervisedTrainer(iteration_update=...)`.

    The loss function is called with the network's output, the image and the prepared targets, and
    returns a dictionary of scalars of which `loss` is minimised.

    Args:
        max_grad_norm: gradients longer than this are scaled down to it; None never does.
        autocast: a half precision such as `torch.bfloat16` for the network's forward pass; the
            loss is always computed in float32.
        control: a further term of the loss that asks the network again, called with it and the
            posterior means, such as `medvae.losses.ControlLoss`; None: none.
        augment: of the batch's images, such as `medvae.engines.DifferentiableAugmentation`, which
            is faster than a transform of single images; masks do not move along. None: none.
    """

    def __init__(
        self,
        max_grad_norm: float | None = None,
        autocast: torch.dtype | None = None,
        control: Callable[[Any, Tensor], Tensor] | None = None,
        augment: DifferentiableAugmentation | None = None,
    ) -> None:
        self.augment = augment
        self.max_grad_norm = max_grad_norm
        self.autocast = autocast
        self.control = control

    def __call__(self, engine: Any, batchdata: Mapping[str, Any]) -> list[dict[str, Tensor]]:
        """Update the network once; return the terms of the loss, detached.

        Returns:
            A list of one dictionary: what MONAI's handlers expect of decollated output.

        Raises:
            FloatingPointError: where a term is not finite.
        """
        image, targets = engine.prepare_batch(
            batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs
        )
        if self.augment is not None:
            image = self.augment.draw(image)(image)
        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(image.device.type, self.autocast, enabled=self.autocast is not None):
            output = self._outputs(engine, image, targets)
            control = None
            if self.control is not None:
                network = getattr(engine.network, "module", engine.network)  # under DDP
                control = self.control(network, output.mean)
        terms = engine.loss_function(output, image, **targets)
        if control is not None:
            terms |= {"control": control, "loss": terms["loss"] + control}
        check_finite(terms, engine)
        terms["loss"].backward()
        if isinstance(engine.loss_function, nn.Module):  # DDP sees to the network alone
            average_gradients(engine.loss_function.parameters())
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(engine.network.parameters(), self.max_grad_norm)
        engine.optimizer.step()
        return [{name: value.detach() for name, value in terms.items()}]

    def _outputs(self, engine: Any, image: Tensor, targets: Mapping[str, Tensor]) -> Any:
        return engine.inferer(image, engine.network)


def check_finite(terms: Mapping[str, Tensor], engine: Any) -> None:
    """Refuse a loss that is not finite.

    Raises:
        FloatingPointError: with all terms.
    """
    if torch.isfinite(terms["loss"]):
        return
    found = {name: float(value.detach()) for name, value in terms.items()}
    raise FloatingPointError(
        f"the loss is not finite in epoch {engine.state.epoch}, iteration "
        f"{engine.state.iteration}: {found}; a lower learning rate or weight of the term that "
        "grew, or max_grad_norm, usually helps"
    )


def rank_count() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over the ranks, where DistributedDataParallel does not.

    It knows the network alone, and does not foresee that a GAN's are passed several times an
    iteration, and differentiated twice.
    """
    if rank_count() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= rank_count()


class EvaluationStep:
    """One batch through a VAE in evaluation, for `SupervisedEvaluator(iteration_update=...)`.

    Returns `pred` (the reconstruction), `logits`, `mean`, `log_var` and the targets of the batch.
    Codes are posterior means, so the same input gives the same output.

    Args:
        inferers: further images of the same grid by their keys in the output, such as `maps` by a
            `medvae.explain.AttributeMapInferer`; None is left out.
    """

    def __init__(
        self, inferers: Mapping[str, Callable[[Tensor, nn.Module], Tensor] | None] | None = None
    ) -> None:
        self.inferers = {k: v for k, v in (inferers or {}).items() if v is not None}

    def __call__(self, engine: Any, batchdata: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs of a batch as a dictionary of tensors."""
        image, targets = engine.prepare_batch(
            batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs
        )
        network = getattr(engine.network, "module", engine.network)  # under DDP
        network.eval()
        with torch.no_grad():
            output = self._outputs(network, image)
        output |= {key: inferer(image, network) for key, inferer in self.inferers.items()}
        engine.state.output = {**output, **targets}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)  # decollates and postprocesses
        return engine.state.output

    def _outputs(self, network: Any, image: Tensor) -> dict[str, Tensor]:
        mean, log_var = network.encode(image)
        output = {"pred": network.decode(mean), "logits": network.classify(mean)}
        return output | {"mean": mean, "log_var": log_var}


def class_probabilities(logits: Tensor) -> Tensor:
    """Return probabilities (B, C) for logits (B, C), or (B, 2) for a binary head's (B, 1)."""
    if logits.shape[1] == 1:
        positive = logits.sigmoid()
        return torch.cat([1 - positive, positive], 1)
    return logits.softmax(1)
