"""Any classifier, frozen, behind one interface: images in [0, 1] to logits, heads side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from medvae.data.errors import CohortError, suggestion
from medvae.networks.checkpoint import load_weights

__all__ = ["FrozenClassifier", "check_layers", "load_classifier"]

Outputs = Literal["logits", "probabilities"]
HIDDEN = (
    "The classifier shows no layer whose features can be compared, as a TorchScript or "
    "torch.export file or a network without a linear layer; expected perceptual: none (or lpips, "
    "where that is installed), or feature_layers of a network that has layers."
)
_SMALL = 1e-6  # a probability below counts as this


class FrozenClassifier(nn.Module):
    """A trained classifier that is asked, and never changed.

    It stays in evaluation mode, its weights have no gradients, and gradients pass through it to
    the image. What it does with a batch is probed once, by `check`.

    Args:
        network: images (B, C, *S) to outputs (B, O); a dictionary or list of heads will do.
        heads: outputs of every head by its name, in the network's order; 1 is a binary head.
        outputs: what the network returns, "logits" or "probabilities"; it is never guessed.
        scale: (a, b): the network is given a x + b for an image x in [0, 1], such as (2, -1) for
            one that expects [-1, 1], or lists with an entry for each channel.
        feature_layers: names of `network.named_modules()` whose outputs `features` returns; None:
            what its last linear layer reads.

    Raises:
        ValueError: no heads, an unknown kind of output or layer, or a layer that keeps using
            statistics of the batch.
    """

    def __init__(
        self,
        network: nn.Module,
        heads: Mapping[str, int],
        outputs: Outputs,
        scale: tuple[float | Sequence[float], float | Sequence[float]] = (1.0, 0.0),
        feature_layers: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if not heads or min(heads.values()) < 1:
            raise ValueError(f"heads: found {dict(heads)}, expected one or more outputs of each")
        if outputs not in ("logits", "probabilities"):
            raise ValueError(
                f"outputs of the classifier: found {outputs!r}, expected 'logits' or "
                "'probabilities'; which of them a model returns cannot be told from its numbers"
            )
        self.network = network
        for parameter in network.parameters():  # TorchScript has no requires_grad_ of its own
            parameter.requires_grad_(False)
        self.heads, self.outputs = dict(heads), outputs
        self.scale = scale
        self.eval()
        _check_modes(network)
        self.feature_layers = feature_layers
        self._read: list[Tensor] | None = None  # a list while features are wanted
        self._watch()

    def train(self, mode: bool = True) -> FrozenClassifier:
        """Stay in evaluation mode, whatever is asked for."""
        self.training = False
        if not isinstance(self.network, torch.fx.GraphModule):  # exported in the mode it has
            self.network.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, O) of images (B, C, *S) in [0, 1]."""
        found = self._outputs(image)
        if self.outputs == "logits":
            return found
        parts = found.clamp(_SMALL, 1 - _SMALL).split(list(self.heads.values()), 1)
        return torch.cat([p.logit() if p.shape[1] == 1 else p.log() for p in parts], 1)

    def features(self, image: Tensor) -> list[Tensor]:
        """Return features (B, F, ...) of images (B, C, *S) in [0, 1], for `FeatureDistance`.

        Raises:
            CohortError: a network that hides its layers, see `check_layers`.
        """
        self._read = []
        self._outputs(image)
        found, self._read = self._read, None
        if not found:
            raise CohortError(HIDDEN)
        return found

    @torch.no_grad()
    def check(self, images: Tensor) -> None:
        """Refuse a classifier that does not fit images or does not answer as it says.

        Args:
            images: real ones, shape (N, C, *S), N at least 2, in [0, 1].

        Raises:
            CohortError: the network refuses their shape or number, gives other outputs than the
                heads say, numbers that are not finite, the same for all images, other kinds of
                numbers than `outputs` says, or answers that depend on chance or on the rest of the
                batch.
        """
        found = self._asked(images)
        if not found.isfinite().all():
            raise CohortError(
                "The classifier's outputs are not finite; expected numbers, so look at its weights "
                "and at the range of intensities it was trained with."
            )
        if len(images) > 1 and bool((found - found[0]).abs().max() < 1e-6):
            raise CohortError(
                f"The classifier says the same of all {len(images)} images "
                f"({[round(x, 4) for x in found[0].tolist()]}); expected one that tells them "
                "apart, so look at its weights and at the range of intensities."
            )
        self._check_kind(found)
        if not torch.equal(found, self._asked(images)):
            raise CohortError(
                "The classifier's answers change from call to call, as with dropout left on; "
                "expected the same ones in evaluation mode."
            )
        alone = self._asked(images[:1])
        if bool((alone - found[:1]).abs().max() > 1e-3 * (1 + found[:1].abs().max())):
            raise CohortError(
                "The classifier's answer for an image depends on the others of its batch, as with "
                "batch statistics left on; expected the same ones in evaluation mode."
            )

    def _asked(self, images: Tensor) -> Tensor:
        try:
            return self._outputs(images)
        except CohortError:
            raise
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise CohortError(
                f"The classifier refuses images of shape {tuple(images.shape)} ({reason}); expected"
                " channels and size that it was trained with, by in_channels and image_size, and "
                "any number of images at a time, which torch.export must be told."
            ) from error

    def _outputs(self, image: Tensor) -> Tensor:
        a, b = (
            torch.as_tensor(part, dtype=image.dtype, device=image.device) for part in self.scale
        )
        shape = (-1,) + (1,) * (image.ndim - 2)
        found = self.network(a.reshape(shape) * image + b.reshape(shape))
        if isinstance(found, Mapping):
            absent = [name for name in self.heads if name not in found]
            if absent:
                raise CohortError(
                    f"The classifier has no head '{absent[0]}'; {suggestion(absent[0], found)}"
                )
            found = torch.cat([found[name] for name in self.heads], 1)
        elif isinstance(found, (list, tuple)):
            found = torch.cat(list(found), 1)
        if found.ndim != 2 or found.shape[1] != sum(self.heads.values()):
            raise CohortError(
                f"The classifier returns {tuple(found.shape)} for {len(image)} images; expected "
                f"{(len(image), sum(self.heads.values()))} for the heads {self.heads}."
            )
        return found

    def _check_kind(self, found: Tensor) -> None:
        within = bool(((found >= 0) & (found <= 1)).all())
        parts = [p for p in found.split(list(self.heads.values()), 1) if p.shape[1] > 1]
        sums = [bool(((p.sum(1) - 1).abs() < 1e-3).all()) for p in parts]
        low, high = found.min().item(), found.max().item()
        if self.outputs == "probabilities" and not (within and all(sums)):
            raise CohortError(
                f"The classifier is said to return probabilities, but its outputs run from "
                f"{low:.3g} to {high:.3g} or do not add up to 1; expected classifier_outputs: "
                "logits."
            )
        if self.outputs == "logits" and within and all(sums):
            add = " and add up to 1" if parts else f" for all {len(found)} images"
            raise CohortError(
                f"The classifier is said to return logits, but its outputs lie in [0, 1]{add}; "
                "expected classifier_outputs: probabilities."
            )

    def _watch(self) -> None:
        """Have the features kept that `features` returns."""
        modules = _shown_layers(self.network)
        if not modules:
            return
        if self.feature_layers is None:
            linear = _linear(modules)
            if linear:
                linear[-1].register_forward_pre_hook(lambda _, inputs: self._keep(inputs[0]))
            return
        for name in self.feature_layers:
            if name not in modules:
                raise ValueError(
                    f"the classifier has no layer '{name}': "
                    f"{suggestion(name, filter(None, modules))}"
                )
            modules[name].register_forward_hook(lambda _, __, output: self._keep(output))

    def _keep(self, output: Any) -> None:
        if self._read is not None and isinstance(output, Tensor):
            self._read.append(output)


