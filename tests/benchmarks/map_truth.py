"""Are attribute maps true? Where their mass lies on phantoms, whose structures are known.

    python -m monai.bundle run training --bundle_root RUN \\
        --config_file bundles/attri_vae/configs/train.yaml
    python tests/benchmarks/map_truth.py RUN [RUN ...]

For every method and layer, over the test subjects of each run (say, one run per seed):

- localisation: the map's mass on the structure that the attribute is about, in multiples of an
  even map's. "random weights" is the same network with every weight drawn again: maps that copy
  the image's intensity keep their localisation there, true ones fall to 1.
- deletion: how early the latent value moves when voxels are blanked in the map's order (share of
  the whole change, over the way), less the same in random order; insertion likewise.

GradCAM equals MONAI's (tests/test_maps.py).
"""

from __future__ import annotations

import argparse
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


def load(run: Path, settings: list[str]) -> tuple[AttriVAE, Tensor, Tensor, list[str]]:
    """Return a run's network, and its test subjects' images and structures (B, K, *S)."""
    parser = ConfigParser()
    parser.read_config([str(TRAIN)])
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
    items = [prepare(item) for item in cohort.datalist("test")]
    images = torch.stack([torch.as_tensor(i["image"]).as_subclass(Tensor) for i in items])
    masks = torch.stack([torch.as_tensor(i["mask"]).as_subclass(Tensor)[0] for i in items])
    names = list(cohort.attribute_names)
    labels = parser.get_parsed_content("mask_labels")
    structures = [labels[STRUCTURES.get(n, n.split("_")[0])] for n in names]
    return network.eval(), images, torch.stack([masks == v for v in structures], 1), names


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


def main() -> None:
    """Print the table, and the localisation of each attribute for the best row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--subjects", type=int, default=32)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the config")
    arguments = parser.parse_args()
    rows: dict[str, list[np.ndarray]] = {}
    for seed, run in enumerate(arguments.runs):
        network, images, structures, names = load(run, arguments.set)
        images, structures = images[: arguments.subjects], structures[: arguments.subjects]
        layers = [f"encoder.{i}" for i in range(len(network.encoder))]
        options: dict[str, dict[str, object]] = {
            f"{method}, {layer}": {"method": method, "layer": layer}
            for method in ("gradcam", "hirescam", "layer_integrated_gradients")
            for layer in layers
        }
        best = f"layer_integrated_gradients, {layers[1]}"
        options[f"{best}, guided"] = options[best] | {"upsample": "guided"}
        options["integrated gradients"] = {"method": "integrated_gradients", "steps": 16}
        options["occlusion"] = {"method": "occlusion", "patch_size": images.shape[-1] // 5}
        trained: dict[str, Tensor] = {}
        for name, option in options.items():
            trained[name] = in_batches(network, images, len(names), **option)
        areas = {
            name: [deletion(network, images, maps, insertion) for insertion in (False, True)]
            for name, maps in trained.items()
        }
        network = randomised(network, seed)
        for name, option in options.items():
            random = in_batches(network, images, len(names), **option)
            scores = [
                np.nanmean(localisation(maps, structures).numpy(), 0)
                for maps in (trained[name], random)
            ]
            rows.setdefault(name, []).append(np.array([*scores, *areas[name]]))
            print("done", run, name, flush=True)
    print()
    table = []
    for name, values in rows.items():
        found = np.stack(values)  # runs, 4, attributes
        each = [f"{v:.1f}" for v in found[:, 0].mean(0)]
        means = found.mean(2)  # over attributes
        cells = [
            f"{m:.2f}" + (f" ± {np.ptp(c) / 2:.2f}" if len(c) > 1 else "")
            for m, c in zip(means.mean(0), means.T, strict=True)
        ]
        table.append([name, *cells, *each])
    head = ["method, layer", "localisation", "random weights", "deletion", "insertion", *names]
    print(markdown_table(head, table))


if __name__ == "__main__":
    main()
