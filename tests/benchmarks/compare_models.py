"""Attri-VAE beside the published models and a supervised regressor, on one split of a cohort.

    python tests/benchmarks/compare_models.py --cohort nodules --output results

Every variant is the bundle with overlays, run through `python -m monai.bundle run training`. The
learning rate of a variant is the one with the best validation interpretability (seed 0); the
checkpoint of a run is chosen by the same number; the test patients are never used for either.
With `--development` the test patients are left out of the table altogether and the rest is split
again, another way for each seed: settings are chosen by what this prints, and the test patients
are scored once, without the option.
Finished runs are kept in the output folder and not repeated, so the table can be filled in steps.
Prints a Markdown table: mean and spread (half the range) over seeds on the test split.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from medvae.data import load_subjects, split_subjects
from medvae.report.tables import markdown_table

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs"
TRAIN = REPOSITORY / "bundles" / "attri_vae" / "configs" / "train.yaml"
ABLATIONS = {
    "VAE": ["published", "vae"],
    "beta-VAE": ["published", "beta_vae"],
    "AR-VAE": ["published", "ar_vae"],
    "Attri-VAE, paper": ["published"],
    "Attri-VAE, code": ["published", "published_code"],
    "regressor": ["regressor"],
    "ours": [],
    "ours, published loss": ["published_loss"],
    "ours, published network": ["published_network"],
    "ours, no augmentation": ["no_augmentation"],
    "ours, no leakage term": ["no_leakage"],
    "ours, no regions": ["no_regions"],
    "ours, no control term": ["no_control"],
    "ours, axes by steps alone": ["no_fit"],
}
# of the published models, which see no copies: until the validation score no longer rises
EPOCHS = {"acdc": 200, "nodules": 60, "phantoms": 60}
COLUMNS = ("interpretability", "scc", "mig", "sap")


def finished(folder: Path) -> bool:
    """Return whether a run has ended with its evaluation."""
    return (folder / "eval" / "metrics.json").exists()


def run(folder: Path, cohort: str, overlays: list[str], options: dict[str, object]) -> None:
    """Train and evaluate one variant, unless it is there."""
    if finished(folder):
        return
    files = [TRAIN, CONFIGS / "datasets" / f"{cohort}.yaml"]
    files += [CONFIGS / "ablations" / f"{name}.yaml" for name in overlays]
    settings = {
        "bundle_root": folder,
        "ckpt_dir": folder / "models",
        "output_dir": folder / "eval",
        "overwrite": True,
        **options,
    }
    if cohort != "phantoms":  # which every run makes for itself
        settings["dataset_dir"] = REPOSITORY.parent / "shared" / "data" / cohort
    names = {"meta_file": "metadata.json", "logging_file": "logging.conf"}
    settings |= {key: TRAIN.parent / name for key, name in names.items()}
    if "published" in overlays and cohort in EPOCHS:
        settings.setdefault("max_epochs", EPOCHS[cohort])
    command = [sys.executable, "-m", "monai.bundle", "run", "training"]
    command += [f"--config_file={[str(f) for f in files]}"]
    command += [f"--{key}={value}" for key, value in settings.items()]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)


def development_table(cohort: str, folder: Path) -> Path:
    """Write a cohort's table without its test patients."""
    overlay = yaml.safe_load((CONFIGS / "datasets" / f"{cohort}.yaml").read_text())
    source = REPOSITORY.parent / "shared" / "data" / cohort / "subjects.csv"
    table = split_subjects(load_subjects(source), label=overlay["label"])
    table = table[table["split"] != "test"].drop(columns="split")
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "subjects.csv", index=False)
    return folder / "subjects.csv"


def validation_score(folder: Path) -> float:
    """Return the best validation interpretability of a run."""
    with (folder / "eval" / "history.csv").open() as file:
        return max(float(row["val_interpretability"]) for row in csv.DictReader(file))


