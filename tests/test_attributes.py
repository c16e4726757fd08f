"""Attributes against pyradiomics, scikit-image's mesh, brute force and analytic truth."""

import csv
import logging
import math
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from radiomics.firstorder import RadiomicsFirstOrder
from radiomics.glcm import RadiomicsGLCM
from radiomics.shape import RadiomicsShape
from radiomics.shape2D import RadiomicsShape2D
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import pdist
from skimage.measure import find_contours, marching_cubes

from medvae.attributes import (
    ejection_fraction,
    feature_names,
    measure,
    measure_labels,
    shape,
    wall_thickness_mm,
)

logging.getLogger("radiomics").setLevel(logging.ERROR)

COHORTS = Path(__file__).resolve().parents[2] / "shared" / "data"
MESH_FEATURES = {
    "mesh_volume_ml": 0.05,
    "surface_area_mm2": 0.02,
    "sphericity": 0.05,
    "surface_to_volume_per_mm": 0.07,
}
INTENSITY = {
    "intensity_mean": "Mean",
    "intensity_sd": "StandardDeviation",
    "intensity_min": "Minimum",
    "intensity_max": "Maximum",
    "intensity_median": "Median",
    "intensity_p10": "10Percentile",
    "intensity_p90": "90Percentile",
    "intensity_iqr": "InterquartileRange",
    "intensity_skewness": "Skewness",
    "intensity_kurtosis": "Kurtosis",
    "intensity_entropy": "Entropy",
    "intensity_uniformity": "Uniformity",
    "glcm_correlation": "Correlation",
    "glcm_difference_entropy": "DifferenceEntropy",
    "glcm_inverse_variance": "InverseVariance",
}
ORACLE_3D = {
    "voxel_volume_ml": "VoxelVolume",
    "mesh_volume_ml": "MeshVolume",
    "surface_area_mm2": "SurfaceArea",
    "sphericity": "Sphericity",
    "surface_to_volume_per_mm": "SurfaceVolumeRatio",
    "max_diameter_mm": "Maximum3DDiameter",
    "max_diameter_axial_mm": "Maximum2DDiameterSlice",
    "max_diameter_coronal_mm": "Maximum2DDiameterColumn",
    "max_diameter_sagittal_mm": "Maximum2DDiameterRow",
    "major_axis_mm": "MajorAxisLength",
    "minor_axis_mm": "MinorAxisLength",
    "least_axis_mm": "LeastAxisLength",
    "elongation": "Elongation",
    "flatness": "Flatness",
} | INTENSITY
ORACLE_2D = {
    "pixel_area_mm2": "PixelSurface",
    "mesh_area_mm2": "MeshSurface",
    "perimeter_mm": "Perimeter",
    "sphericity": "Sphericity",
    "perimeter_to_area_per_mm": "PerimeterSurfaceRatio",
    "max_diameter_mm": "MaximumDiameter",
    "major_axis_mm": "MajorAxisLength",
    "minor_axis_mm": "MinorAxisLength",
    "elongation": "Elongation",
} | INTENSITY


def pyradiomics(image, mask, spacing, **settings):
    """Measure with pyradiomics, under our names and units."""
    images = []
    for array, kind in ((image, float), (mask, np.uint8)):
        images.append(sitk.GetImageFromArray(np.ascontiguousarray(array.T, dtype=kind)))
        images[-1].SetSpacing([float(value) for value in spacing])
    values = {}
    for features in (
        RadiomicsShape if mask.ndim == 3 else RadiomicsShape2D,
        RadiomicsFirstOrder,
        RadiomicsGLCM,
    ):
        extractor = features(*images, label=1, **settings)
        extractor.enableAllFeatures()
        if features is RadiomicsFirstOrder:  # off by default, being the variance's root
            extractor.enableFeatureByName("StandardDeviation")
        values |= extractor.execute()
    names = ORACLE_3D if mask.ndim == 3 else ORACLE_2D
    return {
        ours: float(values[theirs]) / (1000 if ours.endswith("_ml") else 1)
        for ours, theirs in names.items()
    }


