"""The subjects that a run's report shows: images, reconstructions, maps and traversals as NIfTI."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.utils import ensure_tuple_rep
from torch import Tensor

from medvae.data.output import file_stem, replacing, write_text
from medvae.explain import AttributeMapInferer, Readout, TraversalInferer, traverse
from medvae.networks import AttriVAE
from medvae.report.map_montage import plot_maps
from medvae.report.traversals import plot_traversals, write_values

__all__ = ["Examples", "best_median_worst", "write_examples"]

Voxels = npt.NDArray[np.float32]

logger = logging.getLogger("medvae")


def best_median_worst(names: Sequence[str], scores: npt.NDArray[np.floating]) -> dict[str, str]:
    """Return three names by their score, higher is better, and why each was chosen."""
    order = np.argsort(-scores, kind="stable")
    places = {0: "best", len(order) // 2: "median", len(order) - 1: "worst"}
    return {str(names[order[place]]): f"{which} reconstruction" for place, which in places.items()}


def write_examples(
    folder: str | Path,
    subjects: Mapping[str, Mapping[str, Voxels]],
    reasons: Mapping[str, str],
    spacing_mm: Sequence[float] | float = 1.0,
    window: Sequence[float] | None = None,
) -> None:
    """Write what a report's viewer shows of a few subjects, on the model's grid.

    Args:
        folder: gets `ID/ID_KIND.nii.gz` of every volume, and `examples.json`.
        subjects: by id the volumes by kind, in [0, 1], (V, *S); see `page.shown.Shown.files`.
        reasons: why each was chosen, by id.
        spacing_mm: of the grid, one number or one per axis.
        window: intensities that 0 and 1 stand for; None leaves them so.
    """
    for subject, volumes in subjects.items():
        name = file_stem(subject)
        for kind, values in volumes.items():
            path = Path(folder) / name / f"{name}_{kind}.nii.gz"
            _save(path, values, spacing_mm, window)
    _write_reasons(Path(folder), reasons, {})


class Examples:
    """Writes what the report shows of a few subjects, on the model's grid.

    Each gets a folder `ID` with `ID_image.nii.gz`, `ID_reconstruction.nii.gz`, one
    `ID_map_NAME.nii.gz` and `ID_traversal_NAME.nii.gz` per attribute, named as inference names
    them, and pictures of the same. `examples.json` says who was chosen and what was skipped.

    Args:
        spacing_mm: of the model's grid, one number or one per axis. The files' affine has the
            spacing alone, with axes in RAS.
        window: intensities that 0 and 1 stand for; None leaves them so.
        map_method: of `medvae.explain.attribute_maps`.
        map_layer: of the same.
        map_steps: of the same.
        follow: of `medvae.explain.traverse`.
    """

    def __init__(
        self,
        spacing_mm: Sequence[float] | float = 1.0,
        window: Sequence[float] | None = None,
        map_method: Any = "layer_integrated_gradients",
        map_layer: str | None = None,
        map_steps: int = 8,
        follow: float = 0.0,
    ) -> None:
        self.spacing_mm, self.window = spacing_mm, window
        self.map_options = {"method": map_method, "layer": map_layer, "steps": map_steps}
        self.follow = follow

    def write(
        self,
        network: AttriVAE,
        images: Mapping[str, Tensor],
        reasons: Mapping[str, str],
        output_dir: str | Path,
        readout: Readout | None = None,
    ) -> None:
        """Write the folders of some subjects.

        Args:
            network: a trained model.
            images: by id, in [0, 1], shape (C, *S), on the network's device; the first channel is
                written.
            reasons: why each was chosen.
            output_dir: where the folders go.
            readout: of the trained model; None, for axes that are tied to no attribute, leaves the
                traversals out.
        """
        folder = Path(output_dir)
        skipped: dict[str, str] = {}
        if readout is None:
            skipped["traversals"] = "no axis is tied to an attribute"
        for name, image in images.items():
            self._write_one(network, image[None], folder, file_stem(name), readout, skipped)
        _write_reasons(folder, reasons, skipped)

    def _write_one(
        self,
        network: AttriVAE,
        image: Tensor,
        folder: Path,
        name: str,
        readout: Readout | None,
        skipped: dict[str, str],
    ) -> None:
        start = folder / name / name
        spacing = ensure_tuple_rep(self.spacing_mm, image.ndim - 2)
        with torch.no_grad():
            reconstruction = network.decode(network.encode(image)[0])
        self._save(f"{start}_image.nii.gz", _array(image)[0, :1])
        self._save(f"{start}_reconstruction.nii.gz", _array(reconstruction)[0, :1])
        maps = self._maps(network, image, skipped)
        if maps is not None:
            for attribute, heat in zip(network.attribute_names, maps, strict=True):
                self._save(f"{start}_map_{attribute}.nii.gz", heat[None], windowed=False)
            plot_maps(_array(image)[0], maps, network.attribute_names, f"{start}_maps.png", spacing)
        if readout is not None:
            decoded = dict(self._traversals(network, image, readout, skipped))
            values = TraversalInferer(readout).values
            for attribute, series in decoded.items():
                self._save(f"{start}_traversal_{attribute}.nii.gz", series)
            write_values({k: values[k] for k in decoded}, f"{start}_traversals.json")
            if decoded:
                plot_traversals(decoded, values, f"{start}_traversals.png", spacing)

    def _maps(self, network: AttriVAE, image: Tensor, skipped: dict[str, str]) -> Voxels | None:
        """Return the maps (K, *S); a layer that the network does not have skips them."""
        try:
            inferer = AttributeMapInferer(network=network, **self.map_options)
            return _array(inferer(image, network))[0]
        except ValueError as error:
            skipped["maps"] = str(error)
            return None

    def _traversals(
        self, network: AttriVAE, image: Tensor, readout: Readout, skipped: dict[str, str]
    ) -> Iterator[tuple[str, Voxels]]:
        """Yield each attribute's series (V, *S); an axis that reads nothing is skipped."""
        values = TraversalInferer(readout).values
        for attribute, axis in zip(readout.scaler.names, readout.axes, strict=True):
            try:
                found = traverse(network, image, axis, values[attribute], readout, self.follow)
            except ValueError as error:
                skipped[f"traversal of {attribute}"] = str(error)
            else:
                yield attribute, _array(found)[0, :, 0]

    def _save(self, path: str, volumes: Voxels, windowed: bool = True) -> None:
        _save(path, volumes, self.spacing_mm, self.window if windowed else None)


