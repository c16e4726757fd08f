"""The metrics of a run, each beside its chance level and interval, as drawings and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from medvae.report.page import figures
from medvae.report.page.blocks import Absent, Block, Note, Picture, Section, Table
from medvae.report.page.figures import Interval
from medvae.report.page.run import Run, label_of
from medvae.report.page.words import beyond_chance
from medvae.report.tables import number

__all__ = ["Score", "all_scores", "metrics_section"]

NAMES = {
    "interpretability": "interpretability (R² on its axis)",
    "scc": "SCC (Spearman on its axis)",
    "sap": "SAP (gap in R² to the next axis)",
    "mig": "MIG (gap in information to the next axis)",
    "modularity": "modularity (one attribute per axis)",
    "dci_disentanglement": "DCI disentanglement",
    "dci_completeness": "DCI completeness",
    "dci_informativeness": "DCI informativeness",
}


class Score(NamedTuple):
    """A number of metrics.json.

    Attributes:
        name: for people.
        entry: value and, where known, low, high, chance, chance_p95, ceiling.
        higher_is_better: False for distances.
        digits: after the point.
    """

    name: str
    entry: Mapping[str, Any]
    higher_is_better: bool = True
    digits: int = 2

    @property
    def text(self) -> str:
        """The value with its interval."""
        text = number(self.entry.get("value"), self.digits)
        if self.entry.get("low") is not None:
            low, high = (number(self.entry[k], self.digits) for k in ("low", "high"))
            text += f" ({low} to {high})"
        return text

    @property
    def interval(self) -> Interval:
        """For a drawing."""
        value, low, high, chance = (self.entry.get(k) for k in ("value", "low", "high", "chance"))
        top = self.entry.get("chance_p95", self.entry.get("chance_high"))
        return Interval(self.name, value, low, high, chance, top)


def all_scores(metrics: Mapping[str, Any]) -> Iterator[Score]:
    """Return the scores of a run: means over attributes, each attribute's, the class, the image.

    Of other systems: what each subspace tells of every factor, effects, image quality.
    """
    report = metrics.get("disentanglement", {}).get("scores", {})
    for key, part in report.items():
        yield Score(NAMES.get(key, key), part["mean"])
    for name, entry in report.get("interpretability", {}).get("attributes", {}).items():
        yield Score(f"R² of {label_of(name)}", entry)
    for name, entry in metrics.get("prediction_r2", {}).get("attributes", {}).items():
        yield Score(f"read, R² of {label_of(name)}", {"chance": 0.0, **entry})
    for key, name in (("auc", "AUC"), ("balanced_accuracy", "balanced accuracy")):
        if key in (metrics.get("classification") or {}):
            yield Score(f"class: {name}", metrics["classification"][key])
    yield from _image_scores(metrics.get("reconstruction", {}))
    yield from _factor_scores(metrics)
    yield from _effect_scores(metrics)


def _factor_scores(metrics: Mapping[str, Any]) -> Iterator[Score]:
    for name, head in metrics.get("heads", {}).items():
        yield Score(f"head of {name}", {"value": head["score"], "chance": head["chance"]})
    matrix = metrics.get("leakage", {}).get("matrix", {}).get("balanced", {})
    for name, row in matrix.items():
        for factor, entry in row.items():
            best = entry["best"]
            known = {key: best.get(key) for key in ("low", "high", "chance_p95")}
            told = {"value": best["points"], "chance": 0.0, **known}
            yield Score(f"{factor} from {name}, points", told, name == factor, 0)


def _effect_scores(metrics: Mapping[str, Any]) -> Iterator[Score]:
    for arm, effect in metrics.get("effects", {}).items():
        entry = effect["region"]["all"]
        yield Score(
            f"effect of {arm}", {"value": entry.get("ate"), "chance": 0.0, **entry}, True, 4
        )
    for name, outcome in metrics.get("outcomes", {}).items():
        yield Score(f"R² of {label_of(name)}, new subjects", outcome["factual"]["r2"])
        for arm, effect in outcome["effects"].items():
            entry = effect["network"]["all"]
            known = {"value": entry.get("ate"), "chance": 0.0, **entry}
            yield Score(f"effect of {arm} on {label_of(name)}", known, True, 4)
    quality = metrics.get("quality", {})
    if quality:
        yield Score("composition: error", quality["composition"]["one_pass"], False, 4)
        yield Score("reversibility: error", quality["reversibility"], False, 4)


def _image_scores(report: Mapping[str, Any]) -> Iterator[Score]:
    for key, name, digits in (("psnr_db", "PSNR (dB)", 1), ("ssim", "SSIM", 3)):
        if key in report:
            entry = {"value": report[key]["mean"], **report[key]}
            yield Score(f"reconstruction: {name}", entry, digits=digits)
    if "rbf_mmd" in report:
        yield Score("reconstruction: RBF-MMD", report["rbf_mmd"], False, 4)


def metrics_section(run: Run) -> Section | None:
    """Every score beside chance, as drawings and tables."""
    metrics = run.metrics
    if metrics is None and not (run.results / "attributes.json").is_file():
        return Section(
            "metrics",
            "Metrics",
            [Absent("Metrics", "no results of an evaluation", run.commands.evaluate)],
        )
    if metrics is None or run.other_system:
        return None
    blocks: list[Block] = []
    report = metrics.get("disentanglement", {})
    per_attribute = report.get("scores", {}).get("interpretability", {}).get("attributes", {})
    if per_attribute:
        rows = [Score(label_of(n), e).interval for n, e in per_attribute.items()]
        drawing = figures.forest(rows, "R² of the attribute on its axis", "interpretability")
        alt = "R² of each attribute on its axis with 95 % intervals, beside chance"
        blocks.append(Picture(drawing, alt, "How well each axis tells its attribute", GREY))
    means = [Score(NAMES.get(k, k), part["mean"]) for k, part in report.get("scores", {}).items()]
    if means:
        drawing = figures.forest([s.interval for s in means], "mean over attributes", "means")
        alt = "Disentanglement scores with 95 % intervals, beside chance"
        blocks.append(Picture(drawing, alt, "Disentanglement, means over attributes", GREY))
    blocks.append(_table(metrics))
    blocks += _attribute_table(report)
    blocks += _axes(metrics)
    return Section("metrics", "Metrics", blocks, _lead(report))


GREY = (
    "Dot and line: value and 95 % interval. Grey: chance, its mean and up to its 95th percentile."
)


def _lead(report: Mapping[str, Any]) -> str:
    if not report:
        return ""
    return (
        f"{report['rows']} images of {report['patients']} patients; axes: {report['axes']}; "
        f"{report['n_permutations']} permutations for chance, {report['n_resamples']} resamples of "
        f"patients for intervals, seed {report['seed']}."
    )


def _table(metrics: Mapping[str, Any]) -> Table:
    rows = [
        [
            score.name,
            score.text,
            number(score.entry.get("chance"), score.digits),
            number(score.interval.chance_p95, score.digits),
            number(score.entry.get("ceiling"), score.digits),
            _said(score),
        ]
        for score in all_scores(metrics)
    ]
    caption = (
        "Chance: permuted attributes or labels; for the reconstruction the mean training image, "
        "for the MMD permuted groups (there, lower is better). Ceiling: codes that are the "
        "attributes themselves, which correlated attributes keep below 1. PSNR and SSIM have no "
        "interval here."
    )
    header = ["score", "value (95 %)", "chance", "chance, 95th percentile", "ceiling", "verdict"]
    return Table(header, rows, "All scores", caption)


def _said(score: Score) -> str:
    if not score.higher_is_better:
        value, top = score.entry.get("value"), score.interval.chance_p95
        if value is None or top is None:
            return "–"
        return "as chance" if value <= top else "told apart"
    beyond = beyond_chance(score.entry)
    return {True: "beyond chance", False: "not beyond", None: "–"}[beyond]


def _attribute_table(report: Mapping[str, Any]) -> list[Table]:
    scores = {k: s["attributes"] for k, s in report.get("scores", {}).items() if "attributes" in s}
    if not scores:
        return []
    rows = [
        [label_of(name), str(about["axis"]), str(about["observed"])]
        + [Score("", entries.get(name, {})).text for entries in scores.values()]
        for name, about in report["attributes"].items()
    ]
    return [Table(["attribute", "axis", "rows", *scores], rows, "By attribute")]


def _axes(metrics: Mapping[str, Any]) -> list[Note]:
    axes = metrics.get("latent_axes")
    if not axes:
        return []
    return [
        Note(
            f"{axes['active']} of {axes['total']} latent axes say something about an image "
            f"(variance above 0.01), {axes['active_free']} of the {axes['free']} that belong to no "
            "attribute; without these the reconstruction knows the attributes alone."
        )
    ]