def ellipsoid(semi_axes, spacing, margin=2, offset=0.0):
    """Rasterise an ellipsoid with a voxel centre at its centre (plus offset, in voxels)."""
    counts = [int(a // s) + margin for a, s in zip(semi_axes, spacing, strict=True)]
    grid = [
        (np.arange(-n, n + 1) - offset) * s / a
        for n, s, a in zip(counts, spacing, semi_axes, strict=True)
    ]
    return sum(x**2 for x in np.meshgrid(*grid, indexing="ij")) <= 1


def blob(size, seed, smooth=2.0):
    """Draw a connected-looking random region with rough borders, holes and bridges."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=size), smooth)
    return noise > np.quantile(noise, 0.7)


def texture(size, seed):
    """Draw an image in the range of Hounsfield units, smooth and noisy."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=size), 2)
    return 150 * smooth / smooth.std() + rng.normal(-50, 20, size)


def single_voxel(spatial_dims):
    mask = np.zeros((5, 6, 7)[:spatial_dims], bool)
    mask[(2,) * spatial_dims] = True
    return mask


def slab(size, index):
    """Draw a region that is one voxel thick along the last axis."""
    mask = np.zeros(size, bool)
    mask[..., index] = blob(size[:-1], 4)
    return mask


def diagonal(count):
    mask = np.zeros((count, count, count), bool)
    mask[(np.arange(count),) * 3] = True
    return mask


MASKS = {
    "ball": (ellipsoid((8, 8, 8), (1, 1, 1)), (1.0, 1.0, 1.0)),
    "anisotropic": (ellipsoid((9, 7, 11), (0.7, 0.9, 2.5)), (0.7, 0.9, 2.5)),
    "off grid": (ellipsoid((8, 6, 9), (1, 1.3, 0.6), offset=0.37), (1.0, 1.3, 0.6)),
    "blob": (blob((18, 20, 16), 0), (1.2, 0.8, 3.0)),
    "coarse slices": (blob((24, 22, 8), 1), (1.4, 1.4, 10.0)),
    "slice": (slab((14, 16, 5), 2), (0.8, 1.1, 4.0)),
    "line": (np.ones((1, 9, 1), bool), (1.0, 0.7, 2.0)),
    "diagonal": (diagonal(7), (1.0, 0.7, 2.0)),
    "pair": (np.ones((2, 1, 1), bool), (1.5, 0.7, 2.0)),
}


def close(ours, theirs, tolerance=1e-6, absolute=1e-6):
    # pyradiomics' eigenvalues of flat masks are off 0 by rounding, whose root is up to 1e-7.
    return ours == pytest.approx(theirs, rel=tolerance, abs=absolute, nan_ok=True)


@pytest.mark.parametrize("flip", [(), (0,), (1, 2)])
@pytest.mark.parametrize("name", MASKS)
def test_3d_features_equal_pyradiomics(name, flip):
    mask, spacing = MASKS[name]
    image = np.flip(texture(mask.shape, 7), flip)
    mask = np.flip(mask, flip)
    ours, theirs = measure(image, mask, spacing), pyradiomics(image, mask, spacing)

    assert set(ours) == set(theirs)
    for feature in set(ours) - set(MESH_FEATURES):
        assert close(ours[feature], theirs[feature]), feature
    # Of a grid's thinnest figures the two marching cubes agree only in kind.
    if mask.sum() > 100 and name != "slice":
        for feature, tolerance in MESH_FEATURES.items():
            assert ours[feature] == pytest.approx(theirs[feature], rel=tolerance), feature


@pytest.mark.parametrize(
    ("mask", "spacing"),
    [
        (ellipsoid((9, 9), (1, 1)), (1.0, 1.0)),
        (ellipsoid((12, 7), (0.6, 1.4), offset=0.3), (0.6, 1.4)),
        (blob((30, 34), 2), (1.3, 0.8)),
        (np.eye(6, dtype=bool), (1.0, 0.5)),
        (np.ones((1, 5), bool), (2.0, 0.5)),
    ],
    ids=["disc", "ellipse", "blob", "saddles", "line"],
)
def test_2d_features_equal_pyradiomics(mask, spacing):
    image = texture(mask.shape, 3)
    ours, theirs = measure(image, mask, spacing), pyradiomics(image, mask, spacing)
    assert ours.keys() == theirs.keys()
    for feature in ours:
        assert close(ours[feature], theirs[feature]), feature


@pytest.mark.parametrize("values", ["float", "int16", "constant", "two levels"])
@pytest.mark.parametrize("options", [{"bin_width": 10}, {"bin_width": 25}, {"bin_count": 16}])
def test_intensities_equal_pyradiomics_for_any_bins(values, options):
    mask, spacing = MASKS["blob"]
    image = texture(mask.shape, 11)
    image = {
        "float": image,
        "int16": image.astype(np.int16),
        "constant": np.full(mask.shape, 50.0),
        "two levels": np.where(image > 0, 100.0, 0.0),
    }[values]
    names = {"bin_width": "binWidth", "bin_count": "binCount"}
    theirs = pyradiomics(image, mask, spacing, **{names[k]: v for k, v in options.items()})
    ours = measure(image, mask, spacing, list(INTENSITY), **options)
    for feature in INTENSITY:
        assert close(ours[feature], theirs[feature], absolute=1e-9), feature


def test_moments_of_a_constant_are_zero_although_its_mean_is_rounded():
    ours = measure(np.full((3, 3, 3), 0.1), np.ones((3, 3, 3)), (1, 1, 1))
    assert ours["intensity_sd"] == ours["intensity_skewness"] == ours["intensity_kurtosis"] == 0


def cohort_sample(cohort, ids):
    folder = COHORTS / cohort
    if not folder.is_dir():
        pytest.skip(f"the cohort {cohort} is not beside the repository")
    with (folder / "subjects.csv").open() as table:
        rows = {row["id"]: row for row in csv.DictReader(table)}
    for name in ids:
        mask = nibabel.load(folder / rows[name]["mask"])
        image = np.asarray(nibabel.load(folder / rows[name]["image"]).dataobj)
        yield image, np.asarray(mask.dataobj), np.array(mask.header.get_zooms(), dtype=float)


def test_nodules_equal_pyradiomics():
    ids = ["LIDC-IDRI-0001_R_1", "LIDC-IDRI-0003_R_2", "LIDC-IDRI-0003_R_3", "LIDC-IDRI-0003_R_4"]
    for image, mask, spacing in cohort_sample("nodules", ids):
        theirs = pyradiomics(image, mask > 0, spacing)
        for feature, value in measure(image, mask, spacing).items():
            tolerance = MESH_FEATURES.get(feature, 1e-6)
            assert value == pytest.approx(theirs[feature], rel=tolerance), feature


def test_acdc_labels_equal_pyradiomics():
    labels = {"rv": 1, "myocardium": 2, "lv": 3, "heart": (2, 3)}
    for image, mask, spacing in cohort_sample("acdc", ["patient002_ED", "patient004_ES"]):
        ours = measure_labels(image, mask, spacing, labels, bin_count=32)
        for label, values in labels.items():
            theirs = pyradiomics(image, np.isin(mask, values), spacing, binCount=32)
            for feature, value in theirs.items():
                tolerance = MESH_FEATURES.get(feature, 1e-6)
                assert ours[f"{label}_{feature}"] == pytest.approx(value, rel=tolerance), feature


def test_acdc_wall_is_measured_by_slices_and_thickens_in_systole():
    ids = [f"patient{number:03d}_{phase}" for number in (2, 4, 8) for phase in ("ED", "ES")]
    thickness = []
    for _, mask, spacing in cohort_sample("acdc", ids):
        thickness.append(wall_thickness_mm(mask == 2, spacing))
        assert thickness[-1] == wall_thickness_mm(mask == 2, spacing, slice_axis=2)
    diastole, systole = np.array(thickness).reshape(-1, 2).T
    assert (systole > diastole).all()
    assert ((diastole > 4) & (diastole < 15)).all()


@pytest.mark.parametrize(
    ("semi_axes", "spacing", "volume", "surface", "sphericity", "diameters", "axes"),
    [
        (
            (20, 20, 20),
            (1, 1, 1),
            33401,
            (33359.5, 5452.9),
            0.9190,
            (41, 41, 41, 41),
            (35.738,) * 3,
        ),
        (
            *((30, 20, 15), (1, 1, 1), 37467, (37420.5, 6256.2), 0.8648),
            *((61, 61, 61, 41), (53.616, 35.731, 26.726)),
        ),
        (
            *((30, 24, 45), (1.5, 1.5, 10), 135562.5, (134921.2, 15920.3), 0.7991),
            *((94.011, 61.5, 93.963, 92.418), (81.636, 53.165, 42.666)),
        ),
    ],
)
def test_published_numbers(semi_axes, spacing, volume, surface, sphericity, diameters, axes):
    found = measure(None, ellipsoid(semi_axes, spacing), spacing)
    assert found["voxel_volume_ml"] * 1000 == pytest.approx(volume)
    assert found["mesh_volume_ml"] * 1000 == pytest.approx(surface[0], abs=0.05)
    assert found["surface_area_mm2"] == pytest.approx(surface[1], abs=0.05)
    # The known bias of a voxel mesh: a ball's sphericity is 1, not 0.919, at any resolution.
    assert found["sphericity"] == pytest.approx(sphericity, abs=1e-4)
    names = ["max_diameter_mm", *(f"max_diameter_{p}_mm" for p in ("axial", "coronal", "sagittal"))]
    assert [found[name] for name in names] == pytest.approx(diameters, abs=1e-3)
    lengths = [found[f"{name}_axis_mm"] for name in ("major", "minor", "least")]
    assert lengths == pytest.approx(axes, abs=1e-3)


def test_an_ellipsoid_approaches_its_analytic_truth():
    semi_axes, spacing = (15.0, 12.0, 10.0), (0.5, 0.5, 0.5)
    found = measure(None, ellipsoid(semi_axes, spacing), spacing)
    volume = 4 / 3 * np.pi * np.prod(semi_axes) / 1000
    assert found["voxel_volume_ml"] == pytest.approx(volume, rel=3e-3)
    assert found["mesh_volume_ml"] == pytest.approx(volume, rel=5e-3)
    assert found["max_diameter_mm"] == pytest.approx(30, rel=0.02)
    # A solid ellipsoid's variances are a^2 / 5, so that 4 sqrt(variance) is 2a * 0.894.
    assert found["major_axis_mm"] == pytest.approx(30 * 2 / np.sqrt(5), rel=5e-3)
    assert found["elongation"] == pytest.approx(12 / 15, rel=5e-3)
    assert found["flatness"] == pytest.approx(10 / 15, rel=5e-3)


def mesh_of(mask, spacing):
    vertices, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5)
    return vertices.astype(float) * spacing, faces


random_masks = arrays(bool, st.tuples(*[st.integers(1, 6)] * 3)).filter(np.any)
spacings = st.tuples(*[st.floats(0.3, 5)] * 3)


@settings(deadline=None, max_examples=60)
@given(random_masks, spacings)
def test_mesh_and_diameters_equal_scikit_images_mesh_by_brute_force(mask, spacing):
    vertices, faces = mesh_of(mask, spacing)
    a, b, c = vertices[faces].transpose(1, 0, 2)
    found = measure(None, mask, spacing)
    volume = abs(np.einsum("ij,ij->", a, np.cross(b, c))) / 6
    assert found["mesh_volume_ml"] * 1000 == pytest.approx(volume)
    surface = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    assert found["surface_area_mm2"] == pytest.approx(surface)

    # scikit-image adds vertices inside ambiguous cells; they lie inside the hull of the others.
    assert found["max_diameter_mm"] == pytest.approx(pdist(vertices).max())
    grid = np.round(2 * vertices / spacing).astype(int)
    edges = np.count_nonzero(grid % 2, axis=1) == 1
    for axis, plane in enumerate(("sagittal", "coronal", "axial")):
        levels = np.unique(grid[edges, axis])
        groups = [vertices[edges & (grid[:, axis] == level)] for level in levels]
        brute = max(pdist(group).max() for group in groups if len(group) > 1)
        assert found[f"max_diameter_{plane}_mm"] == pytest.approx(brute)


@pytest.mark.parametrize("mask", [ellipsoid((17, 14, 11), (1, 1, 1)), blob((24, 22, 20), 5)])
def test_large_masks_take_the_hull_and_equal_brute_force(mask):
    spacing = np.array([0.9, 1.1, 2.0])
    assert len(shape._line_ends(mask, range(3))) > 500
    vertices, _ = mesh_of(mask, spacing)
    brute = max(np.linalg.norm(vertices - vertex, axis=1).max() for vertex in vertices)
    found = measure(None, mask, spacing, ["max_diameter_mm"])["max_diameter_mm"]
    assert found == pytest.approx(brute)


def test_a_large_flat_mask_has_no_hull_but_a_diameter():
    x, y, z = np.indices((40, 40, 80))
    mask = (x + y == z) & ((x - 20) ** 2 + (y - 20) ** 2 < 300)
    assert len(shape._line_ends(mask, range(3))) > 500
    vertices, _ = mesh_of(mask, (1, 1, 1))
    found = measure(None, mask, (1, 1, 1), ["max_diameter_mm"])["max_diameter_mm"]
    brute = max(np.linalg.norm(vertices - vertex, axis=1).max() for vertex in vertices)
    assert found == pytest.approx(brute)


@settings(deadline=None, max_examples=25)
@given(random_masks, spacings, st.floats(0.2, 5))
def test_scaling_laws(mask, spacing, factor):
    before = measure(None, mask, spacing)
    after = measure(None, mask, np.multiply(spacing, factor))
    powers = {"_ml": 3, "_mm2": 2, "per_mm": -1, "_mm": 1}
    for name, value in before.items():
        power = next((p for unit, p in powers.items() if name.endswith(unit)), 0)
        assert after[name] == pytest.approx(value * factor**power, abs=1e-6, nan_ok=True), name


@settings(deadline=None, max_examples=25)
@given(random_masks, spacings, st.permutations(range(3)), st.sets(st.integers(0, 2)))
def test_the_axes_order_and_direction_do_not_matter(mask, spacing, order, flips):
    planes = {"max_diameter_axial_mm", "max_diameter_coronal_mm", "max_diameter_sagittal_mm"}
    moved = np.flip(mask.transpose(order), tuple(flips))
    before = measure(None, mask, spacing)
    after = measure(None, moved, np.array(spacing)[list(order)])
    for name in set(before) - planes:
        assert after[name] == pytest.approx(before[name], abs=1e-6, nan_ok=True), name
    assert sorted(after[p] for p in planes) == pytest.approx(sorted(before[p] for p in planes))


def test_marching_cubes_treats_every_symmetry_of_a_cube_alike():
    # The reason why the mesh, unlike pyradiomics', does not depend on the axes' order.
    triangles, cubes = shape._cube_triangles()
    sides = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    areas = np.bincount(cubes, np.linalg.norm(sides, axis=1) / 2, minlength=256)
    corners = np.array(list(product((0, 1), repeat=3)))
    for order, flip in product(permutations(range(3)), product((0, 1), repeat=3)):
        moved = (corners[:, order] ^ flip) @ (4, 2, 1)
        kinds = np.arange(256)
        images = sum((kinds >> bit & 1) << moved[bit] for bit in range(8))
        np.testing.assert_allclose(areas[images], areas, atol=1e-6)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_margin_and_crop_do_not_matter(spatial_dims):
    size, spacing = (17, 15, 12)[:spatial_dims], (0.8, 1.3, 2.0)[:spatial_dims]
    mask, image = blob(size, 8), texture(size, 9)
    names = feature_names(spatial_dims)
    wide = measure(np.pad(image, 7, constant_values=1e6), np.pad(mask, 7), spacing, names)
    assert wide == pytest.approx(measure(image, mask, spacing, names), nan_ok=True)
    where = np.argwhere(mask)
    box = tuple(slice(a, b + 1) for a, b in zip(where.min(0), where.max(0), strict=True))
    assert measure(image[box], mask[box], spacing) == measure(image, mask, spacing)


def test_2d_perimeter_equals_the_contours_and_disc_is_biased():
    mask, spacing = blob((40, 30), 6), np.array([0.7, 1.9])
    contours = [c * spacing for c in find_contours(np.pad(mask, 1).astype(float), 0.5)]
    length = sum(np.linalg.norm(np.diff(c, axis=0), axis=1).sum() for c in contours)
    assert measure(None, mask, spacing)["perimeter_mm"] == pytest.approx(length)
    disc = measure(None, ellipsoid((20, 20), (1, 1)), (1, 1))
    assert disc["mesh_area_mm2"] == pytest.approx(np.pi * 400, rel=5e-3)
    assert disc["sphericity"] == pytest.approx(0.933, abs=5e-3)  # not 1


@settings(deadline=None, max_examples=20)
@given(st.integers(-20, 20), st.floats(0.01, 100))
def test_texture_laws(shift, factor):
    mask, spacing = MASKS["blob"]
    image = np.round(texture(mask.shape, 5))
    names = [name for name in INTENSITY if name.startswith("glcm") or "entropy" in name]
    before = measure(image, mask, spacing, names)
    assert measure(image + 25 * shift, mask, spacing, names) == pytest.approx(before)
    spread = np.arange(mask.sum()) % 8  # levels at the bins' centres, so that rounding is harmless
    image[mask] = spread
    before = measure(image, mask, spacing, names, bin_count=8)
    after = measure(image * factor + shift, mask, spacing, names, bin_count=8)
    assert after == pytest.approx(before)


def test_an_image_scaled_to_one_needs_a_bin_count():
    mask, spacing = MASKS["ball"]
    image = texture(mask.shape, 1)
    image = (image - image.min()) / np.ptp(image)
    names = ["glcm_difference_entropy", "intensity_entropy"]
    assert measure(image, mask, spacing, names) == dict.fromkeys(names, 0.0)
    assert min(measure(image, mask, spacing, names, bin_count=16).values()) > 1


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_single_voxel_is_finite_where_it_has_a_meaning(spatial_dims):
    mask = single_voxel(spatial_dims)
    names = feature_names(spatial_dims)
    found = measure(np.full(mask.shape, 3.5), mask, (1.0, 2.0, 3.0)[:spatial_dims], names)
    missing = {name for name, value in found.items() if math.isnan(value)}
    glcm = {name for name in names if name.startswith("glcm")}
    ratios = {"elongation", "flatness"} & set(names)
    assert missing == glcm | ratios | {"wall_thickness_mm"}
    assert found["max_diameter_mm"] == (3.0 if spatial_dims == 3 else 2.0)
    assert found["intensity_mean"] == 3.5


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_feature_names_lists_what_measure_returns(spatial_dims):
    mask = blob((12, 11, 9)[:spatial_dims], 3)
    spacing = (1.0, 1.5, 2.0)[:spatial_dims]
    names = feature_names(spatial_dims)
    assert len(set(names)) == len(names)
    everything = measure(texture(mask.shape, 2), mask, spacing, names)
    assert tuple(everything) == names
    default = measure(texture(mask.shape, 2), mask, spacing)
    assert tuple(default) == names[: names.index("wall_thickness_mm")]
    shape_only = measure(None, mask, spacing)
    assert tuple(shape_only) == names[: names.index("intensity_mean")]
    for name in names:  # alone, each is what it is among the others
        alone = measure(texture(mask.shape, 2), mask, spacing, [name])
        assert alone == pytest.approx({name: everything[name]}, nan_ok=True, rel=1e-12)
    assert feature_names(spatial_dims, ["a", "b"]) == (
        *(f"a_{name}" for name in names),
        *(f"b_{name}" for name in names),
    )


def test_only_the_wanted_groups_are_computed(monkeypatch):
    def fail(*_):
        raise AssertionError("computed without being asked for")

    for name in ("mesh", "max_diameter", "plane_diameters", "axes"):
        monkeypatch.setattr(shape, name, fail)
    image = np.full((4, 4, 4), np.nan)  # never looked at
    found = measure(image, np.ones((4, 4, 4)), (1, 1, 2), ["voxel_volume_ml"])
    assert found == {"voxel_volume_ml": 0.128}
    with pytest.raises(AssertionError, match="without being asked"):
        measure(None, np.ones((4, 4, 4)), (1, 1, 2), ["sphericity"])


def test_tensors_and_number_masks_are_arrays_too():
    mask, spacing = MASKS["anisotropic"]
    image = texture(mask.shape, 6).astype(np.float32)
    expected = measure(image, mask, spacing)
    assert measure(torch.from_numpy(image), torch.from_numpy(mask), torch.tensor(spacing)) == (
        pytest.approx(expected)
    )
    assert measure(image, mask * 3.0, spacing) == expected


BOX = np.ones((3, 4, 5), bool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, np.zeros((3, 4, 5)), (1, 1, 1)), "mask is empty"),
        ((np.zeros((3, 4, 6)), BOX, (1, 1, 1)), r"shape \(3, 4, 6\), expected .*\(3, 4, 5\)"),
        ((None, BOX[None], (1, 1, 1)), "has 4 axes, expected 2 or 3"),
        ((None, BOX, (1, 0, 1)), r"spacing_mm is \[1.0, 0.0, 1.0\], expected 3 positive"),
        ((None, BOX, (1, 1)), "expected 3 positive"),
        ((None, BOX, (1, 1, np.nan)), "expected 3 positive"),
        ((None, BOX, (1, 1, 1), ["volume"]), "Unknown feature 'volume', expected one of voxel_vol"),
        ((None, BOX[0], (1, 1), ["voxel_volume_ml"]), "Unknown feature 'voxel_volume_ml'"),
        ((None, BOX, (1, 1, 1), ["intensity_sd"]), "'intensity_sd' needs an image"),
        ((np.where(np.indices(BOX.shape)[0] == 1, np.nan, 1), BOX, (1, 1, 1)), "20 NaN or inf"),
    ],
)
def test_measure_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        measure(*arguments)


