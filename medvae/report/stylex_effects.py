"""What single edits, and several together, do to images, classifier and covariates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from medvae.engines import image_features, train_classifier
from medvae.explain import Edit, StyleEffects, apply_edits, class_gains, explain_image
from medvae.metrics import degraded, mean_with_interval, realism_report, roc_auc
from medvae.networks.stylex import shown
from medvae.report.stylex import patients_of
from medvae.report.stylex_images import Encoded, encode_images, in_batches

if TYPE_CHECKING:
    from medvae.report.stylex_search import StylexSearch

__all__ = ["Judge", "edit_report", "flip_report"]

Array = npt.NDArray[np.float64]
TOGETHER = (1, 3, 5, 10)
RANDOM = 20  # edits of random coordinates, for chance
COMPARED = 48  # images that random edits are made of
BINS = 5  # classes that numbers become for the judge
CHANGED = 0.02  # of the range of intensities: a voxel that changed
NEIGHBOURS = 3
PER_IMAGE = 20


class Judge:
    """A classifier of the covariates that shares nothing with the one that is explained.

    It reads what an edit did to an image in units of the standard deviation over unedited images,
    and knows how much edits of random coordinates do. Numbers are read as quantile classes.

    Args:
        run: the search.
        tested: subjects that edits are judged on.

    Attributes:
        quality: area under the curve of every covariate on the test subjects.
    """

    def __init__(self, run: StylexSearch, tested: Encoded) -> None:
        self.run, self.tested = run, tested
        self.network: Any = None
        self.quality: dict[str, float | None] = {}
        labels = _classes(run)
        if labels:
            train = encode_images(
                run.network, run.classifier, run.train, run.prepare_batch, run.device
            )
            # reconstructions, too: else the judge knows real images alone, and guesses of others
            self.network = train_classifier(
                [train.images, train.again],
                {name: torch.tensor(_rows(column, train.ids)) for name, column in labels.items()},
                steps=run.judge_steps,
                seed=run.seed,
                device=run.device,
            )
            with torch.no_grad():
                found = self._probabilities(tested.images)
            for name, column in labels.items():
                value = roc_auc(found[name], _rows(column, tested.ids))
                self.quality[name] = None if np.isnan(value) else value
        self.before = self.read(tested.again)
        self.chance: dict[str, float] = {}

    def read(self, images: Tensor) -> dict[str, Array]:
        """Return what is read in images (N, C, *S): the expected class (N,), or (N, K) shares."""
        if self.network is None:
            return {}
        found = self._probabilities(images)
        return {name: _expected(shares, self.ordered[name]) for name, shares in found.items()}

    @property
    def ordered(self) -> dict[str, bool]:
        """Whether the classes of a covariate have an order."""
        table = self.run.factors.cohort.subjects
        return {
            name: pd.api.types.is_numeric_dtype(table[name]) or table[name].nunique() == 2
            for name in self.network.classes
        }

    def moves(self, images: Tensor, rows: npt.NDArray[np.intp]) -> dict[str, Array]:
        """Return by covariate how far edited images of some rows moved, in SD, (N',)."""
        found = {}
        for name, after in self.read(images).items():
            before = self.before[name]
            spread = np.maximum(before.std(0), 1e-6)
            change = (after - before[rows]) / spread
            if change.ndim == 2:  # the class that moved most
                change = change[:, np.abs(change.mean(0)).argmax()]
            found[name] = change
        return found

    def _probabilities(self, images: Tensor) -> dict[str, npt.NDArray[np.float32]]:
        device = self.run.device
        names = list(self.network.classes)
        sizes = list(self.network.classes.values())

        def shares(part: Tensor) -> Tensor:
            found = self.network(part.to(device))
            return torch.cat([found[name].softmax(1) for name in names], 1)

        parts = in_batches(shares, images).split(sizes, 1)
        return {name: part.numpy() for name, part in zip(names, parts, strict=True)}


def edit_report(
    run: StylexSearch,
    effects: StyleEffects,
    tested: Encoded,
    judge: Judge,
    edit: Edit,
    target: int,
) -> dict[str, Any]:
    """Report what one attribute is and what its edit does to the tested images."""
    if not judge.chance:
        judge.chance = _random_moves(run, effects, tested, judge)
    patients = patients_of(run.factors, tested.ids)
    images = run.images_of(apply_edits(effects, tested.styles, [edit]))
    logits = run.logits_of(images)
    every = np.arange(len(tested.ids))
    moves = {
        name: mean_with_interval(change, patients, run.n_resamples)
        | {"chance": judge.chance.get(name)}
        for name, change in judge.moves(images, every).items()
    }
    for entry in moves.values():
        entry["beyond_random"] = _beyond(entry, entry["chance"])
    difference = (images - tested.again).abs().flatten(1)
    ends = np.cumsum(run.network.generator.style_sizes)
    layer = int(np.searchsorted(ends, edit.coordinate, side="right"))
    return {
        "coordinate": edit.coordinate,
        "layer": layer,
        "direction": ("down", "up")[edit.direction],
        "target": target,
        "score": edit.score,
        "n_images": edit.images,
        "shift": effects.shift,
        "min": float(effects.low[edit.coordinate]),
        "max": float(effects.high[edit.coordinate]),
        "heads": {
            name: _head(run, effects, tested, logits, name, target, patients, judge)
            for name in run.network.heads
        },
        "moves": moves,
        "change": {
            "l1": float(difference.mean()),
            "changed_share": float((difference > CHANGED).float().mean()),
        },
    }


def flip_report(
    run: StylexSearch,
    effects: StyleEffects,
    found: Encoded,
    tested: Encoded,
    judge: Judge,
    lists: Mapping[int, list[Edit]],
) -> dict[str, Any]:
    """Report what the first edits flip together, beside random coordinates and a direction of w."""
    patients = patients_of(run.factors, tested.ids)
    report: dict[str, Any] = {"images": len(tested.ids), "top": {}}
    largest = None
    for count in TOGETHER:
        if count > 1 and count > max(map(len, lists.values())) and largest is not None:
            break
        first = {target: edits[:count] for target, edits in lists.items()}
        flips, rows, images = _flipped(run, effects, tested, first)
        if len(rows) == 0:
            break
        largest = (rows, images)
        draws = []
        generator = np.random.default_rng(run.seed)
        for _ in range(5):
            drawn = {target: _random(effects, generator, count) for target in lists}
            draws.append(_flipped(run, effects, tested, drawn)[0].mean())
        report["top"][str(count)] = {
            "flip_rate": mean_with_interval(flips, patients[rows], run.n_resamples),
            "random": {"value": float(np.mean(draws)), "sd": float(np.std(draws, ddof=1))},
        }
    flips, rows, _ = _flipped_by_direction(run, effects, found, tested, list(lists))
    report["latent_direction"] = mean_with_interval(flips, patients[rows], run.n_resamples)
    report["coverage"] = _coverage(run, effects, lists)
    report["per_image"] = _per_image(run, effects, found)
    if largest is not None:
        rows, images = largest
        report["together"] = _quality(run, tested, judge, rows, images)
    return report


def _head(
    run: StylexSearch,
    effects: StyleEffects,
    tested: Encoded,
    logits: npt.NDArray[np.float32],
    name: str,
    target: int,
    patients: npt.NDArray[np.object_],
    judge: Judge,
) -> dict[str, Any]:
    before, after = effects.head(tested.logits_again, name), effects.head(logits, name)
    task = name == run.task
    change = after - before
    which = target if task else int(np.abs(change.mean(0)).argmax())
    rows = before.argmax(1) != which if task else np.ones(len(before), dtype=bool)
    if not rows.any():
        rows[:] = True
    shares = [0.5 * (1 + np.tanh(odds[rows, which] / 2)) for odds in (before, after)]
    spread = max(float(before[:, which].std()), 1e-6)
    means = {
        "probability_change": shares[1] - shares[0],
        "log_odds_change": change[rows, which],
        "shift_sd": change[rows, which] / spread,
        "flip_rate": (after.argmax(1) != before.argmax(1))[rows],
    }
    found: dict[str, Any] = {
        key: mean_with_interval(values, patients[rows], run.n_resamples)
        for key, values in means.items()
    }
    chance = judge.chance.get(f"head {name}")
    beyond = _beyond(found["shift_sd"], chance)
    return {"task": task, "class": which, **found, "chance_sd": chance, "beyond_random": beyond}


def _beyond(entry: Mapping[str, Any], chance: float | None) -> bool:
    """Whether a mean is not 0 and larger than what random edits do."""
    value, low, high = entry["value"], entry["low"], entry["high"]
    if value is None or chance is None or low is None:
        return False
    return bool((low > 0 or high < 0) and abs(value) > max(chance, 0.1))


def _random(effects: StyleEffects, generator: np.random.Generator, count: int) -> list[Edit]:
    known = np.flatnonzero(effects.high > effects.low)
    chosen = generator.permutation(known)[:count]
    sides = generator.integers(2, size=len(chosen))
    return [Edit(int(side), int(k), 0.0, 0) for k, side in zip(chosen, sides, strict=True)]


def _random_moves(
    run: StylexSearch, effects: StyleEffects, tested: Encoded, judge: Judge
) -> dict[str, float]:
    """Return the 95th percentile of absolute mean moves by edits of random coordinates."""
    generator = np.random.default_rng(run.seed)
    rows = np.arange(min(COMPARED, len(tested.ids)))
    found: dict[str, list[float]] = {}
    for _ in range(RANDOM):
        edits = _random(effects, generator, 1)
        images = run.images_of(apply_edits(effects, tested.styles[: len(rows)], edits))
        for name, change in judge.moves(images, rows).items():
            found.setdefault(name, []).append(abs(float(change.mean())))
        logits = run.logits_of(images)
        for name in run.network.heads:
            before = effects.head(tested.logits_again, name)
            change = (effects.head(logits, name) - before[rows]) / np.maximum(before.std(0), 1e-6)
            found.setdefault(f"head {name}", []).append(float(np.abs(change.mean(0)).max()))
    return {name: float(np.quantile(values, 0.95)) for name, values in found.items()}


def _flipped(
    run: StylexSearch, effects: StyleEffects, tested: Encoded, lists: Mapping[int, Sequence[Edit]]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.intp], Tensor]:
    """Return which images take the class that edits lead to, their rows and the edited images."""
    base = effects.head(tested.logits_again, run.task).argmax(1)
    flips, rows, images = [], [], []
    for target, edits in lists.items():
        others = np.flatnonzero(base != target)
        if len(others) == 0:
            continue
        own = tested.styles[torch.as_tensor(others, device=tested.styles.device)]
        edited = run.images_of(apply_edits(effects, own, edits))
        flips.append(effects.head(run.logits_of(edited), run.task).argmax(1) == target)
        rows.append(others)
        images.append(edited)
    if not rows:
        return np.zeros(0, bool), np.zeros(0, np.intp), tested.images[:0]
    return np.concatenate(flips), np.concatenate(rows), torch.cat(images)


