"""Are attribute maps true? Where their mass lies on phantoms, whose structures are known.

    python -m monai.bundle run training --bundle_root RUN \\
        --config_file bundles/attri_vae/configs/train.yaml
    python tests/benchmarks/map_truth.py RUN [RUN ...] [--overlay configs/datasets/acdc.yaml]

With a cohort's overlay the masks of its images say where the structures are. For every method and
layer, over the test subjects of each run (numbers are means over runs, ± half their range):

- localisation: the map's mass on the structure that the attribute is about, in multiples of an
  even map's. "random weights" is the same network with every weight drawn again: maps that copy
  the image's intensity keep their localisation there, true ones fall to 1.
- deletion: how early the latent value moves when voxels are blanked in the map's order (share of
  the whole change, over the way), less the same in random order; insertion likewise.

A second table chooses: of the rows whose localisation with random weights is at most 1.3, the
one that localises best on the validation subjects, and what that row reaches on the test subjects,
which had no say in it. GradCAM equals MONAI's (tests/test_maps.py).

`--rows occlusion "gradcam, encoder.0"` asks for some rows alone; all take an hour for a model with
regions.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from medvae.explain import attribute_maps
from medvae.metrics import deletion_area, localisation
from medvae.networks import AttriVAE, load_weights
from medvae.report.tables import markdown_table

REPOSITORY = Path(__file__).parents[2]
TRAIN = REPOSITORY / "bundles" / "attri_vae" / "configs" / "train.yaml"
STRUCTURES = {"wall_thickness_mm": "myocardium"}  # attributes that do not start with their label
COPIES_THE_IMAGE = 1.3  # localisation with random weights above which a map is not of the model

Options = dict[str, dict[str, object]]
Subjects = tuple[Tensor, Tensor]  # images (B, C, *S), structures of the attributes (B, K, *S)


def load(
    run: Path, overlay: str | None, settings: list[str]
) -> tuple[AttriVAE, Callable[[str], Subjects], list[str]]:
    """Return a run's network, its subjects by their split, and its attributes."""
    parser = ConfigParser()
    parser.read_config([str(TRAIN), *([overlay] if overlay else [])])
    parser["bundle_root"] = str(run)
    for entry in settings:
        key, value = entry.split("=", 1)
        parser[key] = (
            ConfigParser.load_config_file(value) if value.endswith(".yaml") else eval(value)
        )
    parser.get_parsed_content("imports")
    network = parser.get_parsed_content("network_def")
    load_weights(network, run / "models" / "model.pt", "cpu")
    cohort, prepare = (parser.get_parsed_content(k) for k in ("cohort", "preprocessing"))
    names = list(cohort.attribute_names)
    labels = parser.get_parsed_content("mask_labels")
    wanted = [labels[STRUCTURES.get(n, n.split("_")[0])] if labels else None for n in names]

    def subjects(split: str) -> Subjects:
        items = [prepare(item) for item in cohort.datalist(split)]
        images = torch.stack([torch.as_tensor(i["image"]).as_subclass(Tensor) for i in items])
        masks = torch.stack([torch.as_tensor(i["mask"]).as_subclass(Tensor)[0] for i in items])
        parts = [masks != 0 if value is None else masks == value for value in wanted]
        return images, torch.stack(parts, 1)

    return network.eval(), subjects, names


def randomised(network: AttriVAE, seed: int) -> AttriVAE:
    """Draw all weights of the encoder again, by its own initialisation."""
    torch.manual_seed(seed)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return network.eval()


def in_batches(network: nn.Module, images: Tensor, k: int, **options: object) -> Tensor:
    """Return maps of the first k axes."""
    return torch.cat([attribute_maps(network, b, range(k), **options) for b in images.split(16)])


def deletion(network: AttriVAE, images: Tensor, maps: Tensor, insertion: bool) -> list[float]:
    """Return, for each attribute, the mean area in the map's order less that in random order."""
    found = []
    for k in range(maps.shape[1]):

        def target(x: Tensor, axis: int = k) -> Tensor:
            with torch.no_grad():
                return network.encode(x)[0][:, axis]

        area, chance = deletion_area(target, images, maps[:, k], insertion=insertion, steps=10)
        found.append(float((area - chance).median()))
    return found


