"""Where in an image is an attribute read? Maps of a latent axis, a logit or any other scalar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any, Literal, get_args

import torch
from monai.inferers import Inferer
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn

from medvae.data.errors import suggestion
from medvae.explain.upsample import guided_filter, upsample_linear

__all__ = ["AttributeMapInferer", "attribute_maps"]

Target = int | str | Callable[[Any], Tensor]
Method = Literal[
    "gradcam", "hirescam", "layer_integrated_gradients", "integrated_gradients", "occlusion"
]
METHODS = get_args(Method)


def attribute_maps(
    network: nn.Module,
    image: Tensor,
    attributes: Sequence[Target],
    layer: str | None = None,
    method: Method = "gradcam",
    upsample: Literal["linear", "guided"] = "linear",
    *,
    signed: bool = False,
    baseline: float = 0.0,
    steps: int = 16,
    patch_size: int | Sequence[int] = 5,
) -> Tensor:
    r"""Return maps of where an image raises each attribute; larger means more.

    The class activation maps come from one forward pass, of the encoder alone unless a target is
    a callable, and one short backward pass per attribute from the posterior mean to the layer, so
    that the result is deterministic and the map of a batch is that of its samples. With
    activations F, those of an empty image F_0, and the target z,

    - "gradcam": :math:`\operatorname{ReLU}\sum_c F_c \operatorname{mean}(\partial z/\partial F_c)`
      (Selvaraju et al. 2017, with a latent axis for the class);
    - "hirescam": :math:`\operatorname{ReLU}\sum_c F_c\,\partial z/\partial F_c` (Draelos and Carin
      2020), which keeps what a fully connected layer says of each position;
    - "layer_integrated_gradients": :math:`\operatorname{ReLU}\sum_c (F_c-F_{0c})
      \int_0^1 \partial z/\partial F_c\,d\alpha` along the line from F_0 to F (Sundararajan et
      al. 2017, at a layer): what features say that are also there without an object cancels, and
      the signed map adds up to z less the z of the empty image, before upsampling. Neighbours of
      opposite sign cancel: the ReLU comes after the upsampling;
    - "integrated_gradients": :math:`(x-b)\int_0^1 \partial z/\partial x\,d\alpha` on the image,
      summed over its channels (Sundararajan et al. 2017);
    - "occlusion": how far z falls when a patch becomes the baseline (Zeiler and Fergus 2014),
      averaged over the patches that cover the voxel, which lie half a patch apart.

    The network runs in evaluation mode and is left as it was: mode, hooks, gradients, flags. Works
    under `torch.no_grad` and on frozen networks.

    Args:
        network: an `AttriVAE`, or any network. One with an `encode` method is asked for its
            posterior mean; of others the output is taken, or its `mean`, shape (B, D). Of one with
            subspaces a name stands for what the head of that factor says, see `SubspaceHeads`.
        image: shape (B, C, *S), 2D or 3D.
        attributes: K targets: latent axes, names of the network's `attribute_names`, or callables
            that take the network's output to a scalar for each image, shape (B,), such as
            `lambda output: output.logits[:, 0]`.
        layer: name of a module as in `network.named_modules()`, whose own output (B, C', *S') is
            taken; None is the encoder's last convolution. Unused by the methods on the image.
        method: see above.
        upsample: "linear" from the layer's grid, or "guided": then follows the edges of the image
            (guided filter, He et al. 2013). The methods on the image are not upsampled.
        signed: keep negative evidence instead of the ReLU.
        baseline: the intensity of an image that says nothing, for all methods but the first two.
        steps: of the integral.
        patch_size: of the occlusion, in voxels.

    Returns:
        Maps of shape (B, K, *S), not rescaled, in units of the target; zero where the gradient is.

    Raises:
        ValueError: for an unknown attribute, layer or method; a layer without spatial axes.
    """
    _check_options(method, upsample, steps)
    if image.ndim not in (4, 5):
        raise ValueError(f"image must have shape (B, C, *S), 2D or 3D, found {tuple(image.shape)}")
    network = getattr(network, "module", network)  # under DDP
    targets = _Targets(network, attributes)
    with torch.inference_mode(False), evaluating(network), torch.no_grad():
        image = torch.as_tensor(image).as_subclass(Tensor)
        image = image.clone() if image.is_inference() else image.detach()
        if method == "integrated_gradients":
            maps = _integrated_gradients(targets, image, baseline, steps)
        elif method == "layer_integrated_gradients":
            maps = _layer_integrated_gradients(targets, image, layer, baseline, steps)
        elif method == "occlusion":
            maps = _occlusion(targets, image, baseline, patch_size)
        else:
            activation, values = _at_layer(targets, image, layer)
            gradients = _gradients(values, activation)
            maps = _class_activation(activation.detach(), gradients, method)
        if method in ("gradcam", "hirescam") and not signed:
            maps = maps.relu()  # on the layer's grid, as published
        coarse, size = maps.shape[2:], image.shape[2:]
        maps = upsample_linear(maps, size)
        if upsample == "guided" and coarse != size:
            radius = [max(round(n / c), 1) for n, c in zip(size, coarse, strict=True)]
            maps = guided_filter(maps, image, radius)
    return maps if signed else maps.relu_()


class AttributeMapInferer(Inferer):
    """`attribute_maps` with its options, as a MONAI inferer: `inferer(image, network)`.

    Args:
        attributes: see `attribute_maps`; None takes all of the network's `attribute_names`.
        network: the network, to refuse a layer it does not have before an image is read; None
            leaves that to the first call.
        options: the further arguments of `attribute_maps`.

    Raises:
        ValueError: for an unknown method, upsampling or layer.
    """

    def __init__(
        self,
        attributes: Sequence[Target] | None = None,
        network: nn.Module | None = None,
        **options: Any,
    ) -> None:
        self.attributes = attributes
        self.options = options
        choices: dict[str, Any] = {"method": "gradcam", "upsample": "linear", "steps": 1} | options
        _check_options(choices["method"], choices["upsample"], choices["steps"])
        if network is not None:
            _find_layer(network, options.get("layer"))

    def __call__(self, inputs: Tensor, network: nn.Module, *_: Any, **__: Any) -> Tensor:
        """Return maps (B, K, *S) for images (B, C, *S)."""
        attributes = self.attributes
        if attributes is None:
            attributes = getattr(getattr(network, "module", network), "attribute_names", ())
        return attribute_maps(network, inputs, attributes, **self.options)


def _check_options(method: str, upsample: str, steps: int) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, found '{method}'")
    if upsample not in ("linear", "guided"):
        raise ValueError(f"upsample must be 'linear' or 'guided', found '{upsample}'")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, found {steps}")


class _Targets(nn.Module):
    """Image to the K scalars that are to be explained: (B, C, *S) to K times (B,).

    Not stacked: a gradient of one would then pass through all of them.
    """

    def __init__(self, network: nn.Module, attributes: Sequence[Target]) -> None:
        super().__init__()
        if isinstance(attributes, str) or callable(attributes) or not len(attributes):
            raise ValueError(f"attributes must be a list of one or more, found {attributes!r}")
        self.network = network
        self.on_output = any(callable(t) for t in attributes)
        if self.on_output and hasattr(network, "evidence") and any(map(_is_name, attributes)):
            raise ValueError("names of factors and callables need two calls, found both")
        self.targets = [_named(network, t) if isinstance(t, str) else t for t in attributes]

    def forward(self, image: Tensor) -> list[Tensor]:
        encode = getattr(self.network, "encode", None)
        output = encode(image) if encode is not None and not self.on_output else self.network(image)
        return [self._scalar(t, output) for t in self.targets]

    @staticmethod
    def _scalar(target: int | Callable[[Any], Tensor], output: Any) -> Tensor:
        if callable(target):
            value = target(output)
            if value.ndim != 1:
                raise ValueError(
                    "a callable attribute must return one number for each image, shape (B,), "
                    f"found {tuple(value.shape)}"
                )
            return value
        if not isinstance(output, Tensor):
            output = getattr(output, "mean", output[0])
        if not -output.shape[1] <= target < output.shape[1]:
            raise ValueError(f"latent axis {target} does not exist, found {output.shape[1]} axes")
        return output[:, target]


def _is_name(target: Target) -> bool:
    return isinstance(target, str)


def _named(network: nn.Module, name: str) -> int | Callable[[Any], Tensor]:
    """Return an attribute's axis, or what reads a factor off the codes where heads do."""
    names = list(getattr(network, "attribute_names", ()))
    axis = axis_of(name, names)
    evidence = getattr(network, "evidence", None)
    return axis if evidence is None else partial(evidence, name=name)


