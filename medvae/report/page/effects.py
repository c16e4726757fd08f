"""What a treatment does, as a section of the page: effects, overlap, quality, truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medvae.engines.beta import PREDICTABILITY
from medvae.report.effects_table import (
    FACTUAL,
    FIXED_NETWORK,
    NUMBER_TRUTH_COLUMNS,
    TRUTH_COLUMNS,
    WITHOUT_IMAGE,
    factual_rows,
    left_out,
    measured_rows,
    number_truth_rows,
    simple_name,
    truth_rows,
)
from medvae.report.page import figures
from medvae.report.page.blocks import Block, Facts, Finding, Picture, Section, Table
from medvae.report.page.figures import Interval
from medvae.report.page.run import Run, label_of
from medvae.report.page.words import in_words
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
    if "outcomes" in metrics:
        return _of_numbers(run, metrics)
    if "effects" not in metrics:
        return None
    blocks: list[Block] = []
    control = metrics["treatment"]["arms"][0]
    for arm, effect in metrics["effects"].items():
        title, salt = f"{arm} instead of {control}", f"effect-{arm}"
        blocks += _effect(effect, effect["region"], title, "effect on the region's mean", salt)
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


def _of_numbers(run: Run, metrics: Mapping[str, Any]) -> Section:
    """The same of an outcome of columns: no image is decoded, and none is judged."""
    blocks: list[Block] = []
    control = metrics["treatment"]["arms"][0]
    for k, (name, outcome) in enumerate(metrics["outcomes"].items()):
        label = label_of(name)
        for arm, effect in outcome["effects"].items():
            title, salt = f"{label}: {arm} instead of {control}", f"effect-{k}-{arm}"
            blocks += _effect(effect, effect["network"], title, f"effect on {label}", salt)
            if "truth" in effect:
                caption = f"True effect {number(effect['truth']['true_ate'], 4)}. Error: of the "
                caption += "mean effect. PEHE: root mean squared error of each subject's effect."
                rows = number_truth_rows(effect["truth"])
                blocks.append(Table(NUMBER_TRUTH_COLUMNS, rows, "Against the known truth", caption))
        header = ["prediction of test subjects", *FACTUAL]
        blocks.append(Table(header, factual_rows(outcome), f"{label} of new subjects"))
    run.pictures.add("effects.png")  # drawn again above
    png = run.picture("predictions.png")
    if png:
        alt = "Predicted against observed outcomes of test subjects, in the arm that they were in"
        blocks.append(Picture(png, alt, "Predicted against observed"))
    blocks.append(_comparability(metrics))
    covariates = ", ".join(map(label_of, metrics["covariates"]))
    lead = (
        f"Of {metrics['treatment']['column']}, in each outcome's own unit, adjusted for "
        f"{covariates}. They are effects only if these covariates are all that decides both the "
        "treatment and the outcome."
    )
    if "image" in metrics["covariates"]:
        lead += f" {WITHOUT_IMAGE}"
    return Section("effects", "Effects", blocks, lead)


def _effect(
    effect: Mapping[str, Any], network: Mapping[str, Any], title: str, axis: str, salt: str
) -> list[Block]:
    rows = [
        Interval(label, part["ate"], part.get("low"), part.get("high"), 0.0)
        for key, label in PARTS.items()
        if (part := network[key]).get("ate") is not None
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
    true = network["all"].get("true_ate")
    if true is not None:
        rows.append(Interval("truth", true, chance=0.0))
    drawing = figures.forest(rows, axis, salt)
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
            f"{number(network.get('e_value'))}.",
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
    if "outcomes" in metrics:
        yield from _number_findings(metrics)
        yield from _doubts(metrics)
    if "effects" not in metrics:
        return
    control = metrics["treatment"]["arms"][0]
    for arm, effect in metrics["effects"].items():
        yield _change(f"{arm} instead of {control} changes the region's mean", effect["region"])
    for words in left_out(metrics):
        yield Finding("unknown", words)
    yield from _doubts(metrics)


def _number_findings(metrics: Mapping[str, Any]) -> Iterator[Finding]:
    control = metrics["treatment"]["arms"][0]
    for name, outcome in metrics["outcomes"].items():
        for arm, effect in outcome["effects"].items():
            words = f"{arm} instead of {control} changes {label_of(name)}"
            yield _change(words, effect["network"])
        told = outcome["factual"]["r2"]
        beyond = told["low"] is not None and told["low"] > 0
        yield Finding(
            "beyond" if beyond else "short",
            f"What is known before treatment tells {label_of(name)} of new subjects with R² "
            f"{in_words({**told, 'chance': None})}; 0 is their mean.",
        )


def _change(words: str, network: Mapping[str, Any]) -> Finding:
    """Say the network's mean effect, and whether its interval leaves out none."""
    entry = network["all"]
    low, high = entry.get("low"), entry.get("high")
    words += f" by {number(entry.get('ate'), 4)} ({number(low, 4)} to {number(high, 4)})"
    if low is None or high is None:
        return Finding("unknown", f"{words}; too few subjects for an interval.")
    if low > 0 or high < 0:
        return Finding("beyond", f"{words}; no effect is outside the interval.")
    return Finding("short", f"{words}; no effect is inside the interval.")


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
    found = metrics.get("quality", {}).get("effectiveness")
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
