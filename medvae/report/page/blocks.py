"""What a page is made of: sections of blocks. The template has one macro for each kind of block."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from matplotlib import colormaps

from medvae.report.colours import SHARE

__all__ = [
    "Absent",
    "Answers",
    "Comparison",
    "Facts",
    "Finding",
    "Findings",
    "Heat",
    "Judgement",
    "Note",
    "Page",
    "Picture",
    "Section",
    "Table",
    "Viewer",
]


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class Facts:
    """Names and what they are."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]
    title: str = ""


@dataclass(frozen=True)
class Finding:
    """One sentence of the verdict: beyond chance or as hoped, short of it, or not known.

    Attributes:
        items: what the sentence is about, one by one.
    """

    status: Literal["beyond", "short", "unknown"]
    text: str
    items: Sequence[str] = ()


@dataclass(frozen=True)
class Findings:
    """The verdict."""

    kind: ClassVar[str] = "findings"
    findings: Sequence[Finding]


@dataclass(frozen=True)
class Table:
    """A table of text; the first column names the rows.

    Attributes:
        numbers: the other cells are numbers and are not wrapped.
    """

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    caption: str = ""
    numbers: bool = True


@dataclass(frozen=True)
class Picture:
    """A drawing as SVG text, or a picture as the bytes of a PNG.

    Attributes:
        still: it shows what the 3D viewer shows, and takes its place where that does not run.
    """

    kind: ClassVar[str] = "picture"
    content: str | bytes
    alt: str
    title: str = ""
    caption: str = ""
    still: bool = False


@dataclass(frozen=True)
class Absent:
    """A part that the run does not have: why, and what makes it."""

    kind: ClassVar[str] = "absent"
    what: str
    why: str
    command: str = ""


@dataclass(frozen=True)
class Heat:
    """A matrix of numbers in [0, 1] as coloured cells, such as what leaks where.

    Attributes:
        rows: names.
        columns: names.
        values: by row and column; NaN is left blank.
        expected: cells, (row, column), that should be high, which get a frame.
        high: cells above this that are not expected are marked; None marks none.
    """

    kind: ClassVar[str] = "heat"
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    corner: str = ""
    expected: frozenset[tuple[int, int]] = frozenset()
    high: float | None = None
    title: str = ""
    caption: str = ""

    def cells(self, row: int) -> list[dict[str, Any]]:
        """Return text, colours and marks of a row's cells."""
        return [self._cell(row, column) for column in range(len(self.columns))]

    def _cell(self, row: int, column: int) -> dict[str, Any]:
        value = float(self.values[row][column])
        if math.isnan(value):
            return {"text": "–", "style": "", "mark": ""}
        expected = (row, column) in self.expected
        red, green, blue, _ = colormaps[SHARE](min(max(value, 0.0), 1.0), bytes=True)
        ink = "#000" if 0.3 * red + 0.59 * green + 0.11 * blue > 120 else "#fff"
        mark = "expected" if expected else ""
        if not expected and self.high is not None and value > self.high:
            mark = "leak"
        style = f"background:rgb({red},{green},{blue});color:{ink}"
        return {"text": f"{value:.2f}", "style": style, "mark": mark}


@dataclass(frozen=True)
class Viewer:
    """Volumes to look at in 3D; where there is no WebGL the page's stills take their place.

    Attributes:
        data: what the page's script reads, see :func:`medvae.report.page.volumes.packed_subjects`.
    """

    kind: ClassVar[str] = "viewer"
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Pairs of images before and after an edit, to slide between.

    Attributes:
        data: what the page's script reads, see :mod:`medvae.report.page.panel`.
    """

    kind: ClassVar[str] = "comparison"
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Judgement:
    """The questions that an expert answers on one attribute; nothing is filled in.

    Attributes:
        number: of the attribute, from 1.
        choices: words of the judgements by their keys.
        prompts: for free text.
    """

    kind: ClassVar[str] = "judgement"
    number: int
    choices: Mapping[str, str]
    prompts: Sequence[str]


@dataclass(frozen=True)
class Answers:
    """Who judges, and the buttons that save and load answers.

    Attributes:
        report: identity of the report.
        attributes: number, coordinate and direction of each.
    """

    kind: ClassVar[str] = "answers"
    report: str
    attributes: Sequence[Mapping[str, Any]]


Block = (
    Note
    | Facts
    | Findings
    | Table
    | Picture
    | Absent
    | Heat
    | Viewer
    | Comparison
    | Judgement
    | Answers
)


@dataclass(frozen=True)
class Section:
    """A tab of the page.

    Attributes:
        key: letters, for the page's address.
        title: of the tab.
        blocks: in order.
        lead: a sentence on how to read it.
    """

    key: str
    title: str
    blocks: Sequence[Block]
    lead: str = ""


@dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    subtitle: str = ""
    sections: Sequence[Section] = field(default_factory=tuple)
