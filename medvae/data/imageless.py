"""Subjects of whom nothing but the table is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from medvae.data.errors import CohortError
from medvae.data.output import check_writable, write_bytes
from medvae.data.subjects import read_table

__all__ = ["imageless", "lend_grid"]


def imageless(subjects: str | Path | pd.DataFrame) -> list[str]:
    """The ids of the rows of a table, or of its CSV, without an image."""
    table = _table(subjects)
    return table["id"][table["image"].isna()].astype(str).str.strip().tolist()


def lend_grid(
    subjects: str | Path | pd.DataFrame,
    folder: str | Path,
    size: Sequence[int] | int,
    spacing_mm: Sequence[float] | float | None,
    spatial_dims: int = 3,
    in_channels: int = 1,
) -> str | Path | pd.DataFrame:
    """Give every row without an image a file on the network's grid, for its place alone.

    The file is `network_grid.nii`, of the network's size and spacing along the axes of RAS, the
    corner at the origin; its mask is the whole grid. It is written where a row needs it.

    Args:
        subjects: a CSV or table, see :func:`medvae.data.load_subjects`; cells of `image` may be
            empty, or the column missing.
        folder: where the file goes.
        size: voxels of the network's images, one number or one per axis.
        spacing_mm: of its grid, one number or one per axis; None: 1 mm.
        spatial_dims: 2 or 3.
        in_channels: channels of its images.

    Returns:
        The table with absolute paths, or `subjects` as they are where all have images.

    Raises:
        CohortError: no such table, one without ids, or a folder that cannot be written to.
    """
    table = _table(subjects)
    empty = table["image"].isna()
    if not empty.any():
        return subjects
    root = Path() if isinstance(subjects, pd.DataFrame) else Path(subjects).parent
    lent = {name: Path(folder).absolute() / f"network_{name}.nii" for name in ("grid", "mask")}
    sizes = (size,) * spatial_dims if isinstance(size, int) else tuple(size)
    step = 1.0 if spacing_mm is None else spacing_mm
    steps = (step,) * spatial_dims if isinstance(step, int | float) else tuple(step)
    affine = np.diag([*steps, *[1.0] * (4 - len(steps))])
    shape = (*sizes, in_channels) if in_channels > 1 else sizes
    ramp = np.arange(np.prod(shape), dtype=np.float32)  # an image must vary
    check_writable(folder)
    _write(lent["grid"], ramp.reshape(shape), affine)
    _write(lent["mask"], np.ones(sizes, dtype=np.float32), affine)
    for column, name in (("image", "grid"), ("mask", "mask")):
        paths = [cell if pd.isna(cell) else str(root.absolute() / cell) for cell in table[column]]
        table[column] = pd.Series(paths, table.index, dtype=object).mask(empty, str(lent[name]))
    return table


def _table(subjects: str | Path | pd.DataFrame) -> pd.DataFrame:
    table = subjects.copy() if isinstance(subjects, pd.DataFrame) else read_table(subjects)
    if "id" not in table:
        raise CohortError("Column 'id' is not in the table; expected a name of every row.")
    return table.assign(**{name: np.nan for name in ("image", "mask") if name not in table})


def _write(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    write_bytes(path, nib.Nifti1Image(voxels, affine).to_bytes())
