"""Effects and the quality of counterfactuals as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medvae.report.tables import markdown_table, number

__all__ = ["TRUTH_COLUMNS", "effects_table", "measured_rows", "truth_rows"]

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
    rows = []
    for name, effect in metrics["effects"].items():
        for part in ("all", "inside", "outside"):
            entry = effect["region"][part]
            cells = [number(entry.get(key), 4) for key in ("ate", "low", "high")]
            rows.append([name, f"network, {part}", str(entry["subjects"]), *cells])
        for method, value in effect["simple"].items():
            rows.append([name, method, "", number(value, 4), "", ""])
    text += "\n" + markdown_table(["arm", "method", "subjects", "effect", "low", "high"], rows)
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
