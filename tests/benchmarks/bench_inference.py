"""Inference with maps beside loading, preprocessing and saving alone, per subject.

    python -m monai.bundle run training --bundle_root RUN \\
        --config_file "['bundles/attri_vae/configs/train.yaml','configs/smoke.yaml']"
    OMP_NUM_THREADS=1 python tests/benchmarks/bench_inference.py RUN

A run of two epochs will do, as weights do not change times. For a cohort of real images give its
overlay to both: `--overlay configs/datasets/acdc.yaml`. CPU time, interleaved rounds in one
process, files on the disk of the temporary folder. The peers use the bundle's own transforms:
"one image" loads and preprocesses each subject, brings the image back to the subject's grid and
saves it; "as many" does so with as many copies of the image as inference writes images.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, EnsureTyped, Invertd
from scipy.ndimage import zoom

from medvae.report.tables import markdown_table
from medvae.transforms import SaveSubjectd

REPOSITORY = Path(__file__).parents[2]
CONFIG = REPOSITORY / "bundles" / "attri_vae" / "configs" / "inference.yaml"


def configured(arguments: argparse.Namespace, output: Path, montage: bool = True) -> ConfigParser:
    """Return the bundle's configuration of the run's first subjects."""
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    overlay = ConfigParser.load_config_file(arguments.overlay) if arguments.overlay else {}
    for key in overlay.keys() & parser.config.keys() | {"dataset_dir"} & overlay.keys():
        parser[key] = overlay[key]
    parser.get_parsed_content("imports")
    parser["bundle_root"], parser["output_dir"] = str(arguments.run), str(output)
    parser["overwrite"] = True
    items = parser.get_parsed_content("cohort").datalist()[: arguments.subjects]
    if arguments.zoom > 1:
        items = [
            item | {"image": enlarged(item["image"], output, arguments.zoom)} for item in items
        ]
        for item in items:
            item.pop("mask", None)
    parser["dataset::data"] = items
    parser["postprocessing::transforms::0::_disabled_"] = not montage
    parser.get_parsed_content("initialize")
    return parser


def enlarged(path: str, folder: Path, factor: int) -> str:
    """Write an image of the same body at a finer resolution, with noise, and return its path."""
    old = nib.load(path)
    voxels = zoom(np.asarray(old.dataobj, dtype=np.float32), factor, order=1)
    voxels += np.random.default_rng(0).normal(scale=0.02 * np.ptp(voxels), size=voxels.shape)
    affine = old.affine @ np.diag([1 / factor] * 3 + [1])
    new = folder.with_name("enlarged") / Path(path).name
    new.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), affine), new)
    return str(new)


def peer(parser: ConfigParser, output: Path, copies: int) -> Callable[[], None]:
    """Return the reading, preprocessing, inverting and saving of copies of each image."""
    prepare, items = (parser.get_parsed_content(k) for k in ("preprocessing", "dataset"))
    names = [f"copy_{i}" for i in range(copies)]
    finish = Compose(
        [
            EnsureTyped("copies"),
            Invertd("copies", prepare, orig_keys="image", nearest_interp=False),
            SaveSubjectd({"copies": names}, output),
        ]
    )

    def run() -> None:
        for source in items.data:
            item = prepare(dict(source))
            finish(item | {"copies": torch.cat([item["image"].as_tensor()] * copies)})

    return run


def inference(parser: ConfigParser) -> Callable[[], None]:
    """Return the bundle's whole evaluation."""
    evaluator = parser.get_parsed_content("evaluator")
    evaluator.logger.setLevel(logging.WARNING)

    def run() -> None:
        evaluator.state.epoch = 0
        evaluator.run()

    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--overlay", help="of the cohort, as in configs/datasets")
    parser.add_argument("--subjects", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--zoom", type=int, default=1, help="times as many voxels along each axis")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        full = configured(arguments, Path(folder) / "full")
        bare = configured(arguments, Path(folder) / "bare", montage=False)
        written = 1 + len(full.get_parsed_content("attributes"))
        timed = {
            "one image": peer(full, Path(folder) / "one", 1),
            f"as many: {written} images": peer(full, Path(folder) / "many", written),
            "inference without montage": inference(bare),
            "inference": inference(full),
        }
        table(timed, arguments)


def table(timed: dict[str, Callable[[], None]], arguments: argparse.Namespace) -> None:
    """Time all in rounds and print medians per subject, and ratios to the peers."""
    times: dict[str, list[float]] = {name: [] for name in timed}
    for call in timed.values():
        call()
    for _ in range(arguments.rounds):
        for name, call in timed.items():
            start = time.process_time()
            call()
            times[name].append((time.process_time() - start) / arguments.subjects)
    found = {name: np.array(each) for name, each in times.items()}
    one, many = list(found)[:2]
    rows: list[list[Any]] = [
        [
            name,
            f"{1e3 * np.median(each):.1f}",
            f"{np.median(each / found[one]):.2f}",
            f"{np.median(each / found[many]):.2f}",
        ]
        for name, each in found.items()
    ]
    head = ["per subject", "ms", f"times {one}", f"times {many.split(':')[0]}"]
    print(markdown_table(head, rows))


if __name__ == "__main__":
    main()
