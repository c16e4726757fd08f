"""What a classifier goes by, in brief; the panel's page has it in full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from medvae.data import CohortError
from medvae.report.page.blocks import Absent, Block, Note, Section, Table
from medvae.report.page.panel import flip_tables, read_json
from medvae.report.page.run import Run
from medvae.report.page.scores import Score
from medvae.report.stylex_stability import compare_attributes
from medvae.report.tables import number

__all__ = ["stability_section", "style_scores", "styles_section"]


def styles_section(run: Run) -> Section | None:
    """What edits flip, and every attribute found."""
    if not (run.results / "attributes.json").is_file():
        return None
    where = "panel.html beside this page shows every attribute with its images, and a form."
    return Section(
        "styles", "What the classifier goes by", [*flip_tables(run.results), Note(where)]
    )


def style_scores(run: Run) -> Iterator[Score]:
    """Return the scores of a StylEx run: classifier, agreement on reconstructions, flips."""
    for name, head in read_json(run.results / "classifier.json").get("heads", {}).items():
        yield Score(f"classifier: AUC of {name}", head["auc"])
    for name, head in read_json(run.results / "stylex.json").get("heads", {}).items():
        yield Score(f"same class on reconstructions: {name}", head["agreement"])
    flips = read_json(run.results / "flips.json")
    for count, entry in flips.get("top", {}).items():
        chance = {"chance": entry["random"]["value"]}
        yield Score(f"flips by the first {count}", entry["flip_rate"] | chance)
    if "latent_direction" in flips:
        yield Score("flips by a direction of the encoder's code", flips["latent_direction"])


def stability_section(runs: Sequence[Run], names: Sequence[str]) -> Section:
    """Which attributes the runs share, every two of them; one that cannot be compared is said."""
    blocks: list[Block] = []
    for (one, other), (a, b) in zip(combinations(runs, 2), combinations(names, 2), strict=True):
        title = f"{a} and {b}"
        try:
            found = compare_attributes(one.results, other.results)
        except CohortError as error:
            blocks.append(Absent(title, str(error)))
            continue
        rows = [
            [f"the first {count}", *(number(entry[key], 2) for key in ("matched", "chance"))]
            for count, entry in found["top"].items()
        ]
        blocks.append(Table(["attributes", "shared", "by chance"], rows, title))
        pairs = [
            [f"{p['first']} and {p['second']}", f"{p['map']:+.2f}", f"{p['logits']:+.2f}"]
            for p in found["pairs"]
        ]
        if pairs:
            blocks.append(
                Table(["the same: of the one, the other", "r of image", "r of logits"], pairs)
            )
    return Section(
        "attributes",
        "Attributes",
        blocks,
        "Attributes of two runs are the same whose mean signed change of the image and whose "
        "changes of the logits both correlate by 0.8 or more over the same test subjects. Each has "
        "one partner at most. By chance: random edits in place of one run's attributes.",
    )
