"""What clients send as images: files that hold their voxels themselves."""

from __future__ import annotations

from pathlib import Path

from medvae.data.errors import CohortError

__all__ = ["check_upload"]

KINDS = (".nii", ".nii.gz", ".nrrd", ".png", ".jpg", ".jpeg", ".bmp", ".dcm")  # or none: DICOM
HEADER_BYTES = 100_000  # of NRRD, text before an empty line


def check_upload(path: str | Path) -> None:
    """Refuse a file that may name others of this machine, which would be read in its place.

    Args:
        path: an upload, or a folder of them: a DICOM series.

    Raises:
        CohortError: a kind of file that is no image, or NRRD with its voxels elsewhere.
    """
    for file in sorted(Path(path).rglob("*")) if Path(path).is_dir() else [Path(path)]:
        if file.is_dir():
            continue
        if file.suffix and not file.name.lower().endswith(KINDS):
            found = file.suffix[:20]
            raise CohortError(f"A file of the kind '{found}' was sent; expected one of {KINDS}.")
        _check_nrrd(file)


def _check_nrrd(file: Path) -> None:
    with file.open("rb") as stream:
        head = stream.read(HEADER_BYTES).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if not head.startswith(b"NRRD"):
        return
    header, end, _ = head.partition(b"\n\n")
    fields = [line.split(b":")[0].replace(b" ", b"") for line in header.lower().splitlines()]
    if b"datafile" in fields:
        raise CohortError("The NRRD's voxels are in another file; expected one with both.")
    if not end:
        raise CohortError(f"The NRRD's header does not end within {HEADER_BYTES} bytes.")
