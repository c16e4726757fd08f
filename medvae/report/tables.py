"""Metrics as a table that people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["markdown_table", "metrics_table"]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with its columns padded to equal width."""
    widths = [max(len(row[c]) for row in (header, *rows)) for c in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)]) + "\n"


def number(value: float | None, digits: int = 2) -> str:
    """Return a number for a table, or a dash where it is undefined."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def _with_interval(entry: Mapping[str, Any], key: str = "value") -> str:
    text = number(entry.get(key))
    if entry.get("low") is not None:
        text += f" ({number(entry['low'])} to {number(entry['high'])})"
    return text


def _disentanglement(report: Mapping[str, Any]) -> str:
    names = list(report["attributes"])
    rows = []
    for score, entry in report["scores"].items():
        per_attribute = entry.get("attributes", {})
        rows.append(
            [
                score,
                _with_interval(entry["mean"]),
                number(entry["mean"].get("chance")),
                number(entry["mean"].get("ceiling")),
                *(number(per_attribute.get(n, {}).get("value")) for n in names),
            ]
        )
    return markdown_table(["score", "mean (95 %)", "chance", "ceiling", *names], rows)


def _reconstruction(report: Mapping[str, Any]) -> str:
    rows = [
        ["PSNR (dB)", number(report["psnr_db"]["mean"], 1), number(report["psnr_db"]["chance"], 1)],
        ["SSIM", number(report["ssim"]["mean"], 3), number(report["ssim"]["chance"], 3)],
        ["RBF-MMD", number(report["rbf_mmd"]["value"], 4), number(report["rbf_mmd"]["chance"], 4)],
    ]
    if "grain" in report:
        grain = report["grain"]
        name = f"grain (images: {number(grain['images'])})"
        rows.append([name, number(grain["value"]), number(grain["chance"])])
    return markdown_table(["reconstruction", "model", "chance"], rows)


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """Return metrics.json as Markdown: every score beside its chance level."""
    subjects = metrics["subjects"]
    parts = [
        f"# Results on the {metrics['split']} split\n\n"
        f"{subjects['train']} training, {subjects['val']} validation, {subjects['test']} test "
        "images; no patient is in two splits. Chance: permuted attributes, the training images' "
        "mean as reconstruction (MMD: permuted groups; grain: independent voxels), the larger "
        "class. Ceiling: codes that are the attributes.\n",
        _disentanglement(metrics["disentanglement"]),
        _reconstruction(metrics["reconstruction"]),
    ]
    if "latent_axes" in metrics:
        axes = metrics["latent_axes"]
        parts.append(
            f"{axes['active']} of {axes['total']} latent axes say something about an image "
            f"(variance above 0.01), {axes['active_free']} of the {axes['free']} that belong to "
            "no attribute; without these the reconstruction knows the attributes alone.\n"
        )
    if "prediction_r2" in metrics:
        entries = metrics["prediction_r2"]["attributes"]
        rows = [[name, _with_interval(entry)] for name, entry in entries.items()]
        parts.append(markdown_table(["attribute read off its axis", "R² (95 %)"], rows))
    if "classification" in metrics:
        parts.append(_classification(metrics["classification"]))
    return "\n".join(parts)


def _classification(report: Mapping[str, Any]) -> str:
    reference = report.get("reference", {})
    rows = [
        [
            name,
            _with_interval(report[key]),
            number(report[key].get("chance")),
            _with_interval(reference.get(key, {})),
        ]
        for name, key in (("AUC", "auc"), ("accuracy", "accuracy"))
    ]
    header = ["classification", "head (95 %)", "chance", "classifier on the raw attributes"]
    return markdown_table(header, rows)
