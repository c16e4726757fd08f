"""What swapping a subspace does to images, as a section of a GAN's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medvae.report.page.blocks import Block, Finding, Picture, Section, Table
from medvae.report.page.run import Run
from medvae.report.page.words import beyond_chance, in_words
from medvae.report.tables import number

__all__ = ["swap_findings", "swaps_section"]

LUCK = "the share of the most frequent class: what a judge reaches that always says the same"


def swaps_section(run: Run) -> Section | None:
    """Return the judge's numbers, how real the images are, and the pictures."""
    images = run.images
    if images is None:
        return None
    blocks: list[Block] = [_quality(images)]
    if images["swaps"]:
        blocks.insert(0, _judged(images["swaps"]))
    titles = {
        "swaps.png": "Test subjects, reconstructed, and with one subspace of another patient",
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
        "subspace is another patient's. Look at the pictures: no number says when a GAN is good."
        + (f" It is missing here: {images['reason']}." if "reason" in images else ""),
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
            rows.append([f"{name}, unswapped: {who}", *_cells(entries[name])])
    header = ["what the judge sees", "share", "95 %", "chance", "images"]
    note = f"Only images whose donor has another class of the factor in question. Chance: {LUCK}."
    return Table(header, rows, "Judged by a classifier of its own", note)


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
    diversity = images.get("diversity")
    if diversity is not None:
        shown = [number(diversity[key]["ms_ssim"]) for key in ("drawn", "real")]
        rows.append(["MS-SSIM of pairs of drawn images", *shown, ""])
    note = "Floor: halves of the real images against each other, and pairs of them; "
    note += "degraded: blurred and noisy ones."
    if images.get("judge"):
        note += f" Features: {images['judge']}."
    return Table(["", "found", "floor", "degraded"], rows, "Images", note)


def swap_findings(images: Mapping[str, Any]) -> list[Finding]:
    """Return in words which swaps are followed, and what they leave as it was, beyond chance."""
    followed = {name: found["follows"] for name, found in images["swaps"].items()}
    kept = {
        f"{other} when {name} is swapped": entry
        for name, found in images["swaps"].items()
        for other, entry in found["keeps"].items()
    }
    return [
        *_told(followed, "Swapped factors follow the donor:", "Swapped in vain, as by chance:"),
        *_told(kept, "Kept when another is swapped:", "No longer told from chance:"),
    ]


def _told(entries: Mapping[str, Mapping[str, Any]], yes: str, no: str) -> list[Finding]:
    found: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for name, entry in entries.items():
        found[beyond_chance(entry)].append(f"{name} {in_words(entry)}")
    findings = [Finding("beyond", yes, found[True]), Finding("short", no, found[False])]
    return [finding for finding in findings if finding.items]
