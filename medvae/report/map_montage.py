"""Where a subject's attributes are read: its image under every attribute's map, as one PNG."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, get_data_path
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple_rep
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medvae.data.output import file_stem, write_bytes
from medvae.report.colours import EVIDENCE

__all__ = ["MapMontaged", "plot_maps"]

Pixels = NDArray[np.floating[Any]]
PANEL, GAP, BAR = 180, 8, 12  # the longest side of a panel, between panels, a colour bar's width
LEFT, TOP, RIGHT = 40, 24, 56  # room for text
FONT = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", 11)


def plot_maps(
    image: np.ndarray,
    maps: np.ndarray,
    names: Sequence[str],
    path: str | Path,
    spacing_mm: Sequence[float] | None = None,
) -> Path:
    """Draw where an image's attributes are read, over planes through each map's peak.

    The pixels are put together here: two dozen axes of matplotlib take half a second.

    Args:
        image: shape (C, *S), 2D or 3D; the first channel is shown.
        maps: shape (K, *S), larger is more; each is shown from 0 to its own peak.
        names: of the K maps.
        path: the PNG to write.
        spacing_mm: of the voxels, for the proportions; None: all the same.
    """
    volume = np.asarray(image[0], dtype=np.float32)
    steps = np.ones(volume.ndim) if spacing_mm is None else np.asarray(spacing_mm, dtype=float)
    edges = np.array(volume.shape) * steps
    sides = np.maximum(1, np.rint(edges * PANEL / edges.max())).astype(int)
    low, high = float(volume.min()), float(volume.max())
    grey: Pixels = (volume - low) / ((high - low) or 1.0)
    across = range(volume.ndim)[::-1] if volume.ndim == 3 else [None]
    rows = []
    for heat in maps:
        peak = np.unravel_index(int(heat.argmax()), heat.shape)
        share: Pixels = np.asarray(heat) / (float(heat.max()) or 1.0)
        panels = []
        for axis in across:
            plane, shown, size = grey, share, sides
            if axis is not None:
                here = int(peak[axis])
                plane, shown = np.take(grey, here, axis), np.take(share, here, axis)
                size = np.delete(sides, axis)
            panels.append(_stretched(_veiled(np.rot90(plane), np.rot90(shown)), size[::-1]))
        rows.append(panels)
    titles = ["" if axis is None else ("sagittal", "coronal", "axial")[axis] for axis in across]
    peaks = [float(heat.max()) for heat in maps]
    picture = BytesIO()
    _draw(rows, titles, names, peaks).save(picture, "PNG", compress_level=1)
    write_bytes(path, picture.getvalue())
    return Path(path)


def _veiled(plane: Pixels, heat: Pixels) -> NDArray[np.uint8]:
    """Return a plane in [0, 1] under a map of at most 1, as RGB in bytes."""
    alpha = 0.75 * np.clip(2 * heat, 0, 1)[..., None]  # faint evidence does not veil
    colours = colormaps[EVIDENCE](np.clip(heat, 0, 1))[..., :3]
    return _bytes(plane[..., None] * (1 - alpha) + colours * alpha)


def _bytes(rgb: Pixels) -> NDArray[np.uint8]:
    return (255 * rgb).astype(np.uint8)


def _stretched(pixels: NDArray[np.uint8], size: Sequence[int]) -> NDArray[np.uint8]:
    """Return an image of a given size, each pixel the nearest of the old ones."""
    old = pixels.shape
    rows, columns = (np.arange(n) * old[i] // n for i, n in enumerate(size))
    return pixels[rows[:, None], columns]


def _draw(
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    titles: Sequence[str],
    names: Sequence[str],
    peaks: Sequence[float],
) -> Image.Image:
    """Put panels of RGB on a white page, with their names and a colour bar in each row."""
    height = max(panel.shape[0] for panel in rows[0])
    widths = [panel.shape[1] for panel in rows[0]]
    lefts = LEFT + np.cumsum([0, *widths[:-1]]) + GAP * np.arange(len(widths))
    bar = int(lefts[-1]) + widths[-1] + GAP
    page = Image.new("RGB", (bar + BAR + RIGHT, TOP + len(rows) * (height + GAP)), "white")
    scale = colormaps[EVIDENCE](np.linspace(1, 0, height))[:, None, :3]
    colours = _bytes(np.repeat(scale, BAR, 1))
    for left, width, title in zip(lefts, widths, titles, strict=True):
        _write(page, title, left + width / 2, TOP / 2)
    for number, (panels, name, peak) in enumerate(zip(rows, names, peaks, strict=True)):
        top = TOP + number * (height + GAP)
        for panel, left in zip((*panels, colours), (*lefts, bar), strict=True):
            page.paste(Image.fromarray(panel), (int(left), top))
        label = name if peak > 0 else f"{name}\n(nothing found)"
        _write(page, label, LEFT / 2, top + height / 2, upright=True)
        _write(page, f"{peak:.2g}", bar + BAR + RIGHT / 2, top + FONT.size / 2)
        _write(page, "0", bar + BAR + RIGHT / 2, top + height - FONT.size / 2)
    return page


def _write(page: Image.Image, text: str, x: float, y: float, upright: bool = False) -> None:
    """Write black on white, centred; upright runs from the bottom to the top."""
    box = ImageDraw.Draw(page).multiline_textbbox((0, 0), text, FONT)
    word = Image.new("RGB", (int(box[2]) + 1, int(box[3]) + 1), "white")
    ImageDraw.Draw(word).multiline_text((0, 0), text, "black", FONT, align="center")
    word = word.transpose(Image.Transpose.ROTATE_90) if upright else word
    page.paste(word, (round(x - word.width / 2), round(y - word.height / 2)))


class MapMontaged(MapTransform):
    """Write `plot_maps` of an item's image and maps to `ID_maps.png`; the item passes unchanged.

    Args:
        keys: the maps (K, *S), one key.
        names: of the K maps.
        output_dir: where the PNG goes, in a folder named by the item's id.
        image_key: the image (C, *S) on the maps' grid.
        spacing_mm: of that grid, one number or one per axis.
    """

    def __init__(
        self,
        keys: KeysCollection,
        names: Sequence[str],
        output_dir: str | Path,
        image_key: str = "image",
        spacing_mm: Sequence[float] | float = 1.0,
    ) -> None:
        super().__init__(keys)
        self.names = tuple(names)
        self.output_dir = Path(output_dir)
        self.image_key = image_key
        self.spacing_mm = spacing_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the picture and return the item."""
        name = file_stem(data["id"])
        for key in self.keys:
            maps, image = (np.asarray(data[k]) for k in (key, self.image_key))
            spacing = ensure_tuple_rep(self.spacing_mm, image.ndim - 1)
            plot_maps(image, maps, self.names, self.output_dir / name / f"{name}_maps.png", spacing)
        return dict(data)
