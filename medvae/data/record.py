"""The record of a run: what was trained, on what, with which versions; and what contradicts it."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Collection, Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import pandas as pd
from monai.bundle import ConfigParser

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
    "numpy",
    "nibabel",
    "simpleitk",
    "itk",
    "scikit-image",
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
        "revision": _revision(),
        "settings": run_settings(),
    }
    write_text(path, json.dumps(record, indent=1) + "\n")


def data_fingerprint(subjects: pd.DataFrame) -> dict[str, Any]:
    """Count a table's rows and hash its cells and the sizes of its files.

    Paths do not enter, so that a moved cohort keeps its fingerprint.
    """
    digest = hashlib.sha256()
    paths = [name for name in ("image", "mask") if name in subjects]
    table = subjects.drop(columns=[*paths, *(c for c in ("split",) if c in subjects)])
    digest.update(table.to_csv(index=False).encode())
    for cell in subjects[paths].to_numpy().ravel():
        file = Path(str(cell))
        digest.update(str(file.stat().st_size if file.is_file() else -1).encode())
    return {"rows": len(subjects), "sha256": digest.hexdigest()}


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


def _revision() -> str | None:
    """The package's git revision, with a + where files were changed; None where there is none."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
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
