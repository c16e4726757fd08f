"""The geometry of the phantom hearts: lengths that realise given sizes, and the analytic truth.

The left ventricle is all points nearer than a radius to a circular arc (a bent capsule), the
myocardium its exact offset by the wall thickness, the right ventricle a crescent on one side of the
epicardium. While the radius stays below the arc's own, Pappus' theorem gives sizes that the bend
leaves untouched: ``size(r) = w[d-1] r^(d-1) length + w[d] r^d``, w[d] that of the unit d-ball.
What has no closed form is integrated over the arc's normals by Gauss quadrature (relative error of
the crescent's size below 0.001). 2D is the long-axis plane of the same construction.

Heart coordinates: the arc starts at the origin; axes towards the right ventricle, towards the apex
and, in 3D, normal to both; millimetres.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

__all__ = [
    "SIZE_NAME",
    "PhantomFactors",
    "Shape",
    "bounding_points",
    "end_systolic",
    "middle",
    "shape_of",
    "signed_distances",
    "true_attributes",
]

Array = NDArray[np.float64]
Field = NDArray[np.float32]

SIZE_NAME = {2: "pixel_area_mm2", 3: "voxel_volume_ml"}  # as medvae.attributes names them
CUBIC_MM = {2: 1.0, 3: 1000.0}  # mm^d in the unit of a size
UNIT_BALL = {1: 2.0, 2: np.pi, 3: 4 * np.pi / 3}
RV_END = 0.25  # cosine of the angle from the septum's middle at which the crescent ends
WIDEST_RV_MM = 100.0


@dataclass(frozen=True)
class PhantomFactors:
    """All that determines one image: `dataclasses.replace` and `render` give counterfactuals.

    Attributes:
        spatial_dims: 2 or 3.
        patient: Name of the patient, in one or two rows of a cohort.
        age: In years.
        sex: ``"F"`` or ``"M"``.
        diagnosis: 0 or 1.
        scanner: ``"A"`` or ``"B"``.
        lv_size: Cavity of the left ventricle in ml (3D) or mm² (2D).
        wall_thickness_mm: Thickness of the myocardium, the same everywhere.
        lv_length_ratio: Length of the left cavity over its diameter, at least 1.
        rv_size: Cavity of the right ventricle in ml (3D) or mm² (2D).
        lv_intensity: Signal of the left ventricle's blood before bias field, noise and the
            scanner's curve; fat is 1, air 0.
        ejection_fraction: In [0, 1); seen in the end-systolic phase only.
        bend_per_mm: Curvature of the left cavity's axis, positive towards the right ventricle.
        scan_rotation: Of the voxel grid in the patient, a rotation vector in radians; 2D uses its
            last component. The scan is planned on the heart, so the heart turns with it.
        heart_rotation: Of the heart in the voxel grid, likewise.
        offset_mm: Middle of the left cavity's axis in the voxel grid, from its centre.
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


class Shape(NamedTuple):
    """The lengths in mm that realise a subject's sizes; `arc` is the arc's signed radius."""

    dims: int
    length: float
    arc: float
    inner: float
    outer: float
    rv_width: float


class _Normals(NamedTuple):
    """Quadrature nodes (N,): where a unit normal leaves the arc, its components, its weight.

    The volume element along a normal is ``rho^(power - 1) (1 - bend to_rv rho)``.
    """

    s: Array
    to_rv: Array
    to_apex: Array
    sideways: Array
    weight: Array
    power: Array
    bend: Array


@functools.cache
def _legendre(nodes: int) -> tuple[Array, Array]:
    return np.polynomial.legendre.leggauss(nodes)


def _gauss(upper: float, nodes: int) -> tuple[Array, Array]:
    x, weight = _legendre(nodes)
    return (x + 1) * upper / 2, weight * upper / 2


def _normals(length: float, arc: float, dims: int) -> _Normals:
    """Return the normals of the arc and of its two round ends."""
    turns = 64 if dims == 3 else 2  # directions around the axis
    theta = np.arange(turns)[:, None] * 2 * np.pi / turns
    turn = 2 * np.pi / turns if dims == 3 else 1.0
    s, ds = _gauss(length, 12)
    parts: list[tuple[Any, ...]] = [
        (s, np.cos(theta), 0, np.sin(theta), ds * turn, dims - 1, 1 / arc)
    ]
    polar, d_polar = _gauss(np.pi / 2, 24)
    side, weight = np.sin(polar), d_polar * np.sin(polar) ** (dims - 2) * turn
    for end, sign in ((0.0, -1), (length, 1)):
        across, sideways = side * np.cos(theta), side * np.sin(theta)
        parts.append((end, across, sign * np.cos(polar), sideways, weight, dims, 0))
    flat = [[a.ravel() for a in np.broadcast_arrays(*part)] for part in parts]
    return _Normals(*(np.concatenate(column) for column in zip(*flat, strict=True)))


