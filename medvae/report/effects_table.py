"""Effects and the quality of counterfactuals as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medvae.report.tables import markdown_table, number

__all__ = [
    "FACTUAL",
    "FIXED_NETWORK",
    "NUMBER_TRUTH_COLUMNS",
    "WITHOUT_IMAGE",
    "TRUTH_COLUMNS",
    "effect_header",
    "effect_rows",
    "effects_table",
    "factual_rows",
    "heading",
    "left_out",
    "measured_rows",
    "number_truth_rows",
    "numbers_table",
    "simple_name",
    "truth_rows",
]

FIXED_NETWORK = (
    "Intervals are over patients, with the network as it is: what another training would have "
    "found is not in them, and the truth may lie outside."
)
OF = {"test": "test subjects", "all": "all splits"}
WITHOUT_IMAGE = (
    "The network also reads the image; overlap and simple estimators know the columns alone, and "
    "miss a confounder that only the image shows."
)
FACTUAL = ("value", "low", "high", "the training mean's")
NUMBER_TRUTH_COLUMNS = ("method", "effect", "error", "PEHE")
TRUTH_COLUMNS = ("method", "effect", "PEHE", "MAE", "MAE in the region")


def effects_table(metrics: Mapping[str, Any]) -> str:
    """Return the effects beside simple estimators, and the quality of the images, as Markdown."""
    text = heading(metrics)
    text += "".join(f"{words}\n" for words in left_out(metrics))
    known = "truth" in metrics
    rows = []
    for name, effect in metrics["effects"].items():
        rows += effect_rows(name, effect, effect["region"], known)
    text += "\n" + markdown_table(effect_header(known), rows)
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


def numbers_table(metrics: Mapping[str, Any]) -> str:
    """Return effects on numbers beside simple estimators, and their prediction, as Markdown."""
    text = heading(metrics)
    if "image" in metrics["covariates"]:
        text += f"{WITHOUT_IMAGE}\n"
    for name, outcome in metrics["outcomes"].items():
        text += f"\n## {name}\n\n"
        text += markdown_table(["prediction of test subjects", *FACTUAL], factual_rows(outcome))
        known = any("truth" in effect for effect in outcome["effects"].values())
        rows = []
        for arm, effect in outcome["effects"].items():
            rows += effect_rows(arm, effect, effect["network"], known)
        text += "\n" + markdown_table(effect_header(known), rows)
        for arm, effect in outcome["effects"].items():
            if "truth" in effect:
                true = number(effect["truth"]["true_ate"], 4)
                text += f"\nTrue effect of {arm}: {true}.\n\n"
                text += markdown_table(NUMBER_TRUTH_COLUMNS, number_truth_rows(effect["truth"]))
    return text + f"\n{FIXED_NETWORK}\n"


def factual_rows(outcome: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for R² and for the error, with the columns of `FACTUAL`."""
    names = {"r2": "R²", "rmse": "root mean squared error"}
    keys = ("value", "low", "high", "chance")
    return [
        [words, *(number(outcome["factual"][key][k], 3) for k in keys)]
        for key, words in names.items()
    ]


def number_truth_rows(truth: Mapping[str, Any]) -> list[list[str]]:
    """Return a row of `NUMBER_TRUTH_COLUMNS` for every method."""
    return [
        [name, *(number(entry[key], 4) for key in ("ate", "error", "pehe"))]
        for name, entry in truth.items()
        if isinstance(entry, dict)
    ]


def heading(metrics: Mapping[str, Any]) -> str:
    """Say in a line how far arms overlap, and how balanced codes are."""
    overlap = metrics["overlap"]
    return (
        f"Treatment {metrics['treatment']['column']}; covariates tell it with AUC "
        f"{number(overlap['auc'])} (chance 0.5), {100 * overlap['outside']:.0f} % of the subjects "
        f"lie outside the overlap. Beta {metrics['beta']}; codes tell the treatment by "
        f"{number(metrics['balance']['predictability'], 3)} in AUC beyond the covariates.\n"
    )


def effect_header(known: bool) -> list[str]:
    """Return the header of `effect_rows`, with truth and PEHE where they are known."""
    header = ["arm", "method", "subjects", "effect", "low", "high"]
    return header + (["truth", "PEHE"] if known else [])


def effect_rows(
    arm: str, effect: Mapping[str, Any], network: Mapping[str, Any], known: bool
) -> list[list[str]]:
    """Return a row for every estimate of an arm's effect.

    Args:
        arm: its name.
        effect: `simple` estimators and, where there are any, `groups`.
        network: what `medvae.metrics.effect_report` says of the network's effects.
        known: whether the truth is.
    """
    rows = []
    for part in ("all", "inside", "outside"):
        entry = network[part]
        keys = ("ate", "low", "high", *(("true_ate", "pehe") if known else ()))
        cells = [number(entry.get(key), 4) for key in keys]
        rows.append([arm, f"network, {part}", str(entry["subjects"]), *cells])
    for method, entry in effect["simple"].items():
        cells = [number(entry["effect"], 4), *[""] * (4 if known else 2)]
        rows.append([arm, simple_name(method, entry), str(entry["subjects"]), *cells])
    for column, levels in effect.get("groups", {}).items():
        for level, entry in levels.items():
            cells = [number(entry.get(key), 4) for key in ("ate", "low", "high")]
            cells += [""] * (2 if known else 0)
            rows.append([arm, f"network, {column} {level}", str(entry["subjects"]), *cells])
    return rows


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
