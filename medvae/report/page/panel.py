"""The page by which a panel of experts judges what a classifier has learned."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvae.data import CohortError
from medvae.report.page.blocks import (
    Absent,
    Answers,
    Block,
    Comparison,
    Finding,
    Findings,
    Judgement,
    Note,
    Page,
    Picture,
    Section,
    Table,
)
from medvae.report.page.measured import identity_tables, measured_tables, moved_most, signed
from medvae.report.page.render import write_page
from medvae.report.tables import number

__all__ = [
    "JUDGEMENTS",
    "classifier_findings",
    "flip_tables",
    "panel_page",
    "read_json",
    "write_panel",
]

JUDGEMENTS = {
    "known": "Known clinical sign",
    "confounder": "Confounder",
    "artefact": "Artefact of image or generator",
    "novel": "Possibly new",
}
PROMPTS = (
    "Could the sign follow from age, sex, ancestry or body size rather than from the condition?",
    "Could it follow from where and how people live, work or eat: housing, occupation, smoking, "
    "nutrition, make-up or clothing?",
    "Could it follow from access to care: which patients were imaged, referred or treated, and "
    "how early?",
    "Could it follow from the site, the device, its operator or the image processing?",
    "What would you have to measure, and in whom, to find out?",
)


def write_panel(output_dir: str | Path) -> Path:
    """Write `panel.html` from what a search left in a folder, and return its path.

    Raises:
        CohortError: there is no search, or the page cannot be written.
    """
    folder = Path(output_dir)
    if not (folder / "attributes.json").is_file():
        raise CohortError(
            f"The folder '{folder}' has no attributes.json; expected the results of bundles/stylex."
        )
    return write_page(panel_page(folder), folder / "panel.html")


def panel_page(folder: Path) -> Page:
    """Return the page of a folder with `attributes.json` and what belongs to it."""
    found = read_json(folder / "attributes.json")
    entries = found["attributes"]
    identity = hashlib.sha256((folder / "attributes.json").read_bytes()).hexdigest()[:16]
    asked = [
        {"number": n, "coordinate": e["coordinate"], "direction": e["direction"]}
        for n, e in enumerate(entries, start=1)
    ]
    summary = [Findings(classifier_findings(folder)), *flip_tables(folder)]
    sections = [
        Section("summary", "Summary", summary, _lead(found)),
        *(
            Section(f"attribute{n}", f"Attribute {n}", _attribute(folder, found, e, n))
            for n, e in enumerate(entries, start=1)
        ),
        Section("answers", "Your answers", [Answers(identity, asked)]),
    ]
    return Page(f"What did the classifier of {found['task']} learn?", "For a panel", sections)


def _lead(found: Mapping[str, Any]) -> str:
    searched = found["searched"]
    return (
        f"Of {searched['of']} style coordinates of the generator, {searched['coordinates']} were "
        f"moved one at a time on {searched['images']} images; {len(found['attributes'])} explain "
        "the classifier's decisions. Each is shown on the next tabs: look at the pairs, read the "
        "numbers, then answer the questions. What edits do was measured on test subjects, which "
        "were not searched."
    )


def classifier_findings(folder: Path) -> list[Finding]:
    """Return whether a folder's classifier is worth explaining, and what may be a confounder."""
    found = read_json(folder / "attributes.json")
    findings = [
        Finding("beyond" if head["worth_explaining"] else "short", head["verdict"])
        for head in read_json(folder / "classifier.json").get("heads", {}).values()
    ]
    for name, head in read_json(folder / "stylex.json").get("heads", {}).items():
        share = head["agreement"]
        findings.append(
            Finding(
                "beyond" if share["value"] >= 0.9 else "short",
                f"The classifier says the same of image and reconstruction, for {name}, in "
                f"{_percent(share)} of the images (chance {100 * share['chance']:.0f} %; 90 % is "
                "hoped for).",
            )
        )
    for n, entry in enumerate(found.get("attributes", ()), start=1):
        for flag in entry["confounder_candidates"]:
            findings.append(
                Finding(
                    "short" if flag["strong"] else "unknown",
                    f"Attribute {n} may stand for {flag['name']}, which should not decide:",
                    flag["evidence"],
                )
            )
    return findings


