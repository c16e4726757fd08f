"""MONAI Label's answers beside the same inference in a warm process, and memory over 200 requests.

    MEDVAE_LABEL_PYTHON=label/bin/python python tests/benchmarks/bench_label.py

MEDVAE_LABEL_PYTHON names the Python of requirements-label.txt, with medvae installed. A small
Attri-VAE is trained on phantoms; a phantom of 128^3 voxels is then asked for the maps of all its
attributes, in turn over HTTP and by `ServedBundle` in this process, which also writes the file, one
thread each. Prints medians and their ratio, then the server's resident memory after 20 and after
200 requests.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import zoom

sys.path.insert(0, str(Path(__file__).parents[1] / "label"))

from bodies_of_label import trained_bundle
from test_server import Server

from medvae.label import Asked, ServedBundle
from medvae.label.files import write_volume

ASKED = {"attribute": "all", "output": "map"}


def large_phantom(source: Path, path: Path, size: int = 128) -> None:
    """Write a phantom of `size` voxels along every axis."""
    image = nib.load(source)
    factors = size / np.array(image.shape)
    voxels = zoom(np.asarray(image.dataobj, dtype=np.float32), factors, order=1)
    affine = image.affine.copy()
    affine[:3, :3] /= factors
    nib.Nifti1Image(voxels, affine).to_filename(path)


def resident(process: int) -> int:
    """Return the resident pages of a process."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp())
    bundle = trained_bundle(root / "bundles")
    studies = root / "studies"
    studies.mkdir()
    image = studies / "large.nii.gz"
    large_phantom(bundle / "data" / "images" / "phantom0001.nii.gz", image)
    (studies / "small.nii.gz").write_bytes(
        (bundle / "data" / "images" / "phantom0001.nii.gz").read_bytes()
    )
    served = ServedBundle(bundle, "cpu")
    asked = Asked.of(ASKED, served.attributes)

    def here() -> None:
        answer = served.answer({"image": str(image)}, asked)
        write_volume(root / "here.nii.gz", answer.channels, answer.affine)

    with Server(root, studies, root / "server.log", bundle) as server:

        def there() -> None:
            if server.infer("large", ASKED)[0] != 200:
                raise RuntimeError(server.log.read_text()[-2000:])

        times: dict[str, list[float]] = {"warm process": [], "over HTTP": []}
        for number in range(arguments.rounds + 1):
            for name, call in (("warm process", here), ("over HTTP", there)):
                start = time.perf_counter()
                call()
                if number:  # the first warms up
                    times[name].append(time.perf_counter() - start)
        own, other = median(times["warm process"]), median(times["over HTTP"])
        count = len(served.attributes)
        print(f"{count} maps of 128^3: {own:.2f} s here, {other:.2f} s over HTTP, ", end="")
        print(f"ratio {other / own:.2f} (goal 1.5)")
        pages = {}
        for number in range(1, arguments.requests + 1):
            server.infer("small", {"output": "map"})
            if number in (20, arguments.requests):
                pages[number] = resident(server.process.pid)
        growth = pages[arguments.requests] / pages[20] - 1
        print(
            f"memory after {arguments.requests} requests beside after 20: {growth:+.1%} (goal 5 %)"
        )


if __name__ == "__main__":
    main()
