"""What the documentation shows does run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest

DOCS = Path(__file__).parents[1] / "docs"


def test_the_example_without_bundles_runs_in_forty_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 40
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["maps"].shape == (2, 1, 16, 16, 16)
    written = nib.load(tmp_path / "size.nii.gz").get_fdata()
    assert written.shape == (16, 16, 16)
    assert written.max() > 0
    assert names["larger"].shape == (2, 3, 1, 16, 16, 16)