def scores(folder: Path) -> dict[str, float]:
    """Return the numbers of the table from a run's metrics."""
    metrics = json.loads((folder / "eval" / "metrics.json").read_text())
    found = metrics["disentanglement"]["scores"]
    row = {name: found[name]["mean"]["value"] for name in COLUMNS}
    row["psnr_db"] = metrics["reconstruction"]["psnr_db"]["mean"]
    classification = metrics.get("classification", {})
    row["auc"] = classification.get("auc", {}).get("value", np.nan)
    row["auc_of_raw"] = classification.get("reference", {}).get("auc", {}).get("value", np.nan)
    prediction = metrics.get("prediction_r2", {}).get("attributes", {})
    for name, entry in found["interpretability"]["attributes"].items():
        row[f"r2 {name}"] = entry["value"]
        row[f"R2 {name}"] = prediction.get(name, {}).get("value", np.nan)
    return row


@dataclass
class Runs:
    """The runs of one variant: one folder for each learning rate and seed."""

    root: Path
    arguments: argparse.Namespace
    overlays: list[str]
    settings: dict[str, object]

    def train(self, rate: float, seed: int) -> Path:
        """Train, unless it is done or not wanted, and return the folder."""
        folder = self.root.parent / f"{self.root.name}_lr{rate:g}_seed{seed}"
        options = self.settings | {"learning_rate": rate, "seed": seed}
        if self.arguments.development:
            options |= {"split_seed": seed}
        if not self.arguments.only_print:
            run(folder, self.arguments.cohort, self.overlays, options)
        return folder

    def best_rate(self) -> float:
        """Return the learning rate of the best validation score, seed 0; the only one as it is."""
        rates = list(self.arguments.learning_rates)
        if len(rates) == 1:
            return rates[0]
        done = {r: f for r, f in ((r, self.train(r, 0)) for r in rates) if finished(f)}
        return max(done, key=lambda rate: validation_score(done[rate]), default=rates[0])


def cell(values: list[float], digits: int) -> str:
    """Return mean and half the range."""
    if not np.isfinite(values).all():
        return "–"
    spread = f" ± {np.ptp(values) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohort", choices=["nodules", "acdc", "phantoms"], required=True)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "results")
    parser.add_argument("--variants", nargs="+", default=list(ABLATIONS), choices=list(ABLATIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--epochs", type=int, help="default: the overlay's")
    parser.add_argument("--only-print", action="store_true", help="run nothing")
    parser.add_argument("--development", action="store_true", help="without the test patients")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the config")
    arguments = parser.parse_args()
    if arguments.development and arguments.cohort == "phantoms":
        parser.error("phantoms need no development split: make others, by another number of them")

    settings: dict[str, object] = dict(entry.split("=", 1) for entry in arguments.set)
    if arguments.epochs is not None:
        settings["max_epochs"] = arguments.epochs
    tag = re.sub("[^A-Za-z0-9_.]+", "-", "".join(f"_{entry}" for entry in arguments.set))
    if arguments.development:
        arguments.output = arguments.output / "development"
        table_file = development_table(arguments.cohort, arguments.output.absolute() / "tables")
        settings |= {"subjects": table_file, "fractions": [0.65, 0.1, 0.25]}
    table: dict[str, list[dict[str, float]]] = {}
    for variant in arguments.variants:
        name = variant.replace(", ", "_") + tag
        root = arguments.output.absolute() / arguments.cohort / name.replace(" ", "_")
        runs = Runs(root, arguments, ABLATIONS[variant], settings)
        best = runs.best_rate()
        rows = [scores(f) for f in (runs.train(best, s) for s in arguments.seeds) if finished(f)]
        if rows:
            table[f"{variant} (lr {best:g}, {len(rows)} seeds)"] = rows

    names = list(next(iter(table.values()))[0])
    body = [
        [variant, *(cell([r[n] for r in rows], 1 if n == "psnr_db" else 2) for n in names)]
        for variant, rows in table.items()
    ]
    print(markdown_table(["variant", *names], body))


if __name__ == "__main__":
    main()
