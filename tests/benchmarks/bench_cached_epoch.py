"""Measure an epoch of data on MONAI's CacheDataset against its plain Dataset.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_cached_epoch.py --rounds 5

32 volumes of 96x96x64 voxels with a mask, as .nii.gz, are read, brought to one spacing and size and
flipped at random; the batches of 16 hold the images. No worker processes: they cost more than they
save once the data are cached. CPU times; the time to fill the cache is printed apart.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from bench_training_step import cpu_seconds, print_ratios
from monai.data import CacheDataset, DataLoader, Dataset
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    RandFlipd,
    ResizeWithPadOrCropd,
    ScaleIntensityRanged,
    SelectItemsd,
    Spacingd,
)

from medvae.transforms import preprocessing

SPACING_MM, SIZE, WINDOW = 1.5, 80, (0.0, 1000.0)


def write_volumes(folder: Path, number: int) -> list[dict[str, str]]:
    """Write noisy balls of random radius as 16-bit NIfTI with masks; return the datalist."""
    rng = np.random.default_rng(0)
    affine = np.diag([1.25, 1.25, 2.0, 1.0])
    grid = np.meshgrid(*[np.arange(n) - n / 2 for n in (96, 96, 64)], indexing="ij")
    radius_mm = np.sqrt(sum((a * s) ** 2 for a, s in zip(grid, affine.diagonal(), strict=False)))
    items = []
    for i in range(number):
        mask = radius_mm < rng.uniform(15, 40)
        image = 600 * mask + rng.normal(200, 50, mask.shape)
        item = {key: str(folder / f"{key}_{i}.nii.gz") for key in ("image", "mask")}
        nib.save(nib.Nifti1Image(image.astype(np.int16), affine), item["image"])
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), item["mask"])
        items.append(item)
    return items


def monais_transforms() -> list:
    """What a MONAI user would write."""
    keys = ["image", "mask"]
    return [
        LoadImaged(keys),
        EnsureChannelFirstd(keys),
        Orientationd(keys, axcodes="RAS", labels=None),
        Spacingd(keys, pixdim=[SPACING_MM] * 3, mode=("bilinear", "nearest")),
        ScaleIntensityRanged("image", *WINDOW, b_min=0.0, b_max=1.0, clip=True),
        ResizeWithPadOrCropd(keys, [SIZE] * 3),
    ]


def run_epoch(dataset: Dataset) -> None:
    for batch in DataLoader(dataset, batch_size=16, shuffle=True, num_workers=0):
        batch["image"].mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--volumes", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        items = write_volumes(Path(folder), arguments.volumes)
        last = [
            SelectItemsd("image"),
            *[RandFlipd("image", prob=0.5, spatial_axis=axis) for axis in range(3)],
        ]
        ours = preprocessing(spacing_mm=SPACING_MM, size=SIZE, window=WINDOW)
        ours = Compose([*ours.transforms, *last])
        start = time.process_time()
        cached = CacheDataset(items, ours, num_workers=0, progress=False)
        filling = time.process_time() - start
        datasets = {
            "Dataset, MONAI's transforms": Dataset(items, Compose([*monais_transforms(), *last])),
            "Dataset, medvae's preprocessing": Dataset(items, ours),
            "CacheDataset, medvae's": cached,
        }
        variants = {name: lambda data=data: run_epoch(data) for name, data in datasets.items()}
        seconds = cpu_seconds(variants, arguments.rounds)
    title = f"an epoch of {len(items)} volumes to {SIZE}^3; filling the cache took {filling:.1f} s"
    print_ratios(title, seconds, {"CacheDataset, medvae's": 10.0})


if __name__ == "__main__":
    main()