def flip_tables(folder: Path) -> list[Block]:
    """Return how much of the decisions a folder's attributes explain, and what each of them does.

    Where a direction of the code was not tried, its cell is empty.
    """
    found, flips = read_json(folder / "attributes.json"), read_json(folder / "flips.json")
    rows = [
        [
            f"the first {count}",
            _percent(entry["flip_rate"]),
            f"{100 * entry['random']['value']:.0f} ± {100 * entry['random']['sd']:.0f} %",
        ]
        for count, entry in flips.get("top", {}).items()
    ]
    direction = flips.get("latent_direction", {"value": None})
    rows.append(["one direction of the encoder's code", _percent(direction), ""])
    return [
        Table(
            ["edited together", "images that take the class", "random coordinates"],
            rows,
            "How much of the decisions they explain",
            "Images take the class that edits lead to. Random edits are as many, and each goes the "
            "way that leads there more on the searched images. The direction is between the "
            "classes' mean codes; the classifier's probabilities beside the code stay as they are. "
            "Intervals are bootstrap intervals over patients, 95 %.",
        ),
        *identity_tables(found, flips),
        _overview(found),
    ]


def _overview(found: Mapping[str, Any]) -> Table:
    heads = list(found["attributes"][0]["heads"]) if found["attributes"] else []
    measured = bool(found.get("instrument"))
    rows = [
        [
            f"{n}",
            f"layer {e['layer']}, {e['coordinate']} {e['direction']}",
            str(e.get("group", "")),
            *(signed(e["heads"][name]["log_odds_change"]) for name in heads),
            _percent(e["heads"][found["task"]]["flip_rate"]),
            *([_most(e["measured"])] if measured else []),
        ]
        for n, e in enumerate(found["attributes"], start=1)
    ]
    header = ["attribute", "coordinate", "acts like", *(f"log odds of {h}" for h in heads), "flips"]
    return Table(
        [*header, *(["moves most, measured again, SD"] if measured else [])],
        rows,
        "All attributes",
        "Attributes of one number under 'acts like' change the same places and the same decisions.",
    )


def _most(measured: Mapping[str, Any]) -> str:
    name = moved_most(measured)
    return "" if name is None else f"{name} {signed(measured[name])}"


def _attribute(
    folder: Path, found: Mapping[str, Any], entry: Mapping[str, Any], number: int
) -> list[Block]:
    blocks: list[Block] = []
    names = found["classes"]
    target = names[entry["target"]] if entry["target"] < len(names) else str(entry["target"])
    blocks.append(
        Note(
            f"Moving coordinate {entry['coordinate']} {entry['direction']}, towards "
            f"{(entry['min'], entry['max'])[entry['direction'] == 'up']:.2f} of a range from "
            f"{entry['min']:.2f} to {entry['max']:.2f}, makes class {target} of {found['task']} "
            "more likely."
        )
    )
    blocks += _images(folder / "pairs" / f"attribute{number:02d}", entry)
    blocks.append(_heads(entry))
    blocks += [_covariates(found, entry), *measured_tables(found, entry)]
    blocks.append(Judgement(number, JUDGEMENTS, PROMPTS))
    return blocks


def _images(place: Path, entry: Mapping[str, Any]) -> list[Block]:
    """Return an attribute's pairs, or why there are none, and where it acts."""
    pairs, where = entry["pairs"], place.with_name(f"{place.name}_where.png")
    written = {name for name in pairs["files"] if (place.parent / name).is_file()}
    if pairs["shown"] and f"{place.name}.npz" in written:
        path = place.with_name(f"{place.name}.npz")
        return [Note(chosen_pairs(entry)), Comparison(_pairs(path, pairs["shown"]))]
    blocks: list[Block] = [Absent("Pairs", chosen_pairs(entry))]
    if where.name in written:
        alt = "The mean image, and the mean absolute difference that the edit makes"
        blocks.append(Picture(where.read_bytes(), alt, "Where it changes", "Central planes."))
    return blocks


