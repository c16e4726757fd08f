from __future__ import annotations

import dataclasses
from itertools import combinations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import distance_transform_edt
from scipy.special import ndtri
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score, roc_auc_score

from medvae.attributes import measure_labels
from medvae.data.errors import CohortError
from medvae.data.phantom_cohort import (
    LV_SIZES,
    RV_SIZES,
    WALL_MM,
    PhantomFactors,
    _placed,
    end_systolic,
    phantoms,
    render,
    sample_factors,
    true_attributes,
)
from medvae.data.phantom_image import SCANNERS
from medvae.data.phantom_shape import Shape, bounding_points, shape_of, signed_distances
from medvae.data.subjects import load_subjects
from medvae.transforms import preprocessing

LABELS = {"rv": 1, "myocardium": 2, "lv": 3}
DIMS = pytest.mark.parametrize("dims", [2, 3])


def measured(factors: PhantomFactors) -> dict[str, float]:
    image, mask, affine = render(factors)
    dims = factors.spatial_dims
    spacing = np.linalg.norm(affine[:dims, :dims], axis=0)
    wanted = [name for name in true_attributes(factors) if name != "ejection_fraction"]
    signal = (image / 1000) ** (1 / SCANNERS[factors.scanner].gamma)
    return measure_labels(signal, mask, spacing, LABELS, wanted)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    root = tmp_path_factory.mktemp("cohort")
    return root, phantoms(root, 176)


@pytest.mark.parametrize(
    ("dims", "lv", "rv", "wall_mm", "elongation"),
    [(2, 0.08, 0.08, 0.5, 0.08), (3, 0.03, 0.06, 0.4, 0.05)],
)
def test_measured_attributes_agree_with_truth(dims, lv, rv, wall_mm, elongation):
    size = {2: "pixel_area_mm2", 3: "voxel_volume_ml"}[dims]
    subjects = sample_factors(32, dims, seed=1)
    assert {f.scanner for f in subjects} == {"A", "B"}
    for factors in subjects:
        truth, found = true_attributes(factors), measured(factors)
        for part, tolerance in (("lv", lv), ("myocardium", lv), ("rv", rv)):
            assert found[f"{part}_{size}"] == pytest.approx(truth[f"{part}_{size}"], rel=tolerance)
        name = "myocardium_wall_thickness_mm"
        assert found[name] == pytest.approx(truth[name], abs=wall_mm)
        assert found["lv_elongation"] == pytest.approx(truth["lv_elongation"], abs=elongation)
        assert 0.88 < found["lv_intensity_mean"] / truth["lv_intensity_mean"] < 1.02


def grid_around(shape: Shape, step: float) -> np.ndarray:
    points = bounding_points(shape)
    low, high = points.min(0) - 3, points.max(0) + 3
    axes = [np.arange(a, b, step) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, shape.dims)


@DIMS
@pytest.mark.parametrize("bend", [-0.009, 0.0, 0.009])
def test_sizes_and_elongation_by_counting_on_a_fine_grid(dims, bend):
    factors = dataclasses.replace(sample_factors(1, dims, seed=3)[0], bend_per_mm=bend)
    shape, truth = shape_of(factors), list(true_attributes(factors).values())
    step = {2: 0.1, 3: 0.6}[dims]
    points = grid_around(shape, step)
    at = [axis.astype(np.float32) for axis in points.T]
    cavity, wall, crescent = signed_distances(shape, at)
    unit = step**dims / {2: 1, 3: 1000}[dims]
    parts = cavity < 0, (wall < 0) & (cavity >= 0), (crescent < 0) & (wall >= 0)
    sizes = [np.count_nonzero(part) * unit for part in parts]
    assert sizes == pytest.approx([truth[0], truth[1], truth[3]], rel=4e-3)
    eigenvalues = np.linalg.eigvalsh(np.cov(points[parts[0]].T))
    assert truth[4] == pytest.approx(np.sqrt(eigenvalues[-2] / eigenvalues[-1]), abs=2e-3)


