"""Effects and the quality of counterfactuals as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medvae.report.tables import markdown_table, number

__all__ = [
    "FIXED_NETWORK",
    "TRUTH_COLUMNS",
    "effects_table",
    "left_out",
    "measured_rows",
    "simple_name",
    "truth_rows",
]

FIXED_NETWORK = (
    "Intervals are over patients, with the network as it is: what another training would have "
    "found is not in them, and the truth may lie outside."
)
OF = {"test": "test subjects", "all": "all splits"}
TRUTH_COLUMNS = ("method", "effect", "PEHE", "MAE", "MAE in the region")


def effects_table(metrics: Mapping[str, Any]) -> str:
    """Return the effects beside simple estimators, and the quality of the images, as Markdown."""
    overlap = metrics["overlap"]
    text = (
        f"Treatment {metrics['treatment']['column']}; covariates tell it with AUC "
        f"{number(overlap['auc'])} (chance 0.5), {100 * overlap['outside']:.0f} % of the subjects "
        f"lie outside the overlap. Beta {metrics['beta']}; codes tell the treatment by "
        f"{number(metrics['balance']['predictability'], 3)} in AUC beyond the covariates.\n"
    )
    text += "".join(f"{words}\n" for words in left_out(metrics))
    known = "truth" in metrics
    rows = []
    for name, effect in metrics["effects"].items():
        for part in ("all", "inside", "outside"):
            entry = effect["region"][part]
            keys = ("ate", "low", "high", *(("true_ate", "pehe") if known else ()))
            cells = [number(entry.get(key), 4) for key in keys]
            rows.append([name, f"network, {part}", str(entry["subjects"]), *cells])
        for method, entry in effect["simple"].items():
            cells = [number(entry["effect"], 4), *[""] * (4 if known else 2)]
            rows.append([name, simple_name(method, entry), str(entry["subjects"]), *cells])
        for column, levels in effect.get("groups", {}).items():
            for level, entry in levels.items():
                cells = [number(entry.get(key), 4) for key in ("ate", "low", "high")]
                cells += [""] * (2 if known else 0)
                named = f"network, {column} {level}"
                rows.append([name, named, str(entry["subjects"]), *cells])
    header = ["arm", "method", "subjects", "effect", "low", "high"]
    text += "\n" + markdown_table(header + (["truth", "PEHE"] if known else []), rows)
    text += f"\n{FIXED_NETWORK}\n"
    if "measured" in metrics:
        text += "\n" + markdown_table(*measured_rows(metrics["measured"]))
    quality = metrics["quality"]
    lines = [["composition, one pass", number(quality["composition"]["one_pass"]["value"], 4)]]
    lines.append(["reversibility", number(quality["reversibility"]["value"], 4)])
    if "effectiveness" in quality:
        found = quality["effectiveness"]
        lines += [[f"effectiveness, {key}", number(found[key])] for key in found]
    if "realism" in quality:
        lines.append(
            ["realism, KID", number(quality["realism"]["counterfactual"]["kid"]["value"], 3)]
        )
    lines.append(["minimality, change", number(quality["minimality"]["change"]["value"], 4)])
    text += "\n" + markdown_table(["axis", "value"], lines)
    if "truth" in metrics:
        truth = metrics["truth"]
        rows = truth_rows(truth)
        text += f"\nTrue effect {number(truth['true_ate'], 4)}.\n\n"
        text += markdown_table(TRUTH_COLUMNS, rows)
    return text


def simple_name(method: str, entry: Mapping[str, Any]) -> str:
    """Return a simple estimator's name with the subjects whose effects it is the mean of."""
    return f"{method}, {OF[entry['split']]}"


def left_out(metrics: Mapping[str, Any]) -> list[str]:
    """Say how many test subjects have no region, for every arm where there are any."""
    return [
        f"{effect['region']['undefined']} test subject(s) without the region are left out of the "
        f"effect of {arm}."
        for arm, effect in metrics["effects"].items()
        if effect["region"].get("undefined")
    ]


def truth_rows(truth: Mapping[str, Any]) -> list[list[str]]:
    """Return a row of `TRUTH_COLUMNS` for every method that is compared with the truth."""
    keys = ("ate", "pehe", "counterfactual_mae", "region_mae")
    return [
        [name, *(number(entry[key], 4) for key in keys)]
        for name, entry in truth.items()
        if isinstance(entry, dict)
    ]


def measured_rows(measured: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the effects on attributes, see `MeasuredEffects`."""
    methods = ["difference of means", "linear regression", "truth"]
    rows = [
        [name, arm]
        + [number(entry.get(key), 3) for key in ("ate", "low", "high", *methods)]
        + [number(measured["instrument"][name][key], 3) for key in ("bias", "error_sd")]
        for arm, entries in measured["arms"].items()
        for name, entry in entries.items()
    ]
    header = ["attribute", "arm", "network", "low", "high", *methods, "bias", "error (sd)"]
    return header, rows