def check_layers(network: nn.Module, feature_layers: Sequence[str] | None = None) -> None:
    """Refuse a network none of whose layers shows what it computes.

    Args:
        network: a classifier.
        feature_layers: see `FrozenClassifier`.

    Raises:
        CohortError: TorchScript, a torch.export program, or no linear layer and none named.
    """
    modules = _shown_layers(network)
    if not modules or (feature_layers is None and not _linear(modules)):
        raise CohortError(HIDDEN)


def load_classifier(
    path: str | Path,
    network: nn.Module | None = None,
    device: str | torch.device = "cpu",
    in_channels: int | None = None,
    image_size: int | Sequence[int] | None = None,
    scale: Sequence[Any] | None = None,
) -> nn.Module:
    """Load a trained classifier from its file or folder.

    Args:
        path: weights of `network`; or, without it, a TorchScript file, a torch.export file
            (`.pt2`), or the folder of a MONAI bundle, whose `network_def` in
            `configs/inference.yaml` or `.json` and `models/model.pt` are taken.
        network: of the weights; None: the file is the whole network.
        device: where to compute.
        in_channels: of the images that it will be given; this and the next two are compared with
            `configs/metadata.json` of a bundle, where that says the input's `num_channels`,
            `spatial_shape` and `value_range`. None: not compared.
        image_size: S, one number or one for each axis.
        scale: see `FrozenClassifier`; one for each channel is not compared.

    Raises:
        CohortError: what is not there or cannot be read, or a bundle that says it takes others.
    """
    place = Path(path)
    if place.is_dir():
        _check_input(place / "configs" / "metadata.json", in_channels, image_size, scale)
        return _of_bundle(place, device)
    if network is not None:
        return load_weights(network, place, device).to(device)
    if not place.is_file():
        raise CohortError(f"The classifier '{path}' does not exist; expected a file or a bundle.")
    try:
        if place.suffix == ".pt2":
            return torch.export.load(place).module().to(device)
        loaded: nn.Module = torch.jit.load(str(place), map_location=device)
        return loaded
    except Exception as error:  # torch raises half a dozen kinds
        raise CohortError(
            f"The classifier '{path}' cannot be read as a whole network ({type(error).__name__}); "
            "expected TorchScript or torch.export, or classifier_def for a file of weights."
        ) from error


