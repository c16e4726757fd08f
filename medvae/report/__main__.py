"""Rebuild a run's report, or compare runs: `python -m medvae.report RUN_DIR [RUN_DIR ...]`.

`--answers` merges instead what a panel's experts have saved.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from medvae.data import or_exit
from medvae.report.page import write_comparison, write_report
from medvae.report.panel_answers import merge_answers

logger = logging.getLogger("medvae")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the page."""
    parser = argparse.ArgumentParser(prog="python -m medvae.report", description=__doc__)
    parser.add_argument(
        "runs", nargs="*", metavar="RUN_DIR",
        help="a bundle root, or its folder of results; several are compared, with the first",
    )  # fmt: skip
    parser.add_argument("--models", help="the folder of the model; default: models in RUN_DIR")
    parser.add_argument("--subjects", nargs="+", default=(), metavar="ID", help="shown in 3D")
    parser.add_argument(
        "--output", help="of a comparison or of answers; default: compare.html, answers"
    )
    parser.add_argument(
        "--answers", nargs="+", metavar="JSON",
        help="files that experts saved from a panel's page, to be merged",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if bool(options.runs) == bool(options.answers):
        parser.error("expected either run folders or --answers")
    if options.answers:
        path = Path(options.output or "answers").with_suffix(".json")
        or_exit(merge_answers, options.answers, path)
    elif len(options.runs) > 1:
        path = or_exit(write_comparison, options.runs, options.output or "compare.html")
    else:
        path = or_exit(write_report, options.runs[0], options.models, tuple(options.subjects))
    logger.info("Wrote %s", path.resolve())


if __name__ == "__main__":
    main()
