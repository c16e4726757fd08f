"""What a client asks for: checked, in one sentence where it cannot be done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medvae.data.errors import CohortError, listing, suggestion

__all__ = ["EXTENSIONS", "OUTPUTS", "SHARES", "Asked", "clamped"]

OUTPUTS = ("bins", "map", "traversal")
ALL = "all"  # attributes, of a map with a channel for each
EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
MAX_VALUES = 16  # of a traversal: bounds the memory of one request
MAX_BINS = 254
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the range, where no value is given, and in clients' lists
TRAINED = "of what nine in ten training subjects have"


@dataclass(frozen=True)
class Asked:
    """One request for an image.

    Attributes:
        attribute: whose map, or which is moved; "all": a map with a channel for each.
        output: "bins" (a segmentation), "map" (float32) or "traversal" (images).
        values: of a traversal, in the attribute's own unit; empty: those at `shares`.
        bins: how many, see `medvae.label.quantise`.
        extension: of the file.
        compress: whether NRRD is compressed.
        shares: of the attribute's range, 0 to 1.
    """

    attribute: str
    output: str = "bins"
    values: tuple[float, ...] = ()
    bins: int = 4
    extension: str = ".nii.gz"
    compress: bool = True
    shares: tuple[float, ...] = SHARES

    @classmethod
    def of(cls, params: Mapping[str, Any], attributes: Sequence[str]) -> Asked:
        """Take a client's parameters.

        These are attribute, output, value, bins, result_extension and result_compress. Others,
        which every client sends, are not looked at. What is absent or empty has its default, the
        attribute the first.

        Raises:
            CohortError: a parameter that cannot be used.
        """
        given = {key: value for key, value in params.items() if value not in (None, "", [])}
        output = _choice("output", given.get("output", OUTPUTS[0]), OUTPUTS)
        names = [*attributes, ALL] if output == "map" else attributes
        values, shares = _values(given.get("value", ()))
        return cls(
            _choice("attribute", given.get("attribute", attributes[0]), names),
            output,
            values,
            _bins(given.get("bins", 4)),
            _choice("result_extension", given.get("result_extension", EXTENSIONS[0]), EXTENSIONS),
            given.get("result_compress") is not False,
            shares or SHARES,
        )


def clamped(
    values: Sequence[float], low: float, high: float, name: str, outside: str = TRAINED
) -> tuple[list[float], list[str]]:
    """Move values into a range; return them and a sentence for each that was moved.

    Args:
        values: in the attribute's own unit.
        low: where the range starts.
        high: where it ends.
        name: of the attribute.
        outside: what the range is.
    """
    inside = [min(max(value, low), high) for value in values]
    return inside, [
        f"'{name}' was asked for at {value:g}, outside {outside} "
        f"({low:.4g} to {high:.4g}); it was set to {used:.4g}."
        for value, used in zip(values, inside, strict=True)
        if value != used
    ]


def _choice(key: str, found: Any, known: Sequence[str]) -> str:
    if isinstance(found, str) and found in known:
        return found
    raise CohortError(f"The {key} '{str(found)[:80]}' is unknown; {suggestion(str(found), known)}")


def _values(found: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return values, or shares of the range where they are per cent."""
    parts = list(found) if isinstance(found, list | tuple) else str(found).split(",")
    if len(parts) > MAX_VALUES:
        raise CohortError(f"The value holds {len(parts)} numbers; expected at most {MAX_VALUES}.")
    shares = [part for part in parts if isinstance(part, str) and part.strip().endswith("%")]
    if not shares:
        return tuple(map(_number, parts)), ()
    if len(shares) < len(parts):
        raise CohortError("The value holds numbers and per cent; expected one of them.")
    return (), tuple(map(_share, shares))


def _share(found: str) -> float:
    number = _number(found.strip().removesuffix("%"))
    if not 0 <= number <= 100:
        raise CohortError(f"The value is {number:g} %; expected 0 to 100 % of the range.")
    return number / 100


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
