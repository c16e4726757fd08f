"""The embedded example cohort: heart-like scenes whose attributes are known analytically.

The left ventricle is all points nearer than a radius to a circular arc (a bent capsule), the
myocardium its exact offset by the wall thickness, the right ventricle a crescent on one side of the
epicardium. While the radius stays below the arc's own, Pappus' theorem gives sizes that the bend
leaves untouched: ``size(r) = w[d-1] r^(d-1) length + w[d] r^d``, w[d] the d-dimensional unit ball's.
What has no closed form is integrated over the arc's normals by Gauss quadrature. The 2D cohort is
the long-axis plane of the same construction.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.optimize import brentq
from scipy.spatial.transform import Rotation
from scipy.special import expit, ndtr
from tqdm.auto import tqdm

from medvae.data.errors import CohortError
from medvae.data.output import check_writable, write_text
from medvae.data.subjects import read_table

__all__ = [
    "PhantomFactors",
    "end_systolic",
    "phantoms",
    "render",
    "sample_factors",
    "true_attributes",
]

Array = NDArray[np.float64]
Field = NDArray[np.float32]

VERSION = 1  # to be raised when the same arguments no longer give the same bits
FIELD_OF_VIEW_MM = 96.0
RIGHT_VENTRICLE, MYOCARDIUM, LEFT_VENTRICLE = 1, 2, 3  # mask labels, as in ACDC
MYOCARDIUM_SIGNAL, RV_SIGNAL = 0.22, 0.70  # fat is 1
RV_END = 0.25  # cosine of the angle from the septum's middle at which the crescent ends
SIZE_NAME = {2: "pixel_area_mm2", 3: "voxel_volume_ml"}  # as medvae.attributes names them
CUBIC_MM = {2: 1.0, 3: 1000.0}  # mm^d in the unit of a size
LV_SIZES = {2: (260.0, 2200.0), 3: (10.5, 58.0)}
RV_SIZES = {2: (150.0, 500.0), 3: (8.0, 30.0)}
WALL_MM = (6.0, 13.0)
HEART_TILT, SCAN_TILT = 0.12, 0.25  # largest rotation about each axis, in radians
JITTER_MM = 3.0
BIAS = 0.025
UNIT_BALL = {1: 2.0, 2: np.pi, 3: 4 * np.pi / 3}
# Columns: directions to the right ventricle, to the apex, normal to both, in the voxel grid
NOMINAL_POSE = {2: np.eye(2), 3: np.array([[-1.0, 0, 0], [0, 0, -1.0], [0, -1.0, 0]])}
PARTS = ("lv", "myocardium", "rv")
MISSING_RATE = 0.05


class Scanner(NamedTuple):
    """How an image is acquired; stored values are ``1000 * signal ** gamma``."""

    spacing_mm: dict[int, tuple[float, ...]]
    flips: tuple[int, ...]
    blur_mm: float
    noise: float
    gamma: float


SCANNERS = {
    "A": Scanner({2: (1.5, 2.0), 3: (2.0, 2.0, 2.5)}, (1, 1, 1), 0.8, 0.02, 1.0),
    "B": Scanner({2: (2.0, 3.0), 3: (2.0, 2.0, 4.0)}, (-1, -1, 1), 1.4, 0.03, 0.9),
}


@dataclass(frozen=True)
class PhantomFactors:
    """All that determines one image: `dataclasses.replace` and `render` give counterfactuals.

    Attributes:
        lv_size: Cavity of the left ventricle in ml (3D) or mm² (2D); `rv_size` likewise.
        lv_length_ratio: Length of that cavity over its diameter, at least 1.
        lv_intensity: Signal of its blood before bias field, noise and the scanner's curve; fat
            is 1, air 0.
        ejection_fraction: In [0, 1); seen in the end-systolic phase only.
        bend_per_mm: Curvature of the cavity's axis, positive towards the right ventricle.
        scan_rotation: Of the voxel grid in the patient, a rotation vector in radians; 2D uses its
            last component. The scan is planned on the heart, so the heart turns with it.
        heart_rotation: Of the heart in the voxel grid, likewise.
        offset_mm: Middle of the cavity's axis in the voxel grid, from the field of view's centre.
        texture_seed: Determines the surroundings, the texture and the bias field.
        noise_seed: Determines the noise.
    """

    spatial_dims: int
    patient: str
    age: int
    sex: str
    diagnosis: int
    scanner: str
    lv_size: float
    wall_thickness_mm: float
    lv_length_ratio: float
    rv_size: float
    lv_intensity: float
    ejection_fraction: float
    bend_per_mm: float
    scan_rotation: tuple[float, float, float]
    heart_rotation: tuple[float, float, float]
    offset_mm: tuple[float, ...]
    texture_seed: int
    noise_seed: int


class _Shape(NamedTuple):
    """The lengths in mm that realise a subject's factors; `arc` is the signed radius of the arc."""

    length: float
    arc: float
    inner: float
    outer: float
    rv_width: float


