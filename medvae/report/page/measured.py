"""What edits move of attributes that are measured again in the edited images, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medvae.report.page.blocks import Block, Table
from medvae.report.tables import number

__all__ = ["identity_tables", "measured_tables", "moved_most", "signed"]

HOW = (
    "Attributes are measured again by a small U-Net that finds the structures and has learned from "
    "the training subjects' images and masks alone. "
)


def measured_tables(found: Mapping[str, Any], entry: Mapping[str, Any]) -> list[Block]:
    """Return how far an attribute's edit moves what is measured; nothing where nothing is.

    Args:
        found: what `attributes.json` holds.
        entry: of the attribute.
    """
    rows = [
        [
            name,
            signed(moved),
            number(moved["chance"], 2),
            "yes" if moved["beyond_random"] else "no",
            str(moved["images"]),
            number(found["instrument"][name]["reconstructions"]["r2"], 2),
        ]
        for name, moved in entry.get("measured", {}).items()
    ]
    if not rows:
        return []
    header = ["attribute", "moved, SD", "random edits", "more than random edits", "images"]
    return [
        Table(
            [*header, "R² on reconstructions"],
            rows,
            "What moves when it is measured again",
            f"{HOW}Mean change from the reconstruction to the edited image, in standard deviations "
            "over the test subjects, of the images in which the structure was found. R²: of what "
            "is measured on reconstructions against the masks; where it is low, a move is not to "
            "be believed.",
        )
    ]


def identity_tables(found: Mapping[str, Any], flips: Mapping[str, Any]) -> list[Block]:
    """Return how far edits together move what is measured; nothing where nothing is.

    Args:
        found: what `attributes.json` holds.
        flips: what `flips.json` holds.
    """
    top = {n: e["identity"] for n, e in flips.get("top", {}).items() if e.get("identity")}
    names = list(next(iter(top.values()), {}))
    if not names:
        return []
    rows = []
    for name in names:
        quality = found["instrument"][name]
        cells = [_far(entry[name]) for entry in top.values()]
        kinds = ("images", "reconstructions")
        rows.append([name, *cells, *(number(quality[kind]["r2"], 2) for kind in kinds)])
    header = ["attribute", *(f"the first {count}" for count in top)]
    return [
        Table(
            [*header, "R² on images", "R² on reconstructions"],
            rows,
            "What the edits together leave as it was",
            f"{HOW}How far each moved from the reconstruction, whichever way, in standard "
            "deviations over the test subjects, and in brackets the 95 % interval over patients; "
            "beside it what as many random edits do. What the classifier does not go by should "
            "move no more than by these. R²: of what is measured against the masks.",
        )
    ]


def moved_most(measured: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the measured attribute that moved farthest; None where none could be measured."""
    known = {name: abs(m["value"]) for name, m in measured.items() if m["value"] is not None}
    return max(known, key=lambda name: known[name]) if known else None


def signed(entry: Mapping[str, Any]) -> str:
    """Return a mean with its interval, both with their signs; empty where it is not known."""
    if entry["value"] is None:
        return ""
    text = f"{entry['value']:+.2f}"
    known = entry["low"] is not None
    return f"{text} ({entry['low']:+.2f} to {entry['high']:+.2f})" if known else text


def _far(entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return ""
    interval = "" if entry["low"] is None else f" ({entry['low']:.2f} to {entry['high']:.2f})"
    return f"{entry['value']:.2f}{interval}, random {number(entry['random']['value'], 2)}"
