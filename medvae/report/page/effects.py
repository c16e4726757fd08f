"""What a treatment does to images, as a section of the page: effects, overlap, quality, truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medvae.engines.beta import PREDICTABILITY
from medvae.report.effects_table import (
    FIXED_NETWORK,
    TRUTH_COLUMNS,
    left_out,
    measured_rows,
    simple_name,
    truth_rows,
)
from medvae.report.page import figures
from medvae.report.page.blocks import Block, Facts, Finding, Picture, Section, Table
from medvae.report.page.figures import Interval
from medvae.report.page.run import Run, label_of
from medvae.report.tables import number

__all__ = ["effect_findings", "effects_section"]

PARTS = {
    "all": "network, all",
    "inside": "network, inside the overlap",
    "outside": "network, outside of it",
}
MEANINGS = {
    "composition": "decoded under the own arm, nothing is changed: error per voxel",
    "reversibility": "there and back: error per voxel",
    "effectiveness": "balanced accuracy of a classifier of real images, which shares nothing with "
    "the model, of the arm that each image should show",
    "realism": "KID to real images, in that classifier's features",
    "minimality": "mean change per voxel",
}


def effects_section(run: Run) -> Section | None:
    """Effects beside simple estimators, who can be compared, the five axes, the truth if known."""
    metrics = run.metrics or {}
    if "effects" not in metrics:
        return None
    blocks: list[Block] = []
    for arm, effect in metrics["effects"].items():
        blocks += _effect(str(arm), effect, metrics)
    png = run.picture("counterfactuals.png")
    if png:
        alt = "Test subjects, decoded under their own arm and under the other, and the difference"
        blocks.append(Picture(png, alt, "Test subjects under both arms"))
    if "measured" in metrics:
        blocks.append(_measured(metrics["measured"]))
    blocks += [_comparability(metrics), _quality(metrics["quality"])]
    if "truth" in metrics:
        blocks.append(_truth(metrics["truth"]))
    covariates = ", ".join(map(label_of, metrics["covariates"]))
    return Section(
        "effects",
        "Effects",
        blocks,
        f"Of {metrics['treatment']['column']}, in the {metrics['unit']}, averaged over "
        f"{metrics['region']}, adjusted for {covariates}. They are effects only if these "
        "covariates are all that decides both the treatment and the image.",
    )


def _effect(arm: str, effect: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[Block]:
    control = metrics["treatment"]["arms"][0]
    rows = [
        Interval(label, part["ate"], part.get("low"), part.get("high"), 0.0)
        for key, label in PARTS.items()
        if (part := effect["region"][key]).get("ate") is not None
    ]
    rows += [
        Interval(simple_name(name, entry), entry["effect"], chance=0.0)
        for name, entry in effect["simple"].items()
        if entry["effect"] is not None
    ]
    rows += [
        Interval(f"network, {column} {level}", part["ate"], part["low"], part["high"], 0.0)
        for column, levels in effect.get("groups", {}).items()
        for level, part in levels.items()
        if part.get("ate") is not None
    ]
    true = metrics.get("truth", {}).get("true_ate")
    if true is not None:
        rows.append(Interval("truth", true, chance=0.0))
    title = f"{arm} instead of {control}"
    drawing = figures.forest(rows, "effect on the region's mean", f"effect-{arm}")
    alt = f"Effects of {title} by method, with 95 % intervals where there are any"
    names = [row.name for row in rows]
    cells = [[number(v, 4) for v in (row.value, row.low, row.high)] for row in rows]
    table = [[name, *row] for name, row in zip(names, cells, strict=True)]
    hidden = [
        [f"{strength} times the odds", f"{number(low, 4)} to {number(high, 4)}"]
        for strength, (low, high) in effect["sensitivity"].items()
    ]
    return [
        Picture(drawing, alt, title, f"The grey line is no effect. {FIXED_NETWORK}"),
        Table(["method", "effect", "low", "high"], table),
        Table(
            ["a hidden cause of treatment changes", "inverse propensity's effect lies in"],
            hidden,
            "What a hidden confounder could do",
            "Marginal sensitivity model. E-value of the network's effect: "
            f"{number(effect['region'].get('e_value'))}.",
        ),
    ]


def _measured(measured: Mapping[str, Any]) -> Table:
    header, rows = measured_rows(measured)
    labels = [[label_of(row[0]), *row[1:]] for row in rows]
    return Table(
        header,
        labels,
        "Effects on attributes, measured again on decoded images",
        "By a small U-Net, which finds the structures. Bias and error: of what it measures on "
        "reconstructions against the masks; an effect below them is not to be believed. The "
        "truth, where it is known, is measured by the U-Net, too.",
    )


def _comparability(metrics: Mapping[str, Any]) -> Facts:
    overlap, balance = metrics["overlap"], metrics["balance"]
    counts = ", ".join(f"{n} in {arm}" for arm, n in overlap["arms"].items())
    return Facts(
        [
            ("Subjects", counts),
            ("Covariates tell the arm with AUC", f"{number(overlap['auc'])} (chance 0.50)"),
            ("Outside the overlap", f"{100 * overlap['outside']:.0f} % of the subjects"),
            (
                "Codes tell the arm beyond covariates, AUC",
                f"{number(balance['predictability'], 3)} (chance 0)",
            ),
            ("Beta", number(metrics["beta"])),
        ],
        "Who can be compared",
    )


def _quality(quality: Mapping[str, Any]) -> Table:
    rows = [
        ["composition, one pass", number(quality["composition"]["one_pass"]["value"], 4)],
        ["reversibility", number(quality["reversibility"]["value"], 4)],
    ]
    found = quality.get("effectiveness", {})
    rows += [[f"effectiveness, {key}", number(value)] for key, value in found.items()]
    for name, entry in quality.get("realism", {}).items():
        rows.append([f"realism, {name}", number(entry["kid"]["value"], 3)])
    minimality = quality["minimality"]
    rows.append(["minimality", number(minimality["change"]["value"], 4)])
    if minimality.get("share_outside_region") is not None:
        share = number(minimality["share_outside_region"])
        rows.append(["share of the change outside the region", share])
    words = "; ".join(f"{name}: {text}" for name, text in MEANINGS.items())
    return Table(["axis", "value"], rows, "Five axes of the images' quality", f"{words}.")


def _truth(truth: Mapping[str, Any]) -> Table:
    caption = f"True effect {number(truth['true_ate'], 4)}. PEHE: root mean squared error of each "
    caption += "subject's effect; MAE: mean absolute error of counterfactual images, per voxel. "
    caption += "The simple estimators are of every voxel, fitted on the images of all splits."
    return Table(TRUTH_COLUMNS, truth_rows(truth), "Against the known truth", caption)


def effect_findings(metrics: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what the effects say in words, and what speaks against believing them."""
    if "effects" not in metrics:
        return
    control = metrics["treatment"]["arms"][0]
    for arm, effect in metrics["effects"].items():
        entry = effect["region"]["all"]
        low, high = entry.get("low"), entry.get("high")
        interval = f"{number(entry.get('ate'), 4)} ({number(low, 4)} to {number(high, 4)})"
        words = f"{arm} instead of {control} changes the region's mean by {interval}"
        if low is None or high is None:
            yield Finding("unknown", f"{words}; too few subjects for an interval.")
        elif low > 0 or high < 0:
            yield Finding("beyond", f"{words}; no effect is outside the interval.")
        else:
            yield Finding("short", f"{words}; no effect is inside the interval.")
    for words in left_out(metrics):
        yield Finding("unknown", words)
    yield from _doubts(metrics)


def _doubts(metrics: Mapping[str, Any]) -> Iterator[Finding]:
    outside = metrics["overlap"]["outside"]
    if outside > 0:
        yield Finding(
            "unknown",
            f"{100 * outside:.0f} % of the subjects have none like them in another arm: their "
            "effects are the model's extrapolation.",
        )
    gain = metrics["balance"]["predictability"]
    if gain is not None and gain > PREDICTABILITY:
        yield Finding(
            "short",
            f"Codes tell the arm beyond the covariates (AUC {number(gain, 3)} more; "
            f"{PREDICTABILITY} is tolerated): what codes hold of the treatment is missing in the "
            "effect.",
        )
    found = metrics["quality"].get("effectiveness")
    if found is not None:
        halfway = (found["chance"] + found["real"]) / 2
        obeyed = found["counterfactual"] >= halfway and found["real"] > found["chance"]
        yield Finding(
            "beyond" if obeyed else "short",
            "A classifier of real images sees the arm that was asked for in counterfactuals with "
            f"balanced accuracy {number(found['counterfactual'])} (real images "
            f"{number(found['real'])}, reconstructions {number(found['reconstruction'])}; chance "
            f"{number(found['chance'])}).",
        )
