"""The embedded example cohort: phantom hearts whose factors, effects and counterfactuals are known.

`sample_factors` draws the patients, `render` an image of one, `phantoms` writes a whole cohort as
NIfTI files and a table, so that it takes the same path as a user's own.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from scipy.special import expit, ndtr
from tqdm.auto import tqdm

from medvae.data.errors import CohortError
from medvae.data.output import check_writable, write_text
from medvae.data.phantom_image import FIELD_OF_VIEW_MM, heart_axes, render
from medvae.data.phantom_shape import (
    SIZE_NAME,
    Array,
    PhantomFactors,
    bounding_points,
    end_systolic,
    middle,
    shape_of,
    true_attributes,
)
from medvae.data.subjects import load_subjects

__all__ = [
    "PhantomFactors",
    "end_systolic",
    "phantoms",
    "render",
    "sample_factors",
    "true_attributes",
]

VERSION = 1  # to be raised when the same arguments no longer give the same bits
LV_SIZES = {2: (260.0, 2200.0), 3: (11.5, 60.0)}
RV_SIZES = {2: (240.0, 800.0), 3: (10.0, 34.0)}
WALL_MM = (6.0, 12.5)
HEART_TILT, SCAN_TILT = 0.15, 0.25  # largest rotation about each axis, in radians
JITTER_MM, MARGIN_MM = 3.0, 3.0
MISSING_RATE = 0.05


def sample_factors(
    n: int, spatial_dims: int = 3, confounding: float = 0.0, seed: int = 0
) -> list[PhantomFactors]:
    """Draw the factors of a cohort.

    Each row depends on `seed` and its number alone: a longer cohort starts with the shorter one,
    2D and 3D hold the same patients, and `confounding` changes nothing but the scanner.

    The factors' standardised values correlate (Gaussian copula): the left ventricle's size with
    wall thickness (-0.55, so that the myocardium's size follows neither closely), ejection fraction
    (-0.4), the right ventricle's size (0.4) and male sex (0.25); wall thickness with length ratio
    (-0.4) and age (0.4). The log odds of the diagnosis are
    ``2.8 wall_thickness - 1.4 ejection_fraction``: without confounding no classifier exceeds an AUC
    of 0.913, and none that sees end-diastole only, where the ejection fraction is hidden, 0.863.

    Args:
        n: Number of rows.
        spatial_dims: 2 or 3.
        confounding: In [0, 1]; the scanner is B for the ill and A for the healthy with probability
            ``(1 + confounding) / 2``, otherwise the other way round.
        seed: Not negative.

    Returns:
        The factors; every sixteenth row is a second scan of the patient of the row before.

    Raises:
        CohortError: If an argument is out of its range.
    """
    for name, value, valid, expected in (
        ("n", n, n >= 1, "at least 1"),
        ("spatial_dims", spatial_dims, spatial_dims in (2, 3), "2 or 3"),
        ("confounding", confounding, 0 <= confounding <= 1, "a number from 0 to 1"),
        ("seed", seed, seed >= 0, "at least 0"),
    ):
        if not valid:
            raise CohortError(f"The phantoms' {name} is {value}; expected {expected}.")
    return [_sample(spatial_dims, confounding, seed, index) for index in range(n)]


def phantoms(
    root: str | Path,
    n: int,
    spatial_dims: int = 3,
    confounding: float = 0.0,
    seed: int = 0,
    end_systole: bool = False,
    progress: bool = False,
) -> pd.DataFrame:
    """Write a phantom cohort as NIfTI files and a table, or reuse the one that is there.

    Args:
        root: Folder that receives ``images/ID.nii.gz``, ``masks/ID.nii.gz``, ``phantoms.json`` (the
            arguments) and, last of all, ``subjects.csv``.
        n: Number of rows.
        spatial_dims: 2 or 3.
        confounding: How much the scanner tells of the diagnosis, see `sample_factors`.
        seed: Same arguments, same bits.
        end_systole: Whether to write a second phase (columns `image_es`, `mask_es`).
        progress: Whether to show a bar.

    Returns:
        The table as `load_subjects` reads it from ``subjects.csv``: id, patient, files, age, sex,
        scanner, diagnosis; what a report would state (three sizes, wall thickness, ejection
        fraction), the last three with about 5 % of empty cells; and the complete truth, a column
        `true_NAME` for every name of `true_attributes`.

    Raises:
        CohortError: If an argument is out of its range, or `root` cannot be written to or holds
            something else.
    """
    folder, csv = Path(root), Path(root) / "subjects.csv"
    arguments = {
        "version": VERSION,
        "n": n,
        "spatial_dims": spatial_dims,
        "confounding": float(confounding),
        "seed": seed,
        "end_systole": end_systole,
    }
    subjects = sample_factors(n, spatial_dims, confounding, seed)
    _check_folder(folder, arguments)
    if not csv.exists():
        write_text(folder / "phantoms.json", json.dumps(arguments, indent=2) + "\n")
        for kind in ("images", "masks"):
            (folder / kind).mkdir(exist_ok=True)
        rows = []
        for index, factors in enumerate(tqdm(subjects, "phantoms", disable=not progress)):
            files = _write_phases(folder, f"phantom{index:04d}", factors, end_systole)
            rows.append(files | _cells(factors, np.random.default_rng([seed, index, 2])))
        write_text(csv, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g"))
    return load_subjects(csv)


def _mix(correlation: float, z: float, own: float) -> float:
    """Return a standard normal number of given correlation with `z`."""
    return correlation * z + float(np.sqrt(1 - correlation**2)) * own


def _between(low: float, high: float, z: float) -> float:
    """Map a standard normal number to a uniform one."""
    return low + (high - low) * float(ndtr(z))


def _between_log(limits: tuple[float, float], z: float) -> float:
    low, high = np.log(limits)
    return float(np.exp(_between(low, high, z)))


def _sample(spatial_dims: int, confounding: float, seed: int, index: int) -> PhantomFactors:
    # Every sixteenth row is the patient of the row before, scanned again: same heart, new scan.
    person = index - 1 if index % 16 == 15 else index
    rng, scan = np.random.default_rng([seed, person, 0]), np.random.default_rng([seed, index, 1])
    z, (sex, risk, bend) = rng.standard_normal(7), rng.random(3)
    z_size = _mix(0.25, 1 if sex < 0.5 else -1, z[0])
    z_wall, z_ejection = _mix(-0.55, z_size, z[1]), _mix(-0.4, z_size, z[2])
    diagnosis = int(risk < expit(2.8 * z_wall - 1.4 * z_ejection))
    agrees = scan.random() < (1 + confounding) / 2
    tilts = [scan.uniform(-largest, largest, 3) for largest in (SCAN_TILT, HEART_TILT)]
    factors = PhantomFactors(
        spatial_dims=spatial_dims,
        patient=f"patient{person:04d}",
        age=int(np.clip(np.rint(57 + 11 * _mix(0.4, z_wall, z[3])), 20, 95)),
        sex="M" if sex < 0.5 else "F",
        diagnosis=diagnosis,
        scanner="AB"[diagnosis if agrees else 1 - diagnosis],
        lv_size=_between_log(LV_SIZES[spatial_dims], z_size),
        wall_thickness_mm=_between(*WALL_MM, z_wall),
        lv_length_ratio=_between(1.1, 2.35, _mix(-0.4, z_wall, z[4])),
        rv_size=_between_log(RV_SIZES[spatial_dims], _mix(0.4, z_size, z[5])),
        lv_intensity=_between(0.4, 0.95, z[6]),
        ejection_fraction=float(np.clip(0.52 + 0.09 * z_ejection, 0.2, 0.75)),
        bend_per_mm=0.018 * bend - 0.009,
        scan_rotation=tuple(tilts[0].tolist()),
        heart_rotation=tuple(tilts[1].tolist()),
        offset_mm=(),
        texture_seed=int(rng.integers(2**31)),
        noise_seed=int(scan.integers(2**31)),
    )
    return _placed(factors, scan.uniform(-1, 1, spatial_dims))


def _placed(factors: PhantomFactors, jitter: Array) -> PhantomFactors:
    """Move the heart near the centre of the field of view, entirely inside it."""
    shape, widest = shape_of(factors), FIELD_OF_VIEW_MM - 2 * MARGIN_MM
    points = bounding_points(shape) - middle(shape)
    if np.ptp(points, axis=0).max() > widest:  # one heart in a few hundred: large, long and thick
        shorter = dataclasses.replace(factors, lv_length_ratio=0.97 * factors.lv_length_ratio)
        return _placed(shorter, jitter)
    points = points @ heart_axes(factors).T
    low, high = points.min(axis=0), points.max(axis=0)
    room = np.clip((widest - (high - low)) / 2, 0, JITTER_MM)
    offset = jitter * room - (low + high) / 2
    return dataclasses.replace(factors, offset_mm=tuple(offset.tolist()))


def _check_folder(folder: Path, arguments: dict[str, Any]) -> None:
    """Refuse a folder with anything but nothing or (part of) the same cohort."""
    check_writable(folder)
    recipe = folder / "phantoms.json"
    if recipe.exists():
        try:
            found = json.loads(recipe.read_text(encoding="utf-8"))
        except ValueError:
            found = "an unreadable phantoms.json"
        if found != arguments:
            raise CohortError(
                f"The folder '{folder}' holds another phantom cohort, {found}; "
                f"expected an empty folder or one with {arguments}."
            )
        return
    for name in ("subjects.csv", "images", "masks"):
        if (folder / name).exists():
            raise CohortError(
                f"The folder '{folder}' holds '{name}' but no phantoms.json; "
                "expected an empty folder or a phantom cohort."
            )


def _write_phases(
    folder: Path, name: str, factors: PhantomFactors, end_systole: bool
) -> dict[str, str]:
    """Write a subject's images and masks and return the first cells of its row."""
    cells = {"id": name, "patient": factors.patient}
    phases = {"": factors} | ({"_es": end_systolic(factors)} if end_systole else {})
    for suffix, phase in phases.items():
        image, mask, affine = render(phase)
        for kind, voxels in (("image", image), ("mask", mask)):
            cells[kind + suffix] = f"{kind}s/{name}{suffix}.nii.gz"
            nifti = nib.Nifti1Image(voxels, affine)
            nifti.set_sform(affine, code=1)
            nifti.set_qform(affine, code=1)
            nifti.header.set_xyzt_units("mm")
            nib.save(nifti, folder / cells[kind + suffix])
    return cells


def _cells(factors: PhantomFactors, rng: np.random.Generator) -> dict[str, Any]:
    truth, size = true_attributes(factors), SIZE_NAME[factors.spatial_dims]
    sizes = {part: truth[f"{part}_{size}"] for part in ("lv", "myocardium", "rv")}
    report = {f"{part}_{size.split('_', 1)[1]}": value for part, value in sizes.items()}
    report["wall_thickness_mm"] = factors.wall_thickness_mm
    report["ejection_fraction"] = factors.ejection_fraction
    for name, draw in zip(list(report)[2:], rng.random(3), strict=True):
        report[name] = np.nan if draw < MISSING_RATE else report[name]
    persons = {name: getattr(factors, name) for name in ("age", "sex", "scanner", "diagnosis")}
    return persons | report | {f"true_{name}": value for name, value in truth.items()}
