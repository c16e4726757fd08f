"""The sections of a run's page. A new system adds a function to `SECTIONS`, and no template.

Each takes a :class:`Run` and returns a :class:`Section` from the files that it finds, or None where
the run is of a system that has no such part.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medvae.data.record import FREE
from medvae.report.page import figures
from medvae.report.page.blocks import (
    Absent,
    Block,
    Facts,
    Findings,
    Note,
    Page,
    Picture,
    Section,
    Table,
    Viewer,
)
from medvae.report.page.codes import codes_section
from medvae.report.page.commands import REBUILD
from medvae.report.page.effects import effects_section
from medvae.report.page.leakage import leakage_section
from medvae.report.page.render import write_page
from medvae.report.page.run import Run, label_of
from medvae.report.page.scores import metrics_section
from medvae.report.page.shown import Shown, found_subjects
from medvae.report.page.styles import styles_section
from medvae.report.page.swaps import swaps_section
from medvae.report.page.verdict import verdict
from medvae.report.page.volumes import packed_subjects
from medvae.report.page.words import in_words

__all__ = ["SECTIONS", "report_page", "write_report"]

Builder = Callable[..., Section | None]

logger = logging.getLogger("medvae")


def write_report(
    folder: str | Path,
    models: str | Path | None = None,
    subjects: tuple[str, ...] = (),
) -> Path:
    """Write `report.html` into a run's folder of results, from the files that are there.

    Args:
        folder: the bundle's root, or its folder of results.
        models: the folder of the model; None: `models` beside the results.
        subjects: ids to be shown in 3D; None: those that the evaluation chose.

    Raises:
        CohortError: no such folder, nothing of a run in it, or no permission to write.
    """
    run = Run(folder, models, subjects)
    path = write_page(report_page(run), run.results / "report.html")
    logger.info("Done: open %s", path.resolve())
    return path


def report_page(run: Run) -> Page:
    """Return the page of a run; what it does not have is said, with what would make it."""
    sections = [section for build in SECTIONS if (section := _built(build, run)) is not None]
    counts = (run.metrics or {}).get("subjects", {})
    started = str(run.record.get("started", ""))[:10]
    rows = "subjects" if "outcomes" in (run.metrics or {}) else "images"
    counted = f"{sum(counts.values())} {rows}" if counts else ""
    subtitle = " · ".join(filter(None, (counted, started and f"started {started}")))
    return Page(f"Run {run.name}", subtitle, [*sections, _missing(run, sections)])


def _built(build: Builder, run: Run) -> Section | None:
    """Build a section; files of another form than expected cost that section, not the page."""
    try:
        return build(run)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        logger.debug("a section of the report failed", exc_info=True)
        key = build.__name__.removesuffix("_section")
        why = f"its files are not as expected ({type(error).__name__}: {error})"
        return Section(key, key.title(), [Absent("This section", why)])


def pictures_section(run: Run) -> Section | None:
    """The pictures that no other section shows, such as a system's leakage and swaps."""
    drawn_again = {"curves.png", "codes.png"}
    names = sorted({p.name for p in run.results.glob("*.png")} - run.pictures - drawn_again)
    found = [(name, content) for name in names if (content := run.picture(name)) is not None]
    if not found:
        return None
    titles = {name: Path(name).stem.replace("_", " ").capitalize() for name in names}
    pictures = [Picture(content, titles[name], titles[name]) for name, content in found]
    return Section("pictures", "Pictures", pictures)


def summary_section(run: Run) -> Section:
    """The verdict first, then what was run in brief."""
    split = str((run.metrics or {}).get("split", "test"))
    whose = "" if split == "train" else ", on patients that the model did not learn from"
    return Section(
        "verdict",
        "Verdict",
        [Findings(verdict(run)), _run_facts(run)],
        "Beyond chance: above 95 % of what permuted data reach, with a 95 % interval that leaves "
        "the chance level out. "
        f"Everything is measured on the {split} split{whose}. Not for clinical use.",
    )


def _run_facts(run: Run) -> Facts:
    metrics, record = run.metrics or {}, run.record
    counts = metrics.get("subjects", {})
    attributes = metrics.get("attributes") or run.state.get("attributes", [])
    rows = [
        ("Attributes", ", ".join(map(label_of, attributes))),
        ("Class", "" if run.other_system else _class_words(run.state)),
        ("Treatment", ": ".join(_treatment(metrics))),
        ("Factors", ", ".join(metrics.get("heads", ()))),
        ("Outcome", ", ".join(map(label_of, metrics.get("outcomes", ())))),
        (
            "Subjects" if "outcomes" in metrics else "Images",
            ", ".join(f"{n} {s}" for s, n in counts.items()),
        ),
        ("Scored split", str(metrics.get("split", ""))),
        ("Seed", str(record.get("seed", ""))),
        ("Started", str(record.get("started", "")).replace("T", " ")),
        ("Revision", str(record.get("revision") or "")[:13]),
    ]
    return Facts([(name, value) for name, value in rows if value], "The run in brief")


