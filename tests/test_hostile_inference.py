"""A hundred hostile inputs at inference: a result on the right grid, or one clear sentence."""

from __future__ import annotations

import gzip
import os
import resource
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from test_bad_input import edit_header
from test_bundles import CONFIGS, run, tiny, training

from medvae.data import files, memory, phantoms
from medvae.data.errors import FileError

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")

Spoil = Callable[[Path], Path]


@pytest.fixture(scope="module")
def root(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    phantoms(folder / "data", 40, spatial_dims=3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "parsing config_file", UserWarning)
        run([CONFIGS / "train.yaml"], training(folder) | {"max_epochs": 1})
    return folder


def header(**fields: Any) -> Spoil:
    def spoil(path: Path) -> Path:
        edit_header(path, **fields)
        return path

    return spoil


def rewritten(
    change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]], **options: Any
) -> Spoil:
    def spoil(path: Path) -> Path:
        old = nib.load(path)
        voxels, affine = change(np.asarray(old.dataobj), old.affine)
        nib.save(nib.Nifti1Image(voxels, affine, **options), path)
        return path

    return spoil


def as_type(kind: str, scale: float = 1.0) -> Spoil:
    return rewritten(lambda v, a: ((v * scale).astype(kind), a))


def with_affine(matrix: list[float]) -> Spoil:
    return rewritten(lambda v, a: (v, a @ np.diag([*matrix, 1.0])))


def with_bytes(change: Callable[[bytes], bytes]) -> Spoil:
    def spoil(path: Path) -> Path:
        path.write_bytes(change(path.read_bytes()))
        return path

    return spoil


def renamed(name: str) -> Spoil:
    return lambda path: path.rename(path.with_name(name))


def linked(path: Path) -> Path:
    target = path.rename(path.with_name("elsewhere.nii.gz"))
    path.symlink_to(target)
    return path


def dangling(path: Path) -> Path:
    path.unlink()
    path.symlink_to("nowhere.nii.gz")
    return path


def looped(path: Path) -> Path:
    path.unlink()
    path.symlink_to(path.name)
    return path


def folder_instead(path: Path) -> Path:
    path.unlink()
    path.mkdir()
    return path


def bomb(path: Path) -> Path:
    """Small on disk, with a header that promises far more than it holds."""
    edit_header(path, dim=[3, 20000, 20000, 20000, 1, 1, 1, 1])
    return path


def endless(path: Path) -> Path:
    """A gzip file of zeros alone, a thousand times its size."""
    path.write_bytes(gzip.compress(bytes(2**22)))
    return path


def zeros_behind(path: Path) -> Path:
    """A file that decompresses to 2 GB more than its header says."""
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(2**24)) * 128)
    return path


def honest_bomb(path: Path) -> Path:
    """As many zeros as the header promises: 600 MB in less than one, more than is left here."""
    edit_header(path, dim=[3, 1000, 1000, 300, 1, 1, 1, 1], datatype=4, bitpix=16)
    head = gzip.compress(gzip.decompress(path.read_bytes())[:352])
    path.write_bytes(head + gzip.compress(bytes(10**7)) * 60)
    return path


def uncompressed(path: Path) -> Path:
    path.write_bytes(gzip.decompress(path.read_bytes()))
    return path


def analyze(path: Path) -> Path:
    old = nib.load(path)
    new = path.with_name("pair.img")
    nib.save(nib.Nifti1Pair(np.asarray(old.dataobj), old.affine), new)
    return new


