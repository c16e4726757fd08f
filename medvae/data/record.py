"""The record of a run: what was trained, on what, with which versions; and what contradicts it."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Collection, Mapping
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import pandas as pd
from monai.bundle import ConfigParser
from tqdm import tqdm

from medvae.data.errors import CohortError
from medvae.data.output import write_text

__all__ = [
    "check_settings",
    "data_fingerprint",
    "run_settings",
    "settings_difference",
    "write_record",
]

PACKAGES = (
    "monai-medvae",
    "monai",
    "torch",
    "pytorch-ignite",
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
    "scikit-image",
    "nibabel",
    "simpleitk",
    "itk",
    "torchio",
)
# What may differ between a run and its continuation: places, and what is done around the training.
# The data themselves are compared by their fingerprint.
FREE = frozenset(
    ("bundle_root", "ckpt_dir", "output_dir", "dataset_dir", "subjects", "overwrite", "resume")
    + ("device", "imports", "initialize", "run", "training", "finalize")
)


def run_settings() -> dict[str, Any]:
    """Return the configuration of the bundle that is being run, after all overrides, as JSON.

    MONAI's configuration language has no name for the whole configuration, so it is taken from the
    parser that evaluates the expression in which this function is called. Empty outside of one.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        parser = frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            return dict(json.loads(json.dumps(parser.get(), default=str)))
        frame = frame.f_back
    return {}


def settings_difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """Say what differs first, of the settings that both have and that matter; None if nothing.

    Args:
        found: of now.
        expected: of the run that wrote the file, whose order counts.
    """
    for key, value in expected.items():
        if key in found and key not in FREE and found[key] != value:
            return f"{key} is {found[key]!r} here and was {value!r}"
    return None


def check_settings(path: str | Path, keys: Collection[str] | None = None) -> None:
    """Refuse a configuration that contradicts the record of the model it is to be used with.

    Args:
        path: the `run.json` of :func:`write_record`; a model without one passes.
        keys: what is compared; None: all values that both have, except components, which training
            and inference build in ways of their own, the batch size and the seed.

    Raises:
        CohortError: a setting, such as the grid's spacing, differs from the training's.
    """
    if not Path(path).is_file():
        return
    found = run_settings()
    expected = json.loads(Path(path).read_text(encoding="utf-8"))["settings"]
    if keys is None:
        free = ("batch_size", "seed")  # of inference: that of its samples from the prior
        keys = [k for k in expected if k not in free and not _is_component(expected[k])]
        keys = [k for k in keys if not _is_component(found.get(k))]
    difference = settings_difference(found, {key: expected[key] for key in keys if key in expected})
    if difference:
        raise CohortError(
            f"The model of '{path}' was trained with other settings: {difference}; "
            "expected the same, by the overlay that it was trained with."
        )


def write_record(path: str | Path, subjects: pd.DataFrame, seed: int) -> None:
    """Write what is needed to repeat or to judge a run: settings, versions, data, seed, revision.

    Args:
        path: the JSON to write.
        subjects: the cohort's table.
        seed: of the training.
    """
    record = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seed": seed,
        "data": data_fingerprint(subjects),
        "versions": {"python": platform.python_version()} | _versions(),
        "revision": _revision(Path(path).parent),
        "settings": run_settings(),
    }
    write_text(path, json.dumps(record, indent=1) + "\n")


def data_fingerprint(subjects: pd.DataFrame) -> dict[str, Any]:
    """Count a table's rows and hash its cells and the content of its files.

    Paths do not enter, so that a moved cohort keeps its fingerprint.
    """
    digest = hashlib.sha256()
    paths = [name for name in ("image", "mask") if name in subjects]
    table = subjects.drop(columns=[*paths, *(c for c in ("split",) if c in subjects)])
    digest.update(table.to_csv(index=False).encode())
    cells = subjects[paths].to_numpy().ravel()
    for cell in tqdm(cells, "fingerprint of the data", leave=False, delay=2):
        digest.update(_content(Path(str(cell))))
    return {"rows": len(subjects), "sha256": digest.hexdigest()}


def _content(path: Path) -> bytes:
    """Hash a file, or all files of a DICOM series' folder; of what is not there, nothing."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    states = [(file, file.stat()) for file in files if file.is_file()]
    return b"".join(_hashed(str(f), state.st_size, state.st_mtime_ns) for f, state in states)


@cache  # record and checkpoint ask for the same; a file that changes is read again
def _hashed(path: str, size: int, changed: int) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.digest()


def _is_component(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, str) and value.startswith(("$", "@", "%")))


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _revision(run: Path) -> str | None:
    """The git revision of the package's clone, or else of the one that the run lies in.

    With a + where files were changed; None where there is none.
    """
    clone = Path(__file__).parents[2]
    folder = clone if (clone / ".git").exists() else run
    try:
        revision, changes = (
            subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision + ("+" if changes else "")