def axis_of(attribute: str, names: Sequence[str]) -> int:
    """Return the latent axis that a network's `attribute_names` tie to an attribute.

    Raises:
        ValueError: for a name that is not there.
    """
    if attribute not in names:
        raise ValueError(
            f"unknown attribute '{attribute}': {suggestion(attribute, names)}"
            if names
            else f"attribute '{attribute}' needs a network with attribute_names: give a latent axis"
        )
    return list(names).index(attribute)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's own mode again outside."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _find_layer(network: nn.Module, name: str | None) -> nn.Module:
    modules = dict(network.named_modules())
    if name is not None:
        if name not in modules or not name:
            raise ValueError(
                f"unknown layer '{name}', expected a name of network.named_modules(): "
                f"{suggestion(name, filter(None, modules))}"
            )
        return modules[name]
    encoder = getattr(network, "encoder", network)
    convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    if not convolutions:
        raise ValueError("the network has no convolution: name the layer to look at")
    return convolutions[-1]


def _at_layer(
    targets: _Targets, image: Tensor, name: str | None, instead: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Return a layer's activation (B, C, *S'), a leaf of the graph, and the K targets beyond it.

    Where `instead` is given, the layer gives that to the rest of the network.
    """
    captured: list[Tensor] = []

    def start_graph_here(_: nn.Module, __: Any, output: Any) -> Tensor:
        if captured:
            raise ValueError(f"layer '{name}' runs more than once in a forward pass")
        if not isinstance(output, Tensor) or output.ndim != image.ndim:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"layer '{name}' must give {image.ndim - 2} spatial axes, (B, C, *S), found {shape}"
            )
        captured.append((output if instead is None else instead).detach().requires_grad_())
        torch.set_grad_enabled(True)  # until the caller's no_grad ends
        return captured[0].clone()  # what follows may work in place

    handle = _find_layer(targets.network, name).register_forward_hook(start_graph_here)
    try:
        with torch.no_grad():
            values = targets(image)
    finally:
        handle.remove()
    if not captured:
        raise ValueError(f"layer '{name}' does not take part in computing the attributes")
    return captured[0], values


def _gradients(values: list[Tensor], source: Tensor) -> list[Tensor]:
    """Return the gradient of each of the values (B,); each row belongs to one sample."""
    found = []
    for k, value in enumerate(values):
        gradient = None
        if value.requires_grad:  # else nothing of the source reaches it
            keep = k + 1 < len(values)
            (gradient,) = torch.autograd.grad(
                value, source, torch.ones_like(value), retain_graph=keep, allow_unused=True
            )
        found.append(torch.zeros_like(source) if gradient is None else gradient)
    return found


def _class_activation(activation: Tensor, gradients: list[Tensor], method: Method) -> Tensor:
    """Return the weighted sums of activations, shape (B, K, *S')."""
    if method == "hirescam":
        return torch.stack([(g * activation).sum(1) for g in gradients], 1)
    weights = torch.stack([g.flatten(2).mean(2) for g in gradients], 1)  # (B, K, C)
    return torch.bmm(weights, activation.flatten(2)).unflatten(2, activation.shape[2:])


def _along(steps: int) -> list[float]:
    """Return the midpoints of equal parts of the way from 0 to 1."""
    return [(step + 0.5) / steps for step in range(steps)]


def _layer_integrated_gradients(
    targets: _Targets, image: Tensor, layer: str | None, baseline: float, steps: int
) -> Tensor:
    empty, full = (
        _at_layer(targets, x, layer)[0].detach()
        for x in (torch.full_like(image[:1], baseline), image)
    )
    total = full.new_zeros(len(full), len(targets.targets), *full.shape[2:])
    for share in _along(steps):
        point, values = _at_layer(targets, image, layer, torch.lerp(empty, full, share))
        for k, gradient in enumerate(_gradients(values, point)):
            total[:, k] += ((full - empty) * gradient).sum(1) / steps
    return total


def _integrated_gradients(targets: _Targets, image: Tensor, baseline: float, steps: int) -> Tensor:
    difference = image - baseline
    total = torch.zeros(len(image), len(targets.targets), *image.shape[2:], device=image.device)
    for share in _along(steps):
        point = (baseline + difference * share).requires_grad_()
        with torch.enable_grad():
            values = targets(point)
        for k, gradient in enumerate(_gradients(values, point)):
            total[:, k] += (gradient * difference).sum(1) / steps
    return total


def _occlusion(
    targets: _Targets, image: Tensor, baseline: float, patch_size: int | Sequence[int]
) -> Tensor:
    """Return how far each target falls, averaged over the patches that cover a voxel."""
    size = image.shape[2:]
    patch = [min(p, n) for p, n in zip(ensure_tuple_rep(patch_size, len(size)), size, strict=True)]
    if min(patch) < 1:
        raise ValueError(f"patch_size must be positive, found {patch_size}")
    starts = [
        sorted({*range(0, n - p, max(p // 2, 1)), n - p}) for n, p in zip(size, patch, strict=True)
    ]
    values = torch.stack(targets(image), 1)
    total = image.new_zeros(*values.shape, *size)
    cover = image.new_zeros(size)
    for corner in product(*starts):
        edges = zip(corner, patch, strict=True)
        window: tuple[Any, ...] = (..., *(slice(c, c + p) for c, p in edges))
        occluded = image.clone()
        occluded[window] = baseline
        fall = values - torch.stack(targets(occluded), 1)
        total[window] += fall.reshape(*fall.shape, *(1,) * len(size))
        cover[window] += 1
    return total / cover