def _of_bundle(folder: Path, device: str | torch.device) -> nn.Module:
    files = [folder / "configs" / f"inference.{end}" for end in ("yaml", "yml", "json")]
    config = next((file for file in files if file.is_file()), None)
    if config is None:
        raise CohortError(
            f"The folder '{folder}' has no configs/inference.yaml or .json; expected a MONAI "
            "bundle."
        )
    parser = ConfigParser()
    parser.read_config(str(config))
    if "network_def" not in parser:
        raise CohortError(f"The bundle '{folder}' has no network_def in {config.name}.")
    parser["bundle_root"] = str(folder)
    network: nn.Module = parser.get_parsed_content("network_def")
    return load_weights(network, folder / "models" / "model.pt", device).to(device)


def _check_input(
    path: Path,
    in_channels: int | None,
    image_size: int | Sequence[int] | None,
    scale: Sequence[Any] | None,
) -> None:
    """Refuse images that are not those a bundle's metadata says its network takes."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))["network_data_format"]
        said = dict(next(iter(data["inputs"].values())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return  # a bundle need not say
    channels, shape = said.get("num_channels"), said.get("spatial_shape")
    limits = said.get("value_range")
    needed: dict[str, tuple[Any, Any, str]] = {}  # by key of the configuration
    if in_channels is not None and isinstance(channels, int):
        needed["in_channels"] = (in_channels, channels, f"{channels} channel(s)")
    if image_size is not None and isinstance(shape, list) and _are(int, shape):
        size = [image_size] * len(shape) if isinstance(image_size, int) else list(image_size)
        needed["image_size"] = (size, shape, f"size {shape}")
    if scale is not None and _are((int, float), [*scale, *(limits or [])]) and limits:
        low, high = limits[0], limits[-1]
        wanted = [round(float(number), 6) for number in (high - low, low)]
        given = [round(float(number), 6) for number in scale]
        needed["classifier_scale"] = (given, wanted, f"intensities {limits}")
    for key, (found, wanted, what) in needed.items():
        if found != wanted:
            raise CohortError(
                f"The bundle's '{path}' says that its network takes images of {what}, and {key} is "
                f"{found}; expected {key} {wanted}, or the file corrected."
            )


def _are(kind: Any, values: Sequence[object]) -> bool:
    return all(isinstance(value, kind) for value in values)


def _shown_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that can be watched by name, none of a network that is compiled."""
    if isinstance(network, torch.jit.ScriptModule):
        return {}
    if isinstance(network, torch.fx.GraphModule):
        calls = {node.op for node in network.graph.nodes}
        if "call_module" not in calls:  # of torch.export: its layers hold weights, and are not run
            return {}
    return dict(network.named_modules())


def _linear(modules: Mapping[str, nn.Module]) -> list[nn.Module]:
    return [module for module in modules.values() if isinstance(module, nn.Linear)]


def _check_modes(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if module.training and not isinstance(network, torch.fx.GraphModule):
            raise ValueError(
                f"the classifier's layer '{name}' stays in training mode, expected evaluation mode"
            )
        batch = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if batch and not module.track_running_stats:
            raise ValueError(
                f"the classifier's layer '{name}' normalises by the batch even in evaluation, so "
                "that an image's class depends on the others; expected running statistics"
            )
