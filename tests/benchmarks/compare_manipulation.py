"""Does asking for an attribute draw it? Control, span and side effects of trained models.

    python -m monai.bundle run manipulating --bundle_root RUN \\
        --config_file "['.../train.yaml','.../OVERLAYS.yaml','.../manipulation.yaml']"
    python tests/benchmarks/compare_manipulation.py RUN [RUN ...] [--set calibrated=True]

RUN is a folder of compare_models.py, such as `ours_lr0.001_seed0`: folders that differ in the seed
alone are one variant, of which mean and half the range are printed. Runs that have no
`manipulation.json` yet are evaluated first, with the settings of their `models/run.json` (`--set`
adds some); with `--only-print` they are left out. All on the test patients of the run's own split.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from medvae.report.tables import markdown_table

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "bundles" / "attri_vae" / "configs"
MEANS = {
    "control": ("control", "value"),
    "span, at most 1": ("span_clipped",),
    "side effect": ("side_effect",),
    "predicted": ("predicted",),
    "predicted of the span": ("predicted_of_span",),
    "outside": ("outside",),
    "even change": ("outside_chance",),
    "return error": ("return_error",),
}
INSTRUMENT = {
    f"{what}, {kind}s": ("instrument", kind, key)
    for what, key in (("R²", "r2"), ("error (sd)", "error_sd"))
    for kind in ("image", "reconstruction")
}


def evaluate(run: Path, name: str, settings: list[str]) -> None:
    """Evaluate a run with the configuration that it was trained with."""
    record = json.loads((run / "models" / "run.json").read_text())["settings"]
    left_out = ("_meta_", "imports", "initialize", "run", "training")
    trained = {key: value for key, value in record.items() if key not in left_out}
    trained |= {"bundle_root": str(run), "ckpt_dir": str(run / "models")}
    trained |= {"output_dir": str(run / name)}
    overlay = run / name / "settings.yaml"
    overlay.parent.mkdir(parents=True, exist_ok=True)
    overlay.write_text(yaml.safe_dump(trained))
    files = [CONFIGS / "train.yaml", overlay, CONFIGS / "manipulation.yaml"]
    command = [sys.executable, "-m", "monai.bundle", "run", "manipulating"]
    command += [f"--config_file={[str(f) for f in files]}", *(f"--{entry}" for entry in settings)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def at(entry: dict[str, Any], path: tuple[str, ...]) -> float:
    """Return a number from a report, NaN where there is none."""
    value: Any = entry
    for key in path:
        value = value[key]
    return np.nan if value is None else float(value)


def cell(values: list[float]) -> str:
    """Return mean and half the range."""
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return "–"
    spread = f" ± {np.ptp(known) / 2:.2f}" if len(known) > 1 else ""
    return f"{np.mean(known):.2f}{spread}"


def main() -> None:
    """Evaluate what is missing and print three tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--name", default="manipulation", help="folder in the run for the results")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the config")
    parser.add_argument("--only-print", action="store_true", help="evaluate nothing")
    arguments = parser.parse_args()
    variants: dict[str, list[dict[str, Any]]] = {}
    for run in map(Path.absolute, arguments.runs):
        found = run / arguments.name / "manipulation.json"
        if not found.exists() and not arguments.only_print:
            evaluate(run, arguments.name, arguments.set)
        if found.exists():
            variant = re.sub(r"_seed\d+", "", run.name)
            variants.setdefault(variant, []).append(json.loads(found.read_text()))
    if not variants:
        parser.error("none of the runs has a manipulation.json")
    attributes = list(next(iter(variants.values()))[0]["attributes"])
    for title, columns in (
        ("Mean over attributes", MEANS),
        ("The instrument, mean over attributes", INSTRUMENT),
    ):
        rows = [
            [
                f"{name} ({len(runs)})",
                *(cell([at(r["mean"], p) for r in runs]) for p in columns.values()),
            ]
            for name, runs in variants.items()
        ]
        print(f"{title}\n\n{markdown_table(['variant (seeds)', *columns], rows)}")
    rows = [
        [name, what, *(cell([at(r["attributes"][a], path) for r in runs]) for a in attributes)]
        for name, runs in variants.items()
        for what, path in (
            ("control", ("control", "value")),
            ("span", ("span", "value")),
            ("side effect", ("side_effect",)),
            ("predicted", ("predicted",)),
        )
    ]
    print(f"By attribute\n\n{markdown_table(['variant', '', *attributes], rows)}")


if __name__ == "__main__":
    main()
