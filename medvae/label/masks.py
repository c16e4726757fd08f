"""Labels that clients send: masks of the anatomy, not the bins of a map that they were shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medvae.data.errors import CohortError
from medvae.label.bins import is_bin

__all__ = ["check_is_mask", "mask_names"]


def mask_names(labels: Mapping[str, Any]) -> list[str]:
    """Return names of the segments to be drawn, in the order of their numbers, from 1.

    Slicer offers them and numbers what it saves by their order, so that none may be left out.

    Args:
        labels: names of the mask's numbers; several numbers of one name are no segment of their
            own. Empty: all that is not 0 is one.
    """
    found = {number: name for name, number in labels.items() if isinstance(number, int)}
    return [found.get(n, f"label {n}") for n in range(1, max(found, default=0) + 1)] or ["mask"]


def check_is_mask(info: object) -> None:
    """Refuse a label whose segments are bins: the next training would take them for a mask.

    Args:
        info: what the client says of the label; `label_info` names its segments.

    Raises:
        CohortError: one of them has the name of a bin, or it says nothing that can be kept.
    """
    if not isinstance(info, dict):
        raise CohortError(f"The label's params are {str(info)[:80]!r}; expected a JSON object.")
    segments = info.get("label_info")
    for segment in segments if isinstance(segments, list) else []:
        name = segment.get("name") if isinstance(segment, dict) else None
        if isinstance(name, str) and is_bin(name):
            raise CohortError(
                f"The label has the segment '{name}', a bin of a map; expected a mask: remove the "
                "segments of bins first."
            )