def _treatment(metrics: dict[str, Any]) -> tuple[str, ...]:
    found = metrics.get("treatment")
    return (found["column"], ", ".join(map(str, found["arms"]))) if found else ()


def _class_words(state: dict[str, Any]) -> str:
    if not state.get("label"):
        return "none"
    return f"{state['label']}: {', '.join(map(str, state.get('classes', ())))}"


def run_section(run: Run) -> Section:
    """Cohort, split, configuration and versions."""
    record, settings = run.record, run.settings
    if not record:
        return Section("run", "What was run", [_absent_record(run)])
    data = record.get("data", {})
    patient = run.state.get("patient")
    cohort = [
        ("Rows in the table", str(data.get("rows", ""))),
        ("Fingerprint of the data", str(data.get("sha256", ""))[:16]),
        ("Split by", f"column {patient}: no patient is in two splits" if patient else "row"),
        ("Fractions (train, val, test)", str(settings.get("fractions", ""))),
        ("Grid", _grid_words(settings)),
        ("Intensities", _intensity_words(settings)),
    ]
    versions = list(record.get("versions", {}).items())
    plain = [
        [key, json.dumps(value)]
        for key, value in settings.items()
        if key not in FREE and not key.startswith("_") and not _is_wiring(value)
    ]
    return Section(
        "run",
        "What was run",
        [
            Facts([(n, v) for n, v in cohort if v], "Cohort"),
            Facts([(str(k), str(v)) for k, v in versions], "Versions"),
            Table(["setting", "value"], plain, "Configuration after all overrides", "", False),
        ],
    )


def _absent_record(run: Run) -> Absent:
    return Absent("The record of the run", "models/run.json is not there", run.commands.train)


def _is_wiring(value: Any) -> bool:
    """Whether a setting is a reference or a component, which the bundle's file says better."""
    if isinstance(value, str):
        return value.startswith(("@", "%"))
    return isinstance(value, dict) and "_target_" not in value and bool(value)


def _grid_words(settings: dict[str, Any]) -> str:
    size, spacing = settings.get("image_size"), settings.get("spacing_mm")
    if not isinstance(size, list) or spacing is None:
        return ""
    edges = spacing if isinstance(spacing, list) else [spacing] * len(size)
    return f"{' × '.join(map(str, size))} voxels of {' × '.join(f'{e:g}' for e in edges)} mm"


def _intensity_words(settings: dict[str, Any]) -> str:
    if settings.get("window"):
        return f"window {settings['window']} becomes 0 to 1"
    if settings.get("percentiles"):
        return f"percentiles {settings['percentiles']} of each image become 0 to 1"
    return ""


def training_section(run: Run) -> Section:
    """Curves of every term and of the validation."""
    history = run.history
    if not history:
        return Section(
            "training", "Training", [Absent("Curves", "history.csv is empty", run.commands.train)]
        )
    epochs = len(history["epoch"])
    counted = "1 epoch" if epochs == 1 else f"{epochs} epochs"
    blocks: list[Block] = [Note(f"{counted}; select: {run.settings.get('select', 'best')}.")]
    alt = f"Curves over {counted} of {', '.join(n for n in history if n != 'epoch')}"
    blocks.append(Picture(figures.curves({run.name: history}), alt))
    last = [[name.replace("_", " "), f"{v[0]:.4g}", f"{v[-1]:.4g}"] for name, v in history.items()]
    blocks.append(Table(["term", "first epoch", "last epoch"], last[1:]))
    return Section(
        "training",
        "Training",
        blocks,
        "Means over an epoch; logarithmic where values are positive and differ tenfold. Weights "
        "that rise during training, such as beta and the control weight, make their terms rise.",
    )


def images_section(run: Run) -> Section | None:
    """Reconstructions, maps and traversals of the chosen subjects."""
    if run.other_system:
        return None  # its pictures are shown as they are
    blocks: list[Block] = []
    png = run.picture("reconstructions.png")
    if png:
        alt = "Central planes of images, their reconstructions and the difference"
        blocks.append(Picture(png, alt, "Reconstructions, from the best to the worst"))
    else:
        blocks.append(
            Absent("Reconstructions", "reconstructions.png is not there", run.commands.evaluate)
        )
    shown = found_subjects(run)
    blocks += _stills(shown) or [
        Absent("Traversals and maps", "no subject was written for the report", run.commands.infer)
    ]
    lead = "Decoded images are smoother than real ones; their sizes and intensities count."
    return Section("images", "Images", blocks, lead)