def values(change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    return rewritten(lambda v, a: (change(v.astype(np.float32)), a))


def put(number: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(voxels: np.ndarray) -> np.ndarray:
        voxels[4, 5, 6] = number
        return voxels

    return change


CASES: dict[str, Spoil] = {
    **{f"type {k}": as_type(k) for k in ("u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8")},
    "type i8": rewritten(lambda v, a: (v.astype("i8"), a), dtype="i8"),
    "type complex": as_type("complex64"),
    **{f"flip {i}": with_affine([-1.0 if j == i else 1.0 for j in range(3)]) for i in range(3)},
    **{f"spacing {s}": with_affine([s, s, s]) for s in (0.01, 0.1, 10.0, 1000.0)},
    **{f"anisotropy {s}": with_affine([1, 1, s]) for s in (0.05, 20.0)},
    "left-handed": with_affine([-1, -1, -1]),
    "zero axis": header(srow_x=[1, 0, 0, 0], srow_y=0, srow_z=[0, 0, 1, 0]),
    "zero affine": header(srow_x=0, srow_y=0, srow_z=0),
    "singular affine": header(srow_x=[1, 1, 0, 0], srow_y=[1, 1, 0, 0], srow_z=[0, 0, 1, 0]),
    "far away": rewritten(lambda v, a: (v, a + np.eye(4, k=3) * 1e9)),
    "axes permuted": rewritten(lambda v, a: (v, a[:, [2, 0, 1, 3]])),
    "sheared": rewritten(lambda v, a: (v, a @ (np.eye(4) + np.eye(4, k=1) * [0, 1, 0, 0] * 0.3))),
    "no form": header(qform_code=0, sform_code=0),
    "qform alone": header(sform_code=0),
    "sform alone": header(qform_code=0),
    "forms disagree": header(quatern_b=0.7, quatern_c=0.1, qoffset_x=99.0, qform_code=1),
    "quaternion too long": header(quatern_b=3.0, quatern_c=3.0, sform_code=0, qform_code=1),
    "NaN quaternion": header(quatern_b=np.nan, sform_code=0, qform_code=1),
    "infinite sform": header(srow_x=np.inf),
    "NaN sform": header(srow_z=np.nan),
    "huge sform": header(srow_x=1e30),
    "unknown form codes": header(sform_code=77, qform_code=-3),
    **{f"qfac {q}": header(pixdim=[q, 1, 1, 1, 0, 0, 0, 0], sform_code=0) for q in (0, -1, 9)},
    "negative pixdim": header(pixdim=[1, -2, 2, 2, 0, 0, 0, 0]),
    "NaN pixdim": header(pixdim=[1, np.nan, 2, 2, 0, 0, 0, 0]),
    **{f"slope {s}": header(scl_slope=s) for s in (0, np.nan, np.inf, -1, 1e-30, 1e30)},
    **{f"inter {s}": header(scl_slope=1, scl_inter=s) for s in (np.nan, np.inf, -1e9)},
    **{f"dim0 {d}": header(dim=[d, 8, 7, 6, 1, 1, 1, 1]) for d in (0, 1, 2, 4, 7, 9, -1)},
    "zero dim": header(dim=[3, 0, 7, 6, 1, 1, 1, 1]),
    "negative dim": header(dim=[3, -8, 7, 6, 1, 1, 1, 1]),
    "larger dim": header(dim=[3, 400, 400, 400, 1, 1, 1, 1]),
    "bomb": bomb,
    "endless": endless,
    "zeros behind": zeros_behind,
    **{f"datatype {d}": header(datatype=d) for d in (0, 1, 128, 1536, 2048, 9999)},
    "bitpix": header(bitpix=7),
    **{f"vox_offset {o}": header(vox_offset=o) for o in (0, -5, 1e9, np.nan)},
    "magic": header(magic=b"xx"),
    "sizeof_hdr": header(sizeof_hdr=540),
    "intent": header(intent_code=1007),
    "units": header(xyzt_units=1),
    "truncated": with_bytes(lambda b: b[: len(b) // 2]),
    "header alone": with_bytes(lambda b: gzip.compress(gzip.decompress(b)[:352])),
    "half a header": with_bytes(lambda b: gzip.compress(gzip.decompress(b)[:100])),
    "empty": with_bytes(lambda b: b""),
    "text": with_bytes(lambda b: b"not an image"),
    "zeros": with_bytes(lambda b: bytes(1000)),
    "twice compressed": with_bytes(gzip.compress),
    "garbage after": with_bytes(lambda b: b + b"garbage"),
    "flipped byte": with_bytes(lambda b: b[:400] + bytes([b[400] ^ 255]) + b[401:]),
    "not compressed": uncompressed,
    "pair": analyze,
    "NaN": values(put(np.nan)),
    "infinite": values(put(np.inf)),
    "huge voxel": values(put(3e38)),
    "all NaN": values(lambda v: v * np.nan),
    "constant": values(np.ones_like),
    "zero": values(np.zeros_like),
    "tiny values": values(lambda v: v * 1e-30),
    "huge values": values(lambda v: v * 1e30),
    "negated": values(lambda v: -v),
    "one voxel": rewritten(lambda v, a: (v[:1, :1, :1], a)),
    "one slice": rewritten(lambda v, a: (v[:, :, :1], a)),
    "two slices": rewritten(lambda v, a: (v[..., :2], a)),
    "cine": rewritten(lambda v, a: (np.stack([v, v], -1), a)),
    "one more axis": rewritten(lambda v, a: (v[..., None], a)),
    "link": linked,
    "dangling link": dangling,
    "looped link": looped,
    "folder": folder_instead,
    "missing": lambda path: (path.unlink(), path)[1],
    "unicode name": renamed("Müller 心臓 ☃ 'q'.nii.gz"),
    "long name": renamed("n" * 240 + ".nii.gz"),
    "spaces": renamed("  a b  .nii.gz"),
    "newline": renamed("a\nb.nii.gz"),
    "shell": renamed("$(echo x);`y`.nii.gz"),
    "no suffix": renamed("volume"),
    "other suffix": renamed("volume.mha"),
    "unreadable": lambda path: (path.chmod(0), path)[1],
}


def test_there_are_a_hundred() -> None:
    assert len(CASES) >= 100


@pytest.mark.parametrize("case", CASES)
def test_a_result_on_the_right_grid_or_a_sentence(root: Path, tmp_path: Path, case: str) -> None:
    source = sorted((root / "data" / "images").glob("*.nii.gz"))[0]
    path = tmp_path / "in" / source.name
    path.parent.mkdir()
    path.write_bytes(source.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is made here is wrong on purpose
        path = CASES[case](path)
    table = tmp_path / "subjects.csv"
    pd.DataFrame({"id": ["subject"], "image": [str(path)]}).to_csv(table, index=False)
    settings = tiny(root, 3) | {"subjects": str(table), "output_dir": str(tmp_path / "out")}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries, about the header
            run([CONFIGS / "inference.yaml"], settings, "infer")
    except SystemExit as stopped:
        message = str(stopped)
        assert message.startswith("Error: ")
        assert os.path.basename(path).split("\n")[0] in message
        assert len(message) < 1000
        assert not list((tmp_path / "out").rglob("*.nii.gz"))
        return
    written = list((tmp_path / "out").rglob("*.nii.gz"))
    assert len(written) == 1 + 2  # the reconstruction and two maps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = nib.load(path)
    for file in written:
        result = nib.load(file)
        assert result.shape == original.shape[:3]
        np.testing.assert_allclose(result.affine, original.affine, rtol=1e-4, atol=1e-3)
        assert np.isfinite(np.asarray(result.dataobj)).all()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux' limits")
@pytest.mark.parametrize("said", [True, False], ids=["free memory is known", "and is not"])
def test_a_file_larger_than_the_memory_is_refused_before_it_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bool
) -> None:
    path = tmp_path / "bomb.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), "i2"), np.eye(4)), path)
    honest_bomb(path)
    assert path.stat().st_size < 2**20
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    monkeypatch.setattr(files, "free_memory", lambda: 10**9 if said else None)
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * 10**8, hard))
    try:
        with pytest.raises(FileError, match="memory") as caught:
            files.read_image(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert str(path) in str(caught.value)
    if said:
        assert "1000 x 1000 x 300 voxels in its header, which need 4.2 GB" in str(caught.value)


def test_free_memory_is_that_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_memory() is None
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    7 kB\n")
    assert memory.free_memory() == 7 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert memory.free_memory() == 7 * 1024
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 500\n")
    assert memory.free_memory() == 2500
