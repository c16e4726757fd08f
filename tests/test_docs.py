"""What the documentation shows does run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"


def test_the_example_without_bundles_runs_in_forty_lines() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 40
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["maps"].shape == (2, 1, 16, 16, 16)
    assert names["larger"].shape == (2, 3, 1, 16, 16, 16)
