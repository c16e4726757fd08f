"""What ties a generated image to the one it explains: its classes, and what it looks like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from monai.losses import PerceptualLoss
from torch import Tensor, nn

from medvae.networks.frozen import FrozenClassifier
from medvae.networks.stylex import log_probabilities

__all__ = [
    "ClassConsistency",
    "FeatureDistance",
    "ReconstructionLoss",
    "class_divergence",
    "perceptual_term",
    "reads_classifier",
]

Direction = Literal["image", "reconstruction"]


def class_divergence(logits: Tensor, again: Tensor, direction: Direction = "image") -> Tensor:
    r"""Return the Kullback-Leibler divergence of class probabilities, the mean over the batch.

    .. math:: \sum_k p_k \log \frac{p_k}{p'_k}

    with p the classifier's probabilities of the image and p' those of its reconstruction.

    Args:
        logits: of the image, shape (B, O); one output is a binary head.
        again: of the reconstruction, shape (B, O).
        direction: "image": as above, whose gradient is that of the cross-entropy; or
            "reconstruction": with p and p' exchanged.

    Raises:
        ValueError: for another direction.
    """
    if direction not in ("image", "reconstruction"):
        raise ValueError(f"direction is {direction!r}, expected 'image' or 'reconstruction'")
    p, q = log_probabilities(logits), log_probabilities(again)
    if direction == "reconstruction":
        p, q = q, p
    return (p.exp() * (p - q)).sum(-1).mean()


class ClassConsistency(nn.Module):
    """The sum over heads of `class_divergence`, weighted.

    Args:
        heads: outputs of every head by its name.
        weights: of heads that are not to count 1.
        direction: see `class_divergence`.

    Raises:
        ValueError: a weight of an unknown head, or another direction.
    """

    def __init__(
        self,
        heads: Mapping[str, int],
        weights: Mapping[str, float] | None = None,
        direction: Direction = "image",
    ) -> None:
        super().__init__()
        unknown = set(weights or {}) - set(heads)
        if unknown:
            raise ValueError(f"weights of the heads {sorted(unknown)}, expected {list(heads)}")
        if direction not in ("image", "reconstruction"):
            raise ValueError(f"direction is {direction!r}, expected 'image' or 'reconstruction'")
        self.heads, self.direction = dict(heads), direction
        self.weights = dict.fromkeys(heads, 1.0) | dict(weights or {})

    def forward(self, logits: Tensor, again: Tensor) -> Tensor:
        """Return a scalar for logits (B, O) of images and of their reconstructions."""
        sizes = list(self.heads.values())
        parts = zip(self.heads, logits.split(sizes, 1), again.split(sizes, 1), strict=True)
        terms = [
            self.weights[name] * class_divergence(p, q, self.direction) for name, p, q in parts
        ]
        return torch.stack(terms).sum()


class FeatureDistance(nn.Module):
    r"""How far images are apart in a network's features, as LPIPS without its learned weights.

    .. math:: \operatorname{mean} \sum_c (\hat f_c - \hat f'_c)^2

    with features of unit length along their channels, averaged over the grid and summed over
    layers (Zhang et al. 2018).

    Args:
        features: images (B, C, *S) in [0, 1] to a list of features (B, F, *S'), such as
            `medvae.networks.FrozenClassifier.features`.
    """

    def __init__(self, features: Callable[[Tensor], list[Tensor]]) -> None:
        super().__init__()
        self.features = features

    def forward(self, image: Tensor, again: Tensor) -> Tensor:
        """Return a scalar for two batches of images (B, C, *S) in [0, 1]."""
        with torch.no_grad():
            wanted = self.features(image)
        terms = [
            (_unit(f) - _unit(g)).square().sum(1).mean()
            for f, g in zip(wanted, self.features(again), strict=True)
        ]
        return torch.stack(terms).sum()


def reads_classifier(perceptual: str) -> bool:
    """Whether the perceptual term of a name compares features of the classifier's layers.

    Raises:
        ValueError: for a name that `perceptual_term` does not know.
    """
    if perceptual not in ("classifier", "lpips", "none"):
        raise ValueError(f"perceptual is {perceptual!r}, expected 'classifier', 'lpips' or 'none'")
    return perceptual == "classifier"


def perceptual_term(
    kind: str, classifier: FrozenClassifier, spatial_dims: int = 3
) -> nn.Module | None:
    """Return the perceptual term P of `ReconstructionLoss` that a name stands for.

    Args:
        kind: "classifier": `FeatureDistance` of its features; "lpips": MONAI's `PerceptualLoss`,
            which needs the package lpips, in planes of a volume; or "none".
        classifier: that is explained.
        spatial_dims: 2 or 3.

    Raises:
        ValueError: for another name.
    """
    if reads_classifier(kind):
        return FeatureDistance(classifier.features)
    if kind == "none":
        return None
    return PerceptualLoss(spatial_dims, "alex", is_fake_3d=spatial_dims == 3)


class ReconstructionLoss(nn.Module):
    r"""What a reconstruction misses: voxels, what a network sees, and the code.

    .. math:: a_1 |x - x'| + a_2 P(x, x') + a_3 |E(x) - E(x')|

    with mean absolute differences (Lang et al. 2021). The published weights disagree: 0.1 for all
    by the authors' e-mail in the replication of Bosch et al. 2022, 1 for voxels in its code.

    Args:
        voxel_weight: a1, of images in [-1, 1].
        perceptual_weight: a2.
        code_weight: a3.
        perceptual: P, of images in [0, 1] about, such as `FeatureDistance` of the classifier or
            MONAI's `PerceptualLoss`; None: none.
    """

    def __init__(
        self,
        voxel_weight: float = 1.0,
        perceptual_weight: float = 0.1,
        code_weight: float = 0.1,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.voxel_weight, self.code_weight = voxel_weight, code_weight
        self.perceptual_weight, self.perceptual = perceptual_weight, perceptual

    def forward(
        self, image: Tensor, again: Tensor, codes: Tensor, codes_again: Tensor
    ) -> dict[str, Tensor]:
        """Return weighted scalars `voxels`, `codes` and, where there is one, `perceptual`.

        Args:
            image: in [-1, 1], shape (B, C, *S).
            again: its reconstruction.
            codes: of the image, shape (B, D).
            codes_again: of the reconstruction.
        """
        terms = {
            "voxels": self.voxel_weight * (image - again.float()).abs().mean(),
            "codes": self.code_weight * (codes.float() - codes_again.float()).abs().mean(),
        }
        if self.perceptual is not None:
            distance = self.perceptual((image + 1) / 2, (again + 1) / 2)
            terms["perceptual"] = self.perceptual_weight * distance
        return terms


def _unit(features: Tensor) -> Tensor:
    values = features.float()
    return values * torch.rsqrt(values.square().sum(1, keepdim=True) + 1e-8)
