"""A map as a segmentation, which viewers can show: whole numbers in place of the map's values."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

__all__ = ["bin_edges", "bin_names", "is_bin", "quantise"]

NAME = re.compile(r"\d+-\d+ % of peak")


def quantise(values: npt.ArrayLike, bins: int = 4) -> npt.NDArray[np.uint8]:
    r"""Divide a map by equal steps of its peak.

    With the peak P, the largest value of the map, a voxel of value m belongs to bin
    :math:`\min(\lfloor (n + 1) m / P \rfloor, n)`, computed in float64. Bin 0, below one step, is
    the background; of four bins the first holds 20 to 40 % of the peak, the last 80 to 100 %.

    Args:
        values: the map, of any shape, nowhere negative; NaN belongs to the background.
        bins: n, 1 to 254.

    Returns:
        0 to n, in the same shape; 0 everywhere where no value is above 0.
    """
    found = np.nan_to_num(np.asarray(values, dtype=np.float64), nan=0.0)
    peak = found.max(initial=0.0)
    if peak <= 0:
        return np.zeros(found.shape, np.uint8)
    return np.clip(np.floor((bins + 1) * found / peak), 0, bins).astype(np.uint8)


def bin_edges(peak: float, bins: int = 4) -> list[float]:
    """Return the value at which each bin starts, and the peak: n + 1 numbers."""
    return [peak * step / (bins + 1) for step in range(1, bins + 2)]


def bin_names(bins: int = 4) -> dict[str, int]:
    """Return the names of the bins, by their share of the peak, and their numbers."""
    shares = [round(100 * share) for share in bin_edges(1.0, bins)]
    return {f"{shares[k]}-{shares[k + 1]} % of peak": k + 1 for k in range(bins)}


def is_bin(name: str) -> bool:
    """Whether a name is one of `bin_names`, of any number of bins."""
    return NAME.fullmatch(name) is not None