@torch.no_grad()
def _flipped_by_direction(
    run: StylexSearch,
    effects: StyleEffects,
    found: Encoded,
    tested: Encoded,
    targets: Sequence[int],
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.intp], Tensor]:
    """Move codes along the difference of the classes' mean codes, to its end among the searched."""
    size = run.network.latent_dim
    base = effects.head(tested.logits_again, run.task).argmax(1)
    classes = effects.head(found.logits_again, run.task).argmax(1)
    flips, rows, images = [], [], []
    for target in targets:
        others = np.flatnonzero(base != target)
        of_class = torch.as_tensor(classes == target, device=found.w.device)
        if len(others) == 0 or not of_class.any() or of_class.all():
            continue
        code = found.w[:, :size]
        direction = code[of_class].mean(0) - code[~of_class].mean(0)
        direction = direction / direction.norm().clamp_min(1e-12)
        w = tested.w[torch.as_tensor(others, device=tested.w.device)].clone()
        step = (code @ direction).max() - w[:, :size] @ direction
        w[:, :size] += step[:, None] * direction
        edited = in_batches(lambda part: shown(run.network.generator.synthesis(part)), w)
        flips.append(effects.head(run.logits_of(edited), run.task).argmax(1) == target)
        rows.append(others)
        images.append(edited)
    if not rows:
        return np.zeros(0, bool), np.zeros(0, np.intp), tested.images[:0]
    return np.concatenate(flips), np.concatenate(rows), torch.cat(images)


