"""The same subject, but: images decoded from codes of which some axes were changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from monai.inferers import Inferer
from torch import Tensor

from medvae.data.output import file_stem
from medvae.explain.maps import axis_of, evaluating
from medvae.explain.readout import Readout

if TYPE_CHECKING:
    from medvae.networks import AttriVAE, DisentangledGAN

__all__ = [
    "TraversalInferer",
    "interpolate",
    "replace_axes",
    "sample",
    "there_and_back",
    "traverse",
]


def traverse(
    network: AttriVAE,
    image: Tensor,
    attribute: int | str,
    values: Sequence[float],
    readout: Readout | None = None,
    follow: float | None = 0.0,
) -> Tensor:
    """Decode every image's posterior mean with one axis moved to each of the values.

    By default nothing but that axis changes, so what else is seen to change is what the decoder
    ties to it. Some attributes cannot change alone: there is no nodule of three times the volume
    and the same diameter. With `follow` the other attributes' axes move along.

    Args:
        network: an `AttriVAE`; runs in evaluation mode and is left as it was.
        image: shape (B, C, *S).
        attribute: a latent axis, or a name of the network's `attribute_names`.
        values: V values: codes, or with a readout the attribute in its own units.
        readout: of the trained model, `models/readout.json`.
        follow: share of what goes together in the training subjects, 1 for all of it; None: the
            readout's own for this attribute. Needs a readout.

    Returns:
        Images in (0, 1), shape (B, V, C, *S).

    Raises:
        ValueError: for an unknown attribute, one whose axis reads nothing, or `follow` without a
            readout.
    """
    axis, codes = _target(network, attribute, values, readout)
    if follow != 0 and readout is None:
        raise ValueError(f"follow is {follow}, but no readout says which axes go together")
    direction = None
    if readout is not None and follow != 0:
        direction = readout.direction(axis, network.latent_dim, follow)
    return decode_along(network, image, axis, codes, direction)


def decode_along(
    network: AttriVAE,
    image: Tensor,
    axis: int,
    codes: Sequence[float],
    direction: npt.ArrayLike | None = None,
) -> Tensor:
    """Decode posterior means with an axis at each of V codes: (B, V, C, *S).

    Args:
        network: an `AttriVAE`.
        image: shape (B, C, *S).
        axis: the latent axis.
        codes: where it is moved to.
        direction: how all axes change per unit of it, see `Readout.direction`; None: no other does.
    """
    with torch.no_grad(), evaluating(network):
        mean = network.encode(image)[0]
        moved = [_moved(mean, axis, code, direction) for code in codes]
        return torch.stack([network.decode(code) for code in moved], 1)


def interpolate(network: AttriVAE, first: Tensor, second: Tensor, steps: int = 9) -> Tensor:
    """Decode the straight line between the posterior means of two images, ends included.

    Args:
        network: an `AttriVAE`.
        first: shape (B, C, *S).
        second: same shape.
        steps: images along the line, at least 2.

    Returns:
        Shape (B, steps, C, *S).
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2, found {steps}")
    with torch.no_grad(), evaluating(network):
        start, end = network.encode(first)[0], network.encode(second)[0]
        shares = np.linspace(0.0, 1.0, steps)
        return torch.stack([network.decode(torch.lerp(start, end, float(s))) for s in shares], 1)


def sample(
    network: AttriVAE | DisentangledGAN, count: int, seed: int = 0, device: Any = None
) -> Tensor:
    """Decode codes drawn from the standard normal prior: (count, C, *S); a GAN maps them first."""
    codes = torch.randn(
        count, network.latent_dim, generator=torch.Generator().manual_seed(seed)
    ).to(device or next(network.parameters()).device)
    with torch.no_grad(), evaluating(network):
        return network.decode(getattr(network, "map_codes", _same)(codes))


def replace_axes(
    network: AttriVAE, image: Tensor, donor: Tensor, attributes: Sequence[int | str]
) -> Tensor:
    """Decode each image with some axes of its donor's posterior mean.

    Args:
        network: an `AttriVAE`.
        image: shape (B, C, *S).
        donor: same shape.
        attributes: latent axes or names; none of them gives the reconstruction.

    Returns:
        Shape (B, C, *S).
    """
    axes = [_axis(network, attribute) for attribute in attributes]
    with torch.no_grad(), evaluating(network):
        codes, others = network.encode(image)[0].clone(), network.encode(donor)[0]
        codes[:, axes] = others[:, axes]
        return network.decode(codes)


