"""What swapping a subspace does to images, as a section of a GAN's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medvae.report.page.blocks import Block, Finding, Picture, Section, Table
from medvae.report.page.run import Run
from medvae.report.tables import number

__all__ = ["swap_findings", "swaps_section"]

LUCK = "the share of the most frequent class: what a judge reaches that always says the same"


def swaps_section(run: Run) -> Section | None:
    """Return the judge's numbers, how real the images are, and the pictures."""
    images = run.images
    if images is None:
        return None
    blocks: list[Block] = [_judged(images["swaps"]), _quality(images)]
    titles = {
        "swaps.png": "Test subjects, reconstructed, and with one subspace of their left neighbour",
        "reconstructions.png": "Reconstructions, from the best to the worst",
        "samples.png": "Images drawn at random",
    }
    for name, title in titles.items():
        content = run.picture(name)
        if content is not None:
            blocks.append(Picture(content, title, title))
    return Section(
        "swaps",
        "Swaps",
        blocks,
        "A classifier that shares nothing with the model judges reconstructions in which one "
        "subspace is another subject's. Look at the pictures: no number says when a GAN is good.",
    )


def _judged(swaps: Mapping[str, Any]) -> Table:
    rows = []
    for name, found in swaps.items():
        rows.append([f"{name} follows the donor", *_cells(found["follows"])])
        rows += [
            [f"{name} swapped, {other} kept", *_cells(entry)]
            for other, entry in found["keeps"].items()
        ]
        for who, entries in found["references"].items():
            rows.append([f"{name} of the {who} image, unswapped", *_cells(entries[name])])
    header = ["what the judge sees", "share", "95 %", "chance", "images"]
    return Table(header, rows, "Judged by a classifier of its own", f"Chance: {LUCK}.")


def _cells(entry: Mapping[str, Any]) -> list[str]:
    interval = ""
    if entry.get("low") is not None:
        interval = f"{number(entry['low'])} to {number(entry['high'])}"
    return [number(entry["value"]), interval, number(entry["chance"]), str(entry["rows"])]


def _quality(images: Mapping[str, Any]) -> Table:
    found = images["reconstruction"]
    rows = [
        ["PSNR of reconstructions (dB)", number(found["psnr_db"], 1), "", ""],
        ["SSIM of reconstructions", number(found["ssim"]), "", ""],
    ]
    for name in ("fid", "kid", "precision", "recall"):
        entry = images.get("realism", {}).get(name)
        if entry is not None:
            shown = [number(entry.get(key)) for key in ("value", "floor", "ceiling")]
            rows.append([f"{name.upper() if len(name) == 3 else name} of drawn images", *shown])
    return Table(
        ["", "found", "floor", "degraded"],
        rows,
        "Images",
        "Floor: halves of the real images against each other; degraded: blurred and noisy ones.",
    )


def swap_findings(images: Mapping[str, Any]) -> list[Finding]:
    """Return in words which swaps are followed, and what else they change, beyond chance."""
    told: dict[bool, list[str]] = {True: [], False: []}
    kept: dict[bool, list[str]] = {True: [], False: []}
    for name, found in images["swaps"].items():
        _sort(told, name, found["follows"])
        for other, entry in found["keeps"].items():
            _sort(kept, f"{other} when {name} is swapped", entry)
    findings = []
    if told[True]:
        findings.append(Finding("beyond", "Swapped factors follow the donor:", told[True]))
    if told[False]:
        findings.append(Finding("short", "Swapped in vain, no better than chance:", told[False]))
    if kept[True]:
        findings.append(Finding("beyond", "Kept when another is swapped:", kept[True]))
    if kept[False]:
        text = "Not told from chance when another is swapped:"
        findings.append(Finding("short", text, kept[False]))
    return findings


def _sort(where: dict[bool, list[str]], name: str, entry: Mapping[str, Any]) -> None:
    if entry["value"] is None:
        return
    bound = entry["value"] if entry.get("low") is None else entry["low"]
    words = f"{name} {number(entry['value'])} (chance {number(entry['chance'])})"
    where[bound > entry["chance"]].append(words)