def _coverage(
    run: StylexSearch, effects: StyleEffects, lists: Mapping[int, Sequence[Edit]]
) -> float | None:
    """Return the share of searched images that the edits explain: enough gain, or a flip alone."""
    explained = []
    flips = effects.flips(run.task)
    for target, edits in lists.items():
        rows = effects.predicted(run.task) != target
        gains = np.maximum(class_gains(effects, run.task, target), 0)
        total = sum((gains[:, e.direction, e.coordinate] for e in edits), np.zeros(len(gains)))
        alone = [flips[rows, e.direction, e.coordinate] for e in edits]
        done = (total >= run.explained_at) | np.any([np.zeros(len(gains), bool), *alone], axis=0)
        explained.append(done)
    every = np.concatenate(explained)
    return float(every.mean()) if len(every) else None


def _per_image(run: StylexSearch, effects: StyleEffects, found: Encoded) -> dict[str, Any]:
    """Report how many images are flipped by edits of their own, alone and as a set."""

    def logits_of(styles: Tensor) -> Tensor:
        return in_batches(
            lambda part: run.drawn(run.network.generator.synthesis_from_styles(part)),
            styles,
            run.batch_size,
        )

    rows = range(min(PER_IMAGE, len(found.ids)))
    entries: list[dict[str, Any]] = []
    for row in rows:
        base = effects.head(effects.base[row], run.task)
        target = int(np.argsort(-base, kind="stable")[1])
        alone, one = explain_image(effects, row, run.task, target)
        together, flipped = explain_image(effects, row, run.task, target, logits_of, found.styles)
        entries.append(
            {
                "id": found.ids[row],
                "from": int(base.argmax()),
                "to": target,
                "independent": [edit._asdict() for edit in alone],
                "flipped_by_one": one,
                "subset": [edit._asdict() for edit in together],
                "flipped_by_subset": flipped,
            }
        )
    return {
        "images": len(entries),
        "flipped_by_one": float(np.mean([e["flipped_by_one"] for e in entries])),
        "flipped_by_subset": float(np.mean([e["flipped_by_subset"] for e in entries])),
        "explanations": entries,
    }


