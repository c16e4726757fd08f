"""Tables, files, splits, scaling and the cohort that joins them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, EnsureChannelFirstd, LoadImage, LoadImaged
from PIL import Image
from scipy.spatial.transform import Rotation

from medvae.attributes import measure
from medvae.attributes.__main__ import add_attributes, main
from medvae.data import (
    AttributeScaler,
    Cohort,
    CohortError,
    check_and_measure,
    check_overwrite,
    datalist,
    load_subjects,
    phantoms,
    read_image,
    read_mask,
    split_subjects,
    write_text,
)

REAL = Path(__file__).parents[2] / "shared" / "data"
# what MONAI says of an optional decoder whenever its loader is made
loads_with_monai = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_rotvec([0.3, -0.2, 0.5]).as_matrix() @ np.diag([-1.5, 0.8, 4.0])
OBLIQUE[:3, 3] = [12.0, -40.0, 7.5]


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray = OBLIQUE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


def write_cohort(folder: Path, n: int = 12, **columns: list[object]) -> Path:
    """A CSV of n subjects, two per patient, with masks of two labels that grow with the row."""
    rng = np.random.default_rng(0)
    for i in range(n):
        mask = np.zeros((12, 10, 6), np.uint8)
        mask[2 : 5 + i % 6, 2:8, 1:4] = 1
        mask[3:5, 3:5, 1:3] = 2
        image = rng.normal(100 * mask, 20).astype(np.int16)
        write_nifti(folder / "images" / f"{i:03}.nii.gz", image)
        write_nifti(folder / "masks" / f"{i:03}.nii.gz", mask)
    names = [f"{i:03}" for i in range(n)]
    table = pd.DataFrame(
        {
            "id": names,
            "image": [f"images/{name}.nii.gz" for name in names],
            "mask": [f"masks/{name}.nii.gz" for name in names],
            "patient": [f"p{i // 2}" for i in range(n)],
            "age": np.linspace(40, 70, n).round(1),
            "disease": [("None", "mild")[(i // 2) % 2] for i in range(n)],
            **columns,
        }
    )
    csv = folder / "subjects.csv"
    table.to_csv(csv, index=False)
    return csv


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort that no test changes."""
    return write_cohort(tmp_path_factory.mktemp("cohort"))


