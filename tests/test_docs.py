"""What the documentation shows does run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


CONFIGS = [*ROOT.glob("bundles/*/configs/*.yaml"), *ROOT.glob("configs/**/*.yaml")]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_configurations_comments_name_are_there(path: Path) -> None:
    comments = " ".join(re.findall(r"#(.*)", path.read_text("utf-8")))
    named = re.findall(r"(?:bundles|configs|docs|tests)/[\w./*]+\w", comments)
    assert not [name for name in named if not list(ROOT.glob(name))]


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
