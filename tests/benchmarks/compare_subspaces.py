"""Encoders or GANs with subspaces beside other ways to keep factors apart, on one split.

    python tests/benchmarks/compare_subspaces.py --cohort phantoms --strength 0.9 --output results
    python tests/benchmarks/compare_subspaces.py --bundle disentangled_gan_2d \\
        --cohort phantoms_wall --strength 0.9

Every variant is the bundle with overlays, run through `python -m monai.bundle run training`. With
`--strength` two factors of the cohort are confounded in training and not in the test (see
`medvae.data.confounded_rows`); without, the cohort is as it is. `unconfounded` is plain training on
the cohort without that confounding, of which a share of the own factors' scores is to be kept.
Finished runs are kept in the output folder and not repeated, so the table can be filled in steps.
Prints a Markdown table: mean and half the range over seeds, on the test split. Points are those
above chance, of the best of three probes, fitted on a balanced bank. Of GANs also how a classifier
of its own judges swapped images, PSNR of reconstructions and FID in that classifier's features.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from medvae.report.tables import markdown_table

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs"
BUNDLES = ("disentangled_encoder", "disentangled_gan_2d", "disentangled_gan_3d")
VARIANTS = {
    "unconfounded": ["encoder_plain"],
    "plain": ["encoder_plain"],
    "published": ["encoder_published"],
    "published, weaker": ["encoder_published_weak"],
    "adversary": ["encoder_adversary"],
    "HSIC": ["encoder_hsic"],
    "balanced batches alone": ["encoder_balanced"],
    "ours": [],
    "ours, subspaces alone": ["encoder_no_targets"],
    "ours, not whitened": ["encoder_no_whitening"],
    "published system": ["gan_published"],
    "ours without voxels": ["gan_no_voxels"],
}
# overlay, data, and the factors between which confounding is made
COHORTS = {
    "phantoms": (None, None, ("diagnosis", "scanner")),
    "phantoms_wall": ("phantoms_wall", None, ("wall", "scanner")),
    "phantoms_3d": ("phantoms_3d_factors", None, ("diagnosis", "scanner")),
    "odir": ("odir", "odir", ("side", "age")),
    "nodules": ("nodules_factors", "nodules", ("malignant", "slice_class")),
    "acdc": ("acdc_factors", "acdc", ("group", "spacing")),
}


def done(bundle: str, folder: Path) -> bool:
    """Whether a run has been evaluated to its end."""
    last = "images.json" if "gan" in bundle else "metrics.json"
    return (folder / "eval" / last).exists()


def run(
    bundle: str, folder: Path, cohort: str, overlays: list[str], options: dict[str, object]
) -> None:
    """Train and evaluate one variant, unless it is there."""
    if done(bundle, folder):
        return
    configs = REPOSITORY / "bundles" / bundle / "configs"
    overlay, data, _ = COHORTS[cohort]
    files = [configs / "train.yaml"]
    files += [CONFIGS / "datasets" / f"{overlay}.yaml"] if overlay else []
    files += [CONFIGS / "ablations" / f"{name}.yaml" for name in overlays]
    place = REPOSITORY.parent / "shared" / "data" / data if data else folder.parents[0] / "data"
    settings = {
        "bundle_root": folder,
        "ckpt_dir": folder / "models",
        "output_dir": folder / "eval",
        "dataset_dir": place,
        "meta_file": configs / "metadata.json",
        "logging_file": configs / "logging.conf",
        "overwrite": True,
        **options,
    }
    command = [sys.executable, "-m", "monai.bundle", "run", "training"]
    command += [f"--config_file={[str(f) for f in files]}"]
    command += [f"--{key}={value}" for key, value in settings.items()]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)


def scores(folder: Path) -> dict[str, float]:
    """Return the numbers of the table from a run's metrics."""
    metrics = json.loads((folder / "eval" / "metrics.json").read_text())
    report = metrics["leakage"]
    row = {f"head {name}": entry["score"] for name, entry in metrics["heads"].items()}
    summary = report["summary"]["balanced"]
    row["own (points)"] = summary["own"]["mean"]["points"]
    row["cross, mean"] = summary["cross"]["mean"]["points"]
    row["cross, worst"] = summary["cross"]["worst"]["points"]
    row["free, mean"] = summary["free"]["mean"]["points"]
    row["cross, natural bank"] = report["summary"]["natural"]["cross"]["mean"]["points"]
    matrix = report["matrix"]["balanced"]
    for name in report["factors"]:
        for other in report["factors"]:
            if other != name:
                row[f"{name} > {other}"] = matrix[name][other]["best"]["points"]
    for name, rank in report["dependence"]["effective_rank"].items():
        row[f"rank {name}"] = rank["value"]
    row |= image_scores(folder / "eval" / "images.json")
    return {name: np.nan if value is None else float(value) for name, value in row.items()}


def image_scores(path: Path) -> dict[str, float]:
    """Return what the table says of a GAN's images; nothing for an encoder."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    row = {}
    for name, swap in found["swaps"].items():
        for kind in ("follows", "agrees"):
            row[f"swapped {name} {kind}"] = swap[kind]["value"]
        for other, kept in swap["keeps"].items():
            row[f"swapped {name} keeps {other}"] = kept["value"]
    for name, entry in next(iter(found["swaps"].values()))["references"]["real"].items():
        row[f"judge on images, {name}"] = entry["value"]
    row["PSNR"] = found["reconstruction"]["psnr_db"]
    if "realism" in found:
        row["FID"] = found["realism"]["fid"]["value"]
    return row


def cell(values: list[float], digits: int) -> str:
    """Return mean and half the range."""
    spread = f" ± {np.ptp(values) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", choices=BUNDLES, default=BUNDLES[0])
    parser.add_argument("--cohort", choices=list(COHORTS), required=True)
    parser.add_argument("--strength", type=float, help="of made confounding; default: none")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "results")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only-print", action="store_true", help="run nothing")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the config")
    arguments = parser.parse_args()

    settings: dict[str, object] = dict(entry.split("=", 1) for entry in arguments.set)
    tag = re.sub("[^A-Za-z0-9_.]+", "-", "".join(f"_{entry}" for entry in arguments.set))
    made = "" if arguments.strength is None else f"_{arguments.strength:g}"
    kind = arguments.bundle.replace("disentangled_encoder", "subspaces")
    root = arguments.output.absolute() / kind / f"{arguments.cohort}"
    between = list(COHORTS[arguments.cohort][2])
    table: dict[str, list[dict[str, float]]] = {}
    for variant in arguments.variants:
        for seed in arguments.seeds:
            free = variant == "unconfounded" or arguments.strength is None
            name = variant.replace(", ", "_").replace(" ", "_") + ("" if free else made) + tag
            folder = root / f"{name}_seed{seed}"
            options = settings | {"seed": seed}
            if arguments.strength is not None:
                strength = 0.0 if free else arguments.strength
                options["made_confounding"] = {"between": between, "strength": strength}
            if not arguments.only_print:
                run(arguments.bundle, folder, arguments.cohort, VARIANTS[variant], options)
            if done(arguments.bundle, folder):
                table.setdefault(variant, []).append(scores(folder))

    names = list(next(iter(table.values()))[0])
    of_two = ("head", "rank", "swapped", "judge")
    digits = {n: 2 if n.startswith(of_two) else 1 if n in ("PSNR", "FID") else 0 for n in names}
    body = [
        [f"{variant} ({len(rows)} seeds)", *(cell([r[n] for r in rows], digits[n]) for n in names)]
        for variant, rows in table.items()
    ]
    print(markdown_table(["variant", *names], body))


if __name__ == "__main__":
    main()
