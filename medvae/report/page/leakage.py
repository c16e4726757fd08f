"""What a model's subspaces tell of which factor, as a section of its page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medvae.report.page.blocks import Block, Finding, Heat, Picture, Section, Table
from medvae.report.page.run import Run
from medvae.report.tables import number

__all__ = ["leakage_findings", "leakage_section"]

BANKS = {"balanced": "Balanced bank", "natural": "Bank as the training subjects are"}


def leakage_section(run: Run) -> Section | None:
    """The matrix subspace by factor on both banks, the heads, and the pictures."""
    metrics = run.metrics or {}
    report = metrics.get("leakage")
    if report is None:
        return None
    heads = [
        [name, number(head["score"]), number(head["chance"])]
        for name, head in metrics["heads"].items()
    ]
    blocks: list[Block] = [_matrix(report, bank) for bank in BANKS]
    blocks.append(
        Table(
            ["factor", "test", "chance"],
            heads,
            "What the heads say",
            "Balanced accuracy; of continuous factors R².",
        )
    )
    blocks.append(_ranks(report))
    run.pictures.add("leakage.png")  # the same numbers
    content = run.picture("embeddings.png")
    if content is not None:
        title = "Subspaces in two dimensions, coloured by each factor"
        blocks.append(Picture(content, title, title))
    return Section(
        "leakage",
        "What leaks",
        blocks,
        "How far above chance the best of three probes reads every factor off every subspace of "
        "test subjects, as a share of what is possible. Framed: the factor that the subspace is "
        "about. ▲: another one, beyond 95 % of what permuted labels reach.",
    )


def _matrix(report: Mapping[str, Any], bank: str) -> Heat:
    names, factors = list(report["subspaces"]), list(report["factors"])
    best = [[report["matrix"][bank][name][f]["best"] for f in factors] for name in names]
    possible = [_possible(report, bank, factor) for factor in factors]
    shares = [
        [
            float("nan") if cell["points"] is None else cell["points"] / 100 / room
            for cell, room in zip(row, possible, strict=True)
        ]
        for row in best
    ]
    expected = {(names.index(f), column) for column, f in enumerate(factors) if f in names}
    if "whole" in names:  # of all subspaces together every factor may be read
        expected |= {(names.index("whole"), column) for column in range(len(factors))}
    luck = [
        cell["chance_p95"] / 100 / room
        for row in best
        for cell, room in zip(row, possible, strict=True)
        if cell.get("chance_p95") is not None
    ]
    high = max(luck) if luck else None
    return Heat(names, factors, shares, "subspace", frozenset(expected), high, BANKS[bank])


def _possible(report: Mapping[str, Any], bank: str, factor: str) -> float:
    chance = report["chance"][bank][factor] or {}
    return 1 - float(chance.get("balanced_accuracy", 0.0))


def _ranks(report: Mapping[str, Any]) -> Table:
    rows = [
        [name, number(e["value"]), str(e["dimensions"]), number(e.get("demand"))]
        for name, e in report["dependence"]["effective_rank"].items()
    ]
    header = ["subspace", "effective", "of", "demanded"]
    return Table(header, rows, "Dimensions", "0.75 for each class but one is demanded of three up.")


def leakage_findings(metrics: Mapping[str, Any]) -> list[Finding]:
    """Return what the matrix says in words: own factors, and what leaks most."""
    report = metrics.get("leakage")
    if report is None:
        return []
    matrix = report["matrix"]["balanced"]
    own: list[tuple[float, str, bool]] = []
    cross: list[tuple[float, str, bool]] = []
    for name, row in matrix.items():
        for factor, entry in row.items():
            best = entry["best"]
            if best["points"] is None or name == "whole":
                continue
            text = f"{factor} from {name}: {number(best['points'], 0)} points"
            above = best["points"] > (best.get("chance_p95") or 0)
            (own if name == factor else cross).append((best["points"], text, above))
    told = [text for _, text, above in sorted(own, reverse=True) if above]
    leaking = [text for _, text, above in sorted(cross, reverse=True) if above]
    findings = []
    if told:
        findings.append(
            Finding("beyond", "Subspaces tell of their own factors beyond chance:", told)
        )
    if leaking:
        findings.append(
            Finding("short", "Of others they tell, too, beyond chance (balanced bank):", leaking)
        )
    elif cross:
        findings.append(Finding("beyond", "Of others they tell nothing beyond chance."))
    return findings