def there_and_back(
    network: AttriVAE,
    image: Tensor,
    axis: int,
    codes: Tensor,
    direction: npt.ArrayLike | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Move an axis, decode, encode what was decoded, set the axis back and decode again.

    Args:
        network: an `AttriVAE`.
        image: shape (B, C, *S).
        axis: the latent axis.
        codes: where each image's axis is moved to, shape (B,).
        direction: how all axes change per unit of it, both ways; None: no other does.

    Returns:
        The reconstructions, the images with the axis moved and those with it moved back, each
        (B, C, *S). A model whose encoder reads what its decoder draws returns to the first.
    """
    with torch.no_grad(), evaluating(network):
        start = network.encode(image)[0]
        there = network.decode(_moved(start, axis, codes, direction))
        back = _moved(network.encode(there)[0], axis, start[:, axis], direction)
        return network.decode(start), there, network.decode(back)


class TraversalInferer(Inferer):
    """The same subjects with other codes, as a MONAI inferer: `inferer(image, network)`.

    Args:
        readout: of the trained model, see `Readout.of_model`.
        values: by attribute, in its own units; None, or an attribute left out: five values over
            the range of nine in ten training subjects, so that none is extrapolated.
        traversals: whether every attribute is traversed; else only what follows is decoded.
        follow: of `traverse`.
        interpolate_to: id of a subject that all others are interpolated to, in five steps.
        replace: `{"attributes": [...], "donor": id}`: axes that are taken from the donor, in one
            image.
        find: the image (C, *S) of an id.

    Attributes:
        values: of each series that is decoded: an attribute's values, the shares of the way to
            another subject under `to_ID`, and 1 under `from_ID` for axes of a donor.

    Raises:
        ValueError: an unknown attribute, or a `replace` without attributes or donor.
    """

    def __init__(
        self,
        readout: Readout,
        values: Mapping[str, Sequence[float]] | None = None,
        traversals: bool = True,
        follow: float | None = None,
        interpolate_to: str | None = None,
        replace: Mapping[str, Any] | None = None,
        find: Callable[[str], Tensor] | None = None,
    ) -> None:
        self.readout, self.follow = readout, follow
        names = readout.scaler.names
        for name in values or {}:
            axis_of(name, names)
        seen = readout.scaler.inverse(np.linspace(readout.span[0], readout.span[1], 5))
        usual = dict(zip(names, seen.T, strict=True))
        self.values = {
            name: [float(v) for v in (values or {}).get(name, usual[name])]
            for name in (names if traversals else ())
        }
        self._series: list[Callable[[AttriVAE, Tensor], Tensor]] = [
            partial(self._traverse, axis=axis, name=name)
            for name, axis in zip(self.values, readout.axes, strict=False)
        ]
        if interpolate_to is not None:
            self._add(f"to_{interpolate_to}", np.linspace(0.0, 1.0, 5), self._interpolate)
            self._end = _found(interpolate_to, find)
        if replace is not None:
            if set(replace) != {"attributes", "donor"}:
                raise ValueError(
                    f"replace has the keys {sorted(replace)}; expected attributes and donor"
                )
            self._axes = [readout.axes[axis_of(name, names)] for name in replace["attributes"]]
            self._add(f"from_{replace['donor']}", [1.0], self._replace)
            self._donor = _found(replace["donor"], find)

    def __call__(self, inputs: Tensor, network: AttriVAE, *_: Any, **__: Any) -> Tensor:
        """Return (B, M, *S): for each series in turn each of its values' channels."""
        return torch.cat([series(network, inputs).flatten(1, 2) for series in self._series], 1)

    def _add(self, name: str, values: Any, series: Callable[[AttriVAE, Tensor], Tensor]) -> None:
        self.values[file_stem(name)] = [float(v) for v in values]
        self._series.append(series)

    def _traverse(self, network: AttriVAE, images: Tensor, axis: int, name: str) -> Tensor:
        return traverse(network, images, axis, self.values[name], self.readout, self.follow)

    def _interpolate(self, network: AttriVAE, images: Tensor) -> Tensor:
        return interpolate(network, images, self._end.to(images).expand_as(images), 5)

    def _replace(self, network: AttriVAE, images: Tensor) -> Tensor:
        donor = self._donor.to(images).expand_as(images)
        return replace_axes(network, images, donor, self._axes)[:, None]

    def split(self, channels: Any) -> dict[str, Any]:
        """Return the channels (M, *S) of one subject by series, each (V C, *S)."""
        total = sum(map(len, self.values.values()))
        each = channels.shape[0] // total
        parts = torch.split(channels, [each * len(v) for v in self.values.values()])
        return dict(zip(self.values, parts, strict=True))


def _same(codes: Tensor) -> Tensor:
    return codes


def _found(name: str, find: Callable[[str], Tensor] | None) -> Tensor:
    if find is None:
        raise ValueError(f"'{name}' cannot be looked up; expected find, which gives its image")
    return torch.as_tensor(find(name)).as_subclass(Tensor)


def _axis(network: AttriVAE, attribute: int | str) -> int:
    if isinstance(attribute, str):
        return axis_of(attribute, network.attribute_names)
    if not -network.latent_dim <= attribute < network.latent_dim:
        raise ValueError(f"latent axis {attribute} does not exist, found {network.latent_dim} axes")
    return attribute


def _target(
    network: AttriVAE, attribute: int | str, values: Sequence[float], readout: Readout | None
) -> tuple[int, list[float]]:
    """Return the axis and the codes that mean the values."""
    axis = _axis(network, attribute)
    if readout is None:
        return axis, [float(v) for v in values]
    if axis not in readout.axes:
        raise ValueError(f"the readout has no attribute on latent axis {axis}")
    column = readout.axes.index(axis)
    table = np.full((len(values), len(readout.axes)), np.nan)
    table[:, column] = values
    codes = readout.codes(table)[:, column]
    if not np.isfinite(codes).all():
        name = readout.scaler.names[column]
        raise ValueError(
            f"'{name}' cannot be set to {list(values)}: its axis reads nothing of it, or a value "
            "is missing"
        )
    return axis, [float(code) for code in codes]


def _moved(
    codes: Tensor, axis: int, value: float | Tensor, direction: npt.ArrayLike | None = None
) -> Tensor:
    moved = codes.clone()
    if direction is not None:
        moved += (value - codes[:, axis])[:, None] * codes.new_tensor(np.asarray(direction))
    moved[:, axis] = value
    return moved