class _Normals(NamedTuple):
    """Quadrature nodes (N,): where a unit normal leaves the arc, its components, its weight.

    The volume element along a normal is ``rho^(power - 1) (1 - bend normal rho)``.
    """

    s: Array
    normal: Array  # towards the right ventricle
    tangent: Array
    binormal: Array
    weight: Array
    power: Array
    bend: Array


def _capsule_size(radius: float, length: float, dims: int) -> float:
    tube = UNIT_BALL[dims - 1] * radius ** (dims - 1) * length
    return float(tube + UNIT_BALL[dims] * radius**dims) / CUBIC_MM[dims]


def _gauss(low: float, high: float, nodes: int) -> tuple[Array, Array]:
    x, weight = np.polynomial.legendre.leggauss(nodes)
    return low + (x + 1) * (high - low) / 2, weight * (high - low) / 2


def _normals(length: float, arc: float, dims: int) -> _Normals:
    """Return the normals of the arc and of its two round ends."""
    turns = 64 if dims == 3 else 2  # directions around the axis
    theta = np.arange(turns)[:, None] * 2 * np.pi / turns
    turn = 2 * np.pi / turns if dims == 3 else 1.0
    parts = []
    s, ds = _gauss(0, length, 12)
    parts.append((s, np.cos(theta), 0, np.sin(theta), ds * turn, dims - 1, 1 / arc))
    polar, d_polar = _gauss(0, np.pi / 2, 24)
    side, weight = np.sin(polar), d_polar * np.sin(polar) ** (dims - 2) * turn
    for end, sign in ((0.0, -1), (length, 1)):
        parts.append(
            (end, side * np.cos(theta), sign * np.cos(polar), side * np.sin(theta), weight, dims, 0)
        )
    flat = [[a.ravel() for a in np.broadcast_arrays(*part)] for part in parts]
    return _Normals(*(np.concatenate(column) for column in zip(*flat, strict=True)))


def _rv_profile(normal: Any, along: Any) -> Any:
    """Return the crescent's relative width; `along` is -1 at the base and 1 at the apex."""
    return np.maximum(normal - RV_END, 0) / (1 - RV_END) * (1 - 0.4 * along)


def _along(s: Any, tangent: Any, length: float, outer: float) -> Any:
    return (s - length / 2 + outer * tangent) / (length / 2 + outer)


def _integral(normals: _Normals, rho: Any) -> Any:
    """Return the volume element's integral from 0 to `rho`."""
    p = normals.power
    return rho**p / p - normals.bend * normals.normal * rho ** (p + 1) / (p + 1)


