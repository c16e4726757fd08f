"""Explainable generative models of medical images, as MONAI bundles."""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

_NOUNS = (
    "attributes",
    "data",
    "engines",
    "explain",
    "losses",
    "metrics",
    "networks",
    "report",
    "transforms",
)


def __getattr__(name: str) -> ModuleType:
    """Import a part of the package on first use: bundles say `$import medvae` once."""
    if name in _NOUNS:
        return import_module(f"medvae.{name}")
    raise AttributeError(f"module 'medvae' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *_NOUNS]