def _rv_profile(to_rv: Any, to_apex: Any, s: Any, length: float, outer: float) -> Any:
    """Return the crescent's relative width along a unit normal: none beyond its ends."""
    along = (s - length / 2 + outer * to_apex) / (length / 2 + outer)  # -1 at the base, 1: apex
    return np.maximum(to_rv - RV_END, 0) / (1 - RV_END) * (1 - 0.4 * along)


def _capsule_size(radius: float, length: float, dims: int) -> float:
    tube = UNIT_BALL[dims - 1] * radius ** (dims - 1) * length
    return float(tube + UNIT_BALL[dims] * radius**dims) / CUBIC_MM[dims]


def shape_of(factors: PhantomFactors) -> Shape:
    """Return the lengths that give a subject's sizes.

    Raises:
        ValueError: If a size or thickness is not positive, the length ratio is below 1, or the
            right ventricle is too large to fit beside the left one.
    """
    for name, least in (("lv_size", 0), ("wall_thickness_mm", 0), ("rv_size", 0)):
        if not getattr(factors, name) > least:
            raise ValueError(f"{name} is {getattr(factors, name)}, expected a positive number.")
    if not factors.lv_length_ratio >= 1:
        raise ValueError(f"lv_length_ratio is {factors.lv_length_ratio}, expected at least 1.")
    dims = factors.spatial_dims
    ratio = 2 * (factors.lv_length_ratio - 1)
    inner = (factors.lv_size / _capsule_size(1.0, ratio, dims)) ** (1 / dims)
    length, outer = ratio * inner, inner + factors.wall_thickness_mm
    # A straight axis becomes an arc of 10 m, which float32 still resolves.
    arc = 1 / factors.bend_per_mm if abs(factors.bend_per_mm) > 1e-4 else 1e4
    return Shape(dims, length, arc, inner, outer, _rv_width(length, arc, outer, factors))


def _rv_width(length: float, arc: float, outer: float, factors: PhantomFactors) -> float:
    dims = factors.spatial_dims
    normals = _normals(length, arc, dims)
    profile = _rv_profile(normals.to_rv, normals.to_apex, normals.s, length, outer)
    normals = _Normals(*(column[profile > 0] for column in normals))
    profile = profile[profile > 0]

    def integral(rho: Any) -> Any:  # of the volume element from the arc to `rho`
        p = normals.power
        return rho**p / p - normals.bend * normals.to_rv * rho ** (p + 1) / (p + 1)

    inside = integral(outer)

    def excess(width: float) -> float:
        shell = integral(outer + width * profile) - inside
        return float(shell @ normals.weight) / CUBIC_MM[dims] - factors.rv_size

    widest = min((abs(arc) - outer) / profile.max(), WIDEST_RV_MM)
    if widest <= 0 or excess(widest) < 0:
        raise ValueError(
            f"rv_size is {factors.rv_size:g}, expected a size that fits around an outer radius of "
            f"{outer:.1f} mm and an axis bent by {factors.bend_per_mm:g} per mm."
        )
    return float(brentq(excess, 0.0, widest, xtol=1e-9))


def _place(shape: Shape, s: Any, to_rv: Any, to_apex: Any, sideways: Any) -> Array:
    """Return heart coordinates (N, d) of offsets from the arc's point at arc length `s`."""
    sign, radius = np.sign(shape.arc), abs(shape.arc)
    cosine, sine = np.cos(s / radius), np.sin(s / radius)
    x = shape.arc * (1 - cosine) + to_rv * cosine + to_apex * sign * sine
    y = radius * sine - to_rv * sign * sine + to_apex * cosine
    return np.stack([x, y, sideways][: shape.dims], axis=-1)


def _on_normals(shape: Shape, normals: _Normals, rho: Any) -> Array:
    offsets = (rho * normals.to_rv, rho * normals.to_apex, rho * normals.sideways)
    return _place(shape, normals.s, *offsets)


def middle(shape: Shape) -> Array:
    """Return the middle of the left cavity's axis in heart coordinates, (d,)."""
    return _place(shape, shape.length / 2, 0.0, 0.0, 0.0)


def bounding_points(shape: Shape) -> Array:
    """Return points (N, d) on the outer surface of the heart, in heart coordinates."""
    normals = _normals(shape.length, shape.arc, shape.dims)
    profile = _rv_profile(normals.to_rv, normals.to_apex, normals.s, shape.length, shape.outer)
    return _on_normals(shape, normals, shape.outer + shape.rv_width * profile)