def _shape(factors: PhantomFactors) -> _Shape:
    """Solve for the lengths that give the factors' sizes."""
    dims = factors.spatial_dims
    ratio = 2 * (factors.lv_length_ratio - 1)
    inner = (factors.lv_size / _capsule_size(1.0, ratio, dims)) ** (1 / dims)
    length, outer = ratio * inner, inner + factors.wall_thickness_mm
    # A straight axis is an arc of 10 m: float32 still resolves it.
    arc = 1 / factors.bend_per_mm if abs(factors.bend_per_mm) > 1e-4 else 1e4
    normals = _normals(length, arc, dims)
    profile = _rv_profile(normals.normal, _along(normals.s, normals.tangent, length, outer))

    def excess(width: float) -> float:
        shell = _integral(normals, outer + width * profile) - _integral(normals, outer)
        return float(shell @ normals.weight) / CUBIC_MM[dims] - factors.rv_size

    widest = min((abs(arc) - outer) / profile.max(), 100.0)
    if widest <= 0 or factors.rv_size <= 0 or excess(widest) < 0:
        raise ValueError(
            f"rv_size is {factors.rv_size:g}, expected a positive size that fits around an outer "
            f"radius of {outer:.1f} mm and an axis bent by {factors.bend_per_mm:g} per mm."
        )
    return _Shape(length, arc, inner, outer, brentq(excess, 0.0, widest, xtol=1e-9))


def _place(arc: float, s: Any, normal: Any, tangent: Any, binormal: Any, dims: int) -> Array:
    """Return heart coordinates (N, d) of offsets from the point at arc length `s`."""
    sign, radius = np.sign(arc), abs(arc)
    cosine, sine = np.cos(s / radius), np.sin(s / radius)
    to_rv = arc * (1 - cosine) + normal * cosine + tangent * sign * sine
    to_apex = radius * sine - normal * sign * sine + tangent * cosine
    return np.stack([np.broadcast_to(a, np.shape(s)) for a in (to_rv, to_apex, binormal)][:dims], -1)


def _elongation(shape: _Shape, dims: int) -> float:
    normals = _normals(shape.length, shape.arc, dims)
    points, weights = [], []
    for rho, d_rho in zip(*_gauss(0, shape.inner, 6), strict=True):
        points.append(_on_normals(normals, shape.arc, rho, dims))
        density = rho ** (normals.power - 1) * (1 - normals.bend * normals.normal * rho)
        weights.append(normals.weight * density * d_rho)
    covariance = np.cov(np.concatenate(points).T, aweights=np.concatenate(weights), ddof=0)
    eigenvalues = np.linalg.eigvalsh(covariance)
    return float(np.sqrt(eigenvalues[-2] / eigenvalues[-1]))


def _on_normals(normals: _Normals, arc: float, rho: Any, dims: int) -> Array:
    offsets = (rho * normals.normal, rho * normals.tangent, rho * normals.binormal)
    return _place(arc, normals.s, *offsets, dims)


def true_attributes(factors: PhantomFactors) -> dict[str, float]:
    """Return the analytic attributes of a subject at end-diastole.

    Args:
        factors: The subject.

    Returns:
        Values by the names that `medvae.attributes.measure_labels` gives them with the labels
        ``{"rv": 1, "myocardium": 2, "lv": 3}``, and `ejection_fraction`. `lv_elongation` is the root of
        the ratio of the second to the first eigenvalue of the cavity's covariance.
        `lv_intensity_mean` is the factor `lv_intensity`: scanner A stores 1000 times it, scanner B
        1000 times its power 0.85, and the average over the mask is lower by the blurred rim.
    """
    dims, size = factors.spatial_dims, SIZE_NAME[factors.spatial_dims]
    shape = _shape(factors)
    return {
        f"lv_{size}": factors.lv_size,
        f"myocardium_{size}": _capsule_size(shape.outer, shape.length, dims) - factors.lv_size,
        "myocardium_wall_thickness_mm": factors.wall_thickness_mm,
        f"rv_{size}": factors.rv_size,
        "lv_elongation": _elongation(shape, dims),
        "lv_intensity_mean": factors.lv_intensity,
        "ejection_fraction": factors.ejection_fraction,
    }


def end_systolic(factors: PhantomFactors) -> PhantomFactors:
    """Return the same subject at end-systole.

    Both cavities have shrunk by the ejection fraction, at unchanged proportions, and the wall has
    thickened so that the myocardium keeps its size; the noise is new.
    """
    dims, shape = factors.spatial_dims, _shape(factors)
    left = 1 - factors.ejection_fraction
    inner, length = shape.inner * left ** (1 / dims), shape.length * left ** (1 / dims)
    total = _capsule_size(shape.outer, shape.length, dims) - factors.lv_size * (1 - left)
    outer = brentq(lambda r: _capsule_size(r, length, dims) - total, inner, 3 * shape.outer)
    return dataclasses.replace(
        factors,
        lv_size=factors.lv_size * left,
        rv_size=factors.rv_size * left,
        wall_thickness_mm=outer - inner,
        noise_seed=factors.noise_seed + 1,
    )