def _stills(shown: list[Shown]) -> list[Picture]:
    """Return the pictures of the subjects, traversals first."""
    kinds = {
        "traversals": "Other values of each attribute, asked of the decoder; numbers in the "
        "attributes' own units",
        "maps": "Where each attribute is read: planes through each map's peak, scale from 0 to the "
        "peak in standard deviations of the axis",
    }
    return [
        Picture(
            png, f"{kind} of subject {s.id}", f"{kind.title()} of {s.id}{_why(s)}", caption, True
        )
        for kind, caption in kinds.items()
        for s in shown
        if (png := s.picture(kind)) is not None
    ]


def _why(subject: Shown) -> str:
    return f" ({subject.why})" if subject.why else ""


def viewer_section(run: Run) -> Section | None:
    """Volumes in 3D with maps and other values."""
    shown = found_subjects(run)
    if not shown and run.other_system:
        return None
    if not shown:
        why = "no subject was written for the report"
        return Section(
            "viewer", "3D viewer", [Absent("The viewer", why, f"{run.commands.infer}\n{REBUILD}")]
        )
    lead = (
        "Left: the image, with where the attribute is read on it. Right: what the decoder draws at "
        "another value of the attribute, with what changes on it. The crosshairs are linked."
    )
    if run.other_system:
        lead = (
            "Left: the image, with a map on it where one was written. Right: what the network "
            "draws instead, with what changes on it. The crosshairs are linked."
        )
    return Section("viewer", "3D viewer", [Viewer(packed_subjects(run, shown))], lead)


def manipulation_section(run: Run) -> Section | None:
    """Whether what is asked for is what is drawn."""
    result = run.manipulation
    title = "Manipulation"
    if result is None:
        if not (run.metrics or {}).get("prediction_r2"):
            return None
        why = "manipulation.yaml has not been run; it needs masks"
        return Section(
            "manipulation", title, [Absent("Re-measured changes", why, run.commands.manipulate)]
        )
    rows = [
        [
            label_of(name),
            in_words(entry["control"]),
            in_words(entry["span"]),
            *(_two(entry.get(key)) for key in ("side_effect", "predicted", "outside")),
            *(_two(entry.get(key)) for key in ("outside_chance", "return_error")),
        ]
        for name, entry in result["attributes"].items()
    ]
    header = ["attribute", "control (chance 0)", "span", "side effect", "by natural correlation"]
    header += ["outside", "outside, even change", "return error"]
    blocks: list[Block] = [Table(header, rows, "Asked for, decoded and measured again")]
    for name, alt in (
        ("sweeps.png", "Asked against re-measured values, a line for each subject"),
        ("traversals.png", "One subject decoded at several values of each attribute"),
    ):
        png = run.picture(name)
        if png:
            blocks.append(Picture(png, alt, alt))
    return Section(
        "manipulation",
        title,
        blocks,
        "Control: Spearman's correlation of asked and measured. Span: share of the real range that "
        "the sweep covers. Side effect: mean absolute change of the other attributes, as a share "
        "of their real ranges. Outside: share of the change away from the structure.",
    )


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _missing(run: Run, sections: list[Section]) -> Section:
    """What failed or was skipped, and why; built last, when all files have been read."""
    metrics = run.metrics or {}
    excluded = metrics.get("disentanglement", {}).get("excluded", {})
    rows = [[label_of(name), f"not scored: {why}"] for name, why in excluded.items()]
    rows += [[what, why] for what, why in run.examples.get("skipped", {}).items()]
    rows += [["file", problem] for problem in run.problems]
    reason = (metrics.get("classification") or {}).get("reason")
    rows += [["class", reason]] if reason else []
    unmeasured = (run.manipulation or {}).get("not_measurable", [])
    rows += [[label_of(n), "not measurable on a decoded image"] for n in unmeasured]
    rows += [["3D viewer", "shown coarser than written"]] if _coarser(sections) else []
    rows += [["training", f"not finished: {run.unfinished}"]] if run.unfinished else []
    blocks: list[Block] = [Table(["what", "why"], rows, numbers=False)] if rows else []
    blocks += [b for s in sections for b in s.blocks if b.kind == "absent"]
    return Section(
        "missing",
        "Failed or skipped",
        blocks or [Note("Nothing failed and nothing was skipped.")],
        "RUN_DIR stands for the run's folder. Each command ends by writing this page again, or is "
        f"followed by: {REBUILD}",
    )


def _coarser(sections: list[Section]) -> bool:
    viewers = [b for s in sections for b in s.blocks if isinstance(b, Viewer)]
    return any(s["coarser"] > 1 for viewer in viewers for s in viewer.data["subjects"])


SECTIONS: tuple[Builder, ...] = (
    summary_section,
    metrics_section,
    codes_section,
    leakage_section,
    swaps_section,
    effects_section,
    styles_section,
    images_section,
    viewer_section,
    manipulation_section,
    pictures_section,
    training_section,
    run_section,
)
