"""Which confounders an attribute may stand for, with the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["flag_confounders"]

LEAST_JUDGE = 0.7  # area under the curve below which what the judge reads is no evidence


def flag_confounders(report: Mapping[str, Any], confounders: Sequence[str]) -> None:
    """Give every attribute of a search the list `confounder_candidates`.

    Strong evidence is an effect: the edit moves the confounder by more than 0.1 SD and more than
    edits of random coordinates, as a head of the classifier reads it, or a separate judge whose AUC
    on reconstructions is 0.7 or more. An association beyond chance over unedited images of one
    predicted class is weak evidence; over all images it would be found in whatever goes along with
    the class.

    Args:
        report: of `StylexSearch`.
        confounders: covariates and heads that should not decide. The head that is explained is
            never flagged.
    """
    chance = report.get("association_chance", {}).get("given_class")
    for entry in report["attributes"]:
        flags = []
        for name in confounders:
            quality = report["judge"].get(name, {}).get("reconstructions")
            effects = _effects(name, entry, quality)
            evidence = effects + _association(name, entry, chance)
            if evidence and name != report["task"]:
                flags.append({"name": name, "strong": bool(effects), "evidence": evidence})
        entry["confounder_candidates"] = flags


def _effects(name: str, entry: Mapping[str, Any], quality: float | None) -> list[str]:
    found = []
    moved = entry["moves"].get(name)
    if moved and moved["beyond_random"] and (quality or 0) >= LEAST_JUDGE:
        found.append(
            f"the edit moves what a separate judge (AUC {quality:.2f} on reconstructions) reads as "
            f"{name} by {moved['value']:+.2f} SD ({moved['low']:+.2f} to {moved['high']:+.2f}; "
            f"random edits {moved['chance']:.2f})"
        )
    head = entry["heads"].get(name)
    if head and not head["task"] and head["beyond_random"]:
        found.append(
            f"the edit moves the classifier's own head {name} by {head['shift_sd']['value']:+.2f} "
            f"SD (random edits {head['chance_sd']:.2f})"
        )
    return found


def _association(name: str, entry: Mapping[str, Any], chance: float | None) -> list[str]:
    value = entry.get("associations", {}).get(name, {}).get("given_class")
    if value is None or chance is None or abs(value) <= chance:
        return []
    return [
        f"the coordinate goes along with {name} among images of one predicted class "
        f"(r = {value:+.2f}, chance {chance:.2f})"
    ]