def _rotation(vector: tuple[float, ...], dims: int) -> Array:
    rotvec = vector if dims == 3 else (0.0, 0.0, vector[-1])
    return Rotation.from_rotvec(rotvec).as_matrix()[:dims, :dims]


def _between(low: float, high: float, z: float) -> float:
    """Map a standard normal number to a uniform one."""
    return low + (high - low) * float(ndtr(z))


def _mix(correlation: float, z: float, own: float) -> float:
    return correlation * z + float(np.sqrt(1 - correlation**2)) * own


def _sample(spatial_dims: int, confounding: float, seed: int, index: int) -> PhantomFactors:
    # Every sixteenth row is the patient of the row before, scanned again: same heart, new scan.
    person = index - 1 if index % 16 == 15 else index
    rng, scan = np.random.default_rng([seed, person, 0]), np.random.default_rng([seed, index, 1])
    z, (sex, risk, bend) = rng.standard_normal(8), rng.random(3)
    z_size = _mix(0.25, 1 if sex < 0.5 else -1, z[0])
    z_wall = _mix(-0.55, z_size, z[1])  # keeps the myocardium's size from following the wall
    z_ejection = _mix(-0.4, z_size, z[2])
    diagnosis = int(risk < expit(2.0 * z_wall - 1.5 * z_ejection))
    agrees = scan.random() < (1 + confounding) / 2
    factors = PhantomFactors(
        spatial_dims=spatial_dims,
        patient=f"patient{person:04d}",
        age=int(np.clip(np.rint(57 + 11 * _mix(0.4, z_wall, z[3])), 20, 95)),
        sex="M" if sex < 0.5 else "F",
        diagnosis=diagnosis,
        scanner="AB"[diagnosis if agrees else 1 - diagnosis],
        lv_size=float(np.exp(_between(*np.log(LV_SIZES[spatial_dims]), z_size))),
        wall_thickness_mm=_between(*WALL_MM, z_wall),
        lv_length_ratio=_between(1.1, 2.4, _mix(-0.35, z_size, z[4])),
        rv_size=float(np.exp(_between(*np.log(RV_SIZES[spatial_dims]), _mix(0.4, z_size, z[5])))),
        lv_intensity=_between(0.4, 0.95, z[6]),
        ejection_fraction=float(np.clip(0.52 + 0.09 * z_ejection, 0.2, 0.75)),
        bend_per_mm=0.018 * bend - 0.009,
        texture_seed=int(rng.integers(2**31)),
        scan_rotation=tuple(scan.uniform(-SCAN_TILT, SCAN_TILT, 3).tolist()),
        heart_rotation=tuple(scan.uniform(-HEART_TILT, HEART_TILT, 3).tolist()),
        noise_seed=int(scan.integers(2**31)),
        offset_mm=(0.0,) * spatial_dims,
    )
    return dataclasses.replace(factors, offset_mm=_offset(factors, scan.uniform(-1, 1, spatial_dims)))


def _offset(factors: PhantomFactors, jitter: Array) -> tuple[float, ...]:
    """Return a position near the centre at which the heart lies inside the field of view."""
    dims, shape = factors.spatial_dims, _shape(factors)
    normals = _normals(shape.length, shape.arc, dims)
    along = _along(normals.s, normals.tangent, shape.length, shape.outer)
    rho = shape.outer + shape.rv_width * _rv_profile(normals.normal, along)
    surface = _on_normals(normals, shape.arc, rho, dims) - _middle(shape, dims)
    on_grid = surface @ _heart_axes(factors).T
    low, high = on_grid.min(0), on_grid.max(0)
    room = np.clip((FIELD_OF_VIEW_MM - (high - low)) / 2 - 3, 0, JITTER_MM)
    return tuple((jitter * room - (low + high) / 2).tolist())


