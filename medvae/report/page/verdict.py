"""What a run's numbers say in plain words: beyond chance, short of it, or not known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medvae.report.page.blocks import Finding
from medvae.report.page.effects import effect_findings
from medvae.report.page.leakage import leakage_findings
from medvae.report.page.panel import classifier_findings
from medvae.report.page.run import Run, label_of
from medvae.report.page.swaps import swap_findings
from medvae.report.page.words import beyond_chance, in_words

__all__ = ["verdict"]

FEW = 30  # patients below which an interval is wide and a verdict easily overturned


def verdict(run: Run) -> list[Finding]:
    """Return the findings of a run, the most important first; one that says so where none is."""
    metrics = run.metrics
    findings = list(_interrupted(run))
    if metrics is not None:
        for part in (_axes, _gaps, leakage_findings, effect_findings, _classes, _images, _few):
            findings += part(metrics)
    if run.images is not None:
        findings += swap_findings(run.images)
    if run.manipulation is not None:
        findings += _obeyed(run.manipulation)
    findings += classifier_findings(run.results)
    return findings or [
        Finding("unknown", "Nothing has been measured yet: the run has no metrics.")
    ]


def _interrupted(run: Run) -> Iterator[Finding]:
    if run.unfinished:
        words = f"The training was interrupted, or is still going on: {run.unfinished}."
        yield Finding("short", words)


def _axes(metrics: Mapping[str, Any]) -> Iterator[Finding]:
    """Say which attributes can be read off their axes."""
    report = metrics.get("disentanglement", {})
    entries = report.get("scores", {}).get("interpretability", {}).get("attributes", {})
    found: dict[bool | None, list[str]] = {}
    for name, entry in entries.items():
        words = f"{label_of(name)} {in_words(entry)}"
        found.setdefault(beyond_chance(entry), []).append(words)
    if True in found:
        yield Finding("beyond", "Read off their axes beyond chance, R²:", found[True])
    if False in found:
        yield Finding("short", "Not told from chance on their axes, R²:", found[False])
    unknown = [*report.get("excluded", {}), *found.get(None, [])]
    if unknown:
        yield Finding("unknown", "Not scored:", unknown)


def _gaps(metrics: Mapping[str, Any]) -> Iterator[Finding]:
    """Say whether an attribute is told by its own axis more than by any other."""
    report = metrics.get("disentanglement", {})
    entries = report.get("scores", {}).get("sap", {}).get("attributes", {})
    if not entries or report.get("axes") != "tied":
        return
    found: dict[str, list[str]] = {"beyond": [], "short": [], "unknown": []}
    for name, entry in entries.items():
        value, low = entry.get("value"), entry.get("low")
        if value is None:
            continue
        sure = value > 0 and (low is None or low > 0)
        place = "beyond" if sure else "unknown" if value > 0 else "short"
        found[place].append(f"{label_of(name)} {in_words({**entry, 'chance': None})}")
    gap = "gap in R² to the best other axis (SAP)"
    if found["beyond"]:
        yield Finding("beyond", f"Told best by their own axis, {gap} above 0:", found["beyond"])
    if found["unknown"]:
        yield Finding("unknown", f"Another axis may tell as much, {gap}:", found["unknown"])
    if found["short"]:
        yield Finding("short", f"Another axis tells more, {gap}:", found["short"])


def _classes(metrics: Mapping[str, Any]) -> Iterator[Finding]:
    report = metrics.get("classification")
    if report is None:
        return
    auc = report.get("auc", {})
    if auc.get("value") is None:
        yield Finding("unknown", f"The class: {report.get('reason') or 'not scored'}.")
        return
    beyond = beyond_chance(auc)
    how = "beyond chance" if beyond else "no better than by chance"
    words = f"The class is predicted {how}: AUC {in_words(auc)}."
    yield Finding("beyond" if beyond else "short", words)
    yield from _peer(report)


def _peer(report: Mapping[str, Any]) -> Iterator[Finding]:
    """Compare the head with a classifier that is given the attributes themselves."""
    difference, reference = report.get("auc_difference", {}), report.get("reference", {})
    low, high = difference.get("low"), difference.get("high")
    if low is None or high is None:
        return
    peer = f"a classifier on the raw attributes, AUC {in_words(reference.get('auc', {}))}"
    if high < 0:
        yield Finding("short", f"The head does worse than {peer}.")
    elif low > 0:
        yield Finding("beyond", f"The head does better than {peer}.")
    else:
        yield Finding("unknown", f"The head is not told from {peer}.")


def _images(metrics: Mapping[str, Any]) -> Iterator[Finding]:
    report = metrics.get("reconstruction", {})
    psnr, mmd = report.get("psnr_db", {}), report.get("rbf_mmd", {})
    if psnr.get("chance") is not None:
        gain = psnr["mean"] - psnr["chance"]
        better = gain >= 0.05  # less would be written as 0.0
        how = f"{gain:.1f} dB better than" if better else "no better than"
        yield Finding(
            "beyond" if better else "short",
            f"Reconstructions are {how} showing the mean training image for everyone (PSNR "
            f"{psnr['mean']:.1f} dB against {psnr['chance']:.1f} dB).",
        )
    if mmd.get("chance_p95") is not None and mmd["value"] > mmd["chance_p95"]:
        yield Finding(
            "short",
            "Reconstructions can be told from images as a group, as they are blurred (RBF-MMD "
            f"{mmd['value']:.3f}, chance below {mmd['chance_p95']:.3f}).",
        )


def _obeyed(result: Mapping[str, Any]) -> Iterator[Finding]:
    entries: Mapping[str, Any] = result.get("attributes", {})
    found: dict[bool, list[str]] = {True: [], False: []}
    for name, entry in entries.items():
        control = entry.get("control", {})
        low = control.get("low") if control.get("low") is not None else control.get("value")
        found[low is not None and low > 0].append(f"{label_of(name)} {in_words(control)}")
    if found[True]:
        yield Finding(
            "beyond",
            "What is asked for is drawn: re-measured values follow, Spearman (chance 0):",
            found[True],
        )
    if found[False]:
        yield Finding("short", "Asked for in vain, Spearman (chance 0):", found[False])


def _few(metrics: Mapping[str, Any]) -> Iterator[Finding]:
    patients = metrics.get("disentanglement", {}).get("patients")
    if patients is not None and patients < FEW:
        yield Finding("unknown", f"Only {patients} patients are scored: look at the intervals.")
