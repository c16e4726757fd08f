"""How far the mesh of medvae.attributes lies from pyradiomics' on a cohort of masks.

    python tests/benchmarks/compare_mesh.py ../shared/data/nodules/subjects.csv

Prints the relative differences of area and volume, whose cause is the triangulation: pyradiomics'
depends on the order of the axes. Needs the test requirements.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import SimpleITK as sitk
from radiomics.shape import RadiomicsShape
from tqdm import tqdm

from medvae.attributes import measure
from medvae.report.tables import markdown_table

NAMES = {"surface_area_mm2": "SurfaceArea", "mesh_volume_ml": "MeshVolume"}


def by_pyradiomics(mask: np.ndarray, spacing: tuple[float, ...]) -> dict[str, float]:
    """Return area and volume under our names and in our units."""
    image = sitk.GetImageFromArray(np.pad(mask.astype(np.uint8), 1).T)
    image.SetSpacing(spacing)
    shape = RadiomicsShape(image, image, label=1)
    shape.enableAllFeatures()
    found = shape.execute()
    values = {ours: float(found[theirs]) for ours, theirs in NAMES.items()}
    return values | {"mesh_volume_ml": values["mesh_volume_ml"] / 1000}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", type=Path, help="a CSV with a column mask")
    arguments = parser.parse_args()
    logging.getLogger("radiomics").setLevel(logging.ERROR)
    differences: dict[str, list[float]] = {name: [] for name in NAMES}
    for cell in tqdm(pd.read_csv(arguments.table)["mask"], unit="mask"):
        file = nib.load(arguments.table.parent / cell)
        mask = np.asarray(file.dataobj) != 0
        spacing = tuple(float(s) for s in file.header.get_zooms()[:3])
        ours = measure(None, mask, spacing, list(NAMES))
        theirs = by_pyradiomics(mask, spacing)
        for name in NAMES:
            differences[name].append(abs(ours[name] / theirs[name] - 1))
    rows = []
    for name, d in differences.items():
        share = np.mean(np.array(d) > 0.02)
        rows.append([name, str(len(d)), f"{np.median(d):.2%}", f"{np.max(d):.2%}", f"{share:.2%}"])
    print(markdown_table(["difference", "masks", "median", "largest", "above 2 %"], rows))


if __name__ == "__main__":
    main()