def _middle(shape: _Shape, dims: int) -> Array:
    return _place(shape.arc, shape.length / 2, 0.0, 0.0, 0.0, dims)


def _heart_axes(factors: PhantomFactors) -> Array:
    dims = factors.spatial_dims
    return _rotation(factors.heart_rotation, dims) @ NOMINAL_POSE[dims]


def sample_factors(
    n: int, spatial_dims: int = 3, confounding: float = 0.0, seed: int = 0
) -> list[PhantomFactors]:
    """Draw the factors of a cohort.

    Row by row the result depends on `seed` alone: a longer cohort starts with the shorter one, 2D and
    3D cohorts hold the same patients, and `confounding` changes nothing but the scanner.

    Dependencies: the logarithm of the left ventricle's size falls with wall thickness (Gaussian
    copula, -0.5) and ejection fraction (-0.4) and rises with the right's (0.4) and in men (0.25); age
    rises with wall thickness (0.4). The diagnosis has the log odds ``2 z_wall - 1.5 z_ejection`` of
    the standardised factors, whose Bayes AUC is BAYES (BAYESIMG without the ejection fraction).

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
            raise CohortError(f"The phantoms' {name} is {value}, expected {expected}.")
    return [_sample(spatial_dims, confounding, seed, index) for index in range(n)]


def _transform(matrix: Array, axes: list[Field], shift: Array) -> list[Field]:
    """Return `matrix @ x + shift` at every grid point x, one array per component."""
    rows = zip(matrix.astype(np.float32), shift.astype(np.float32), strict=True)
    return [sum((m * x for m, x in zip(row, axes, strict=True)), start=b) for row, b in rows]


def _inside(distance: Field, width: float) -> Field:
    """Return the part of a voxel within a surface at a signed distance, negative inside."""
    return np.clip(0.5 - distance / np.float32(width), 0, 1)


def _waves(rng: np.random.Generator, axes: list[Field], order: int) -> Field:
    """Return a random cosine series of unit variance without a constant term."""
    field = rng.standard_normal((order,) * len(axes)).astype(np.float32)
    field.flat[0] = 0
    field /= np.linalg.norm(field)
    for axis in axes:
        phase = np.pi * (axis.reshape(-1, 1) / FIELD_OF_VIEW_MM + 0.5)
        basis = np.cos(phase * np.arange(order)) * np.where(np.arange(order) > 0, np.sqrt(2), 1)
        field = np.tensordot(field, basis.astype(np.float32), axes=(0, 1))
    return field


def _body(rng: np.random.Generator, axes: list[Field], at: list[Field], width: float) -> Field:
    """Return lung, tissue behind it, an organ below, a vessel and the fat of the chest wall."""
    shift = rng.uniform(-4, 4, 5).astype(np.float32)
    across, front, below = at[0], at[1], at[-1 if len(at) == 3 else 0]
    parts = (
        (front + 30 + shift[2], 0.45),
        (below + 32 + shift[3], 0.50),
        (np.hypot(across + 14 + shift[0], front + 38 + shift[1]) - 7, 0.75),
        (36 + shift[4] - front, 1.0),
    )
    signal = np.full(np.broadcast_shapes(*(a.shape for a in at)), 0.05, np.float32)
    for distance, value in parts:
        distance = distance + np.float32(2.5) * _waves(rng, axes, 5)
        signal += _inside(distance, width) * (np.float32(value) - signal)
    return signal


def _distances(shape: _Shape, at: list[Field]) -> tuple[Field, Field, Field]:
    """Return signed distances to the cavity, the epicardium and the crescent's outer surface."""
    arc, sign = np.float32(shape.arc), np.float32(np.sign(shape.arc))
    to_rv, to_apex = at[0], at[1]
    angle = np.arctan2(to_apex, sign * (arc - to_rv))
    last = np.float32(shape.length / abs(shape.arc))
    nearest = np.clip(angle, 0, last)
    cosine, sine = np.cos(nearest), np.sin(nearest)
    from_rv, from_apex = to_rv - arc * (1 - cosine), to_apex - np.abs(arc) * sine
    normal = from_rv * cosine - from_apex * sign * sine
    tangent = from_rv * sign * sine + from_apex * cosine
    rho = np.sqrt(normal**2 + tangent**2 + (at[2] ** 2 if len(at) == 3 else 0))
    unit = 1 / np.maximum(rho, np.float32(1e-3))
    s = nearest * np.abs(arc)
    profile = _rv_profile(normal * unit, _along(s, tangent * unit, shape.length, shape.outer))
    crescent = rho - np.float32(shape.outer) - np.float32(shape.rv_width) * profile
    return rho - np.float32(shape.inner), rho - np.float32(shape.outer), crescent


