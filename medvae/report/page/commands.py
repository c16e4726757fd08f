"""The commands that make a part that a run does not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["REBUILD", "Commands", "bundle_of"]

REBUILD = "python -m medvae.report RUN_DIR"
# the network says which bundle it is trained by
BUNDLES = {
    "AttriVAE": "attri_vae",
    "SubspaceEncoder": "disentangled_encoder",
    "DisentangledGAN": "disentangled_gan_{}d",
    "StylEx": "stylex",
    "IntactVAE": "intact_vae",
}


def bundle_of(settings: Mapping[str, Any]) -> str:
    """Return the folder of the bundle that a run's settings are of; attri_vae where none is known.

    Args:
        settings: of the run's record.
    """
    network = settings.get("network_def")
    component = network.get("component", "") if isinstance(network, dict) else ""
    name = str(component).rpartition(".")[2]
    return BUNDLES.get(name, "attri_vae").format(settings.get("spatial_dims", 2))


class Commands:
    """The commands of a bundle; RUN_DIR stands for the run's folder.

    Args:
        bundle: its folder's name.
    """

    def __init__(self, bundle: str) -> None:
        self.configs = f"bundles/{bundle}/configs"

    @property
    def train(self) -> str:
        """What trains, and evaluates at the end."""
        return f"{self._run('training')} --config_file {self.configs}/train.yaml"

    @property
    def evaluate(self) -> str:
        """What evaluates a trained model again."""
        return self._with("evaluating", "evaluate")

    @property
    def manipulate(self) -> str:
        """What measures traversals."""
        return self._with("manipulating", "manipulation")

    @property
    def infer(self) -> str:
        """What writes maps and traversals."""
        return f"{self._run()} --traversals true --config_file {self.configs}/inference.yaml"

    def _run(self, name: str = "") -> str:
        return " ".join(filter(None, ("python -m monai.bundle run", name, "--bundle_root RUN_DIR")))

    def _with(self, name: str, overlay: str) -> str:
        files = f"\"['{self.configs}/train.yaml','{self.configs}/{overlay}.yaml']\""
        return f"{self._run(name)} --config_file {files}"
