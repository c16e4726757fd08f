"""How well could attributes be read off the regions' moments, were the regions found exactly?

    python tests/benchmarks/moments_ceiling.py nodules acdc

The statistics of `RegionStatistics` on the true masks, at the network's grid; a ridge regression,
linear or with squares and products (the better of the two), fitted on the training images. Prints
R² of its predictions on the validation images; the test patients are not used.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from medvae.engines.steps import region_of
from medvae.networks.regions import RegionStatistics
from medvae.report.tables import markdown_table

REPOSITORY = Path(__file__).parents[2]
TRAIN = REPOSITORY / "bundles" / "attri_vae" / "configs" / "train.yaml"


def parsed(cohort: str) -> ConfigParser:
    """Return the bundle's configuration for a cohort."""
    parser = ConfigParser()
    parser.read_config([TRAIN, REPOSITORY / "configs" / "datasets" / f"{cohort}.yaml"])
    parser["dataset_dir"] = str(REPOSITORY.parent / "shared" / "data" / cohort)
    parser["regions"] = True
    return parser


def statistics(parser: ConfigParser, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the statistics (N, R, count) of a split's images and their attributes (N, K)."""
    prepare = parser.get_parsed_content("preprocessing")
    labels = parser.get_parsed_content("region_labels").values()
    measure = RegionStatistics(parser["image_size"], parser["spacing_mm"])
    found, attributes = [], []
    for row in parser.get_parsed_content("cohort").datalist(split):
        item = prepare(row)
        image, mask = (torch.as_tensor(np.asarray(item[k]))[None] for k in ("image", "mask"))
        regions = torch.cat([region_of(mask, values) for values in labels], 1)
        found.append(
            measure(regions.float(), image, image[:, :0]).view(regions.shape[1], -1).numpy()
        )
        attributes.append([float(row[name]) for name in parser["attributes"]])
    return np.stack(found), np.array(attributes)


def ceiling(train: tuple[np.ndarray, ...], val: tuple[np.ndarray, ...], k: int) -> float:
    """Return R² of attribute `k` on the validation images."""
    best = -np.inf
    for degree in (1, 2):
        model = make_pipeline(
            StandardScaler(),
            PolynomialFeatures(degree),
            StandardScaler(),
            RidgeCV(np.logspace(-2, 4, 13)),
        )
        known = np.isfinite(train[1][:, k])
        model.fit(train[0][known], train[1][known, k])
        known = np.isfinite(val[1][:, k])
        best = max(best, model.score(val[0][known], val[1][known, k]))
    return best


def main() -> None:
    """Print one table for each cohort."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cohorts", nargs="+")
    warnings.filterwarnings("ignore", category=UserWarning)
    for cohort in parser.parse_args().cohorts:
        config = parsed(cohort)
        dims, channels = config["spatial_dims"], config["in_channels"]
        sums = 2 + 2 * channels  # size, intensity
        covariances = sums + dims * (dims + 1) // 2
        kept = {
            "size, intensity": slice(sums),
            "and covariances": slice(covariances),
            "and their eigenvalues": slice(covariances + dims),
            "and the surface": slice(None),
        }
        splits = [statistics(config, split) for split in ("train", "val")]
        rows = []
        for name, columns in kept.items():
            used = [(x[:, :, columns].reshape(len(x), -1), y) for x, y in splits]
            scores = [ceiling(*used, k) for k in range(splits[0][1].shape[1])]
            rows.append([name, *(f"{score:.2f}" for score in scores)])
        print(f"{cohort}, R² on {len(splits[1][0])} validation images\n")
        print(markdown_table(["moments of the true masks", *config["attributes"]], rows), "\n")


if __name__ == "__main__":
    main()