class TestTable:
    def test_reads_text_ids_and_paths_relative_to_the_csv(self, csv: Path) -> None:
        table = load_subjects(csv)
        assert list(table["id"][:2]) == ["000", "001"]
        assert table["image"][1] == str(csv.parent / "images" / "001.nii.gz")
        assert set(table["disease"]) == {"None", "mild"}, "a class, not a missing cell"

    def test_missing_cells_stay_missing(self, tmp_path: Path) -> None:
        csv = write_cohort(tmp_path, 4)
        cells = pd.read_csv(csv, dtype=str, keep_default_na=False)
        cells.loc[1, ["mask", "age", "disease"]] = ["", "NA", ""]
        cells.to_csv(csv, index=False)
        table = load_subjects(csv)
        assert table.loc[1, ["mask", "age", "disease"]].isna().all()
        assert table["age"].notna().sum() == 3

    def test_a_table_equals_its_file(self, csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(csv.parent)
        made = pd.read_csv(csv, dtype={"id": str}, keep_default_na=False)
        before = made.copy()
        pd.testing.assert_frame_equal(load_subjects(made), load_subjects(csv))
        pd.testing.assert_frame_equal(made, before)

    def test_tabs_and_a_byte_order_mark(self, csv: Path) -> None:
        tabs = csv.with_suffix(".tsv")
        tabs.write_text(csv.read_text().replace(",", "\t"), encoding="utf-8-sig")
        pd.testing.assert_frame_equal(load_subjects(tabs), load_subjects(csv))


class TestFiles:
    @loads_with_monai
    def test_nifti_as_monai_reads_it(self, csv: Path) -> None:
        path = csv.parent / "images" / "003.nii.gz"
        volume, theirs = read_image(path), LoadImage(image_only=True)(str(path))
        np.testing.assert_array_equal(volume.voxels[0], theirs.numpy())
        np.testing.assert_allclose(volume.affine, theirs.affine.numpy(), atol=1e-6)
        np.testing.assert_allclose(volume.spacing_mm(3), (1.5, 0.8, 4.0), rtol=1e-6)

    @loads_with_monai
    @pytest.mark.parametrize("channels", [1, 3])
    def test_picture_as_monai_reads_it(self, tmp_path: Path, channels: int) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (8, 6, channels), np.uint8)
        path = tmp_path / "a.png"
        Image.fromarray(pixels.squeeze()).save(path)
        volume = read_image(path, spatial_dims=2, in_channels=channels)
        assert volume.voxels.shape == (channels, 6, 8)
        theirs = LoadImage(image_only=True, ensure_channel_first=True)(str(path))
        np.testing.assert_array_equal(volume.voxels, theirs.numpy())
        assert volume.spacing_mm(2) == (1.0, 1.0)

    @loads_with_monai
    def test_dicom_series(self, tmp_path: Path) -> None:
        slices = np.random.default_rng(0).integers(0, 900, (5, 8, 6), np.int16)
        write_dicom_series(tmp_path / "series", slices)
        volume = read_image(tmp_path / "series")
        np.testing.assert_array_equal(volume.voxels[0], slices.transpose(2, 1, 0))
        np.testing.assert_allclose(volume.spacing_mm(3), (0.7, 0.9, 2.5))
        np.testing.assert_allclose(volume.affine[:3, 3], (10.0, 20.0, 30.0))  # LPS became RAS
        theirs = LoadImage(image_only=True)(str(tmp_path / "series"))
        np.testing.assert_allclose(volume.affine, theirs.affine.numpy())

    @pytest.mark.filterwarnings("ignore")  # as for a user, to whom MONAI only warns
    def test_a_folder_with_two_series_is_refused(self, tmp_path: Path) -> None:
        slices = np.random.default_rng(0).integers(0, 900, (3, 8, 6), np.int16)
        for series in ("1.2.3", "1.2.4"):
            write_dicom_series(tmp_path / "two", slices, series)
        with pytest.raises(CohortError, match=r"two' cannot be read; expected .*one .* series"):
            read_image(tmp_path / "two")

    @pytest.mark.parametrize(
        ("shape", "spatial_dims", "in_channels", "expected"),
        [
            ((8, 9, 7, 1), 3, 1, (1, 8, 9, 7)),
            ((8, 9, 7, 1, 3), 3, 3, (3, 8, 9, 7)),
            ((8, 9, 7, 2), 3, 2, (2, 8, 9, 7)),
            ((8, 9), 2, 1, (1, 8, 9)),
            ((8, 9, 1), 2, 1, (1, 8, 9)),
        ],
    )
    def test_axes_of_length_one(
        self,
        tmp_path: Path,
        shape: tuple[int, ...],
        spatial_dims: int,
        in_channels: int,
        expected: tuple[int, ...],
    ) -> None:
        voxels = np.random.default_rng(0).normal(size=shape)
        write_nifti(tmp_path / "a.nii", voxels)
        found = read_image(tmp_path / "a.nii", spatial_dims, in_channels).voxels
        assert found.shape == expected
        assert found[-1, 2, 3].ravel()[0] == voxels[2, 3, ...].ravel()[in_channels - 1]

    def test_a_mask_is_rounded(self, tmp_path: Path) -> None:
        mask = np.zeros((4, 4, 4), np.float32)
        mask[1, 1, 1] = 1.99999
        write_nifti(tmp_path / "m.nii", mask)
        assert read_mask(tmp_path / "m.nii").voxels.max() == 2


