"""Every kind of bad input ends in one sentence that names it, before anything is trained."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medvae.data import (
    Cohort,
    CohortError,
    check_writable,
    cohort_or_exit,
    load_subjects,
    or_exit,
    split_subjects,
)

N = 8
SHAPE = (8, 7, 6)
AFFINE = np.array([[0.0, 1.5, 0, 3], [-1.2, 0, 0, 4], [0, 0, 3, -5], [0, 0, 0, 1]])


def write(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    nib.save(nib.Nifti1Image(voxels, affine), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good cohort: <id>.nii.gz, <id>_mask.nii.gz and subjects.csv; tests break it."""
    rng = np.random.default_rng(0)
    for i in range(N):
        write(tmp_path / f"s{i}.nii.gz", rng.normal(size=SHAPE).astype(np.float32))
        mask = np.zeros(SHAPE, np.uint8)
        mask[2:6, 2 : 4 + i % 3, 1:5] = 1
        write(tmp_path / f"s{i}_mask.nii.gz", mask)
    names = [f"s{i}" for i in range(N)]
    pd.DataFrame(
        {
            "id": names,
            "image": [f"{name}.nii.gz" for name in names],
            "mask": [f"{name}_mask.nii.gz" for name in names],
            "patient": [f"p{i}" for i in range(N)],
            "age": np.arange(40.0, 40 + N),
            "ill": [i % 2 for i in range(N)],
        }
    ).to_csv(tmp_path / "subjects.csv", index=False)
    return tmp_path


def build(folder: Path, **options: Any) -> Cohort:
    defaults = {"attributes": ["age", "voxel_volume_ml"], "label": "ill", "progress": False}
    return Cohort(folder / "subjects.csv", **{**defaults, **options})


def sentence(folder: Path, **options: Any) -> str:
    """The error's message, after checking that it is one sentence."""
    with pytest.raises(CohortError) as caught:
        build(folder, **options)
    return checked(str(caught.value))


def checked(message: str) -> str:
    assert "\n" not in message
    assert message.endswith((".", "?"))
    assert len(message) < 500
    assert re.search(r"expected|did you mean|known:", message)
    return message


def test_the_good_cohort_is_accepted(folder: Path) -> None:
    assert len(build(folder, needs_mask=True).datalist()) == N


