"""Images that no subject has: codes drawn from the prior, decoded and written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.utils import ensure_tuple_rep

from medvae.data.output import replacing
from medvae.explain import sample
from medvae.networks import AttriVAE, DisentangledGAN
from medvae.report.traversals import plot_traversals

__all__ = ["write_samples"]


def write_samples(
    network: AttriVAE | DisentangledGAN,
    count: int,
    output_dir: str | Path,
    spacing_mm: Sequence[float] | float | None = None,
    window: Sequence[float] | None = None,
    seed: int = 0,
) -> None:
    """Write `samples.nii.gz`, an image after the other along the last axis, and `samples.png`.

    Args:
        network: whose prior is sampled.
        count: how many; none are written for 0.
        output_dir: the folder.
        spacing_mm: of the model's grid, one number or one per axis; None: 1 mm. The samples lie in
            no scanner: their affine has the spacing alone, with axes in RAS.
        window: intensities that 0 and 1 stand for; None leaves them so.
        seed: of the codes.
    """
    if not count:
        return
    images = sample(network, count, seed).cpu().numpy()[:, 0]
    spacing = ensure_tuple_rep(1.0 if spacing_mm is None else spacing_mm, images.ndim - 1)
    folder = Path(output_dir)
    plot_traversals(
        {"samples": images}, {"samples": list(range(count))}, folder / "samples.png", spacing
    )
    low, high = (0.0, 1.0) if window is None else window
    voxels = low + (high - low) * images
    if voxels.ndim == 3:
        voxels = voxels[..., None]  # of images the third axis is one slice
    affine = np.diag([*spacing, *[1.0] * (4 - len(spacing))])
    with replacing(folder / "samples.nii.gz") as temporary:
        nib.save(nib.Nifti1Image(np.moveaxis(voxels, 0, -1).astype(np.float32), affine), temporary)
