"""A latent code in named parts, and the encoder whose parts tell of one factor each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["SubspaceClassifier", "SubspaceEncoder", "SubspaceHeads", "SubspaceOutput", "Subspaces"]

FREE = "free"


class Subspaces:
    """Names and sizes of the consecutive parts of a vector: the only slicer of a latent code.

    Args:
        sizes: of every part by its name, in order. By convention the part named "free" has no
            label and holds what the others do not.
        latent_dim: what the sizes must add up to; None: whatever they do.

    Raises:
        ValueError: for no part, a part without a dimension, or sizes that do not add up.

    Example:
        >>> Subspaces({"age": 4, "scanner": 12, "free": 16}).slice("scanner")
        slice(4, 16, None)
    """

    def __init__(self, sizes: Mapping[str, int], latent_dim: int | None = None) -> None:
        self.sizes = {name: int(size) for name, size in sizes.items()}
        if not self.sizes:
            raise ValueError("expected at least one subspace, found none")
        for name, size in self.sizes.items():
            if size < 1:
                raise ValueError(f"subspace '{name}' has size {size}; expected at least 1")
        self.latent_dim = sum(self.sizes.values())
        if latent_dim not in (None, self.latent_dim):
            raise ValueError(
                f"the subspaces {self.sizes} have {self.latent_dim} dimensions together; "
                f"expected latent_dim {latent_dim}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts, in order."""
        return tuple(self.sizes)

    @property
    def labelled(self) -> tuple[str, ...]:
        """Names of the parts that are not free, in order."""
        return tuple(name for name in self.sizes if name != FREE)

    def slice(self, name: str) -> slice:
        """Return where a part lies.

        Raises:
            ValueError: no such part.
        """
        if name not in self.sizes:
            raise ValueError(f"there is no subspace '{name}'; expected one of {list(self.sizes)}")
        start = 0
        for part, size in self.sizes.items():
            if part == name:
                break
            start += size
        return slice(start, start + self.sizes[name])

    def split(self, codes: Tensor) -> dict[str, Tensor]:
        """Return views of the parts, each (..., size), of codes (..., D)."""
        self._check(codes)
        parts = codes.split(list(self.sizes.values()), -1)
        return dict(zip(self.sizes, parts, strict=True))

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return codes (..., D) of all parts; the inverse of `split`."""
        missing = [name for name in self.sizes if name not in parts]
        if missing:
            raise ValueError(f"the subspaces {missing} are missing; expected {list(self.sizes)}")
        return torch.cat([parts[name] for name in self.sizes], -1)

    def swap(self, codes: Tensor, donors: Tensor, names: Sequence[str] | str) -> Tensor:
        """Return codes (..., D) with the named parts as the donors have them.

        Args:
            codes: shape (..., D).
            donors: shape (..., D); shapes are broadcast.
            names: of the parts to take over.
        """
        self._check(codes)
        self._check(donors)
        swapped = torch.broadcast_tensors(codes, donors)[0].clone()
        for name in [names] if isinstance(names, str) else names:
            part = self.slice(name)
            swapped[..., part] = donors[..., part]
        return swapped

    def _check(self, codes: Tensor) -> None:
        if codes.shape[-1] != self.latent_dim:
            raise ValueError(
                f"expected codes of {self.latent_dim} dimensions ({self.sizes}), found shape "
                f"{tuple(codes.shape)}"
            )


class SubspaceHeads(nn.Module):
    """A linear head on every labelled subspace: codes (B, D) to logits (B, O).

    Each reads its own part alone, so that what it predicts must lie there.

    Args:
        subspaces: of the codes.
        outputs: how many logits every labelled subspace gives, see `medvae.data.Factors`.

    Attributes:
        outputs: the `Subspaces` of the logits, by the same names.

    Raises:
        ValueError: for an output without a subspace.
    """

    def __init__(self, subspaces: Subspaces, outputs: Mapping[str, int]) -> None:
        super().__init__()
        self.subspaces, self.outputs = subspaces, Subspaces(outputs)
        sizes = {name: subspaces.slice(name) for name in outputs}
        self.heads = nn.ModuleList(
            nn.Linear(part.stop - part.start, outputs[name]) for name, part in sizes.items()
        )

    def forward(self, codes: Tensor) -> Tensor:
        """Return logits (B, O) of all heads side by side."""
        parts = self.subspaces.split(codes)
        heads = zip(self.outputs.names, self.heads, strict=True)
        return torch.cat([head(parts[name]) for name, head in heads], -1)

    def evidence(self, codes: Tensor, name: str) -> Tensor:
        """Return what a head says as one number (B,), to be explained by a map.

        The log odds of the class that it finds most probable; the value of a continuous factor.
        """
        logits = self.outputs.split(self(codes))[name]
        if logits.shape[1] == 1:
            return logits[:, 0]
        found = logits.detach().argmax(1, keepdim=True)
        others = logits.scatter(1, found, -torch.inf).logsumexp(1)
        return logits.gather(1, found)[:, 0] - others


class SubspaceOutput(NamedTuple):
    """What a `SubspaceEncoder` computes.

    Attributes:
        codes: shape (B, D).
        logits: of all heads side by side, shape (B, O).
    """

    codes: Tensor
    logits: Tensor


class SubspaceEncoder(nn.Module):
    """Images (B, C, *S) to codes in named subspaces, with a linear head on each labelled one.

    The predictive form of Müller et al. 2025: no decoder.

    Args:
        backbone: any network that maps (B, C, *S) to (B, D), such as MONAI's ResNet with
            `num_classes` D.
        sizes: dimensions of every subspace, in order; see `Subspaces`.
        outputs: logits of every labelled subspace.
        normalize: codes are batch-normalised, without scale and shift. What a subspace holds is
            then on one scale, and cannot be hidden from a distance by making it small.

    Raises:
        ValueError: for sizes and outputs that do not fit each other.
    """

    def __init__(
        self,
        backbone: nn.Module,
        sizes: Mapping[str, int],
        outputs: Mapping[str, int],
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.subspaces = Subspaces(sizes)
        self.backbone = backbone
        self.norm = (
            nn.BatchNorm1d(self.subspaces.latent_dim, affine=False) if normalize else nn.Identity()
        )
        self.heads = SubspaceHeads(self.subspaces, outputs)

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """Names of the factors, which `medvae.explain.attribute_maps` takes."""
        return self.heads.outputs.names

    def encode(self, image: Tensor) -> Tensor:
        """Return codes (B, D)."""
        codes = self.backbone(image)
        if codes.shape[1:] != (self.subspaces.latent_dim,):
            raise ValueError(
                f"the backbone gives {tuple(codes.shape[1:])} numbers an image; expected "
                f"{self.subspaces.latent_dim}, the sizes of the subspaces {self.subspaces.sizes}"
            )
        return self.norm(codes)

    def classify(self, codes: Tensor) -> Tensor:
        """Return the heads' logits (B, O) for codes (B, D)."""
        return self.heads(codes)

    def evidence(self, codes: Tensor, name: str) -> Tensor:
        """Return what the head of a factor says as one number (B,), see `SubspaceHeads`."""
        return self.heads.evidence(codes, name)

    def forward(self, image: Tensor) -> SubspaceOutput:
        """Encode images (B, C, *S) and apply the heads."""
        codes = self.encode(image)
        return SubspaceOutput(codes, self.heads(codes))


class SubspaceClassifier(SubspaceEncoder):
    """A `SubspaceEncoder` that returns its logits alone: tensor in, tensor out.

    What MONAI's bundle commands and MONAI Label expect of a `network_def`; the weights have the
    same names.
    """

    # the other return type is what this class is for
    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        """Return logits (B, O) of images (B, C, *S)."""
        return self.classify(self.encode(image))