@pytest.mark.parametrize("options", [{"bin_width": 0}, {"bin_width": np.nan}, {"bin_count": 0}])
def test_bins_must_be_positive(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is .*, expected a"):
        measure(np.zeros(BOX.shape), BOX, (1, 1, 1), **options)


def test_feature_names_refuses_other_dimensions():
    with pytest.raises(ValueError, match="spatial_dims is 4, expected 2 or 3"):
        feature_names(4)


def labelmap():
    mask = np.zeros((16, 16, 6), np.uint8)
    mask[2:9, 2:9] = 2
    mask[4:7, 4:7] = 3
    mask[2:9, 2:9, 5] = 4
    mask[10:14, 3:12, 1:4] = 1
    return mask


def test_labels_and_their_unions():
    mask, image, spacing = labelmap(), texture((16, 16, 6), 4), (1.0, 1.0, 4.0)
    labels = {"rv": 1, "wall": [2, 4], "lv": np.int64(3)}
    found = measure_labels(image, mask, spacing, labels)
    assert len(found) == 3 * len(measure(image, mask == 1, spacing))
    for label, region in (
        ("rv", mask == 1),
        ("wall", (mask == 2) | (mask == 4)),
        ("lv", mask == 3),
    ):
        for name, value in measure(image, region, spacing).items():
            assert found[f"{label}_{name}"] == value
    assert measure_labels(image, mask, spacing, None) == measure(image, mask > 0, spacing)
    as_read = mask.astype(np.float64)
    assert measure_labels(image, as_read, spacing, labels) == found


def test_wanted_label_features_keep_their_order_and_include_the_wall():
    wanted = ["lv_sphericity", "wall_wall_thickness_mm", "lv_voxel_volume_ml"]
    labels = {"wall": [2], "lv": 3}
    found = measure_labels(None, labelmap(), (1.0, 1.0, 4.0), labels, wanted)
    assert list(found) == wanted
    assert found["lv_voxel_volume_ml"] == pytest.approx(9 * 5 * 4 / 1000)
    assert found["wall_wall_thickness_mm"] == pytest.approx(2, abs=0.3)  # rounds square corners


def test_an_absent_label_is_missing_not_zero():
    labels = {"lv": 3, "scar": 7}
    found = measure_labels(None, labelmap(), (1, 1, 4), labels)
    scar = {name: value for name, value in found.items() if name.startswith("scar_")}
    assert len(scar) == len(found) / 2
    assert all(math.isnan(value) for value in scar.values())
    assert not any(math.isnan(value) for name, value in found.items() if name not in scar)
    wanted = ["scar_mesh_volume_ml"]
    assert math.isnan(measure_labels(None, labelmap(), (1, 1, 4), labels, wanted)[wanted[0]])


@pytest.mark.parametrize(
    ("labels", "features", "message"),
    [
        (
            {"lv": 3},
            ["lv_volume"],
            "Unknown feature 'lv_volume', expected LABEL_FEATURE with .* lv",
        ),
        ({"lv": 3}, ["sphericity"], "Unknown feature 'sphericity'"),
        ({"lv": 3}, ["lv_intensity_mean"], "'intensity_mean' needs an image"),
        ({"lv": "3"}, None, "label 'lv' has the value '3', expected a whole number"),
        ({"lv": [1.5]}, None, r"label 'lv' has the value \[1.5\]"),
        ({"lv": []}, None, r"label 'lv' has the value \[\]"),
    ],
)
def test_measure_labels_refuses(labels, features, message):
    with pytest.raises(ValueError, match=message):
        measure_labels(None, labelmap(), (1, 1, 4), labels, features)


def shell(radius, thickness, spacing, offset):
    """Rasterise an annulus or spherical shell around a point off the grid by ``offset`` (mm)."""
    outer = radius + thickness
    counts = [int(np.ceil(outer / s)) + 1 for s in spacing]
    grid = [np.arange(-n, n + 1) * s - o for n, s, o in zip(counts, spacing, offset, strict=True)]
    distance = np.sqrt(sum(x**2 for x in np.meshgrid(*grid, indexing="ij")))
    return (distance > radius) & (distance <= outer)


@pytest.mark.parametrize("ratio", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_wall_thickness_of_annuli_and_spherical_shells(spatial_dims, ratio):
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(60 if spatial_dims == 2 else 6):
        spacing = np.full(spatial_dims, rng.uniform(0.5, 1.5))
        spacing[-1] *= ratio
        coarsest = spacing.max()
        thickness = rng.uniform(2, 8) * coarsest
        offset = rng.uniform(-0.5, 0.5, spatial_dims) * spacing
        mask = shell(rng.uniform(3, 12) * coarsest, thickness, spacing, offset)
        errors.append((wall_thickness_mm(mask, spacing) - thickness) / coarsest)
    assert np.quantile(np.abs(errors), 0.9) < 0.12
    assert np.abs(errors).max() < 0.3
    assert abs(np.mean(errors)) < 0.04


@pytest.mark.parametrize(("inner", "thickness"), [(10, 7), (20, 10), (16, 4)])
def test_wall_thickness_does_not_under_read_as_published(inner, thickness):
    # The authors' edge-to-edge distance reads 6.56, 9.56 and 3.65 here.
    mask = shell(inner, thickness, (1, 1), (0, 0))
    assert wall_thickness_mm(mask, (1, 1)) == pytest.approx(thickness, abs=0.15)


def test_wall_thickness_of_an_eccentric_ring_is_its_mean():
    x, y = np.indices((70, 70)) - 35.2
    mask = (np.hypot(x, y) <= 30) & (np.hypot(x - 4, y) > 22)
    assert wall_thickness_mm(mask, (1, 1)) == pytest.approx(8, abs=0.2)


def open_stack(thickness=5.0):
    """Draw an open short-axis stack: 10 mm slices of rings of growing radius."""
    rings = []
    for radius in (8, 12, 15, 16):
        x, y = np.meshgrid(np.arange(-30, 30) * 1.3, np.arange(-30, 30) * 1.6, indexing="ij")
        distance = np.hypot(x, y)
        rings.append((distance > radius) & (distance <= radius + thickness))
    return np.stack(rings, axis=-1), np.array([1.3, 1.6, 10.0])


def test_wall_thickness_of_an_open_stack_is_measured_in_its_slices():
    mask, spacing = open_stack()
    found = wall_thickness_mm(mask, spacing)
    assert found == pytest.approx(5, abs=0.15)
    assert found == wall_thickness_mm(mask, spacing, slice_axis=2)
    for axis in (0, 1):  # wherever the slices lie
        moved = np.moveaxis(mask, 2, axis), np.insert(spacing[:2], axis, spacing[2])
        assert wall_thickness_mm(*moved) == pytest.approx(found)
    broken = mask.copy()
    broken[:, :30, 1] = False  # a slice with a gap is left out
    assert wall_thickness_mm(broken, spacing) == pytest.approx(5, abs=0.15)


def test_specks_and_pinholes_do_not_change_the_wall():
    mask, spacing = open_stack()
    clean = wall_thickness_mm(mask, spacing)
    mask[1, 1] = True
    mask[30 + 11, 30, 1] = False
    assert wall_thickness_mm(mask, spacing) == pytest.approx(clean, abs=1e-9)


def test_a_closed_shell_is_not_sliced():
    mask = shell(10, 5, (1, 1, 1), (0.2, 0.1, 0.4))
    assert wall_thickness_mm(mask, (1, 1, 1)) == pytest.approx(5, abs=0.05)
    assert wall_thickness_mm(mask, (1, 1, 1), slice_axis=2) > 5.5  # oblique slices read it thicker


@pytest.mark.parametrize("size", [(9, 9), (9, 9, 5)])
def test_what_encloses_nothing_has_no_wall_thickness(size):
    solid = np.ones(size, bool)
    assert math.isnan(wall_thickness_mm(solid, (1,) * len(size)))
    assert math.isnan(wall_thickness_mm(~solid, (1,) * len(size)))


def test_wall_thickness_refuses_a_wrong_spacing():
    with pytest.raises(ValueError, match="expected 2 positive numbers"):
        wall_thickness_mm(np.ones((3, 3)), (1, 1, 1))


def test_ejection_fraction():
    assert ejection_fraction(150, 60) == pytest.approx(0.6)
    assert ejection_fraction(150, 150) == 0
    assert math.isnan(ejection_fraction(math.nan, 60))
    assert math.isnan(ejection_fraction(150, math.nan))


@pytest.mark.parametrize(
    ("volumes", "message"),
    [
        ((0, 60), "end-diastolic volume is 0 ml, expected a positive"),
        ((150, -1), "end-systolic volume is -1 ml"),
        ((math.nan, 0), "end-systolic volume is 0 ml"),
        ((60, 150), "end-systolic volume 150 ml exceeds the end-diastolic 60 ml"),
    ],
)
def test_ejection_fraction_refuses(volumes, message):
    with pytest.raises(ValueError, match=message):
        ejection_fraction(*volumes)