def render(factors: PhantomFactors) -> tuple[NDArray[np.int16], NDArray[np.uint8], Array]:
    """Draw one subject; the same factors give the same bits.

    The image is ``1000 * signal ** gamma`` of the scanner, where the signal has smooth edges for
    partial volume, texture, blur, a bias field that is 1 at the centre, and Rician noise. A mask
    voxel carries the label of its centre.

    Args:
        factors: The subject.

    Returns:
        Image and mask (1 right ventricle, 2 myocardium, 3 left ventricle) of shape (H, W) or
        (H, W, D), and the affine (4, 4) from voxels to RAS millimetres, oblique and anisotropic.

    Raises:
        ValueError: If the right ventricle is too large to fit beside the left one.
    """
    dims, scanner = factors.spatial_dims, SCANNERS[factors.scanner]
    spacing = np.array(scanner.spacing_mm[dims])
    size = np.rint(FIELD_OF_VIEW_MM / spacing).astype(int)
    step = spacing * scanner.flips[:dims]
    axes = [
        ((np.arange(n) - (n - 1) / 2) * d).astype(np.float32)
        for n, d in zip(size, step, strict=True)
    ]
    axes = list(np.meshgrid(*axes, indexing="ij", sparse=True))
    scan, heart = _rotation(factors.scan_rotation, dims), _heart_axes(factors)
    shape = _shape(factors)
    origin = _middle(shape, dims) - heart.T @ np.array(factors.offset_mm)
    cavity, wall, crescent = _distances(shape, _transform(heart.T, axes, origin))

    mask = np.zeros(tuple(size), np.uint8)
    mask[crescent < 0] = RIGHT_VENTRICLE
    mask[wall < 0] = MYOCARDIUM
    mask[cavity < 0] = LEFT_VENTRICLE

    rng = np.random.default_rng(factors.texture_seed)
    width = float(spacing.mean())
    signal = _body(rng, axes, _transform(scan, axes, np.zeros(dims)), width)
    texture = np.float32(0.03) * _waves(rng, axes, 10)
    signal += texture
    in_heart, in_wall = _inside(crescent, width), _inside(wall, width)
    beside_wall = (in_heart - in_wall) / np.maximum(1 - in_wall, np.float32(1e-3))
    signal += beside_wall * (RV_SIGNAL - signal)
    signal += in_wall * (MYOCARDIUM_SIGNAL + texture - signal)
    signal += _inside(cavity, width) * (np.float32(factors.lv_intensity) - signal)
    signal = gaussian_filter(signal, scanner.blur_mm / spacing, truncate=3)
    signal *= 1 + np.float32(BIAS) * _waves(rng, axes, 2)

    noise = np.random.default_rng(factors.noise_seed).standard_normal((2, *size), np.float32)
    noise *= np.float32(scanner.noise)
    measured = np.hypot(signal + noise[0], noise[1]) ** np.float32(scanner.gamma)
    affine = np.eye(4)
    affine[:dims, :dims] = scan * step
    affine[:dims, 3] = -affine[:dims, :dims] @ ((size - 1) / 2)
    return np.rint(1000 * measured).astype(np.int16), mask, affine


