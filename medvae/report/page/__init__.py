"""One self-contained HTML page per run, or for several runs side by side."""

from medvae.report.page.blocks import (
    Absent,
    Facts,
    Finding,
    Findings,
    Heat,
    Note,
    Page,
    Picture,
    Section,
    Table,
    Viewer,
)
from medvae.report.page.compare import compare_page, write_comparison
from medvae.report.page.panel import panel_page, write_panel
from medvae.report.page.render import render, write_page
from medvae.report.page.run import Run
from medvae.report.page.sections import SECTIONS, report_page, write_report

__all__ = [
    "SECTIONS",
    "Absent",
    "Facts",
    "Finding",
    "Findings",
    "Heat",
    "Note",
    "Page",
    "Picture",
    "Run",
    "Section",
    "Table",
    "Viewer",
    "compare_page",
    "panel_page",
    "render",
    "report_page",
    "write_comparison",
    "write_page",
    "write_panel",
    "write_report",
]
