"""The montage of maps: the right voxel in the right place, in the body's proportions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from medvae.report import plot_maps
from medvae.report.map_montage import BAR, GAP, LEFT, PANEL, RIGHT, TOP

PEAK = np.round(0.75 * 255 * np.array(colormaps["inferno"](1.0)[:3]))


def drawn(path: Path, spatial_dims: int, spacing_mm: list[float] | None = None) -> np.ndarray:
    """Draw a black image with one white corner, a map with one voxel, and a map of nothing."""
    image = np.zeros((1, *[6] * spatial_dims), dtype=np.float32)
    image.flat[0] = 7.0
    maps = np.zeros((2, *[6] * spatial_dims), dtype=np.float32)
    maps[(0, 1, 2, 4)[: spatial_dims + 1]] = 3.0
    plot_maps(image, maps, ["one", "nothing"], path / "maps.png", spacing_mm)
    return np.asarray(Image.open(path / "maps.png").convert("RGB"), dtype=float)


def test_planes_through_the_peak_lie_as_in_the_body(tmp_path):
    page = drawn(tmp_path, 3)
    assert page.shape == (TOP + 2 * (PANEL + GAP), LEFT + 3 * (PANEL + GAP) + BAR + RIGHT, 3)
    planes = {0: (1, 2), 1: (1, 4), 2: (2, 4)}  # axial, coronal, sagittal: to the right, and up
    for column, (right, up) in planes.items():
        left = LEFT + column * (PANEL + GAP)
        panel = page[TOP : TOP + PANEL, left : left + PANEL]
        hot = np.abs(panel - PEAK).max(-1) <= 1
        rows, columns = np.nonzero(hot)
        assert (columns.min(), columns.max() + 1) == (30 * right, 30 * right + 30)
        assert (rows.min(), rows.max() + 1) == (180 - 30 * up - 30, 180 - 30 * up)
        assert panel[~hot].max() == 0  # the image is black there
        nothing = page[TOP + PANEL + GAP :][:PANEL, left : left + PANEL]
        assert np.ptp(nothing, axis=-1).max() == 0  # grey
    below = page[TOP + PANEL + GAP :][:PANEL]  # through voxel 0, and so through the white corner
    assert (below[PANEL - 30 :, LEFT : LEFT + 30] == 255).all()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_proportions_are_those_of_the_voxels(tmp_path, spatial_dims):
    page = drawn(tmp_path, spatial_dims, [1.0, 2.0, 2.0][:spatial_dims])
    panel = page[TOP : TOP + PANEL, LEFT : LEFT + PANEL // 2]
    rows, columns = np.nonzero(np.abs(panel - PEAK).max(-1) <= 1)
    assert (len(set(columns)), len(set(rows))) == (15, 30)
