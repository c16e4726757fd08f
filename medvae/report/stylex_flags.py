"""Which confounders an attribute may stand for, with the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["flag_confounders"]


def flag_confounders(report: Mapping[str, Any], confounders: Sequence[str]) -> None:
    """Give every attribute of a search the list `confounder_candidates`.

    A confounder is a candidate where the edit moves it, as a separate judge or a head of the
    classifier reads it, by more than 0.1 SD and more than edits of random coordinates; or where the
    coordinate goes along with it over unedited images beyond chance.

    Args:
        report: of `StylexSearch`.
        confounders: covariates and heads that should not decide. The head that is explained is
            never flagged.
    """
    chance = report.get("association_chance", {})
    for entry in report["attributes"]:
        flags = []
        for name in confounders:
            reasons = _reasons(name, entry, chance)
            if reasons and name != report["task"]:
                flags.append({"name": name, "evidence": reasons})
        entry["confounder_candidates"] = flags


def _reasons(name: str, entry: Mapping[str, Any], chance: Mapping[str, Any]) -> list[str]:
    reasons = []
    moved = entry["moves"].get(name)
    if moved and moved["beyond_random"]:
        reasons.append(
            f"the edit moves what a separate judge reads as {name} by {moved['value']:+.2f} SD "
            f"({moved['low']:+.2f} to {moved['high']:+.2f})"
        )
    head = entry["heads"].get(name)
    if head and not head["task"] and head["beyond_random"]:
        reasons.append(
            f"the edit moves the classifier's own head {name} by {head['shift_sd']['value']:.2f} SD"
        )
    found = entry.get("associations", {}).get(name)
    if found:
        for key, words in (("given_class", " among images of one predicted class"), ("value", "")):
            value, limit = found[key], chance.get(key)
            if value is not None and limit is not None and abs(value) > limit:
                reasons.append(
                    f"the coordinate goes along with {name}{words} (r = {value:+.2f}, chance "
                    f"{limit:.2f})"
                )
                break
    return reasons
