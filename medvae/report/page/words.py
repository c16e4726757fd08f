"""A score in words, and whether it is more than chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medvae.report.tables import number

__all__ = ["beyond_chance", "in_words"]


def beyond_chance(entry: Mapping[str, Any]) -> bool | None:
    """Whether a score is above the top of chance, and its interval above chance; None: not known.

    Args:
        entry: value, low, chance and chance_p95 (or chance_high), as the metrics give them. What
            has no permutations is compared with chance itself.
    """
    value, low, chance = (entry.get(key) for key in ("value", "low", "chance"))
    top = next(
        (entry[k] for k in ("chance_p95", "chance_high") if entry.get(k) is not None), chance
    )
    if value is None or top is None:
        return None
    excluded = low is None or chance is None or low > chance
    return bool(value > top and excluded)


def in_words(entry: Mapping[str, Any], digits: int = 2) -> str:
    """Return a number with its interval and its chance level."""
    parts = [number(entry.get("value"), digits)]
    if entry.get("low") is not None:
        parts.append(f"{number(entry['low'], digits)} to {number(entry['high'], digits)}")
    if entry.get("chance") is not None:
        parts.append(f"chance {number(entry['chance'], digits)}")
    return parts[0] + (f" ({'; '.join(parts[1:])})" if parts[1:] else "")
