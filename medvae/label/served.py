"""A trained bundle that stays in memory and answers for one image at a time."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from monai.data import to_affine_nd
from monai.transforms import EnsureTyped, Invertd
from torch import Tensor

from medvae.attributes import feature_names
from medvae.data import CohortError, check_and_measure
from medvae.explain import attribute_maps
from medvae.label.asked import ALL, OUTPUTS, Asked
from medvae.label.bins import bin_edges, bin_names, quantise
from medvae.label.configuration import CONFIGS, configuration, said
from medvae.label.edits import EditReading
from medvae.label.ranking import training_codes
from medvae.label.readings import AttributeReading, FactorReading, Reading
from medvae.networks import load_weights
from medvae.transforms.affines import affine_of

__all__ = ["Answer", "ServedBundle", "find_bundles", "loaded"]

logger = logging.getLogger(__name__)

KINDS = "an Attri-VAE, a StylEx after its search, or a model with subspaces"


@dataclass(frozen=True)
class Answer:
    """What a bundle says of an image.

    Attributes:
        channels: on the image's own grid, (C, *S); uint8 for bins, else float32.
        affine: voxel index to RAS millimetres, (4, 4).
        params: the rest, as JSON knows it.
    """

    channels: npt.NDArray[np.generic]
    affine: npt.NDArray[np.float64]
    params: dict[str, Any] = field(default_factory=dict)


def find_bundles(folder: str | Path) -> dict[str, Path]:
    """Return the trained bundles in a folder, or the folder itself if it is one, by their names.

    A trained bundle has `models/model.pt` and `configs/inference.yaml` (or `.json`). A link has its
    own name, not that of what it points to.
    """
    root = Path(os.path.abspath(folder))
    candidates = [root, *sorted(p for p in root.glob("*") if p.is_dir())]
    return {path.name: path for path in candidates if _is_trained(path)}


def _is_trained(folder: Path) -> bool:
    has_config = any((folder / name).is_file() for name in CONFIGS)
    return has_config and (folder / "models" / "model.pt").is_file()


class ServedBundle:
    """A trained bundle: its own network, preprocessing and maps, loaded once.

    An Attri-VAE answers with all that `Asked` knows, and so does a StylEx of the attributes that
    its search found; a model with subspaces with maps of its factors and what its heads say.

    The settings are those of its `configs/inference.yaml` and, where `models/run.json` says that
    the model was trained with others, by an overlay, those. A configuration is a program: serve
    only bundles that you trust. Weights are read with `weights_only=True`.

    Safe to be called by several threads: one image passes through the network at a time.

    Args:
        folder: the bundle.
        device: such as "cpu" or "cuda:0"; None: as the bundle says.

    Attributes:
        name: the folder's.
        attributes: names of what has a map.
        ranges: of attributes that can be moved, see `Reading`.
        outputs: those of `Asked` that it has.
        needs_mask: whether the preprocessing needs one.
        mask_labels: names of the numbers of such a mask, and of those that it is trained again on.

    Raises:
        CohortError: the folder's files do not make a model, such as weights that do not fit.
    """

    def __init__(self, folder: str | Path, device: str | None = None) -> None:
        self.folder = Path(folder)
        self.name = self.folder.name
        self._lock = threading.Lock()
        self._parser = configuration(self.folder, device)
        self.reading = self._reading()
        self.attributes = self.reading.names
        self.ranges = self.reading.ranges
        self.outputs = OUTPUTS if self.ranges else OUTPUTS[:-1]
        self.mask_labels: dict[str, Any] = self._parser.get("mask_labels") or {}
        self.spatial_dims = int(self._part("spatial_dims"))
        self.needs_mask = bool(self._part("center_on_mask")) or self._part("background") is not None
        self.training = training_codes(self.folder / "eval" / "predictions.csv")
        self._device = self._part("device")
        self._network = self._part("network")
        self._identity = _identity(self.folder)
        load_weights(self._network, self.folder / "models" / "model.pt", self._device).eval()
        self._preprocessing = self._part("preprocessing")
        self._maps = self._map_maker()

    def is_replaced(self) -> bool:
        """Say whether another model lies in the folder than the one that was loaded."""
        return _identity(self.folder) not in (self._identity, None)

    def read(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Return codes, attributes in their own units and class probabilities of an image.

        Args:
            item: `image`, a path, and where the preprocessing needs it `mask`.

        Raises:
            CohortError: the image cannot be used.
        """
        return self._said(self._input(self._prepared(item)))

    def answer(self, item: Mapping[str, Any], asked: Asked) -> Answer:
        """Return what was asked for, on the image's own grid.

        Args:
            item: as of `read`.
            asked: see `Asked`.

        Raises:
            CohortError: the image cannot be used, or the attribute cannot be moved.
        """
        prepared = self._prepared(item)
        image = self._input(prepared)
        params = self._said(image) | {"model": self.name, "attribute": asked.attribute}
        make = self._traversal if asked.output == "traversal" else self._map
        channels, more = make(image, asked)
        voxels: npt.NDArray[Any]
        voxels, affine = self._on_grid(channels, prepared)
        if asked.output == "traversal":
            voxels = self._own_unit(voxels)
        elif asked.output == "bins":
            more = {"label_names": bin_names(asked.bins)}
            more |= {"bin_edges": bin_edges(float(voxels.max(initial=0.0)), asked.bins)}
            voxels = quantise(voxels, asked.bins)
        params |= {"output": asked.output, "range": list(self.ranges.get(asked.attribute, ()))}
        return Answer(voxels, affine, {"warnings": []} | params | more)

    def disagreement(self, item: Mapping[str, Any], mask: str) -> float:
        """Return how far what is read off an image lies from what is measured in its mask.

        Returns:
            See `medvae.label.disagreement`; NaN where nothing can be measured.

        Raises:
            CohortError: image or mask cannot be used.
        """
        measured = self.measured(str(item["image"]), mask)
        return self.reading.disagrees(self.read(item)["attributes"], measured)

    def measured(self, image: str, mask: str) -> dict[str, float]:
        """Return those attributes that can be measured in a mask; the others are NaN.

        Raises:
            CohortError: the mask cannot be used.
        """
        table = pd.DataFrame([{"id": "study", "image": image, "mask": mask}])
        labels = self._parser.get("mask_labels")
        known = feature_names(self.spatial_dims, labels)
        found = check_and_measure(
            table,
            [name for name in self.attributes if name in known],
            self.spatial_dims,
            int(self._part("in_channels")),
            labels,
            progress=False,
        )
        return {name: float(found[name].iloc[0]) for name in self.attributes if name in found}

    def _reading(self) -> Reading:
        config = self._parser.get()
        if "readout" in config:
            folder, classes = self.folder / "models", bool(self._part("num_classes"))
            parts = (self._part(key) for key in ("readout", "state", "traversal_follow"))
            readout, state, follow = parts
            return AttributeReading(readout, folder, state, classes, follow)
        if "labels" in config and {"map_inferer", "edit_inferer"} & set(config):
            self._parser.update({"cohort": None})  # what matters of it lies beside the weights
            factors = self._part("labels")
            if "edit_inferer" not in config:
                return FactorReading(factors)
            inferer = self._part("edit_inferer")
            return EditReading(inferer.classifier, inferer.edits, factors)
        why = "reads neither attributes nor factors"
        if "counterfactual_inferer" in config:
            why = "needs the treatment and the covariates of a subject, which an image has not"
        raise CohortError(f"The bundle '{self.name}' {why}; expected {KINDS}.")

    def _map_maker(self) -> Callable[[Tensor, Sequence[str]], Tensor]:
        """Return what makes maps (K, *S) of an image (1, C, *S)."""
        if isinstance(self.reading, EditReading):
            return partial(self.reading.maps, self._network)
        options = self._part("map_inferer").options
        return lambda image, names: attribute_maps(self._network, image, names, **options)[0]

    def _part(self, key: str) -> Any:
        return said(lambda: self._parser.get_parsed_content(key))

    def _prepared(self, item: Mapping[str, Any]) -> dict[str, Any]:
        return said(lambda: self._preprocessing(dict(item)))

    def _input(self, prepared: Mapping[str, Any]) -> Tensor:
        image = torch.as_tensor(prepared["image"]).as_subclass(Tensor)
        return image[None].to(self._device)

    def _said(self, image: Tensor) -> dict[str, Any]:
        with self._lock, torch.no_grad():
            return self.reading.said(self._network, image)

    def _map(self, image: Tensor, asked: Asked) -> tuple[Tensor, dict[str, Any]]:
        with self._lock:
            names = self.attributes if asked.attribute == ALL else [asked.attribute]
            return self._maps(image, names), {}

    def _traversal(self, image: Tensor, asked: Asked) -> tuple[Tensor, dict[str, Any]]:
        values = asked.values or self.reading.at(asked.attribute, asked.shares)
        with self._lock:
            return self.reading.series(self._network, image, asked.attribute, values)

    def _on_grid(
        self, channels: Tensor, prepared: dict[str, Any]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        """Bring channels (C, *S) back to the image's grid, as inference.yaml does."""
        item = EnsureTyped("result")({**prepared, "result": channels.cpu()})
        back = Invertd("result", self._preprocessing, orig_keys="image", nearest_interp=False)
        result = back(item)["result"]
        affine = to_affine_nd(3, affine_of(result).numpy())
        return torch.as_tensor(result).as_subclass(Tensor).float().numpy(), np.asarray(affine)

    def _own_unit(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Undo the window, where there is one."""
        window: Sequence[float] | None = self._part("window")
        if window is None:
            return images
        return (images * np.float32(window[1] - window[0]) + np.float32(window[0])).astype("f4")


def loaded(folder: Path, device: str | None = None) -> ServedBundle:
    """Return a bundle, whatever its files hold.

    Raises:
        CohortError: in place of any error.
    """
    try:
        return ServedBundle(folder, device)
    except CohortError:
        raise
    except Exception as error:  # a configuration is a program: it may fail in any way
        logger.exception("The bundle '%s' failed while it was loaded", folder.name)
        raise CohortError(
            f"The bundle '{folder.name}' fails while it is loaded ({type(error).__name__}); "
            f"expected {KINDS}; the server's log says more."
        ) from error


def _identity(folder: Path) -> tuple[int, int] | None:
    """Return what tells one model's file from another; None where there is none."""
    try:
        found = (folder / "models" / "model.pt").stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino
