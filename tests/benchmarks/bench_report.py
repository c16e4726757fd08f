"""How long does the report of a run of 200 subjects take to open, and how large is it?

    python tests/benchmarks/bench_report.py
    python tests/benchmarks/bench_report.py --of bundles/attri_vae

Trains the Attri-VAE's bundle for one epoch on 200 phantoms, and evaluates it: the page's size is
that of any such run, whatever the model is worth. Every round starts a headless Chromium anew, with
WebGL in software; its own start does not count. Prints the page's size, and medians and the slowest
round in seconds: from the start of the navigation until something is drawn, and until the load
event; from the click on the viewer's tab until both volumes are shown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from browsing import headless_chromium
from test_bundles import CONFIGS, run

from medvae.data import phantoms

SETTINGS = {"max_epochs": 1, "n_permutations": 2, "n_resamples": 4}
OPENED = """
const done = arguments[0], [page] = performance.getEntriesByType("navigation");
new PerformanceObserver((list) => {
  const drawn = list.getEntriesByName("first-contentful-paint")[0];
  if (drawn) done([drawn.startTime, page.loadEventEnd]);
}).observe({ type: "paint", buffered: true });
"""
CLICKED = """
const done = arguments[0], viewer = document.querySelector(".viewer"), start = performance.now();
new MutationObserver(() => { if (viewer.dataset.ready) done(performance.now() - start); })
  .observe(viewer, { attributes: true });
document.getElementById("tab-viewer").click();
"""


def made_run(root: Path, subjects: int) -> Path:
    """Train and evaluate on phantoms; return the bundle's root."""
    phantoms(root / "data" / "phantoms", subjects)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run([CONFIGS / "train.yaml"], {"bundle_root": str(root), "phantoms": subjects} | SETTINGS)
    return root


def opening(page: Path) -> list[float]:
    """Open the page in a new browser and return the three times, in s."""
    with headless_chromium() as browser:
        browser.set_script_timeout(300)
        browser.get("about:blank")
        browser.get(page.absolute().as_uri())
        times = browser.execute_async_script(OPENED)
        times.append(browser.execute_async_script(CLICKED))
    return [time / 1000 for time in times]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--of", type=Path, help="the root of an evaluated Attri-VAE; none is made")
    parser.add_argument("--subjects", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.of or made_run(Path(folder) / "run", arguments.subjects)
        page = root / "eval" / "report.html"
        rounds = [opening(page) for _ in range(arguments.rounds)]
        print(f"{page.stat().st_size / 2**20:.1f} MiB, {len(rounds)} rounds")
    columns = zip(*rounds, strict=True)
    for name, times in zip(("drawn", "loaded", "viewer ready"), columns, strict=True):
        print(f"{name}: median {median(times):.2f} s, slowest {max(times):.2f} s")


if __name__ == "__main__":
    main()