@DIMS
def test_distances_to_a_bent_axis_by_brute_force(dims):
    factors = dataclasses.replace(sample_factors(1, dims)[0], bend_per_mm=-0.009)
    shape = shape_of(factors)
    angle = np.linspace(0, shape.length / abs(shape.arc), 4000)
    axis = np.zeros((angle.size, dims))
    axis[:, 0], axis[:, 1] = shape.arc * (1 - np.cos(angle)), abs(shape.arc) * np.sin(angle)
    points = np.random.default_rng(0).uniform(-40, 60, (300, dims))
    nearest = np.linalg.norm(points[:, None] - axis, axis=-1).min(1)
    cavity, wall, _ = signed_distances(shape, [a.astype(np.float32) for a in points.T])
    np.testing.assert_allclose(cavity, nearest - shape.inner, atol=2e-3)
    np.testing.assert_allclose(cavity - wall, factors.wall_thickness_mm, atol=1e-4)


@DIMS
def test_end_systole_realises_the_ejection_fraction(dims):
    for factors in sample_factors(6, dims, seed=2):
        later = end_systolic(factors)
        before, after = (list(true_attributes(f).values()) for f in (factors, later))
        assert 1 - after[0] / before[0] == pytest.approx(factors.ejection_fraction)
        assert 1 - after[3] / before[3] == pytest.approx(factors.ejection_fraction)
        assert after[1] == pytest.approx(before[1])
        assert after[4] == pytest.approx(before[4], abs=0.02)
        found = list(measured(later).values())
        assert found[0] == pytest.approx(after[0], rel={2: 0.12, 3: 0.05}[dims])
        assert found[1] == pytest.approx(before[1], rel={2: 0.08, 3: 0.03}[dims])


def test_impossible_factors_are_refused_by_name():
    factors = sample_factors(1)[0]
    wrong = {"lv_size": -1.0, "wall_thickness_mm": 0.0, "lv_length_ratio": 0.5, "rv_size": 5000.0}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=name):
            render(dataclasses.replace(factors, **{name: value}))
    with pytest.raises(ValueError, match="ejection_fraction"):
        end_systolic(dataclasses.replace(factors, ejection_fraction=1.0))


@DIMS
def test_a_counterfactual_changes_what_it_says_and_nothing_else(dims):
    factors = sample_factors(2, dims, seed=4)[1]
    image, mask, affine = render(factors)
    thicker = dataclasses.replace(factors, wall_thickness_mm=factors.wall_thickness_mm + 3)
    new_image, new_mask, new_affine = render(thicker)
    np.testing.assert_array_equal(affine, new_affine)
    np.testing.assert_array_equal(mask == 3, new_mask == 3)
    np.testing.assert_array_equal(mask == 2, (mask == 2) & (new_mask == 2))
    before, after = measured(factors), measured(thicker)
    change = after["myocardium_wall_thickness_mm"] - before["myocardium_wall_thickness_mm"]
    assert change == pytest.approx(3, abs=0.5)
    far = distance_to_heart(thicker) > 9
    assert far.sum() > 100
    np.testing.assert_array_equal(image[far], new_image[far])
    assert (image != new_image).any()


def distance_to_heart(factors: PhantomFactors) -> np.ndarray:
    _, mask, affine = render(factors)
    dims = factors.spatial_dims
    return distance_transform_edt(mask == 0, np.linalg.norm(affine[:dims, :dims], axis=0))


@DIMS
def test_the_scanner_changes_the_image_but_not_the_patient(dims):
    factors = dataclasses.replace(sample_factors(1, dims)[0], scanner="A")
    other = dataclasses.replace(factors, scanner="B")
    assert true_attributes(factors) == true_attributes(other)
    centres = []
    for f in (factors, other):
        image, mask, affine = render(f)
        inside = np.pad(np.argwhere(mask == 3).mean(0), (0, 3 - dims))
        centres.append(affine[:3, :3] @ inside + affine[:3, 3])
    assert np.linalg.norm(centres[0] - centres[1]) < 0.5
    spacings = [np.linalg.norm(render(f)[2][:dims, :dims], axis=0) for f in (factors, other)]
    assert np.prod(spacings[1]) > 1.5 * np.prod(spacings[0])


@DIMS
def test_noise_and_texture_belong_to_their_seeds(dims):
    factors = sample_factors(1, dims, seed=6)[0]
    image = render(factors)[0].astype(float)
    np.testing.assert_array_equal(image, render(factors)[0])
    noisy = render(dataclasses.replace(factors, noise_seed=factors.noise_seed + 1))[0]
    scanner, bright = SCANNERS[factors.scanner], image > 400
    slope = scanner.gamma * (image[bright] / 1000) ** (1 - 1 / scanner.gamma)
    spread = ((noisy - image)[bright] / slope).std() / np.sqrt(2)
    assert spread == pytest.approx(1000 * scanner.noise, rel=0.1)
    textured = render(dataclasses.replace(factors, texture_seed=factors.texture_seed + 1))
    assert (textured[1] == render(factors)[1]).all()
    assert np.abs(textured[0] - image).max() > 300