def phantoms(
    root: str | Path,
    n: int,
    spatial_dims: int = 3,
    confounding: float = 0.0,
    seed: int = 0,
    end_systole: bool = False,
    progress: bool = False,
) -> pd.DataFrame:
    """Write a phantom cohort as NIfTI files and a table, or reuse it if it is already there.

    Args:
        root: Folder that receives ``images/ID.nii.gz``, ``masks/ID.nii.gz``, ``phantoms.json`` and,
            last of all, ``subjects.csv``.
        n: Number of rows.
        spatial_dims: 2 or 3.
        confounding: How much the scanner tells of the diagnosis, see `sample_factors`.
        seed: Same arguments, same bits.
        end_systole: Whether to write a second phase (columns `image_es`, `mask_es`).
        progress: Whether to show a progress bar.

    Returns:
        The table as read from ``subjects.csv``, paths relative to it: id, patient, files, age, sex,
        scanner, diagnosis, what a report would say (sizes, wall thickness, ejection fraction; about
        5 % of the cells of the last three columns are empty), and the complete truth in a column
        `true_NAME` for every name of `true_attributes`.

    Raises:
        CohortError: If an argument is out of its range, or `root` cannot be written to or holds
            something else.
    """
    root = Path(root)
    arguments = {
        "version": VERSION,
        "n": n,
        "spatial_dims": spatial_dims,
        "confounding": float(confounding),
        "seed": seed,
        "end_systole": end_systole,
    }
    subjects = sample_factors(n, spatial_dims, confounding, seed)
    csv = root / "subjects.csv"
    _check_root(root, arguments)
    if not csv.exists():
        for folder in ("images", "masks"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        write_text(root / "phantoms.json", json.dumps(arguments, indent=2) + "\n")
        rows = [
            _write_subject(root, index, factors, arguments)
            for index, factors in enumerate(tqdm(subjects, "phantoms", disable=not progress))
        ]
        write_text(csv, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g"))
    return read_table(csv)


def _check_root(root: Path, arguments: dict[str, Any]) -> None:
    check_writable(root)
    recipe = root / "phantoms.json"
    if recipe.exists():
        try:
            found = json.loads(recipe.read_text(encoding="utf-8"))
        except ValueError:
            found = "an unreadable phantoms.json"
        if found != arguments:
            raise CohortError(
                f"The folder '{root}' holds another phantom cohort, {found}; "
                f"expected an empty folder or {arguments}."
            )
        return
    for name in ("subjects.csv", "images", "masks"):
        if (root / name).exists():
            raise CohortError(
                f"The folder '{root}' holds '{name}' but no phantoms.json; "
                "expected an empty folder or a phantom cohort."
            )


def _write_subject(
    root: Path, index: int, factors: PhantomFactors, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Write the files of one subject and return its row."""
    name = f"phantom{index:04d}"
    row: dict[str, Any] = {"id": name, "patient": factors.patient}
    phases = {"": factors} | ({"_es": end_systolic(factors)} if arguments["end_systole"] else {})
    for suffix, phase in phases.items():
        image, mask, affine = render(phase)
        for kind, voxels in (("image", image), ("mask", mask)):
            row[kind + suffix] = f"{kind}s/{name}{suffix}.nii.gz"
            nifti = nib.Nifti1Image(voxels, affine)
            nifti.set_sform(affine, code=1)
            nifti.set_qform(affine, code=1)
            nifti.header.set_xyzt_units("mm")
            nib.save(nifti, root / row[kind + suffix])
    row |= {key: getattr(factors, key) for key in ("age", "sex", "scanner", "diagnosis")}
    truth = true_attributes(factors)
    size = SIZE_NAME[factors.spatial_dims]
    report = {f"{part}_{size.split('_', 1)[1]}": truth[f"{part}_{size}"] for part in PARTS}
    report["wall_thickness_mm"] = factors.wall_thickness_mm
    report["ejection_fraction"] = factors.ejection_fraction
    missing = np.random.default_rng([arguments["seed"], index, 2]).random(3) < MISSING_RATE
    for key, gone in zip(list(report)[-3:], missing, strict=True):
        report[key] = np.nan if gone else report[key]
    return row | report | {f"true_{key}": value for key, value in truth.items()}