def chosen_pairs(entry: Mapping[str, Any]) -> str:
    """Return how an attribute's pairs were chosen, and of how many images."""
    pairs = entry["pairs"]
    words = (
        f"Of {pairs['of']} test images that are not of the class, {pairs['qualifying']} gain "
        f"{pairs['least_change']:.2f} or more in its probability"
    )
    if not pairs["shown"]:
        return f"{words}, and fewer than three tell nothing."
    return (
        f"{words}. Shown are {len(pairs['shown'])} of these, those farthest from where the edit "
        "leads: it moves their style most."
    )


def _heads(entry: Mapping[str, Any]) -> Table:
    rows = [
        [
            f"{name}{' (explained)' if head['task'] else ''}",
            str(head["class"]),
            signed(head["probability_change"]),
            signed(head["log_odds_change"]),
            _percent(head["flip_rate"]),
            "yes" if head["beyond_random"] else "no",
        ]
        for name, head in entry["heads"].items()
    ]
    return Table(
        ["head", "class", "probability", "log odds", "flips", "more than random edits"],
        rows,
        "What the classifier says",
        "Mean changes over test images, of the explained head over those that are not of the "
        "class. Flips: images that take the class; of other heads, images that change class.",
    )


def _covariates(found: Mapping[str, Any], entry: Mapping[str, Any]) -> Table:
    chance = found.get("association_chance", {})
    rows = []
    for name, value in entry.get("associations", {}).items():
        moved = entry["moves"].get(name)
        quality = found["judge"].get(name, {})
        rows.append(
            [
                name,
                _number(value["value"]),
                _number(value["given_class"]),
                "" if moved is None else signed(moved),
                "" if moved is None or moved["chance"] is None else f"{moved['chance']:.2f}",
                "" if moved is None else number(quality["reconstructions"], 2),
            ]
        )
    return Table(
        [
            "covariate",
            "r",
            "r in a class",
            "the judge reads it moved, SD",
            "random edits",
            "judge's AUC on reconstructions",
        ],
        rows,
        "What goes along with it",
        f"r: rank correlation of the coordinate over unedited test images; by chance the largest "
        f"is up to {_number(chance.get('value'))} ({_number(chance.get('given_class'))} within a "
        "class)."
        " What an edit moves is the reading of a network trained on the covariates alone, whose "
        "AUC on reconstructions of test subjects says whether it can be believed; it measures "
        "nothing.",
    )


def _pairs(path: Path, shown: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return images as base64 bytes (pairs, slices, rows, columns, channels), and their sizes.

    ``mean`` is the mean absolute difference over images; the script has that of a pair from both.
    """
    with np.load(path, allow_pickle=False) as stored:
        before, after = _upright(stored["before"]), _upright(stored["after"])
        difference = _upright(stored["difference"][None, None])
    top = float(difference.max()) or 1.0
    mean = np.round(255 * difference / top).astype(np.uint8)
    return {
        "shape": list(before.shape),
        "before": b64encode(before.tobytes()).decode(),
        "after": b64encode(after.tobytes()).decode(),
        "mean": b64encode(mean.tobytes()).decode(),
        "shown": list(shown),
    }


def _upright(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return (N, C, *S) as (N, slices, rows, columns, C), as `central_plane` turns them."""
    volumes = images if images.ndim == 5 else images[..., None]
    return np.ascontiguousarray(np.rot90(volumes, axes=(2, 3)).transpose(0, 4, 2, 3, 1))


def read_json(path: Path) -> dict[str, Any]:
    """Return what a file holds; empty where it is not there."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _percent(entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return ""
    text = f"{100 * entry['value']:.0f} %"
    known = entry.get("low") is not None
    return f"{text} ({100 * entry['low']:.0f} to {100 * entry['high']:.0f})" if known else text