def write_dicom_series(folder: Path, slices: np.ndarray, series: str = "1.2.3") -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(exist_ok=True)
    for k, pixels in enumerate(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"{series}.{k + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, f"{series}.{k + 1}"
        item.SeriesInstanceUID, item.StudyInstanceUID = series, "1.2"
        item.Modality, item.SeriesDate, item.InstanceNumber = "CT", "20200101", k + 1
        item.Rows, item.Columns = pixels.shape
        item.PixelSpacing, item.SliceThickness = [0.9, 0.7], 2.5
        item.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        item.ImagePositionPatient = [-10, -20, 30 + 2.5 * k]
        item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
        item.BitsAllocated, item.BitsStored, item.HighBit = 16, 16, 15
        item.PixelRepresentation = 1
        item.PixelData = pixels.tobytes()
        item.save_as(folder / f"{series}-{len(slices) - k}.dcm", enforce_file_format=True)


def patients(sizes: list[int], classes: list[int]) -> pd.DataFrame:
    rows = [
        (f"{i}-{j}", i, classes[i % len(classes)]) for i, n in enumerate(sizes) for j in range(n)
    ]
    return pd.DataFrame(rows, columns=["id", "patient", "label"])


class TestSplit:
    @settings(max_examples=60, deadline=None)
    @given(
        sizes=st.lists(st.integers(1, 4), min_size=3, max_size=40),
        classes=st.lists(st.integers(0, 3), min_size=1, max_size=7),
        seed=st.integers(0, 5),
        shuffle=st.randoms(),
    )
    def test_patients_never_cross_and_rows_may_come_in_any_order(
        self, sizes: list[int], classes: list[int], seed: int, shuffle: object
    ) -> None:
        table = patients(sizes, classes)
        split = split_subjects(table, label="label", seed=seed)
        assert (split.groupby("patient")["split"].nunique() == 1).all()
        assert set(split["split"]) == {"train", "val", "test"}
        assert list(split["id"]) == list(table["id"])
        order = list(range(len(table)))
        shuffle.shuffle(order)
        again = split_subjects(table.iloc[order], label="label", seed=seed)
        assert dict(zip(again["id"], again["split"], strict=True)) == dict(
            zip(split["id"], split["split"], strict=True)
        )

    @settings(max_examples=60, deadline=None)
    @given(n=st.integers(10, 200), classes=st.lists(st.integers(0, 2), min_size=1, max_size=9))
    def test_shares_are_met_in_the_whole_and_in_every_class(
        self, n: int, classes: list[int]
    ) -> None:
        split = split_subjects(patients([1] * n, classes), label="label")
        fractions = {"train": 0.6, "val": 0.15, "test": 0.25}
        for name, share in fractions.items():
            assert abs((split["split"] == name).sum() - share * n) <= 1.25
            for _, part in split.groupby("label"):
                assert abs((part["split"] == name).sum() - share * len(part)) <= 1.25

    def test_every_class_is_divided_as_evenly_as_its_size_allows(self) -> None:
        classes = [0] * 8 + [1] * 8 + [2] * 15 + [3] * 5
        split = split_subjects(patients([1] * 36, classes), label="label")
        counts = split.groupby(["label", "split"]).size().unstack()[["train", "val", "test"]]
        shares = np.outer(counts.sum(axis=1), [0.6, 0.15, 0.25])
        assert np.abs(counts - shares).to_numpy().max() <= 0.3

    def test_every_class_is_trained(self) -> None:
        split = split_subjects(patients([1] * 30, [0] * 28 + [1, 2]), label="label")
        assert set(split.loc[split["split"] == "train", "label"]) == {0, 1, 2}

    def test_the_seed_decides(self) -> None:
        table = patients([1] * 40, [0])
        first, second = (split_subjects(table, seed=seed)["split"] for seed in (0, 1))
        assert (first != second).sum() > 5
        assert list(first) == list(split_subjects(table, seed=0)["split"])

    def test_without_a_patient_column_rows_are_patients(self) -> None:
        table = patients([3] * 10, [0])
        split = split_subjects(table.drop(columns="patient"))
        assert (split["split"].groupby(table["patient"]).nunique() > 1).any()

    def test_a_given_column(self) -> None:
        table = patients([1] * 4, [0]).assign(fold=["val", "train", "train", "test"])
        assert list(split_subjects(table, split_column="fold")["split"]) == list(table["fold"])

    def test_a_share_of_zero_stays_empty(self) -> None:
        split = split_subjects(patients([1] * 10, [0]), fractions=(0.8, 0.2, 0))
        assert split["split"].value_counts().to_dict() == {"train": 8, "val": 2}


finite = st.floats(-1e4, 1e4, allow_subnormal=False)


class TestScaler:
    @settings(max_examples=50, deadline=None)
    @given(values=hnp.arrays(float, st.tuples(st.integers(3, 20), st.just(2)), elements=finite))
    def test_standardises_and_inverts(self, values: np.ndarray) -> None:
        values = np.concatenate([values, [[-2e4, 1.0], [2e4, 3e4]]])
        values[:, 1] = np.abs(values[:, 1]) + 0.5
        table = pd.DataFrame(values, columns=["a", "b"])
        scaler = AttributeScaler(["a", "b"], log=["b"]).fit(table)
        scaled = scaler.transform(values)
        np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-9)
        np.testing.assert_allclose(scaled.std(0), 1, atol=1e-9)
        np.testing.assert_allclose(scaler.inverse(scaled), values, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(
            scaler.transform(torch.from_numpy(values)).numpy(), scaled, atol=1e-12
        )

    def test_missing_values_do_not_count_and_stay(self) -> None:
        table = pd.DataFrame({"a": [1.0, np.nan, 3.0], "b": [2.0, 4.0, 9.0]})
        scaler = AttributeScaler(["a", "b"]).fit(table)
        assert scaler.mean[0] == 2
        assert scaler.sd[0] == 1
        scaled = scaler.transform(table.to_numpy())
        assert np.isnan(scaled[1, 0])
        assert np.isnan(scaler.inverse(scaled)[1, 0])

    def test_state_is_json_and_equal(self) -> None:
        table = pd.DataFrame({"a": [1.0, 2.0, 7.0], "b": [2.0, 4.0, 9.0]})
        scaler = AttributeScaler(["a", "b"], log=["a"]).fit(table)
        again = AttributeScaler.from_state_dict(json.loads(json.dumps(scaler.state_dict())))
        np.testing.assert_array_equal(
            again.transform(table.to_numpy()), scaler.transform(table.to_numpy())
        )

    def test_tensors_keep_type_and_pass_gradients(self) -> None:
        scaler = AttributeScaler(["a", "b"], ["b"]).fit(
            pd.DataFrame({"a": [1.0, 3.0], "b": [1.0, 9.0]})
        )
        z = torch.tensor([[0.5, -800.0]], requires_grad=True)  # exp(b) underflows, a must not care
        values = scaler.inverse(z)
        assert values.dtype == torch.float32
        values.sum().backward()
        torch.testing.assert_close(z.grad, torch.tensor([[1.0, 0.0]]))

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_arrays_keep_their_type(self, dtype: type) -> None:
        scaler = AttributeScaler(["a"], ["a"]).fit(pd.DataFrame({"a": [1.0, 3.0]}))
        values = np.array([[2.0]], dtype)
        assert scaler.transform(values).dtype == dtype
        assert scaler.inverse(values).dtype == dtype

    def test_inputs_are_left_alone(self) -> None:
        scaler = AttributeScaler(["a"], ["a"]).fit(pd.DataFrame({"a": [1.0, 3.0]}))
        values = np.array([[2.0]])
        for mine in (values, torch.from_numpy(values.copy())):
            scaler.transform(mine), scaler.inverse(mine)
            assert mine[0, 0] == 2

    def test_a_logarithm_needs_positive_values(self) -> None:
        table = pd.DataFrame({"a": [1.0, np.nan, 3.0], "b": [0.0, 1.0, 2.0]})
        scaler = AttributeScaler(["a", "b"], ["a"]).fit(table)
        for values in (np.array([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]])):
            with pytest.raises(CohortError, match="'a' holds 0; expected numbers above 0"):
                scaler.transform(values)
        with pytest.raises(CohortError, match="'b'"):
            AttributeScaler(["a", "b"], ["b"]).fit(table)

    def test_unfitted_is_an_error(self) -> None:
        with pytest.raises(RuntimeError, match="fit"):
            AttributeScaler(["a"]).transform(np.ones((1, 1)))