def _quality(
    run: StylexSearch, tested: Encoded, judge: Judge, rows: npt.NDArray[np.intp], images: Tensor
) -> dict[str, Any]:
    """Report how close to their images, and how real, those with all edits are."""
    patients = patients_of(run.factors, tested.ids)[rows]
    difference = (images - tested.again[torch.as_tensor(rows)]).abs().flatten(1)
    report: dict[str, Any] = {
        "l1": mean_with_interval(difference.mean(1).numpy(), patients, run.n_resamples),
        "changed_share": mean_with_interval(
            (difference > CHANGED).float().mean(1).numpy(), patients, run.n_resamples
        ),
        "discriminator": _scores(run, tested, rows, images, patients),
        "moves": {
            name: mean_with_interval(np.abs(change), patients, run.n_resamples)
            for name, change in judge.moves(images, rows).items()
        },
    }
    if judge.network is not None and min(len(tested.images) // 2, len(images)) > NEIGHBOURS:
        real = image_features(judge.network, tested.images)
        worse = image_features(judge.network, degraded(tested.images))
        for name, part in (("edited", images), ("reconstructed", tested.again)):
            report[f"realism_{name}"] = realism_report(
                image_features(judge.network, part),
                real,
                judge.network.name,
                worse,
                NEIGHBOURS,
                seed=run.seed,
            )
    return report


@torch.no_grad()
def _scores(
    run: StylexSearch,
    tested: Encoded,
    rows: npt.NDArray[np.intp],
    images: Tensor,
    patients: npt.NDArray[np.object_],
) -> dict[str, Any]:
    """Report the discriminator's change of mind from the reconstruction to the edited image."""

    def score(part: Tensor) -> Tensor:
        part = part.to(run.device)
        shares = run.network.probabilities(run.classifier(part))
        return run.network.discriminator(2 * part - 1, shares)[:, 0]

    before = in_batches(score, tested.again[torch.as_tensor(rows)])
    return mean_with_interval(
        (in_batches(score, images) - before).numpy(), patients, run.n_resamples
    )


def _classes(run: StylexSearch) -> dict[str, pd.Series]:
    """Return class numbers of all covariates by id, NaN where missing."""
    table = run.factors.cohort.subjects
    table = table.set_index(table["id"].astype(str))
    train = table[table["split"] == "train"]
    found = {}
    for name in run.covariates:
        column, known = table[name], train[name].dropna()
        if pd.api.types.is_numeric_dtype(column) and known.nunique() > BINS:
            limits = np.unique(np.quantile(known, np.arange(1, BINS) / BINS))
            codes = np.where(column.isna(), np.nan, np.digitize(column, limits))
        else:
            numbers = {value: number for number, value in enumerate(sorted(known.unique()))}
            codes = column.map(numbers).to_numpy(dtype=float)
        values = pd.Series(codes, index=table.index)
        if values[train.index].dropna().nunique() > 1:
            found[name] = values
    return found


def _rows(column: pd.Series, ids: Sequence[str]) -> Array:
    values: Array = column.loc[list(ids)].to_numpy(dtype=np.float64)
    return values


def _expected(shares: npt.NDArray[np.float32], ordered: bool) -> Array:
    values = shares.astype(np.float64)
    expected: Array = values @ np.arange(values.shape[1]) if ordered else values
    return expected