def test_a_longer_cohort_starts_with_the_shorter_one():
    assert sample_factors(20, seed=3)[:5] == sample_factors(5, seed=3)
    assert sample_factors(3, seed=3)[0] != sample_factors(3, seed=4)[0]
    for flat, solid in zip(sample_factors(3, 2), sample_factors(3, 3), strict=True):
        for name in ("patient", "age", "diagnosis", "wall_thickness_mm"):
            assert getattr(flat, name) == getattr(solid, name)


def test_confounding_changes_only_the_scanner():
    cohorts = {c: sample_factors(300, 2, confounding=c) for c in (0.0, 0.5, 1.0)}
    for c, subjects in cohorts.items():
        agreement = np.mean([(f.scanner == "B") == bool(f.diagnosis) for f in subjects])
        assert agreement == pytest.approx((1 + c) / 2, abs=0.08 * (c < 1))
        for f, plain in zip(subjects, cohorts[0.0], strict=True):
            assert dataclasses.replace(f, scanner=plain.scanner) == plain


def test_a_patient_with_two_scans_has_one_heart():
    first, second = sample_factors(16)[14:]
    assert first.patient == second.patient
    for name in ("lv_size", "wall_thickness_mm", "lv_length_ratio", "rv_size", "diagnosis", "age"):
        assert getattr(first, name) == getattr(second, name)
    assert first.noise_seed != second.noise_seed
    assert first.heart_rotation != second.heart_rotation


@DIMS
def test_dependencies_are_as_documented(dims):
    subjects = sample_factors(700, dims, seed=9)
    wall = [(f.wall_thickness_mm - WALL_MM[0]) / (WALL_MM[1] - WALL_MM[0]) for f in subjects]
    risk = (
        2.8 * ndtri(wall) - 1.4 * (np.array([f.ejection_fraction for f in subjects]) - 0.52) / 0.09
    )
    assert roc_auc_score([f.diagnosis for f in subjects], risk) == pytest.approx(0.913, abs=0.03)
    ages = [f.age for f in subjects]
    assert pearsonr(ages, wall).statistic == pytest.approx(0.39, abs=0.09)
    table = pd.DataFrame([true_attributes(f) for f in subjects[:350]])
    for one, two in combinations(table, 2):
        assert abs(pearsonr(table[one], table[two]).statistic) < 0.65, (one, two)
    assert all(LV_SIZES[dims][0] <= f.lv_size <= LV_SIZES[dims][1] for f in subjects)


@DIMS
def test_the_heart_lies_inside_the_field_of_view(dims):
    drawn = sample_factors(60, dims)
    sizes = {"lv_size": LV_SIZES[dims][1], "rv_size": RV_SIZES[dims][1]}
    long = {"lv_length_ratio": 2.35, "wall_thickness_mm": WALL_MM[1]}
    largest = dataclasses.replace(drawn[0], **sizes, **long)
    placed = [_placed(largest, np.array(corner)) for corner in product((-1.0, 1.0), repeat=dims)]
    for factors in [*drawn, *placed]:
        mask = render(factors)[1]
        for axis in range(dims):
            assert not np.take(mask, [0, -1], axis=axis).any()
    assert len({f.lv_length_ratio for f in placed}) == 1  # does not depend on the scan


@pytest.mark.parametrize(
    ("name", "value"), [("n", 0), ("spatial_dims", 4), ("confounding", 1.5), ("seed", -1)]
)
def test_arguments_out_of_range_are_named(tmp_path, name, value):
    with pytest.raises(CohortError, match=f"{name} is {value}"):
        phantoms(tmp_path, **({"n": 2} | {name: value}))
    assert not list(tmp_path.iterdir())


def test_the_table(cohort):
    root, table = cohort
    written = pd.read_csv(root / "subjects.csv")
    files = ["image", "mask"]
    pd.testing.assert_frame_equal(table.drop(columns=files), written.drop(columns=files))
    assert (table[files] == str(root) + "/" + written[files]).all().all()
    assert len(table) == 176
    assert table["id"].is_unique
    assert table["patient"].duplicated().sum() == 11
    truth = table.filter(like="true_")
    assert truth.notna().all().all()
    assert table[["age", "sex", "scanner", "diagnosis", "lv_volume_ml"]].notna().all().all()
    for name in ("rv_volume_ml", "wall_thickness_mm", "ejection_fraction"):
        assert 0.005 < table[name].isna().mean() < 0.12
    both = table[["wall_thickness_mm", "true_myocardium_wall_thickness_mm"]].dropna()
    assert (both.iloc[:, 0] == both.iloc[:, 1]).all()
    for name, value in true_attributes(sample_factors(1)[0]).items():
        assert table.loc[0, f"true_{name}"] == pytest.approx(value, rel=1e-5)


