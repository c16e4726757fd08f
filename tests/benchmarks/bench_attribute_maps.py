"""Speed of 16 attribute maps of one 80^3 volume, against MONAI's GradCAM called 16 times.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_attribute_maps.py

CPU time, interleaved in one process; the ratio is the median of the rounds' ratios. captum's
LayerGradCam and medcam (M3d-Cam) are timed where they are installed. medcam scales each map to
[0, 1], so its maps are compared after both are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from monai.visualize import GradCAM
from torch import Tensor, nn

from medvae.explain import attribute_maps
from medvae.networks import AttriVAE
from medvae.report.tables import markdown_table

K, ROUNDS = 16, 7
LAYER = "encoder.4.conv"


class Mean(nn.Module):
    """Image to posterior mean, as the peers want it."""

    def __init__(self, vae: AttriVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> Tensor:
        return self.vae.encode(image)[0]


def peers(vae: AttriVAE, image: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return what is timed: each gives the maps (1, K, *S)."""
    plain = deepcopy(vae)
    monai = GradCAM(Mean(plain), target_layers=f"vae.{LAYER}", postprocessing=lambda m: m)
    # channels-last is how the bundle lays the network out; the peers get torch's own layout
    fast = deepcopy(vae).to(memory_format=torch.channels_last_3d)
    found = {
        "medvae": lambda: attribute_maps(fast, image, range(K), LAYER),
        "MONAI": lambda: torch.cat([monai(image, class_idx=k) for k in range(K)], 1),
    }
    for name, peer in (("captum", captum), ("medcam", medcam)):
        try:
            found[name] = peer(deepcopy(vae), image)  # their hooks would meet MONAI's
        except ImportError as error:
            print(f"Without {name} ({error})")
    return found


def captum(vae: AttriVAE, image: Tensor) -> Callable[[], Tensor]:
    """Return captum's maps, as a call."""
    from captum.attr import LayerAttribution, LayerGradCam

    layer = LayerGradCam(Mean(vae), vae.get_submodule(LAYER))
    size = tuple(image.shape[2:])

    def maps() -> Tensor:
        coarse = [layer.attribute(image, target=k, relu_attributions=True) for k in range(K)]
        up = [LayerAttribution.interpolate(m, size, interpolate_mode="trilinear") for m in coarse]
        return torch.cat(up, 1).detach()

    return maps


def medcam(vae: AttriVAE, image: Tensor) -> Callable[[], Tensor]:
    """Return medcam's maps, as a call."""
    from medcam import medcam as library

    injected = library.inject(Mean(vae), backend="gcam", layer=f"vae.{LAYER}", replace=True)
    return lambda: torch.cat([injected(image, label=k) for k in range(K)], 1)


def difference(name: str, maps: Tensor, reference: Tensor) -> float:
    """Return the largest difference from MONAI's maps, relative to their peak."""
    if name == "medcam":
        maps, reference = (
            (m - m.amin((2, 3, 4), True)) / (m.amax((2, 3, 4), True) - m.amin((2, 3, 4), True))
            for m in (maps, reference)
        )
        reference = reference.nan_to_num()  # a map that is zero everywhere
        maps = maps.nan_to_num()
    return float((maps - reference).abs().max() / reference.abs().max())


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vae = AttriVAE().eval()
    image = torch.rand(1, 1, 80, 80, 80)
    found = peers(vae, image)
    reference = found["MONAI"]().detach()
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(ROUNDS):
        for name, call in found.items():
            call()  # caches and allocator
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    rows: list[list[Any]] = []
    for name, call in found.items():
        error = difference(name, call().detach(), reference)
        ratio = np.median(np.array(times[name]) / np.array(times["medvae"]))
        rows.append([name, f"{1e3 * np.median(times[name]):.1f}", f"{ratio:.1f}", f"{error:.1e}"])
    print(markdown_table(["", "ms", "times medvae's", "difference from MONAI's, relative"], rows))


if __name__ == "__main__":
    main()