def _save(
    path: str | Path,
    volumes: Voxels,
    spacing_mm: Sequence[float] | float,
    window: Sequence[float] | None,
) -> None:
    """Write (V, *S) as NIfTI (*S) or (*S, V)."""
    low, high = (0.0, 1.0) if window is None else window
    voxels = np.moveaxis(low + (high - low) * volumes, 0, -1)
    if voxels.ndim == 3:
        voxels = voxels[:, :, None]  # of images the third axis is one slice
    voxels = voxels[..., 0] if voxels.shape[-1] == 1 else voxels
    spacing = ensure_tuple_rep(spacing_mm, volumes.ndim - 1)
    affine = np.diag([*spacing, *[1.0] * (4 - len(spacing))])
    image = nib.Nifti1Image(voxels.astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    with replacing(path) as temporary:
        nib.save(image, temporary)


def _write_reasons(folder: Path, reasons: Mapping[str, str], skipped: Mapping[str, str]) -> None:
    chosen = {file_stem(name): why for name, why in reasons.items()}
    content = {"subjects": chosen, "skipped": dict(skipped)}
    write_text(folder / "examples.json", json.dumps(content, indent=1) + "\n")


def _array(tensor: Tensor) -> Voxels:
    found: Voxels = torch.as_tensor(tensor).as_subclass(Tensor).detach().float().cpu().numpy()
    return found
