"""What a client asks for: checked, in one sentence where it cannot be done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medvae.data.errors import CohortError, listing, suggestion

__all__ = ["EXTENSIONS", "OUTPUTS", "Asked", "clamped"]

OUTPUTS = ("bins", "map", "traversal")
ALL = "all"  # attributes, of a map with a channel for each
EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
MAX_VALUES = 16  # of a traversal: bounds the memory of one request
MAX_BINS = 254


@dataclass(frozen=True)
class Asked:
    """One request for an image.

    Attributes:
        attribute: whose map, or which is moved; "all": a map with a channel for each.
        output: "bins" (a segmentation), "map" (float32) or "traversal" (images).
        values: of a traversal, in the attribute's own unit; empty: five over the range of nine in
            ten training subjects.
        bins: how many, see `medvae.label.quantise`.
        extension: of the file.
    """

    attribute: str
    output: str = "bins"
    values: tuple[float, ...] = ()
    bins: int = 4
    extension: str = ".nii.gz"

    @classmethod
    def of(cls, params: Mapping[str, Any], attributes: Sequence[str]) -> Asked:
        """Take a client's parameters: attribute, output, value, bins, result_extension.

        Others, which every client sends, are not looked at. What is absent or empty has its
        default, the attribute the first.

        Raises:
            CohortError: a parameter that cannot be used.
        """
        given = {key: value for key, value in params.items() if value not in (None, "", [])}
        output = _choice("output", given.get("output", OUTPUTS[0]), OUTPUTS)
        names = [*attributes, ALL] if output == "map" else attributes
        return cls(
            _choice("attribute", given.get("attribute", attributes[0]), names),
            output,
            _values(given.get("value", ())),
            _bins(given.get("bins", 4)),
            _choice("result_extension", given.get("result_extension", EXTENSIONS[0]), EXTENSIONS),
        )


def clamped(
    values: Sequence[float], low: float, high: float, name: str
) -> tuple[list[float], list[str]]:
    """Move values into a range; return them and a sentence for each that was moved.

    Args:
        values: in the attribute's own unit.
        low: where the range starts.
        high: where it ends.
        name: of the attribute.
    """
    inside = [min(max(value, low), high) for value in values]
    return inside, [
        f"'{name}' was asked for at {value:g}, outside of what nine in ten training subjects have "
        f"({low:.4g} to {high:.4g}); it was set to {used:.4g}."
        for value, used in zip(values, inside, strict=True)
        if value != used
    ]


def _choice(key: str, found: Any, known: Sequence[str]) -> str:
    if isinstance(found, str) and found in known:
        return found
    raise CohortError(f"The {key} '{str(found)[:80]}' is unknown; {suggestion(str(found), known)}")


def _values(found: Any) -> tuple[float, ...]:
    parts = list(found) if isinstance(found, list | tuple) else str(found).split(",")
    if len(parts) > MAX_VALUES:
        raise CohortError(f"The value holds {len(parts)} numbers; expected at most {MAX_VALUES}.")
    return tuple(map(_number, parts))


def _number(found: Any) -> float:
    try:
        number = math.nan if isinstance(found, bool) else float(found)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise CohortError(f"The value is {listing([str(found)[:80]])}; expected a finite number.")
    return number


def _bins(found: Any) -> int:
    number = _number(found)
    if not (number.is_integer() and 1 <= number <= MAX_BINS):
        raise CohortError(f"The bins are {number:g}; expected a whole number, 1 to {MAX_BINS}.")
    return int(number)