def candidates(network: AttriVAE, size: int) -> Options:
    """Return the rows of the table: options of `attribute_maps` by what they are called."""
    layers = [f"encoder.{i}" for i in range(len(network.encoder))]
    options: Options = {
        f"{method}, {layer}": {"method": method, "layer": layer}
        for method in ("gradcam", "hirescam", "layer_integrated_gradients")
        for layer in layers
    }
    best = f"layer_integrated_gradients, {layers[1]}"
    options[f"{best}, guided"] = options[best] | {"upsample": "guided"}
    if network.branch is not None:
        layer = "branch.occupancy"
        options |= {f"{m}, {layer}": {"method": m, "layer": layer} for m in ("gradcam", "hirescam")}
    options["integrated gradients"] = {"method": "integrated_gradients", "steps": 16}
    options["occlusion"] = {"method": "occlusion", "patch_size": size // 5}
    return options


def scores(
    network: AttriVAE, other: AttriVAE, subjects: Subjects, options: Options, areas: bool
) -> dict[str, np.ndarray]:
    """Return, for each row and attribute, the localisation of the network and of another.

    Shape (2, K); with `areas`, (4, K): also those of deletion and insertion.
    """
    images, structures = subjects
    found = {}
    for name, option in options.items():
        each = [in_batches(n, images, structures.shape[1], **option) for n in (network, other)]
        lines = [np.nanmean(localisation(maps, structures).numpy(), 0) for maps in each]
        if areas:
            lines += [deletion(network, images, each[0], insertion) for insertion in (False, True)]
        found[name] = np.array(lines)
    return found


def choose(found: dict[str, np.ndarray]) -> str:
    """Return the row that localises best, of those that do not copy the image."""
    means = {name: values[:2].mean(1) for name, values in found.items()}
    true = {name: m for name, m in means.items() if m[1] <= COPIES_THE_IMAGE} or means
    return max(true, key=lambda name: true[name][0])


def spread(values: np.ndarray) -> str:
    """Return the mean over runs, and half their range where there are several."""
    more = f" ± {np.ptp(values) / 2:.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{more}"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--subjects", type=int, default=32, help="of each split, at most")
    parser.add_argument("--overlay", help="of the cohort, as in configs/datasets")
    parser.add_argument("--rows", nargs="*", help="of the table, as it names them; default: all")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the config")
    arguments = parser.parse_args()
    val, test = [], []
    for seed, run in enumerate(arguments.runs):
        network, subjects, names = load(run, arguments.overlay, arguments.set)
        other = randomised(deepcopy(network), seed)
        for split, kept in (("val", val), ("test", test)):
            images, structures = (part[: arguments.subjects] for part in subjects(split))
            options = candidates(network, images.shape[-1])
            options = {name: options[name] for name in arguments.rows or options}
            kept.append(scores(network, other, (images, structures), options, split == "test"))
            print(f"done: {len(images)} {split} subjects of {run}", flush=True)
    print_scores(test, names)
    print_choices(val, test, [str(run) for run in arguments.runs])


def print_scores(test: list[dict[str, np.ndarray]], names: list[str]) -> None:
    """Print every row's scores, means over attributes, and each attribute's localisation."""
    table = []
    for name in test[0]:
        found = np.stack([each[name] for each in test])  # runs, 4, attributes
        each = [f"{v:.1f}" for v in found[:, 0].mean(0)]
        table.append([name, *(spread(column) for column in found.mean(2).T), *each])
    head = ["method, layer", "localisation", "random weights", "deletion", "insertion", *names]
    print(f"\n{markdown_table(head, table)}")


def print_choices(
    val: list[dict[str, np.ndarray]], test: list[dict[str, np.ndarray]], runs: list[str]
) -> None:
    """Print what the validation subjects chose in each run, and in all, and its test scores."""
    table = []

    def add(run: str, chosen: str, which: slice) -> None:
        row = [run, chosen]
        for split in (val, test):
            found = np.stack([each[chosen][:2].mean(1) for each in split[which]])
            row += [spread(column) for column in found.T]
        table.append(row)

    for i, run in enumerate(runs):
        add(run, choose(val[i]), slice(i, i + 1))
    mean = {name: np.mean([each[name] for each in val], 0) for name in val[0]}
    add("all runs", choose(mean), slice(None))
    scored = ["localisation", "random weights"]
    head = ["run", "chosen on validation", *scored, *(f"{s}, test" for s in scored)]
    print(f"\n{markdown_table(head, table)}")


if __name__ == "__main__":
    main()
