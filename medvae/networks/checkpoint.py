"""Weights of a trained network from its file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from medvae.data.errors import CohortError

__all__ = ["load_weights"]


def load_weights(
    network: nn.Module, path: str | Path, device: str | torch.device = "cpu"
) -> nn.Module:
    """Load what training saved into a network of the same configuration, and return it.

    Raises:
        CohortError: no such file, a file cut short, or weights of another network.
    """
    if not Path(path).is_file():
        raise CohortError(f"The model '{path}' does not exist; expected the file training writes.")
    try:
        weights = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds, by the byte where a file ends
        raise CohortError(
            f"The model '{path}' cannot be read ({type(error).__name__}); "
            "expected the file training writes."
        ) from error
    try:
        network.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CohortError(
            f"The model '{path}' does not fit this network ({_difference(network, weights)}); "
            "expected the configuration it was trained with."
        ) from error
    return network


def _difference(network: nn.Module, weights: object) -> str:
    """The first entry that one has and the other has not, or has in another shape."""
    if not isinstance(weights, dict):
        return f"it holds a {type(weights).__name__}"
    own = network.state_dict()
    for name in [*own, *weights]:
        found, wanted = (
            tuple(part[name].shape) if isinstance(part.get(name), torch.Tensor) else None
            for part in (weights, own)
        )
        if found != wanted:
            return f"{name}: {found or 'absent'} in the file, {wanted or 'absent'} in the network"
    return "of another kind"
