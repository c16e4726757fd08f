"""Several runs side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from medvae.data import CohortError
from medvae.data.record import FREE
from medvae.report.page import figures
from medvae.report.page.blocks import Block, Note, Page, Picture, Section, Table
from medvae.report.page.render import write_page
from medvae.report.page.run import Run
from medvae.report.page.scores import Score, all_scores
from medvae.report.page.styles import stability_section, style_scores
from medvae.report.tables import number

__all__ = ["compare_page", "write_comparison"]


def write_comparison(folders: Sequence[str | Path], path: str | Path = "compare.html") -> Path:
    """Write the runs of two or more folders side by side; the first is what others differ from.

    Raises:
        CohortError: fewer than two folders, or one without metrics or attributes.
    """
    return write_page(compare_page([Run(folder) for folder in folders]), path)


def compare_page(runs: Sequence[Run]) -> Page:
    """Return the page: metrics with intervals and chance, settings that differ, curves."""
    if len(runs) < 2:
        raise CohortError(f"Found {len(runs)} run(s) to compare; expected two or more.")
    styled = [(run.results / "attributes.json").is_file() for run in runs]
    for run, styles in zip(runs, styled, strict=True):
        if run.metrics is None and not styles:
            raise CohortError(
                f"The run '{run.results}' has no metrics.json that can be read; expected runs that "
                "were evaluated."
            )
    names = _names(runs)
    sections = [_metrics(runs, names), _settings(runs, names), _curves(runs, names)]
    if all(styled):
        sections.insert(1, stability_section(runs, names))
    return Page(
        f"{' and '.join(names) if len(names) == 2 else f'{len(names)} runs'} side by side",
        f"Differences are marked against {names[0]}",
        sections,
    )


def _names(runs: Sequence[Run]) -> list[str]:
    """Return the runs' names, numbered where two are the same."""
    names = [run.name for run in runs]
    return [f"{n} ({k + 1})" if names.count(n) > 1 else n for k, n in enumerate(names)]


def difference(first: Score, other: Score) -> str:
    """Return how another run's interval lies to the first's: empty where they overlap."""
    ends = [score.entry.get(k) for score in (first, other) for k in ("low", "high")]
    if any(end is None for end in ends):
        return ""
    low, high, other_low, other_high = (float(end) for end in ends if end is not None)
    if other_low > high:
        return "▲ higher"
    return "▼ lower" if other_high < low else ""


def _metrics(runs: Sequence[Run], names: Sequence[str]) -> Section:
    scores = [
        {s.name: s for s in (*all_scores(run.metrics or {}), *style_scores(run))} for run in runs
    ]
    rows, told = [], []
    for name in dict.fromkeys(n for found in scores for n in found):
        first = scores[0].get(name)
        cells, marks = [], []
        for found in scores:
            score = found.get(name)
            mark = difference(first, score) if first is not None and score is not None else ""
            cells.append(_cell(score, mark))
            marks.append(mark)
        rows.append([name, *cells])
        told += [f"{name}: {n} {m[2:]}" for n, m in zip(names, marks, strict=True) if m]
    words = [*_warnings(runs, names), _told(told, names[0])]
    blocks: list[Block] = [Note(text) for text in words]
    blocks.append(Table(["score", *names], rows, "", "Value (95 % interval), chance."))
    return Section(
        "metrics",
        "Metrics",
        blocks,
        f"▲ and ▼: the interval does not overlap that of {names[0]}. Overlap is no proof that runs "
        "are equal, and one seed each says nothing of the spread between seeds.",
    )


def _cell(score: Score | None, mark: str) -> str:
    if score is None:
        return "–"
    chance = score.entry.get("chance")
    words = (
        f"{score.text}, chance {number(chance, score.digits)}" if chance is not None else score.text
    )
    return f"{words} {mark}".strip()


def _told(told: Sequence[str], first: str) -> str:
    if not told:
        return f"No interval lies apart from that of {first}."
    return f"Intervals apart from those of {first}: {'; '.join(told)}."


def _warnings(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """Say which runs were scored on other images, so that their numbers do not compare."""
    data = [run.record.get("data", {}).get("sha256") for run in runs]
    splits = [run.state.get("splits") for run in runs]
    found = []
    for k, name in enumerate(names[1:], 1):
        if data[k] != data[0] or splits[k] != splits[0]:
            what = "other data" if data[k] != data[0] else "another split"
            found.append(f"Beware: {name} has {what} than {names[0]}; numbers do not compare.")
    return found


def _settings(runs: Sequence[Run], names: Sequence[str]) -> Section:
    settings = [{**run.settings, **_versions(run)} for run in runs]
    rows = []
    for key in dict.fromkeys(k for found in settings for k in found):
        values = [json.dumps(found.get(key)) for found in settings]
        if key not in FREE and len(set(values)) > 1:
            rows.append([key, *values])
    blocks: list[Block] = [Table(["setting", *names], rows, numbers=False)] if rows else []
    return Section("settings", "What differs", blocks or [Note("All settings are the same.")])


def _versions(run: Run) -> dict[str, str]:
    versions = {f"version of {k}": v for k, v in run.record.get("versions", {}).items()}
    return versions | {"revision": str(run.record.get("revision"))}


def _curves(runs: Sequence[Run], names: Sequence[str]) -> Section:
    histories = {n: r.history for n, r in zip(names, runs, strict=True) if r.history}
    if not histories:
        return Section("training", "Training", [Note("No run has a history.csv.")])
    alt = f"Curves of {', '.join(histories)}"
    return Section("training", "Training", [Picture(figures.curves(histories), alt)])
