"""What a classifier goes by, in brief; the panel's page has it in full."""

from __future__ import annotations

from medvae.report.page.blocks import Note, Section
from medvae.report.page.panel import flip_tables
from medvae.report.page.run import Run

__all__ = ["styles_section"]


def styles_section(run: Run) -> Section | None:
    """What edits flip, and every attribute found."""
    if not (run.results / "attributes.json").is_file():
        return None
    where = "panel.html beside this page shows every attribute with its images, and a form."
    return Section(
        "styles", "What the classifier goes by", [*flip_tables(run.results), Note(where)]
    )