@DIMS
def test_files_hold_what_render_gives(tmp_path, dims):
    table = phantoms(tmp_path, 2, dims, end_systole=True)
    for row, factors in zip(table.to_dict("records"), sample_factors(2, dims), strict=True):
        for suffix, phase in (("", factors), ("_es", end_systolic(factors))):
            image, mask, affine = render(phase)
            for kind, voxels in (("image", image), ("mask", mask)):
                nifti = nib.load(tmp_path / row[kind + suffix])
                assert nifti.get_data_dtype() == voxels.dtype
                np.testing.assert_array_equal(np.asarray(nifti.dataobj), voxels)
                np.testing.assert_allclose(nifti.affine, affine, atol=1e-4)
                np.testing.assert_allclose(nifti.get_qform(), affine, atol=1e-3)
        assert voxels.ndim == dims
        cosines = affine[:dims, :dims] / np.linalg.norm(affine[:dims, :dims], axis=0)
        np.testing.assert_allclose(cosines.T @ cosines, np.eye(dims), atol=1e-12)
        assert np.sort(np.abs(cosines).ravel())[0] > 1e-3


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_same_arguments_same_bits_and_reuse(tmp_path):
    table = phantoms(tmp_path / "a", 3, 2, end_systole=True)
    phantoms(tmp_path / "b", 3, 2, end_systole=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")}
    pd.testing.assert_frame_equal(phantoms(tmp_path / "a", 3, 2, end_systole=True), table)
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")}


def test_an_interrupted_cohort_is_completed(tmp_path):
    phantoms(tmp_path, 2, 2)
    whole = contents(tmp_path)
    (tmp_path / "subjects.csv").unlink()
    (tmp_path / "images" / "phantom0001.nii.gz").write_bytes(b"half")
    phantoms(tmp_path, 2, 2)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("change", [{"n": 3}, {"confounding": 0.5}, {"end_systole": True}])
def test_another_cohort_is_not_overwritten(tmp_path, change):
    phantoms(tmp_path, 2, 2)
    before = contents(tmp_path)
    with pytest.raises(CohortError, match="holds another phantom cohort"):
        phantoms(tmp_path, **({"n": 2, "spatial_dims": 2} | change))
    assert contents(tmp_path) == before


def test_foreign_files_are_not_overwritten(tmp_path):
    (tmp_path / "subjects.csv").write_text("id,image\n")
    with pytest.raises(CohortError, match=r"'subjects\.csv' but no phantoms\.json"):
        phantoms(tmp_path, 2, 2)
    assert list(contents(tmp_path)) == ["subjects.csv"]
    (tmp_path / "phantoms.json").write_text("{")
    with pytest.raises(CohortError, match="unreadable"):
        phantoms(tmp_path, 2, 2)


def test_attributes_are_visible_but_not_linear(cohort):
    root, table = cohort
    prepare = preprocessing(3.0, 32, percentiles=(0.5, 99.5))
    items = [prepare(row) for row in load_subjects(root / "subjects.csv").to_dict("records")]
    images = np.stack([item["image"].numpy().ravel() for item in items])
    truth = table.filter(like="true_").drop(columns="true_ejection_fraction")
    names = [name.removeprefix("true_") for name in truth]
    train, test = slice(0, 128), slice(128, None)
    codes = PCA(64, random_state=0).fit(images[train]).transform(images)
    predicted = LinearRegression().fit(codes[train], truth[train]).predict(codes[test])
    linear = r2_score(truth[test], predicted, multioutput="raw_values")
    assert 0.3 < linear.mean() < 0.85, linear

    found = pd.DataFrame(
        measure_labels(item["image"][0], item["mask"][0].round().int(), [3.0] * 3, LABELS, names)
        for item in items
    )
    for name in names:
        ceiling = pearsonr(found[name], truth[f"true_{name}"]).statistic ** 2
        assert ceiling > 0.975, (name, ceiling)