def change_table(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    csv = folder / "subjects.csv"
    change(pd.read_csv(csv, dtype=object)).to_csv(csv, index=False)


def set_cell(row: int | slice, column: str, value: object) -> Callable[[Path], None]:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[row, column] = value
        return table

    return lambda folder: change_table(folder, change)


def set_column(column: str, values: object) -> Callable[[Path], None]:
    return lambda folder: change_table(folder, lambda table: table.assign(**{column: values}))


TABLES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no csv": (lambda folder: (folder / "subjects.csv").unlink(), ["subjects.csv", "not exist"]),
    "empty csv": (lambda folder: (folder / "subjects.csv").write_text(""), ["subjects.csv"]),
    "no rows": (lambda folder: change_table(folder, lambda t: t.head(0)), ["no subject"]),
    "binary csv": (lambda folder: (folder / "subjects.csv").write_bytes(b"\xff\xfe\x00\x81"), []),
    "semicolons": (
        lambda folder: change_table(folder, lambda t: t.rename(columns={"id": "id;image"})),
        ["'id'", "id;image"],
    ),
    "no image column": (
        lambda folder: change_table(folder, lambda t: t.drop(columns="image")),
        ["'image'", "subjects.csv", "'patient'"],
    ),
    "duplicate id": (set_cell(3, "id", "s1"), ["'s1'", "more than once"]),
    "empty id": (set_cell(3, "id", None), ["'id'", "row 4"]),
    "id that is a way out": (set_cell(3, "id", ".."), ["'id'", "'..'", "name of a file"]),
    "id of two lines": (set_cell(3, "id", "a\nb"), ["'id'", "name of a file"]),
    "long id": (set_cell(3, "id", "é" * 61), ["'id'", "120 bytes"]),
    "ids of one file name": (
        lambda folder: [set_cell(3, "id", "a/b")(folder), set_cell(4, "id", "a_b")(folder)],
        ["'a/b', 'a_b'", "one file name"],
    ),
    "empty image": (set_cell(3, "image", None), ["'image'", "'s3'"]),
    "missing files": (
        set_cell(slice(3, 5), "image", "nowhere.nii.gz"),
        ["nowhere.nii.gz", "not exist", "2 more"],
    ),
    "missing mask": (set_cell(3, "mask", "nowhere.nii.gz"), ["mask", "nowhere.nii.gz"]),
    "no mask column": (
        lambda folder: change_table(folder, lambda t: t.drop(columns="mask")),
        ["'mask'", "'voxel_volume_ml'"],
    ),
    "no number": (set_cell(3, "age", "forty"), ["'age'", "'s3'", "'forty'"]),
    "decimal comma": (set_cell(3, "age", "41,5"), ["'age'", "'s3'", "'41,5'"]),
    "infinite number": (set_cell(3, "age", "inf"), ["'age'", "'s3'", "'inf'"]),
    "all missing": (set_column("age", None), ["'age'", "missing in all"]),
    "constant": (set_column("age", 50), ["'age'", "50"]),
    "one class": (set_column("ill", 1), ["'ill'", "[1]", "two classes"]),
    "no class": (set_column("ill", None), ["'ill'", "[]"]),
    "fractional class": (set_cell(3, "ill", "0.5"), ["'ill'", "0.5", "'s3'"]),
    "no patient": (set_cell(3, "patient", None), ["'patient'", "'s3'"]),
    "too few patients": (
        lambda folder: change_table(folder, lambda t: t.assign(patient=["a", "b"] * (N // 2))),
        ["2 patient", "8 row", "at least 3"],
    ),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables(folder: Path, kind: str) -> None:
    spoil, parts = TABLES[kind]
    spoil(folder)
    message = sentence(folder)
    for part in parts:
        assert part in message


def edit_header(path: Path, **fields: object) -> None:
    """Change NIfTI header fields without nibabel's repairs."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    header = nib.Nifti1Header(bytes(data[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    data[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(data)))


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def with_voxel(value: float) -> Callable[[Path], None]:
    voxels = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    voxels[3, 2, 1] = value
    return lambda path: write(path, voxels)


def moved(mm: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[2, 3] += mm
    return affine


MASK = np.ones(SHAPE, np.uint8)
NOISE = np.random.default_rng(0).normal(size=(*SHAPE, 3)).astype(np.float32)
FILES: dict[str, tuple[str, Callable[[Path], None], list[str]]] = {
    "truncated": ("s3.nii.gz", truncate, ["bytes cannot be read", "complete"]),
    "truncated mask": ("s3_mask.nii.gz", truncate, ["mask", "cannot be read"]),
    "empty file": ("s3.nii.gz", lambda path: path.write_bytes(b""), ["cannot be read"]),
    "no NIfTI": ("s3.nii.gz", lambda path: path.write_text("hello"), ["cannot be read"]),
    "NaN": ("s3.nii.gz", with_voxel(np.nan), ["1 NaN or infinite", "finite"]),
    "infinite": ("s3.nii.gz", with_voxel(-np.inf), ["1 NaN or infinite", "finite"]),
    "constant": ("s3.nii.gz", lambda path: write(path, MASK), ["is 1 in every voxel"]),
    "cine": ("s3.nii.gz", lambda path: write(path, NOISE), ["(8, 7, 6, 3)", "time", "1 channel "]),
    "slice": ("s3.nii.gz", lambda path: write(path, NOISE[..., 0, 0]), ["(8, 7)", "3D"]),
    "colours": (
        "s3.nii.gz",
        lambda path: write(path, np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        ["voxels of type", "numbers"],
    ),
    "zero spacing": (
        "s3.nii.gz",
        lambda path: edit_header(path, pixdim=[1, 1.5, 1.2, 0, 0, 0, 0, 0], sform_code=0),
        ["x 0 mm", "above 0"],
    ),
    "zero sform": ("s3.nii.gz", lambda path: edit_header(path, srow_z=0, srow_x=0), ["0 x"]),
    "voxels far behind": (
        "s3.nii.gz",
        lambda path: edit_header(path, vox_offset=1e8),
        ["begin after 1e+08 bytes", "at most 16000000 bytes of header"],
    ),
    "NaN affine": ("s3.nii.gz", lambda path: edit_header(path, srow_y=np.nan), ["nan"]),
    "empty mask": ("s3_mask.nii.gz", lambda path: write(path, 0 * MASK), ["is empty"]),
    "soft mask": ("s3_mask.nii.gz", lambda path: write(path, MASK * 0.4), ["0.4", "whole"]),
    "mask with channels": (
        "s3_mask.nii.gz",
        lambda path: write(path, (NOISE > 0).astype(np.uint8)),
        ["(8, 7, 6, 3)", "3 axes"],
    ),
    "mask shape": (
        "s3_mask.nii.gz",
        lambda path: write(path, MASK[1:]),
        ["(7, 7, 6)", "(8, 7, 6)", "s3.nii.gz"],
    ),
    "mask affine": (
        "s3_mask.nii.gz",
        lambda path: write(path, MASK, moved(1.0)),
        ["1 mm", "0.12 mm", "s3.nii.gz"],
    ),
    "mask flipped": (
        "s3_mask.nii.gz",
        lambda path: write(path, MASK, AFFINE @ np.diag([1, -1, 1, 1])),
        ["18 mm away"],
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_files(folder: Path, kind: str) -> None:
    name, spoil, parts = FILES[kind]
    spoil(folder / name)
    for options in ({}, {"attributes": ["age"]}):
        message = sentence(folder, **options)
        for part in (str(folder / name), *parts):
            assert part in message


def test_a_header_rounded_by_another_tool_is_accepted(folder: Path) -> None:
    write(folder / "s3_mask.nii.gz", MASK, moved(0.01))
    build(folder)


def test_a_zero_in_pixdim_is_no_matter_beside_a_complete_affine(folder: Path) -> None:
    edit_header(folder / "s3.nii.gz", pixdim=[1, 1.5, 1.2, 0, 0, 0, 0, 0])
    build(folder)


def test_equal_problems_are_counted(folder: Path) -> None:
    for i in range(1, N):
        with_voxel(np.nan)(folder / f"s{i}.nii.gz")
    truncate(folder / "s0_mask.nii.gz")
    truncate(folder / "s5.nii.gz")
    message = sentence(folder)
    assert "s0_mask.nii.gz" in message
    assert "the same in 's5'" in message
    assert "6 more with other problems" in message
    write(folder / "s0_mask.nii.gz", MASK)
    message = sentence(folder)
    assert "the same in 's2', 's3', 's4', 's6', 's7'" in message
    assert "1 more with other problems" in message


def test_a_large_bad_cohort_is_not_read_to_its_end(folder: Path) -> None:
    truncate(folder / "s0.nii.gz")
    numbers = np.arange(50)
    table = load_subjects(folder / "subjects.csv").iloc[0 * numbers]
    table = table.assign(id=numbers, patient=numbers, age=numbers)
    with pytest.raises(CohortError, match="14 more; reading stopped at 20"):
        Cohort(table, ["age"], progress=False)


def test_masks_that_are_not_used_are_not_read(folder: Path) -> None:
    truncate(folder / "s3_mask.nii.gz")
    build(folder, attributes=["age"], needs_mask=False)


OPTIONS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "attribute": ({"attributes": ["agee"]}, ["'agee'", "did you mean 'age'"]),
    "feature": ({"attributes": ["sphericty"]}, ["'sphericty'", "'sphericity'"]),
    "labelled feature": (
        {"attributes": ["lv_voxel_volume_m"], "mask_labels": {"lv": 1}},
        ["'lv_voxel_volume_ml'"],
    ),
    "2D feature": ({"attributes": ["pixel_area_mm2"]}, ["'pixel_area_mm2'"]),
    "reserved": ({"attributes": ["image"]}, ["'image'"]),
    "twice": ({"attributes": ["age", "age"]}, ["'age'", "once"]),
    "label": ({"label": "il"}, ["'il'", "did you mean 'ill'"]),
    "log": ({"log": ["volume"]}, ["'volume'", "voxel_volume_ml"]),
    "patient": ({"patient": "patients"}, ["'patients'", "'patient'"]),
    "split column": ({"split_column": "splits"}, ["'splits'"]),
    "fractions": ({"fractions": (0.9, 0.3, 0.1)}, ["0.9", "sum to 1"]),
    "two fractions": ({"fractions": (0.9, 0.1)}, ["[0.9, 0.1]", "three numbers"]),
    "channels": ({"in_channels": 3}, ["that is 1 channel;", "3 channels in 3D", "s0.nii.gz"]),
    "axes": ({"spatial_dims": 2, "attributes": []}, ["(8, 7, 6)", "1 channel in 2D"]),
    "mask label": ({"mask_labels": {"a": "x"}, "attributes": ["a_sphericity"]}, ["'a'", "'x'"]),
    "absent label": ({"mask_labels": {"a": 7}, "attributes": ["a_sphericity"]}, ["a_sphericity"]),
    "head": ({"num_classes": 3}, ["'ill'", "[0, 1]", "num_classes is 3", "expected num_classes 1"]),
    "state": ({"state": "nowhere.json"}, ["nowhere.json"]),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_options(folder: Path, kind: str) -> None:
    options, parts = OPTIONS[kind]
    message = sentence(folder, **options)
    for part in parts:
        assert part in message


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_no_logarithm_of_what_is_not_positive(folder: Path, value: float) -> None:
    for row in range(N):  # whatever its split
        set_column("age", np.arange(40.0, 40 + N))(folder)
        set_cell(row, "age", value)(folder)
        message = sentence(folder, log=["age"])
        assert "'age'" in message
        assert f"is {value:g} in row 's{row}'" in message


def test_a_mask_for_everyone_if_needed(folder: Path) -> None:
    set_cell(3, "mask", None)(folder)
    build(folder)
    message = sentence(folder, needs_mask=True)
    assert "s3.nii.gz" in message
    assert "'mask'" in message


def test_given_splits(folder: Path) -> None:
    table = load_subjects(folder / "subjects.csv")
    table["fold"] = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    for row, column, value, parts in [
        (1, "fold", "training", ["'training'", "'s1'"]),
        (1, "patient", "p7", ["'p7'", "train and in test"]),
        (slice(4, 5), "fold", "train", ["'fold'", "val"]),
    ]:
        bad = table.copy()
        bad.loc[row, column] = value
        with pytest.raises(CohortError) as caught:
            split_subjects(bad, split_column="fold")
        for part in parts:
            assert part in checked(str(caught.value))


def test_a_class_that_training_never_sees(folder: Path) -> None:
    set_column("ill", [0, 1] * 3 + [2, 2])(folder)
    set_column("fold", ["train"] * 4 + ["val"] * 2 + ["test"] * 2)(folder)
    assert "holds 2 in row 's6'" in sentence(folder, split_column="fold")


def test_everything_but_files_is_refused_before_the_first_is_read(folder: Path) -> None:
    for i in range(N):
        truncate(folder / f"s{i}.nii.gz")
    for spoil in ("constant", "one class", "too few patients", "no number"):
        before = (folder / "subjects.csv").read_text()
        TABLES[spoil][0](folder)
        assert "cannot be read" not in sentence(folder)
        (folder / "subjects.csv").write_text(before)


def test_pictures_and_dicom_folders(tmp_path: Path) -> None:
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.xyz").write_text("hello")
    for name, options in [
        ("bad.png", {"spatial_dims": 2}),
        ("empty", {}),
        ("notes.xyz", {}),
        ("good.png", {"spatial_dims": 2, "in_channels": 3}),
    ]:
        table = pd.DataFrame({"id": ["a"], "image": [str(tmp_path / name)]})
        with pytest.raises(CohortError) as caught:
            Cohort(table, fractions=None, progress=False, **options)
        assert str(tmp_path / name) in checked(str(caught.value))


class TestOutput:
    def test_a_folder_that_can_be_made(self, tmp_path: Path) -> None:
        check_writable(tmp_path / "a" / "b")
        assert list(tmp_path.iterdir()) == []

    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "eval").touch()
        with pytest.raises(CohortError) as caught:
            check_writable(tmp_path / "eval" / "run")
        assert str(tmp_path / "eval") in checked(str(caught.value))

    def test_a_read_only_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if os.geteuid() == 0:  # root may write to any folder, so the system's answer is acted

            def refuse(*_: object, **__: object) -> None:
                raise PermissionError(13, "Permission denied")

            monkeypatch.setattr(os, "mkdir", refuse)
        else:
            tmp_path.chmod(0o555)
        with pytest.raises(CohortError) as caught:
            check_writable(tmp_path / "eval")
        assert "Permission denied" in checked(str(caught.value))


class TestExit:
    def test_the_sentence_is_all(self, folder: Path) -> None:
        truncate(folder / "s3.nii.gz")
        with pytest.raises(SystemExit) as caught:
            cohort_or_exit(subjects=folder / "subjects.csv", progress=False)
        assert str(caught.value.code).startswith("Error: The image")

    def test_other_errors_keep_their_traceback(self) -> None:
        with pytest.raises(ZeroDivisionError):
            or_exit(lambda: 1 / 0)

    def test_results_pass_through(self, folder: Path) -> None:
        assert or_exit(max, 1, 2) == 2
        assert cohort_or_exit(subjects=folder / "subjects.csv", check=False).num_classes == 0

    def test_a_bundle_shows_no_traceback(self, folder: Path) -> None:
        truncate(folder / "s3.nii.gz")
        config = folder / "train.yaml"
        config.write_text(
            'imports: ["$import medvae.data as data"]\n'
            "output_dir: eval\n"
            f"cohort: {{_target_: medvae.data.cohort_or_exit, subjects: {folder}/subjects.csv}}\n"
            'classes: "$@cohort.num_classes"\n'
            "loss: {_target_: torch.nn.HuberLoss, delta: '@classes'}\n"
            'initialize: ["$data.or_exit(data.check_writable, @output_dir)", "$@loss"]\n'
            'training: ["$1 / 0"]\n'
        )
        command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", config]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        assert done.returncode == 1
        lines = [line for line in done.stderr.splitlines() if "subject/s]" not in line]
        assert "Traceback" not in done.stderr
        assert len(lines) <= 4
        assert lines[-1].startswith(f"Error: The image '{folder / 's3.nii.gz'}' of ")
        assert not (folder / "eval").exists()


def test_a_sentence_beneath_another_error_ends_the_program_and_other_errors_pass() -> None:
    def within_a_transform() -> None:
        try:
            raise CohortError("There is no space.")
        except CohortError as error:
            raise RuntimeError("applying transform") from error

    with pytest.raises(SystemExit, match="^Error: There is no space.$"):
        or_exit(within_a_transform)
    with pytest.raises(ZeroDivisionError):
        or_exit(lambda: 1 / 0)
