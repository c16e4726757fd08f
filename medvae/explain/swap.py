"""What a subspace holds, shown: images decoded from codes of which some subspaces were exchanged.

For networks with `encode` (B, C, *S) to codes (B, D), `decode` back, `map_codes` from normal codes
to codes of the prior, and `subspaces`, such as `medvae.networks.DisentangledGAN`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from medvae.data.output import file_stem
from medvae.explain.maps import evaluating

if TYPE_CHECKING:
    from medvae.networks import DisentangledGAN

__all__ = [
    "SwapInferer",
    "interpolate_subspaces",
    "reconstruct",
    "sample_subspace",
    "swap_subspaces",
]

STEPS = 5  # images from one subject to another


def reconstruct(network: DisentangledGAN, image: Tensor) -> Tensor:
    """Decode the codes of images (B, C, *S) in [0, 1], without gradients."""
    with torch.no_grad(), evaluating(network):
        return network.decode(network.encode(image))


def swap_subspaces(
    network: DisentangledGAN, image: Tensor, donor: Tensor, names: Sequence[str] | str
) -> Tensor:
    """Decode each image's codes with some subspaces as its donor has them.

    What is seen to change is what these subspaces hold. All of them give the donor's
    reconstruction, none the image's own.

    Args:
        network: see above; runs in evaluation mode and is left as it was.
        image: in [0, 1], shape (B, C, *S).
        donor: same shape, or one image (1, C, *S) for all.
        names: of the subspaces.

    Returns:
        Shape (B, C, *S).

    Raises:
        ValueError: for an unknown subspace.
    """
    with torch.no_grad(), evaluating(network):
        codes, donors = network.encode(image), network.encode(donor)
        return network.decode(network.subspaces.swap(codes, donors.expand_as(codes), names))


def sample_subspace(
    network: DisentangledGAN, image: Tensor, names: Sequence[str] | str, count: int, seed: int = 0
) -> Tensor:
    """Decode each image's codes with some subspaces drawn from the prior, and the others fixed.

    Args:
        network: see above.
        image: in [0, 1], shape (B, C, *S).
        names: of the subspaces that are drawn.
        count: draws, the same for all images.
        seed: of the draws.

    Returns:
        Shape (B, count, C, *S).

    Raises:
        ValueError: for an unknown subspace.
    """
    with torch.no_grad(), evaluating(network):
        codes, drawn = network.encode(image), _prior(network, count, seed, image)
        swap = network.subspaces.swap
        images = [network.decode(swap(codes, one.expand_as(codes), names)) for one in drawn]
        return torch.stack(images, 1)


def interpolate_subspaces(
    network: DisentangledGAN,
    image: Tensor,
    donor: Tensor,
    names: Sequence[str] | str | None = None,
    steps: int = STEPS,
) -> Tensor:
    """Decode the straight line from each image's codes to its donor's, ends included.

    Args:
        network: see above.
        image: in [0, 1], shape (B, C, *S).
        donor: same shape, or one image (1, C, *S) for all.
        names: of the subspaces that move; None: all.
        steps: images along the line, at least 2.

    Returns:
        Shape (B, steps, C, *S).

    Raises:
        ValueError: for an unknown subspace or fewer steps.
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2, found {steps}")
    names = network.subspaces.names if names is None else names
    with torch.no_grad(), evaluating(network):
        codes = network.encode(image)
        end = network.subspaces.swap(codes, network.encode(donor).expand_as(codes), names)
        shares = torch.linspace(0, 1, steps).tolist()
        return torch.stack([network.decode(torch.lerp(codes, end, share)) for share in shares], 1)


class SwapInferer(Inferer):
    """Each subject with other subspaces, as a MONAI inferer: `inferer(image, network)`.

    Args:
        names: of the network's subspaces.
        donor: id of the subject whose subspaces every other takes over, one at a time; None:
            nothing is swapped.
        interpolate: whether all subspaces together move to the donor's, in five steps.
        samples: how many draws of the prior every subspace is replaced by; 0: none.
        seed: of the draws.
        find: the image (C, *S) of an id.

    Attributes:
        titles: of each series the titles of its images, by the series' name.

    Raises:
        ValueError: where there is a donor and no `find`.
    """

    def __init__(
        self,
        names: Sequence[str],
        donor: str | None = None,
        interpolate: bool = False,
        samples: int = 0,
        seed: int = 0,
        find: Callable[[str], Tensor] | None = None,
    ) -> None:
        self.names, self.samples, self.seed = list(names), samples, seed
        self.titles: dict[str, list[str]] = {}
        self._series: list[Callable[[Tensor, DisentangledGAN], Tensor]] = []
        self._donor: Tensor | None = None
        if donor is not None:
            if find is None:
                raise ValueError(f"'{donor}' cannot be looked up; expected find, for its image")
            self._donor = torch.as_tensor(find(donor)).as_subclass(Tensor)
            titles = ["reconstruction", *self.names, "all"]
            self._add(f"from_{donor}", titles, self._swaps)
            if interpolate:
                shares = [f"{share:g}" for share in torch.linspace(0, 1, STEPS).tolist()]
                self._add(f"to_{donor}", shares, self._interpolation)
        for name in self.names if samples else ():
            titles = [str(number + 1) for number in range(samples)]
            self._add(f"sampled_{name}", titles, self._sampled(name))

    def __call__(self, inputs: Tensor, network: DisentangledGAN, *_: Any, **__: Any) -> Tensor:
        """Return (B, M, *S): for each series in turn each of its images' channels."""
        return torch.cat([one(inputs, network).flatten(1, 2) for one in self._series], 1)

    def split(self, channels: Any) -> dict[str, Any]:
        """Return the channels (M, *S) of one subject by series, each (images C, *S)."""
        counts = [len(titles) for titles in self.titles.values()]
        each = channels.shape[0] // sum(counts)
        parts = torch.split(channels, [each * count for count in counts])
        return dict(zip(self.titles, parts, strict=True))

    def _add(
        self, name: str, titles: list[str], series: Callable[[Tensor, DisentangledGAN], Tensor]
    ) -> None:
        self.titles[file_stem(name)] = titles
        self._series.append(series)

    def _swaps(self, image: Tensor, network: DisentangledGAN) -> Tensor:
        donor = self._donor_like(image)
        taken = [[], *([name] for name in self.names), self.names]
        return torch.stack([swap_subspaces(network, image, donor, names) for names in taken], 1)

    def _interpolation(self, image: Tensor, network: DisentangledGAN) -> Tensor:
        return interpolate_subspaces(network, image, self._donor_like(image))

    def _sampled(self, name: str) -> Callable[[Tensor, DisentangledGAN], Tensor]:
        def series(image: Tensor, network: DisentangledGAN) -> Tensor:
            return sample_subspace(network, image, name, self.samples, self.seed)

        return series

    def _donor_like(self, image: Tensor) -> Tensor:
        assert self._donor is not None
        return self._donor.to(image)[None]


def _prior(network: DisentangledGAN, count: int, seed: int, like: Tensor) -> Tensor:
    """Return codes of the prior, (count, D), the same on all devices."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, network.subspaces.latent_dim, generator=generator)
    return network.map_codes(z.to(like))
