"""Tiny runs of the beta-Intact-VAE's bundle."""

from pathlib import Path

import pandas as pd
import test_bundles

REPOSITORY = Path(__file__).parents[1]
CONFIGS = REPOSITORY / "bundles" / "intact_vae" / "configs"
SUBJECTS = 80


def tiny(root, spatial_dims):
    """Overrides that make a run of seconds."""
    return {
        "bundle_root": str(root),
        "subjects": str(root / "data" / "subjects.csv"),
        "spatial_dims": spatial_dims,
        "spacing_mm": 6.0,
        "image_size": [16] * spatial_dims,
        "latent_dim": 3,
        "channels": [4, 4],
        "strides": [2, 2],
        "hidden_channels": [8],
        "prior_channels": [8],
    }


def training(root, spatial_dims, **overrides):
    quick: dict = {"max_epochs": 2, "batch_size": 8, "n_resamples": 4, "judge_steps": 3}
    quick |= {"fractions": [0.5, 0.2, 0.3], "beta_grid": [2, 4], "beta_steps": 3, "min_arm": 5}
    if spatial_dims == 3:
        flip = {"_target_": "RandFlipd", "keys": "image", "prob": 0.5, "spatial_axis": 0}
        quick |= {"balance_weight": 5.0, "augmentation": [flip]}
    return tiny(root, spatial_dims) | quick | overrides


def run(configs, overrides, workflow_type="train"):
    return test_bundles.run([CONFIGS / name for name in configs], overrides, workflow_type)


def inference(root, spatial_dims, tmp_path, **overrides):
    places = {"subjects": str(tmp_path / "new.csv"), "output_dir": str(tmp_path / "out")}
    flow = run(["inference.yaml"], tiny(root, spatial_dims) | places | overrides, "infer")
    return flow, pd.read_csv(tmp_path / "out" / "counterfactuals.csv")
