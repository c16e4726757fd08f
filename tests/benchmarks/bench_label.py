"""MONAI Label's answers beside the same inference in a warm process, and memory over 200 requests.

    MEDVAE_LABEL_PYTHON=label/bin/python python tests/benchmarks/bench_label.py

MEDVAE_LABEL_PYTHON names the Python of requirements-label.txt, with medvae installed. A small
Attri-VAE is trained on phantoms; a phantom of 128^3 voxels is then asked for the maps of all its
attributes, in turn over HTTP and by `ServedBundle` in this process, without and with a file of the
maps, on as many threads each (--threads). Prints medians and both ratios, then the server's
resident memory after 20 and after 200 requests.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import zoom

sys.path.insert(0, str(Path(__file__).parents[1] / "label"))

from bodies_of_label import trained_bundle
from serving import Server

from medvae.label import Answer, Asked, ServedBundle
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


def interleaved(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Return the seconds of each call, in turn, after one round that warms up."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for call, seconds in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if number:
                seconds.append(time.perf_counter() - start)
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    root = Path(tempfile.mkdtemp()) / "server"
    bundle = trained_bundle(root / "bundles")
    studies = root / "studies"
    studies.mkdir()
    small = bundle / "data" / "images" / "phantom0001.nii.gz"
    large_phantom(small, studies / "large.nii.gz")
    shutil.copy(small, studies / "small.nii.gz")
    served = ServedBundle(bundle, "cpu")
    asked = Asked.of(ASKED, served.attributes)

    def inference() -> Answer:
        return served.answer({"image": str(studies / "large.nii.gz")}, asked)

    def written() -> None:
        answer = inference()
        write_volume(root / "here.nii.gz", answer.channels, answer.affine)

    with Server(root, studies, bundle, threads=arguments.threads) as server:

        def over_http() -> None:
            if server.infer("large", ASKED)[0] != 200:
                raise RuntimeError(server.log.read_text()[-2000:])

        calls = (inference, written, over_http)
        alone, here, there = map(median, interleaved(calls, arguments.rounds))
        what = f"{len(served.attributes)} maps of 128^3, {arguments.threads} threads"
        print(f"{what}: inference {alone:.2f} s, with a file {here:.2f} s, HTTP {there:.2f} s")
        print(f"HTTP beside inference: {there / alone:.2f} times as long (goal 1.5)")
        print(f"HTTP beside inference and file: {there / here:.2f} times as long")
        kilobytes = {}
        for number in range(1, arguments.requests + 1):
            server.infer("small", {"output": "map"})
            if number in (20, arguments.requests):
                kilobytes[number] = server.memory("VmRSS")
        growth = kilobytes[arguments.requests] / kilobytes[20] - 1
        print(f"memory after {arguments.requests} requests beside after 20: {growth:+.1%}", end="")
        print(" (goal 5 %)")


if __name__ == "__main__":
    main()
