"""Where the server keeps what clients send, and for how long."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["private_folder", "sweep"]

KEPT_S = 3600.0  # longer than any request takes; MONAI Label's own sessions last as long
PREFIX = "medvae-label-"
LOCK = ".lock"


def private_folder() -> Path:
    """Send all temporary files of this process to one new folder, which ends with it.

    MONAI Label writes uploads there and opens any path that a client names: within this folder a
    client cannot name more than such files. Patients' images that a server left behind when it
    was killed are removed by the next one.
    """
    _remove_abandoned(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
    lock = FileLock(folder / LOCK)
    lock.acquire()  # the system frees it, however the process ends
    tempfile.tempdir = str(folder)
    atexit.register(_end, folder, lock)
    return folder


def _end(folder: Path, lock: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.release()


def _remove_abandoned(root: Path) -> None:
    for path in root.glob(f"{PREFIX}*/{LOCK}"):
        try:
            with FileLock(path, timeout=0):
                shutil.rmtree(path.parent, ignore_errors=True)
        except (Timeout, OSError):  # of a server that runs, or of another user
            continue


def sweep(folder: Path, keep: str, older_than_s: float = KEPT_S) -> None:
    """Remove what lies in a folder for longer than any request takes.

    MONAI Label removes an upload after its answer, and leaves it where there was an error.

    Args:
        folder: see `private_folder`.
        keep: the name of what is not touched.
        older_than_s: seconds since the last change.
    """
    end = time.time() - older_than_s
    for path in folder.iterdir():
        if path.name in (keep, LOCK) or path.lstat().st_mtime > end:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
