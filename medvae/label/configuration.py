"""A bundle's inference.yaml, with the settings that its model was trained with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from monai.bundle import ConfigParser

from medvae.data import CohortError
from medvae.data.errors import cause_of
from medvae.data.record import FREE

__all__ = ["CONFIGS", "configuration", "device_of", "said"]

Result = TypeVar("Result")
CONFIGS = ("configs/inference.yaml", "configs/inference.json")


def configuration(folder: Path, device: str | None) -> ConfigParser:
    """Return a bundle's inference configuration as its model was trained.

    Raises:
        CohortError: a file that cannot be read, or a device that there is not.
    """
    path = next(folder / name for name in CONFIGS if (folder / name).is_file())
    parser = ConfigParser()
    try:
        parser.read_config(str(path))
        record = folder / "models" / "run.json"
        trained = json.loads(record.read_text("utf-8"))["settings"] if record.is_file() else {}
    except Exception as error:  # YAML and JSON raise kinds of their own
        raise CohortError(
            f"The configuration of the bundle '{folder.name}' cannot be read "
            f"({type(error).__name__}); expected {path.name} and the run.json of its training."
        ) from error
    own = dict(parser.get())
    changed = {k: v for k, v in trained.items() if k in own and k not in FREE}
    changed = {k: v for k, v in changed.items() if not (_is_made(own[k]) or _has_target(v))}
    fixed = {"bundle_root": str(folder), "maps": True, "traversals": False}
    parser.update(changed | fixed | ({} if device is None else {"device": device_of(device)}))
    return parser


def device_of(name: object) -> str:
    """Return a device as a configuration's expression.

    Raises:
        CohortError: a device that torch does not know, or that this machine has not.
    """
    try:
        device = torch.device(str(name))
    except RuntimeError as error:
        raise CohortError(f"The device '{name}' is unknown; expected cpu or cuda.") from error
    try:  # what a device is missing for (build, driver, number of it) has errors of three kinds
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CohortError(f"This machine has no device '{name}'; expected cpu.") from error
    return f"$torch.device('{device}')"


def _is_made(value: Any) -> bool:
    """Whether an entry of inference.yaml is derived from others, and so no choice."""
    return _has_target(value) or (isinstance(value, str) and value.startswith(("$", "@", "%")))


def _has_target(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def said(function: Callable[[], Result]) -> Result:
    """Call a function; what is wrong with its input is raised as a sentence.

    Raises:
        CohortError: in place of it, of an error that it caused and of a bundle's SystemExit.
    """
    try:
        return function()
    except SystemExit as error:
        raise CohortError(str(error).removeprefix("Error: ")) from error
    except Exception as error:
        cause = cause_of(error)
        if cause is None:
            raise
        raise cause from None
