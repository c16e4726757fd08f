"""What several experts said of a classifier's attributes, merged, with how far they agree."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medvae.data import CohortError, write_text
from medvae.metrics import agreement_report
from medvae.report.page.panel import JUDGEMENTS

__all__ = ["merge_answers"]

KEYS = ("attribute", "coordinate", "direction", "judgement", "confidence", "hypothesis", "notes")


def merge_answers(paths: Sequence[str | Path], output: str | Path) -> dict[str, Any]:
    """Merge the files that the panel's page saves; write `OUTPUT.json` and `OUTPUT.csv`.

    Args:
        paths: of the answers, one for each expert.
        output: path of both files without its ending.

    Returns:
        What the JSON holds: ``experts``, for every attribute how often each judgement was given,
        and the agreement on judgements (nominal) and confidence (ordinal), see
        `medvae.metrics.agreement_report`.

    Raises:
        CohortError: a file that is not of this kind, is of another report, or an expert who comes
            twice.
    """
    files = [_read(Path(path)) for path in paths]
    if not files:
        raise CohortError("No answers are given; expected at least one file of the panel's page.")
    _check(files, paths)
    rows = [
        {"expert": file["expert"], "field": file["field"], **{key: a[key] for key in KEYS}}
        for file in files
        for a in file["answers"]
    ]
    table = pd.DataFrame(rows)
    numbers = {name: n for n, name in enumerate(JUDGEMENTS)}
    judged = table.pivot(index="expert", columns="attribute", values="judgement")
    sure = table.pivot(index="expert", columns="attribute", values="confidence")
    report: dict[str, Any] = {
        "report": files[0]["report"],
        "experts": [file["expert"] for file in files],
        "attributes": {
            str(number): {name: int((column == name).sum()) for name in JUDGEMENTS}
            for number, column in judged.items()
        },
        "agreement": {
            "judgement": _agreement(judged.apply(lambda c: c.map(numbers)).to_numpy(float)),
            "confidence": _agreement(sure.to_numpy(float), "ordinal"),
        },
    }
    target = Path(output)
    write_text(target.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
    write_text(target.with_suffix(".csv"), table.to_csv(index=False))
    return report


def _agreement(ratings: np.ndarray, level: Any = "nominal") -> dict[str, Any] | None:
    """Return the report, or None of fewer than two experts."""
    return agreement_report(ratings, level) if len(ratings) > 1 else None


def _read(path: Path) -> dict[str, Any]:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        for answer in saved["answers"]:
            if any(key not in answer for key in KEYS):
                raise KeyError(next(key for key in KEYS if key not in answer))
            if answer["judgement"] not in (None, *JUDGEMENTS):
                raise ValueError(answer["judgement"])
        return dict(saved) | {key: str(saved[key]) for key in ("report", "expert", "field")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CohortError(
            f"The answers '{path}' cannot be read ({type(error).__name__}: {error}); expected a "
            "file that the panel's page has saved."
        ) from error


def _check(files: Sequence[Mapping[str, Any]], paths: Sequence[str | Path]) -> None:
    seen: set[str] = set()
    for file, path in zip(files, paths, strict=True):
        if file["report"] != files[0]["report"]:
            raise CohortError(
                f"The answers '{path}' are of another report than '{paths[0]}'; expected the same."
            )
        if file["expert"] in seen:
            raise CohortError(
                f"The expert '{file['expert']}' of '{path}' comes twice; expected every one once."
            )
        seen.add(file["expert"])
