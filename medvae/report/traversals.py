"""The same subject at several values of each attribute, as a montage and as a moving picture."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple_rep
from PIL import Image, ImageDraw

from medvae.data.output import file_stem, replacing, write_text
from medvae.report.plots import central_plane, plot_series

if TYPE_CHECKING:
    from medvae.explain import TraversalInferer

__all__ = ["TraversalMontaged", "plot_traversals", "write_gif", "write_values"]

FRAME_MS = 150
SCALE = 4  # pixels for each voxel
TITLE = 14  # pixels above each panel


def plot_traversals(
    volumes: Mapping[str, np.ndarray],
    values: Mapping[str, Sequence[float]],
    path: str | Path,
    spacing_mm: Sequence[float] | None = None,
) -> Path:
    """Plot central planes of one subject decoded at several values of each attribute, and save it.

    Args:
        volumes: by attribute, in [0, 1], shape (V, *S), 2D or 3D.
        values: the attribute of each of the V, in its own units.
        path: the PNG to write.
        spacing_mm: of the voxels, for the proportions; None: all the same.
    """
    titles = {name: [f"{value:.3g}" for value in series] for name, series in values.items()}
    return plot_series(volumes, titles, path, 1.0 if spacing_mm is None else spacing_mm)


def write_gif(volumes: Mapping[str, np.ndarray], path: str | Path) -> Path:
    """Write one subject's traversals side by side, there and back, as a moving picture.

    Args:
        volumes: by attribute, in [0, 1], shape (V, *S), 2D or 3D; central planes are shown. A
            series of fewer images than the longest goes on with its last.
        path: the GIF to write.
    """
    frames = max(map(len, volumes.values()))
    there = []
    for step in range(frames):
        panels = []
        for name, images in volumes.items():
            plane = central_plane(images[min(step, len(images) - 1)][None])
            panel = Image.fromarray((255 * plane.clip(0, 1)).round().astype(np.uint8))
            panel = panel.resize((panel.width * SCALE, panel.height * SCALE))
            titled = Image.new("L", (panel.width, panel.height + TITLE))
            titled.paste(panel, (0, TITLE))
            ImageDraw.Draw(titled).text((2, 0), name, fill=255)
            panels.append(np.asarray(titled))
        there.append(Image.fromarray(np.concatenate(panels, axis=1)))
    cycle = [*there, *there[-2:0:-1]]
    with replacing(path) as temporary:
        cycle[0].save(temporary, save_all=True, append_images=cycle[1:], duration=FRAME_MS, loop=0)
    return Path(path)


def write_values(values: Mapping[str, Sequence[float]], path: str | Path) -> None:
    """Write the values of each series of volumes as JSON; NIfTI has no place for them."""
    known = {name: [float(v) for v in series] for name, series in values.items()}
    write_text(path, json.dumps(known, indent=1) + "\n")


class TraversalMontaged(MapTransform):
    """Write `plot_traversals` of an item to `ID_traversals.png`; the item passes unchanged.

    The values that were asked for go to `ID_traversals.json`.

    Args:
        keys: what a `medvae.explain.TraversalInferer` gave, (M, *S), one key.
        inferer: that inferer.
        output_dir: where the PNG goes, in a folder named by the item's id.
        spacing_mm: of the grid, one number or one per axis.
        gif: write `ID_traversals.gif` as well.
    """

    def __init__(
        self,
        keys: KeysCollection,
        inferer: TraversalInferer,
        output_dir: str | Path,
        spacing_mm: Sequence[float] | float = 1.0,
        gif: bool = False,
    ) -> None:
        super().__init__(keys)
        self.gif = gif
        self.inferer = inferer
        self.output_dir = Path(output_dir)
        self.spacing_mm = spacing_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the picture and return the item."""
        name = file_stem(data["id"])
        for key in self.keys:
            values = self.inferer.values
            volumes = {
                attribute: np.asarray(part).reshape(len(values[attribute]), -1, *part.shape[1:])[
                    :, 0
                ]
                for attribute, part in self.inferer.split(data[key]).items()
            }
            spacing = ensure_tuple_rep(self.spacing_mm, data[key].ndim - 1)
            path = self.output_dir / name / f"{name}_traversals.png"
            plot_traversals(volumes, values, path, spacing)
            write_values(values, path.with_suffix(".json"))
            if self.gif:
                write_gif(volumes, path.with_suffix(".gif"))
        return dict(data)
