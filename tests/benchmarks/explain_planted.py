"""Does StylEx find what a classifier was made to read? Phantoms with a planted rule.

    OMP_NUM_THREADS=1 python tests/benchmarks/explain_planted.py --root DIR --rules thickness

The classifier is trained on labels that follow from one factor alone: the wall, the
scanner, or the diagnosis where the scanner goes together with it (`shortcut`). The whole bundle is
run for every seed; the table says how good the classifier is, whether it agrees on reconstructions,
how many decisions the first ten edits flip beside random ones, the first attribute whose edit moves
the planted cause most of all covariates, as a judge of its own reads them, and what is flagged.
For the wall's rule, which masks show, also which attribute the first edit moves most when it is
measured again, and the first edits together, and how far random edits move it. A run whose results
are there is not repeated.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from medvae.report.page.measured import moved_most, signed
from medvae.report.tables import number

CONFIG = Path(__file__).parents[2] / "bundles" / "stylex" / "configs" / "train.yaml"
WALL = "true_myocardium_wall_thickness_mm"
COVARIATES = {
    2: [WALL, "scanner", "true_lv_pixel_area_mm2", "true_lv_intensity_mean", "true_lv_elongation"],
    3: [WALL, "scanner", "true_lv_voxel_volume_ml", "true_lv_intensity_mean", "true_lv_elongation"],
}
MASK_LABELS = {"rv": 1, "myocardium": 2, "lv": 3}
MEASURED = {
    dims: ["myocardium_wall_thickness_mm", f"lv_{size}", f"rv_{size}"]
    + ["lv_elongation", "lv_intensity_mean"]
    for dims, size in ((2, "pixel_area_mm2"), (3, "voxel_volume_ml"))
}
RULES: dict[str, dict[str, Any]] = {
    "thickness": {
        "cause": WALL,
        "factors": {"thick": {"column": WALL, "kind": "ordinal", "bins": [9.3]}},
    },
    "scanner": {"cause": "scanner", "factors": {"scanner": {}}},
    "shortcut": {
        "cause": "scanner",
        "factors": {"diagnosis": {}, "scanner": {}},
        "made_confounding": {"between": ["diagnosis", "scanner"], "strength": 0.95},
    },
}


def settings(rule: str, dims: int, seed: int, epochs: int, root: Path) -> dict[str, Any]:
    chosen = {key: value for key, value in RULES[rule].items() if key != "cause"}
    grid = {"image_size": [32] * dims, "channels": [64, 64, 32, 16]}
    if dims == 3:
        grid = {"image_size": [16] * dims, "channels": [48, 32, 16]}
    if rule == "thickness":
        chosen |= {"measured": MEASURED[dims], "mask_labels": MASK_LABELS}
    return {
        "bundle_root": str(root / f"{rule}_{dims}d_{seed}"),
        "dataset_dir": str(root / f"phantoms_{dims}d"),
        "phantoms": 1000,
        "spatial_dims": dims,
        "spacing_mm": 3.0 if dims == 2 else 6.0,
        "covariates": COVARIATES[dims],
        "confounders": ["scanner"],
        "latent_dim": 64,
        "path_interval": 8,
        "half_life": 2000,
        "classifier_steps": 800,
        "max_epochs": epochs,
        "seed": seed,
        **grid,
        **chosen,
    }


def run(options: dict[str, Any]) -> Path:
    results = Path(options["bundle_root"]) / "eval"
    if not (results / "flips.json").exists():
        command = [sys.executable, "-m", "monai.bundle", "run", "training"]
        command += ["--config_file", str(CONFIG)]
        for key, value in options.items():
            command += [
                f"--{key}",
                json.dumps(value) if isinstance(value, (dict, list)) else f"{value}",
            ]
        subprocess.run(command, check=True)
    return results


def row(rule: str, dims: int, seed: int, results: Path) -> str:
    parts = ("classifier", "stylex", "attributes", "flips")
    classifier, stylex, found, flips = (
        json.loads((results / f"{name}.json").read_text()) for name in parts
    )
    task, cause = found["task"], RULES[rule]["cause"]
    ranks = [n for n, e in enumerate(found["attributes"], 1) if moved_most(e["moves"]) == cause]
    first = found["attributes"][ranks[0] - 1]["moves"][cause] if ranks else None
    flags = sum(
        any(f["name"] == "scanner" for f in e["confounder_candidates"]) for e in found["attributes"]
    )
    top = list(flips["top"].values())[-1]
    rate = top["flip_rate"]
    return " | ".join(
        [
            f"| {rule}, {dims}D",
            str(seed),
            f"{classifier['heads'][task]['auc']['value']:.3f}",
            f"{stylex['heads'][task]['agreement']['value']:.2f}",
            f"{rate['value']:.2f} ({rate['low']:.2f} to {rate['high']:.2f})",
            f"{top['random']['value']:.2f}",
            f"{flips['latent_direction']['value']:.2f}",
            str(ranks[0]) if ranks else "none",
            f"{first['value']:+.2f} (random {first['chance']:.2f})" if first else "",
            f"{flags} of {len(found['attributes'])}",
            first_measured(found),
            f"{measured_together(flips)} |",
        ]
    )


def first_measured(found: dict[str, Any]) -> str:
    """Return what the first attribute's edit moves most of what is measured again."""
    entries = found["attributes"]
    measured = entries[0].get("measured", {}) if entries else {}
    name = moved_most(measured)
    if name is None:
        return ""
    return f"{name} {signed(measured[name])} (random {number(measured[name]['chance'])})"


def measured_together(flips: dict[str, Any]) -> str:
    """Return what the first edits together move most of what is measured again."""
    parts = []
    for count, entry in flips["top"].items():
        name = moved_most(entry.get("identity", {}))
        if name is not None:
            far = entry["identity"][name]
            luck = number(far["random"]["value"])
            parts.append(f"{count}: {name} {far['value']:.2f} (random {luck})")
    return "; ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--spatial-dims", type=int, default=2, choices=(2, 3))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=90)
    options = parser.parse_args()
    print(
        "| rule | seed | AUC | agreement | flips by the first ten | random | direction | first "
        "attribute of the cause | moves it, SD | flagged for the scanner | the first edit moves "
        "most, measured again, SD | the first edits together |"
    )
    print("|---" * 12 + "|", flush=True)
    for rule in options.rules:
        for seed in options.seeds:
            chosen = settings(rule, options.spatial_dims, seed, options.epochs, options.root)
            results = run(chosen)
            print(row(rule, options.spatial_dims, seed, results), flush=True)


if __name__ == "__main__":
    main()
