"""What clients send: images, masks, and what is left of them."""

import gzip
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from medvae.data import CohortError
from medvae.data.files import read_image
from medvae.label.bins import bin_names
from medvae.label.masks import check_is_mask, mask_names
from medvae.label.private import private_folder, sweep
from medvae.label.uploads import check_upload

NRRD = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n"


@pytest.mark.parametrize(
    "line", [b"data file: /etc/passwd", b"DATAFILE: a.raw", b"Data File: LIST"]
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_nrrd_with_its_voxels_elsewhere_is_refused(tmp_path, line, end):
    header = NRRD.replace(b"\n", end)
    for name in ("a.nrrd", "b"):
        (tmp_path / name).write_bytes(header + line + end + end)
        with pytest.raises(CohortError, match="voxels are in another file"):
            check_upload(tmp_path / name)
        (tmp_path / name).write_bytes(header + end + line)  # voxels that look like it
        check_upload(tmp_path / name)


def test_nrrd_whose_header_never_ends_is_refused(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(NRRD + b"# more\n" * 20_000 + b"data file: a.raw\n\n")
    with pytest.raises(CohortError, match="header does not end within 100000 bytes"):
        check_upload(tmp_path / "a.nrrd")


def test_nrrd_that_promises_more_than_there_is_memory_is_not_read(tmp_path):
    header = NRRD.replace(b"2 2 2", b"90000 90000 90000").replace(b"raw", b"gzip")
    (tmp_path / "a.nrrd").write_bytes(header + b"\n" + gzip.compress(bytes(1000)))
    with pytest.raises(CohortError, match="promises 90000 x 90000 x 90000 voxels"):
        read_image(tmp_path / "a.nrrd")


def test_files_that_are_no_image_are_refused(tmp_path):
    for name in ("a.nii.gz", "b.NII", "c.dcm", "IM0001", "d.e.png"):
        (tmp_path / name).write_bytes(b"content")
    check_upload(tmp_path)
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "x.mhd").touch()
    with pytest.raises(CohortError, match="A file of the kind '.mhd' was sent; expected one of"):
        check_upload(tmp_path)


def test_segments_to_be_drawn_are_in_the_order_of_their_numbers():
    assert mask_names({"lv": 3, "rv": 1, "myocardium": 2}) == ["rv", "myocardium", "lv"]
    assert mask_names({"lv": 3, "heart": [1, 2, 3]}) == ["label 1", "label 2", "lv"]
    assert mask_names({}) == ["mask"]


@pytest.mark.parametrize("bins", [1, 4, 254])
def test_bins_are_no_mask(bins):
    check_is_mask({"label_info": [{"name": "lv", "idx": 1}, {"idx": 2}, "odd"], "client_id": "a"})
    check_is_mask({"label_info": "odd"})
    for name in bin_names(bins):
        with pytest.raises(CohortError, match=f"'{name}', a bin of a map; expected a mask"):
            check_is_mask({"label_info": [{"name": "lv"}, {"name": name}]})
    with pytest.raises(CohortError, match="expected a JSON object"):
        check_is_mask([1])


def test_what_requests_left_behind_goes_after_an_hour(tmp_path):
    for name in ("old.nii.gz", "new.nii.gz"):
        (tmp_path / name).touch()
    for name in ("folder", "sessions"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "image").touch()
    for name in ("old.nii.gz", "folder", "sessions"):
        os.utime(tmp_path / name, (time.time() - 4000,) * 2)
    sweep(tmp_path, "sessions")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.nii.gz", "sessions"]
    assert (tmp_path / "sessions" / "image").exists()


def test_what_a_killed_server_left_behind_goes_with_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    start = "import os; from medvae.label.private import private_folder; f = private_folder(); "
    start += "(f / 'patient.nii.gz').touch(); print(f, flush=True); os.kill(os.getpid(), 9)"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", start], env=environment, capture_output=True)
    folder = Path(killed.stdout.decode().strip())
    assert (folder / "patient.nii.gz").is_file()
    first = private_folder()
    assert not folder.exists()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    second = private_folder()
    assert first.is_dir()  # it still runs
    sweep(second, "sessions", older_than_s=-1)
    assert [p.name for p in second.iterdir()] == [".lock"]