class TestDatalist:
    def test_rows(self, csv: Path) -> None:
        table = load_subjects(csv)
        table.loc[0, ["age", "disease"]] = np.nan
        table["split"] = ["train", "val"] * 6
        rows = datalist(table, ["age"], "disease")
        assert set(rows[0]) == {"id", "image", "mask", "age", "label", "split"}
        assert math.isnan(rows[0]["age"])
        assert [row["label"] for row in rows[:4]] == [-1, 0, 1, 1]
        assert rows[1]["age"] == table["age"][1]
        assert [row["id"] for row in datalist(table, split="val")] == list(table["id"][1::2])

    def test_masks_are_listed_for_all_or_none(self, csv: Path) -> None:
        table = load_subjects(csv).assign(split=["train"] * 6 + ["val"] * 6)
        table.loc[7, "mask"] = np.nan
        assert all("mask" in row for row in datalist(table, split="train"))
        assert not any("mask" in row for row in datalist(table))

    @loads_with_monai
    def test_monai_batches_them(self, csv: Path) -> None:
        table = load_subjects(csv)
        table.loc[1, "age"] = np.nan
        keys = ("image", "mask")
        load = Compose([LoadImaged(keys), EnsureChannelFirstd(keys)])
        rows = datalist(table, ["age"], "disease")[:3]
        batch = next(iter(DataLoader(Dataset(rows, load), batch_size=3)))
        assert batch["image"].shape == batch["mask"].shape == (3, 1, 12, 10, 6)
        assert batch["age"].isnan().tolist() == [False, True, False]
        assert batch["label"].tolist() == [0, 0, 1]


