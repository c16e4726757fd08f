"""From a page to HTML that needs nothing else: no network, no server, no other file."""

from __future__ import annotations

import re
from base64 import b64encode
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from medvae.data.output import write_text
from medvae.report.page.blocks import Page, Picture

__all__ = ["render", "write_page"]

ASSETS = files("medvae.report.page") / "assets"
NIIVUE = "niivue.umd.js.gz"  # half of its size is saved; the browser unpacks it where it is needed


def render(page: Page) -> str:
    """Return the page as HTML. What names and tables hold is escaped."""
    environment = Environment(
        loader=PackageLoader("medvae.report.page", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"inlined": _inlined, "base64": _base64}
    kinds = {block.kind for section in page.sections for block in section.blocks}
    viewed = "viewer" in kinds
    scripts = ["page.js", *(["viewer.js"] if viewed else [])]
    scripts += ["panel.js"] if "answers" in kinds else []
    return environment.get_template("page.html.jinja").render(
        page=page,
        style=Markup((ASSETS / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup((ASSETS / name).read_text(encoding="utf-8")) for name in scripts],
        niivue=(ASSETS / NIIVUE).read_bytes() if viewed else b"",
        licences=(ASSETS / "niivue.LICENSES.txt").read_text(encoding="utf-8") if viewed else "",
    )


def write_page(page: Page, path: str | Path) -> Path:
    """Write the page, whole or not at all.

    Raises:
        medvae.data.CohortError: it cannot be written.
    """
    write_text(path, render(page))
    return Path(path)


def _base64(content: bytes) -> Markup:
    return Markup(b64encode(content).decode())


def _inlined(picture: Picture) -> Markup:
    """Return a picture's element. SVG comes from :mod:`medvae.report.page.figures` alone."""
    if isinstance(picture.content, bytes):
        source = f"data:image/png;base64,{b64encode(picture.content).decode()}"
        return Markup('<img loading="lazy" alt="{}" src="{}">').format(picture.alt, source)
    start = Markup('<svg role="img" aria-label="{}"').format(picture.alt)
    return Markup(re.sub(r"<svg\b", lambda _: start, picture.content, count=1))