def _elongation(shape: Shape) -> float:
    normals = _normals(shape.length, shape.arc, shape.dims)
    points, weights = [], []
    for rho, d_rho in zip(*_gauss(shape.inner, 6), strict=True):
        points.append(_on_normals(shape, normals, rho))
        element = rho ** (normals.power - 1) * (1 - normals.bend * normals.to_rv * rho)
        weights.append(element * normals.weight * d_rho)
    covariance = np.cov(np.concatenate(points).T, aweights=np.concatenate(weights), ddof=0)
    eigenvalues = np.linalg.eigvalsh(covariance)
    return float(np.sqrt(eigenvalues[-2] / eigenvalues[-1]))


def true_attributes(factors: PhantomFactors) -> dict[str, float]:
    """Return the analytic attributes of a subject at end-diastole.

    Args:
        factors: The subject.

    Returns:
        Values by the names that `medvae.attributes.measure_labels` gives them for the labels
        ``{"rv": 1, "myocardium": 2, "lv": 3}``, and `ejection_fraction`. `lv_elongation` is the
        root of the ratio of the second to the first eigenvalue of the cavity's covariance.
        `lv_intensity_mean` is the factor `lv_intensity`, without the scanner's curve: see `render`.

        Measured on the masks of `render`, sizes agree within 3 % (left ventricle, myocardium) and
        6 % (right ventricle), wall thickness within 0.4 mm and elongation within 0.05; in 2D, where
        one slice has fewer voxels, within 8 %, 8 %, 0.5 mm and 0.08. The mean intensity, with the
        curve undone and divided by 1000, is 0.88 to 1.02 times the truth.

    Raises:
        ValueError: As `shape_of`.
    """
    size, shape = SIZE_NAME[factors.spatial_dims], shape_of(factors)
    total = _capsule_size(shape.outer, shape.length, shape.dims)
    return {
        f"lv_{size}": factors.lv_size,
        f"myocardium_{size}": total - factors.lv_size,
        "myocardium_wall_thickness_mm": factors.wall_thickness_mm,
        f"rv_{size}": factors.rv_size,
        "lv_elongation": _elongation(shape),
        "lv_intensity_mean": factors.lv_intensity,
        "ejection_fraction": factors.ejection_fraction,
    }


def end_systolic(factors: PhantomFactors) -> PhantomFactors:
    """Return the same subject at end-systole.

    Both cavities have shrunk by the ejection fraction, at unchanged proportions, and the wall has
    thickened so that the myocardium keeps its size; the noise is new.

    Raises:
        ValueError: If the ejection fraction is not in [0, 1), or as `shape_of`.
    """
    if not 0 <= factors.ejection_fraction < 1:
        raise ValueError(
            f"ejection_fraction is {factors.ejection_fraction}, expected a number in [0, 1)."
        )
    shape, left = shape_of(factors), 1 - factors.ejection_fraction
    scale = left ** (1 / shape.dims)
    inner, length = shape.inner * scale, shape.length * scale
    ejected = factors.lv_size * factors.ejection_fraction
    total = _capsule_size(shape.outer, shape.length, shape.dims) - ejected
    outer = brentq(lambda r: _capsule_size(r, length, shape.dims) - total, inner, 9 * shape.outer)
    return dataclasses.replace(
        factors,
        lv_size=factors.lv_size * left,
        rv_size=factors.rv_size * left,
        wall_thickness_mm=float(outer) - inner,
        noise_seed=factors.noise_seed + 1,
    )


def signed_distances(shape: Shape, at: list[Field]) -> tuple[Field, Field, Field]:
    """Return distances in mm, negative inside, to the cavity's, wall's and crescent's outside.

    The crescent's is measured along the arc's normals and ignores that the wall lies inside.

    Args:
        shape: The heart.
        at: Heart coordinates of the points, one array per axis.
    """
    arc, sign = np.float32(shape.arc), np.float32(np.sign(shape.arc))
    angle = np.arctan2(at[1], sign * (arc - at[0]))
    angle = np.clip(angle, 0, np.float32(shape.length / abs(shape.arc)))  # of the nearest arc point
    cosine, sine = np.cos(angle), np.sin(angle)
    x, y = at[0] - arc * (1 - cosine), at[1] - np.abs(arc) * sine
    to_rv, to_apex = x * cosine - y * sign * sine, x * sign * sine + y * cosine
    rho = np.sqrt(sum((a * a for a in at[2:]), start=to_rv * to_rv + to_apex * to_apex))
    unit = 1 / np.maximum(rho, np.float32(1e-3))
    s = angle * np.abs(arc)
    profile = _rv_profile(to_rv * unit, to_apex * unit, s, shape.length, shape.outer)
    crescent = rho - np.float32(shape.outer) - np.float32(shape.rv_width) * profile
    return rho - np.float32(shape.inner), rho - np.float32(shape.outer), crescent