class TestCohort:
    def test_measures_what_is_no_column(self, csv: Path) -> None:
        names = ["age", "voxel_volume_ml", "intensity_mean"]
        cohort = Cohort(csv, names, log=["voxel_volume_ml"], progress=False)
        assert cohort.attribute_names == tuple(names)
        row = cohort.subjects.iloc[4]
        image, mask = read_image(row["image"]), read_mask(row["mask"])
        expected = measure(image.voxels[0], mask.voxels > 0, (1.5, 0.8, 4.0), names[1:])
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-6)
        assert row["voxel_volume_ml"] == pytest.approx(
            (mask.voxels > 0).sum() * 1.5 * 0.8 * 4 / 1000, rel=1e-6
        )

    def test_a_column_comes_before_a_measurement(self, tmp_path: Path) -> None:
        csv = write_cohort(tmp_path, 6, sphericity=[float(i) for i in range(6)])
        cohort = Cohort(csv, ["sphericity"], progress=False)
        assert list(cohort.subjects["sphericity"]) == list(range(6))

    def test_the_scaler_sees_training_rows_only(self, csv: Path) -> None:
        cohort = Cohort(csv, ["age"], progress=False)
        train = cohort.subjects.loc[cohort.subjects["split"] == "train", "age"]
        assert cohort.scaler.mean[0] == pytest.approx(train.mean())
        assert cohort.scaler.mean[0] != pytest.approx(cohort.subjects["age"].mean())

    def test_labels_of_the_mask(self, csv: Path) -> None:
        labels = {"core": 2, "rim": 1, "all": [1, 2], "absent": 9}
        names = [f"{label}_voxel_volume_ml" for label in labels]
        table = check_and_measure(load_subjects(csv), names, mask_labels=labels, progress=False)
        np.testing.assert_allclose(table[names[0]] + table[names[1]], table[names[2]])
        assert table[names[3]].isna().all()

    def test_a_subject_without_a_mask_has_missing_attributes(self, csv: Path) -> None:
        table = load_subjects(csv)
        table.loc[3, "mask"] = np.nan
        cohort = Cohort(table, ["sphericity"], progress=False)
        assert np.flatnonzero(cohort.subjects["sphericity"].isna()).tolist() == [3]
        assert len(cohort.datalist()) == 12

    def test_a_mask_is_not_needed_for_columns(self, csv: Path) -> None:
        table = load_subjects(csv).drop(columns="mask")
        assert "mask" not in Cohort(table, ["age"], progress=False).datalist()[0]

    def test_channels_are_measured_as_their_mean(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        Image.fromarray(np.ones((8, 6), np.uint8)).save(tmp_path / "m.png")
        row = {"id": "a", "image": str(tmp_path / "a.png"), "mask": str(tmp_path / "m.png")}
        table = check_and_measure(
            pd.DataFrame([row]), ["intensity_mean"], 2, in_channels=3, progress=False
        )
        assert table["intensity_mean"][0] == pytest.approx(pixels.mean())

    @pytest.mark.parametrize(
        ("values", "classes", "head"),
        [
            (["b", "a"], ("a", "b"), 1),
            ([0, 1, 2], (0, 1, 2), 3),
            ([True, False], (0, 1), 1),
            ([1.0, np.nan, 10.0, 2.0], (1, 2, 10), 3),
        ],
    )
    def test_classes(
        self, tmp_path: Path, values: list[object], classes: tuple[object, ...], head: int
    ) -> None:
        csv = write_cohort(tmp_path, 24, kind=[values[i % len(values)] for i in range(24)])
        cohort = Cohort(csv, label="kind", patient="id", check=False)
        assert cohort.classes == classes
        assert cohort.num_classes == head
        known = {row["label"] for row in cohort.datalist()} - {-1}
        assert known == set(range(len(classes)))
        assert len(cohort.datalist()) == 24, "a missing label drops nobody"

    def test_without_a_label(self, csv: Path) -> None:
        cohort = Cohort(csv, check=False)
        assert cohort.num_classes == 0
        assert "label" not in cohort.datalist()[0]

    def test_without_a_split_all_are_listed_and_nothing_is_fitted(self, csv: Path) -> None:
        table = load_subjects(csv)[["id", "image"]].head(1)
        cohort = Cohort(table, fractions=None, progress=False)
        assert [row["split"] for row in cohort.datalist()] == ["test"]

    def test_equal_arguments_give_equal_cohorts(self, csv: Path) -> None:
        options = {"attributes": ["age", "sphericity"], "label": "disease", "progress": False}
        assert Cohort(csv, **options).state() == Cohort(csv, **options).state()


class TestState:
    def test_travels_with_the_model(self, csv: Path, tmp_path: Path) -> None:
        cohort = Cohort(csv, ["age", "sphericity"], "disease", log=["age"], progress=False)
        cohort.save(tmp_path / "models" / "cohort.json")
        state = Cohort.load_state(tmp_path / "models" / "cohort.json")
        assert state.attributes == ("age", "sphericity")
        assert state.classes == ("None", "mild")
        assert state.num_classes == 1
        assert state.to_dict() == cohort.state()
        values = cohort.subjects[["age", "sphericity"]].to_numpy()
        np.testing.assert_array_equal(
            state.scaler.transform(values), cohort.scaler.transform(values)
        )
        assert [path.name for path in (tmp_path / "models").iterdir()] == ["cohort.json"]

    def test_keeps_the_split_when_the_table_has_grown(self, csv: Path, tmp_path: Path) -> None:
        cohort = Cohort(csv, ["age"], "disease", check=False)
        cohort.save(tmp_path / "cohort.json")
        grown = load_subjects(csv)
        new = grown.iloc[[0, 1, 2]].assign(
            id=["x", "y", "z"], patient=["p0", "p1", "new"], age=[1.0, 2.0, 3.0], disease=np.nan
        )
        table = pd.concat([grown.drop(index=[5]), new])
        again = Cohort(table, ["age"], "disease", check=False, state=tmp_path / "cohort.json")
        before = dict(zip(cohort.subjects["id"], cohort.subjects["split"], strict=True))
        after = dict(zip(again.subjects["id"], again.subjects["split"], strict=True))
        assert {name: after[name] for name in after if name in before} == {
            name: before[name] for name in after if name in before
        }
        assert after["x"] == before["000"]
        assert after["y"] == before["002"]
        assert after["z"] == "test"
        assert again.scaler.state_dict() == cohort.scaler.state_dict()
        assert again.num_classes == 1

    def test_serves_inference_without_label_and_attributes(self, csv: Path, tmp_path: Path) -> None:
        trained = Cohort(csv, ["age"], "disease", check=False)
        trained.save(tmp_path / "cohort.json")
        table = load_subjects(csv)[["id", "image"]].assign(id=[f"n{i}" for i in range(12)])
        cohort = Cohort(table, check=False, state=tmp_path / "cohort.json")
        assert len(cohort.datalist("test")) == 12
        assert cohort.classes == ("None", "mild")
        np.testing.assert_array_equal(cohort.scaler.inverse(np.zeros(1)), trained.scaler.mean)

    def test_refuses_other_attributes(self, csv: Path, tmp_path: Path) -> None:
        Cohort(csv, ["age"], check=False).save(tmp_path / "cohort.json")
        with pytest.raises(CohortError, match=r"sphericity.*age"):
            Cohort(csv, ["sphericity"], state=tmp_path / "cohort.json", progress=False)


class TestCommand:
    def test_adds_columns_and_keeps_the_rest(self, tmp_path: Path) -> None:
        csv = write_cohort(tmp_path / "in", 3, code=["007", "1.50", "2e3"], note=["NA", "x", ""])
        output = tmp_path / "out" / "measured.csv"
        arguments = [str(csv), "--output", str(output), "--label", "all=1,2", "--label", "core=2"]
        main([*arguments, "--features", "voxel_volume_ml", "sphericity"])
        before = pd.read_csv(csv, dtype=str, keep_default_na=False)
        after = pd.read_csv(output, dtype=str, keep_default_na=False)
        added = [
            f"{label}_{name}"
            for label in ("all", "core")
            for name in ("voxel_volume_ml", "sphericity")
        ]
        assert list(after) == [*before, *added]
        kept = ["id", "patient", "age", "disease", "code", "note"]
        pd.testing.assert_frame_equal(after[kept], before[kept])
        assert after["image"][0] == "../in/images/000.nii.gz"
        read = Cohort(output, [added[0]], fractions=None, check=False).subjects
        expected = check_and_measure(
            load_subjects(csv), [added[0]], mask_labels={"all": [1, 2]}, progress=False
        )
        assert read[added[0]].tolist() == expected[added[0]].tolist()
        assert read["image"].map(Path).map(Path.resolve).tolist() == [
            Path(path).resolve() for path in expected["image"]
        ]

    def test_missing_masks_leave_empty_cells(self, tmp_path: Path) -> None:
        csv = write_cohort(tmp_path, 3)
        csv.write_text(csv.read_text().replace("masks/001.nii.gz", ""))
        add_attributes(csv, tmp_path / "out.csv", features=["sphericity"], progress=False)
        cells = pd.read_csv(tmp_path / "out.csv", dtype=str, keep_default_na=False)["sphericity"]
        assert [cell == "" for cell in cells] == [False, True, False]

    def test_all_features_by_default(self, tmp_path: Path) -> None:
        csv = write_cohort(tmp_path, 3)
        table = add_attributes(csv, tmp_path / "out.csv", progress=False)
        assert "glcm_correlation" in table
        assert "wall_thickness_mm" not in table

    def test_pairs_of_phases_have_an_ejection_fraction(self, tmp_path: Path) -> None:
        hearts = phantoms(tmp_path / "p", 4, end_systole=True)
        phases = [hearts, hearts.drop(columns=["image", "mask"])[:3]]  # the last has one alone
        phases[1] = phases[1].rename(columns={"image_es": "image", "mask_es": "mask"})
        table = pd.concat(phases, ignore_index=True).drop(columns="ejection_fraction")
        table["id"] = [f"row{number}" for number in range(7)]
        rows = str(tmp_path / "p" / "rows.csv")
        table.drop(columns=["image_es", "mask_es"]).to_csv(rows, index=False)
        arguments = [rows, "--features", "voxel_volume_ml", "--label", "lv=3"]
        main([*arguments, "--output", str(tmp_path / "out.csv"), "--pair", "patient"])
        found = pd.read_csv(tmp_path / "out.csv")["lv_ejection_fraction"]
        truth = hearts["true_ejection_fraction"].to_numpy()
        np.testing.assert_allclose(found, [*truth[:3], np.nan, *truth[:3]], atol=0.05)
        for extra, sentence in (
            (["--pair", "heart"], "Column 'heart' is not in the table"),
            (["--pair", "id"], "No value of column 'id' is in exactly two rows"),
            (["--pair", "patient", "--features", "sphericity"], "of voxel_volume_ml"),
        ):
            with pytest.raises(SystemExit, match=sentence):
                main([*arguments, "--output", str(tmp_path / "not.csv"), *extra])

    def test_overwrites_only_when_asked(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        csv = write_cohort(tmp_path, 3)
        arguments = [str(csv), "--output", str(csv), "--features", "sphericity"]
        before = csv.read_text()
        with pytest.raises(SystemExit, match="already there"):
            main(arguments)
        assert csv.read_text() == before
        main([*arguments, "--overwrite"])
        assert "sphericity" in csv.read_text()
        assert "checking and measuring" in capsys.readouterr().err
        with pytest.raises(SystemExit, match="already has the columns 'sphericity'"):
            main([str(csv), "--output", str(tmp_path / "x.csv"), "--features", "sphericity"])

    def test_a_failure_writes_nothing(self, tmp_path: Path) -> None:
        csv = write_cohort(tmp_path, 3)
        (tmp_path / "masks" / "002.nii.gz").write_bytes(b"")
        with pytest.raises(SystemExit, match=r"002\.nii\.gz"):
            main([str(csv), "--output", str(tmp_path / "out" / "out.csv")])
        assert not (tmp_path / "out").exists()


def test_results_are_overwritten_only_when_asked(tmp_path: Path) -> None:
    check_overwrite([tmp_path / "model.pt"])
    (tmp_path / "model.pt").touch()
    with pytest.raises(CohortError, match=r"model\.pt"):
        check_overwrite([tmp_path / "model.pt", tmp_path / "metrics.json"])
    check_overwrite([tmp_path / "model.pt"], overwrite=True)


def test_files_are_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, original, touched = tmp_path / "a" / "cohort.json", Path.write_bytes, []

    def half(path: Path, content: bytes) -> None:
        touched.append(path)
        original(path, content[:2])
        if content == b"interrupted":
            raise KeyboardInterrupt
        original(path, content)

    monkeypatch.setattr(Path, "write_bytes", half)
    write_text(target, "whole")
    with pytest.raises(KeyboardInterrupt):
        write_text(target, "interrupted")
    assert target not in touched
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_phantoms_take_the_path_of_a_real_cohort(tmp_path: Path, spatial_dims: int) -> None:
    phantoms(tmp_path, 8, spatial_dims=spatial_dims)
    size = "pixel_area_mm2" if spatial_dims == 2 else "voxel_volume_ml"
    cohort = Cohort(
        tmp_path / "subjects.csv",
        [f"lv_{size}", "ejection_fraction"],
        label="scanner",
        mask_labels={"lv": 3},
        spatial_dims=spatial_dims,
        progress=False,
    )
    truth = cohort.subjects[f"true_lv_{size}"]
    np.testing.assert_allclose(cohort.subjects[f"lv_{size}"], truth, rtol=0.1)
    assert len(cohort.datalist("train")) > len(cohort.datalist("val")) >= 1


@pytest.mark.parametrize(
    ("name", "label", "attributes", "mask_labels"),
    [
        ("nodules", "malignant", ["voxel_volume_ml", "diameter_mm"], None),
        ("acdc", "group", ["lv_voxel_volume_ml", "rv_sphericity"], {"lv": 3, "rv": 1}),
    ],
)
def test_real_cohorts(
    name: str, label: str, attributes: list[str], mask_labels: dict[str, int] | None
) -> None:
    csv = REAL / name / "subjects.csv"
    if not csv.exists():
        pytest.skip(f"the cohort {name} is not beside the repository")
    table = load_subjects(csv).iloc[::8]
    cohort = Cohort(table, attributes, label, mask_labels=mask_labels, progress=False)
    assert cohort.subjects[attributes].notna().all().all()
    assert (cohort.subjects.groupby("patient")["split"].nunique() == 1).all()
    rates = [
        cohort.subjects.loc[cohort.subjects["split"] == split, label].value_counts(normalize=True)
        for split in ("train", "test")
    ]
    assert (rates[0] - rates[1]).abs().max() < 0.25
