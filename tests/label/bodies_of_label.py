"""A trained bundle and a study for the tests of the label app, in seconds."""

import json
import shutil
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from medvae.data import Cohort, Factors, phantoms
from medvae.networks import FactorClassifier

CONFIGS = Path(__file__).parents[2] / "bundles" / "attri_vae" / "configs"
MODEL = "hearts"
SMALL = {
    "attributes": ["lv_voxel_volume_ml", "myocardium_wall_thickness_mm"],
    "spacing_mm": 6.0,
    "image_size": [16, 16, 16],
    "latent_dim": 6,
    "channels": [4, 8],
    "strides": [2, 2],
    "decoder_channels": [8, 4, 4],
    "hidden_channels": [16],
    "regions": False,
}
QUICK = {"max_epochs": 2, "batch_size": 4, "n_permutations": 2, "n_resamples": 4}


def run(config, workflow_type, **overrides):
    """Run a configuration of the bundle as MONAI's command does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "parsing config_file", UserWarning)
        flow = ConfigWorkflow(
            config_file=str(CONFIGS / config),
            meta_file=str(CONFIGS / "metadata.json"),
            logging_file=str(CONFIGS / "logging.conf"),
            workflow_type=workflow_type,
            **overrides,
        )
        flow.initialize()
        flow.run()
        flow.finalize()


def trained_bundle(folder, subjects=40):
    """Train a bundle on phantoms in `folder/hearts`; its data lie within it."""
    root = folder / MODEL
    phantoms(root / "data", subjects)
    shutil.copytree(CONFIGS, root / "configs")
    subjects_csv = str(root / "data" / "subjects.csv")
    run("train.yaml", "train", bundle_root=str(root), subjects=subjects_csv, **SMALL, **QUICK)
    return root


def untrained_bundle(folder, kind, definitions, spatial_dims=2, **settings):
    """A bundle of factors, of the phantoms in its own folder, with weights that nobody trained."""
    configs, root = CONFIGS.parents[1] / kind / "configs", folder / kind
    table = phantoms(root / "data", 30, spatial_dims=spatial_dims)
    cohort = Cohort(table, fractions=(0.6, 0.2, 0.2), spatial_dims=spatial_dims, check=False)
    shutil.copytree(configs, root / "configs")
    cohort.save(root / "models" / "cohort.json")
    factors = Factors(cohort, definitions, free_size=2)
    factors.save(root / "models" / "factors.json")
    (root / "models" / "run.json").write_text(json.dumps({"settings": settings}))
    parser = ConfigParser()
    parser.read_config(str(configs / "inference.yaml"))
    parser.update({"labels": factors, "device": "cpu", **settings})
    torch.manual_seed(0)
    weights = parser.get_parsed_content("network").state_dict()
    torch.save(weights, root / "models" / "model.pt")
    return root


def encoder_bundle(folder):
    """An encoder with subspaces for a class and a number."""
    definitions = {"diagnosis": {"size": 4}, "age": {"size": 2, "kind": "continuous"}}
    return untrained_bundle(folder, "disentangled_encoder", definitions)


TINY = {"spacing_mm": 6.0, "channels": [8, 8, 6], "mapping_layers": 2}


def gan_bundle(folder, spatial_dims):
    """A GAN with a subspace for a class."""
    tiny = TINY | {"image_size": [16] * spatial_dims}
    kind = f"disentangled_gan_{spatial_dims}d"
    return untrained_bundle(folder, kind, {"diagnosis": {"size": 4}}, spatial_dims, **tiny)


def stylex_bundle(folder):
    """A StylEx of a classifier with two heads, as if a search had found two attributes."""
    tiny = TINY | {"image_size": [16, 16], "latent_dim": 4, "classifier_channels": [4, 4, 8, 8]}
    root = untrained_bundle(folder, "stylex", {"diagnosis": {}, "scanner": {}}, **tiny)
    heads = Factors(None, state=root / "models" / "factors.json").outputs
    classifier = FactorClassifier(2, 1, heads, tiny["classifier_channels"])
    torch.save(classifier.state_dict(), root / "models" / "classifier.pt")
    found = [{"coordinate": n, "direction": "up", "min": -9.0, "max": 9.0} for n in (1, 4)]
    (root / "eval").mkdir()
    attributes = {"attributes": [entry | {"shift": 1.0} for entry in found]}
    (root / "eval" / "attributes.json").write_text(json.dumps(attributes))
    return root


def intact_bundle(folder):
    """The configuration of beta-Intact-VAE beside a file in the place of weights."""
    root = folder / "intact_vae"
    shutil.copytree(CONFIGS.parents[1] / "intact_vae" / "configs", root / "configs")
    (root / "models").mkdir()
    (root / "models" / "model.pt").write_bytes(b"weights")
    return root


def oblique(spacing_mm):
    """An affine that is anisotropic, turned about two axes, flipped and moved."""
    a, b = 0.3, -0.2
    turned = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ (
        np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    )
    affine = np.eye(4)
    affine[:3, :3] = turned @ np.diag([-spacing_mm[0], *spacing_mm[1:]])
    affine[:3, 3] = (31.0, -42.0, 17.0)
    return affine


def oblique_phantom(root, path):
    """Write a phantom of the bundle's cohort as if it had been scanned obliquely and flipped."""
    image = nib.load(next(root.glob("data/**/images/phantom0001.nii.gz")))
    voxels = np.asarray(image.dataobj, dtype=np.float32)
    affine = oblique(image.header.get_zooms()[:3])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(voxels.shape) / 2)
    nib.Nifti1Image(voxels, affine).to_filename(path)


def inferred(root, folder):
    """Run the bundle's own inference of an oblique phantom.

    Returns:
        The image, and the folder of its results.
    """
    image = folder / "oblique.nii.gz"
    oblique_phantom(root, image)
    (folder / "one.csv").write_text(f"id,image\noblique,{image}\n")
    run(
        "inference.yaml",
        "infer",
        bundle_root=str(root),
        subjects=str(folder / "one.csv"),
        output_dir=str(folder / "out"),
        traversals=True,
        **SMALL,
    )
    return str(image), folder / "out" / "oblique"
