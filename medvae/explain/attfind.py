"""AttFind: which single style coordinates move a classifier's decision (Lang et al. 2021)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from medvae.explain.maps import evaluating
from medvae.explain.style_effects import LEAST_GAIN, Array, StyleEffects, moved
from medvae.explain.style_store import EffectStore

__all__ = ["Screening", "StyleSpace", "attfind", "screened_attfind", "style_range"]

Classifier = Callable[[Tensor], Tensor]
TOP = 10  # coordinates of a class whose misses are counted


class StyleSpace(Protocol):
    """A generator whose style coordinates can be set, such as `medvae.networks.StyleGenerator`.

    It may have a method `sweep(styles)` that gives an object like `medvae.networks.StyleSweep`;
    every edit is otherwise a synthesis of its own.
    """

    @property
    def style_sizes(self) -> Sequence[int]:
        """Numbers of coordinates of each layer that are searched; others follow in `styles`."""

    def synthesis_from_styles(self, styles: Tensor) -> Tensor:
        """Return images (B, C, *S) for styles (B, S)."""


class Screening(NamedTuple):
    """What leaving coordinates out cost, measured on images that were searched in full.

    Attributes:
        kept: coordinates that were evaluated on all images.
        searched: of how many.
        missed: share of the top 10 coordinates that were left out, mean over heads and classes;
            about 1 - kept / searched for a screening that knows nothing. None without audit.
        audited: images it was measured on.
    """

    kept: int
    searched: int
    missed: float | None
    audited: int


class _Search(NamedTuple):
    generator: Any
    classifier: Classifier
    heads: Mapping[str, int]
    low: Array
    high: Array
    shift: float
    batch_size: int


def attfind(
    generator: StyleSpace,
    classifier: Classifier,
    styles: Tensor,
    heads: Mapping[str, int],
    quantiles: tuple[float, float] = (0.0, 1.0),
    shift: float = 1.0,
    batch_size: int = 8,
    coordinates: npt.ArrayLike | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> StyleEffects:
    """Move every style coordinate of every image down and up, and record what is then classified.

    Nothing is trained or edited in place: weights and buffers are read alone. Coordinates that are
    the same in all images are left out. Two calls give the same bits.

    Args:
        generator: see `StyleSpace`; run in evaluation mode, its own mode is restored.
        classifier: the generator's images (B, C, *S) to logits (B, O), see
            `medvae.networks.FrozenClassifier`; deterministic.
        styles: of N images, shape (N, S').
        heads: outputs of every head of the classifier, O together; 1 is a binary head.
        quantiles: of the images, which a coordinate is moved to; (0, 1) is their range, which one
            outlier may set.
        shift: share of the way that is gone; beyond 1 leaves the range.
        batch_size: images that are made at a time. Small batches stay in a CPU's cache;
            a GPU wants hundreds.
        coordinates: numbers of those to search; None: all.
        folder: where the logits of every image go as soon as they are known: started again with
            the same arguments, the search goes on. None: nowhere.
        progress: show a bar.

    Raises:
        CohortError: the folder holds another search.
        ValueError: logits that are not finite or do not fit the heads, or arguments out of range.
    """
    low, high = style_range(styles[:, : sum(generator.style_sizes)], quantiles)
    search = _Search(generator, classifier, heads, low, high, shift, batch_size)
    return _attfind(search, styles, coordinates, folder, progress)


def screened_attfind(
    generator: StyleSpace,
    classifier: Classifier,
    styles: Tensor,
    heads: Mapping[str, int],
    keep: float = 0.1,
    audit: int = 2,
    folder: str | Path | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[StyleEffects, Screening]:
    """Run `attfind` on the coordinates alone that a gradient says may matter, and count its misses.

    The gradient of a class's log odds in a coordinate, times the way to its ends, is what the
    coordinate would do if the classifier were linear. A coordinate's rank is the best mean of what
    it would add over the images that are not of a class, over classes and heads.

    Args:
        generator: see `attfind`.
        classifier: see `attfind`; differentiable.
        styles: see `attfind`.
        heads: see `attfind`.
        keep: share of the coordinates to evaluate, in (0, 1].
        audit: images that are searched in full, to see what was missed; 0: none.
        folder: see `attfind`.
        seed: which images those are.
        **options: further arguments of `attfind`.

    Raises:
        CohortError: see `attfind`.
        ValueError: see `attfind`, and for shares out of range.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], found {keep}")
    quantiles = options.pop("quantiles", (0.0, 1.0))
    shift, batch = options.pop("shift", 1.0), options.pop("batch_size", 8)
    progress = options.pop("progress", True)
    low, high = style_range(styles[:, : sum(generator.style_sizes)], quantiles)
    search = _Search(generator, classifier, heads, low, high, shift, batch)
    rank = _screen(search, styles)
    count = max(1, int(np.ceil(keep * len(rank))))
    chosen = np.sort(np.argsort(-rank, kind="stable")[:count])
    effects = _attfind(search, styles, chosen, _within(folder, "screened"), progress)
    audit = min(audit, len(styles))
    if audit == 0:
        return effects, Screening(count, len(rank), None, 0)
    rows = np.sort(np.random.default_rng(seed).permutation(len(styles))[:audit])
    full = _attfind(search, styles[rows], None, _within(folder, "audit"), progress)
    return effects, Screening(count, len(rank), _missed(full, chosen), audit)


def style_range(styles: Tensor, quantiles: tuple[float, float] = (0.0, 1.0)) -> tuple[Array, Array]:
    """Return the quantiles (S,) of styles (N, S) over the images.

    Raises:
        ValueError: quantiles that do not rise in [0, 1], or styles that are not finite.
    """
    if not 0 <= quantiles[0] < quantiles[1] <= 1:
        raise ValueError(f"quantiles must rise within [0, 1], found {quantiles}")
    values = styles.detach().float().cpu().numpy()
    if not np.isfinite(values).all():
        raise ValueError("styles have entries that are not finite, expected numbers")
    low, high = np.quantile(values, quantiles, axis=0).astype(np.float32)
    return low, high


def _attfind(
    search: _Search,
    styles: Tensor,
    coordinates: npt.ArrayLike | None,
    folder: str | Path | None,
    progress: bool,
) -> StyleEffects:
    styles = styles.detach()
    searched = sum(search.generator.style_sizes)
    values = styles[:, :searched].float().cpu().numpy()
    wanted = np.zeros(searched, dtype=bool)
    wanted[np.arange(searched) if coordinates is None else np.asarray(coordinates)] = True
    wanted &= search.high > search.low
    store = (
        None if folder is None else EffectStore(Path(folder), _fingerprint(search, styles, wanted))
    )
    outputs = sum(search.heads.values())
    base = np.empty((len(styles), outputs), dtype=np.float32)
    edited = np.empty((len(styles), 2, searched, outputs), dtype=np.float32)
    module = isinstance(search.generator, nn.Module)
    with evaluating(search.generator) if module else nullcontext(), torch.no_grad():
        rows = tqdm(range(len(styles)), desc="AttFind", unit="image", disable=not progress)
        for n in rows:
            found = None if store is None else store.read(n)
            if found is None:
                found = _one_image(search, styles[n], values[n], np.flatnonzero(wanted))
                if store is not None:
                    store.write(n, found)
            base[n], edited[n] = found[0, 0], found[1:]
    return StyleEffects(
        values, search.low, search.high, base, edited, dict(search.heads), wanted, search.shift
    )


def _one_image(
    search: _Search, styles: Tensor, values: Array, wanted: npt.NDArray[np.intp]
) -> Array:
    """Return logits (3, S, O): of the unchanged image, repeated, and of both directions."""
    sweep = _sweep(search.generator, styles)
    base = _logits(search, sweep.image)[0]
    found = np.broadcast_to(base, (3, len(values), len(base))).copy()
    ends = np.stack([moved(values, e, search.shift) for e in (search.low, search.high)], 1)
    for part in _batches(search, wanted):
        chosen = torch.as_tensor(part, device=styles.device)
        targets = torch.as_tensor(ends[part], device=styles.device, dtype=styles.dtype)
        images = sweep.edited(chosen, targets)
        logits = _logits(search, images.flatten(0, 1)).reshape(len(part), 2, -1)
        # an edit that changes nothing has no effect, not the rounding of another path
        still = (ends[part] == values[part, None])[..., None]
        found[1:, part] = np.where(still, base, logits).swapaxes(0, 1)
    return found


def _batches(search: _Search, wanted: npt.NDArray[np.intp]) -> Iterator[npt.NDArray[np.intp]]:
    """Yield coordinates, two images each, never of two layers."""
    step = max(1, search.batch_size // 2)
    ends = list(accumulate(search.generator.style_sizes))
    for first, last in zip([0, *ends], ends, strict=False):
        layer = wanted[(wanted >= first) & (wanted < last)]
        for start in range(0, len(layer), step):
            yield layer[start : start + step]


def _logits(search: _Search, images: Tensor) -> Array:
    logits = search.classifier(images)
    outputs = sum(search.heads.values())
    if tuple(logits.shape) != (len(images), outputs):
        raise ValueError(
            f"the classifier gives {tuple(logits.shape)} for {len(images)} images, expected "
            f"{(len(images), outputs)} for the heads {dict(search.heads)}"
        )
    values = logits.detach().float().cpu().numpy()
    if not np.isfinite(values).all():
        raise ValueError(
            "the classifier's logits of a generated image are not finite, expected numbers; look "
            "at the classifier and at what it was trained on"
        )
    return values


class _PlainSweep:
    """Every edit by a synthesis of its own, for generators that know nothing better."""

    def __init__(self, generator: StyleSpace, styles: Tensor) -> None:
        self.generator, self.styles = generator, styles
        self.image = generator.synthesis_from_styles(styles[None])

    def edited(self, coordinates: Tensor, values: Tensor) -> Tensor:
        count, tries = values.shape
        styles = self.styles.repeat(count, tries, 1)
        styles[torch.arange(count), :, coordinates] = values
        images = self.generator.synthesis_from_styles(styles.flatten(0, 1))
        return images.unflatten(0, (count, tries))


def _sweep(generator: Any, styles: Tensor) -> Any:
    own = getattr(generator, "sweep", None)
    return _PlainSweep(generator, styles) if own is None else own(styles)


def _screen(search: _Search, styles: Tensor) -> npt.NDArray[np.float64]:
    """Return the rank (S,) of every coordinate by first derivatives."""
    totals: dict[tuple[str, int], npt.NDArray[np.float64]] = {}
    counts: dict[tuple[str, int], int] = {}
    module = isinstance(search.generator, nn.Module)
    with evaluating(search.generator) if module else nullcontext(), torch.enable_grad():
        for part in styles.detach().split(max(1, search.batch_size)):
            part = part.clone().requires_grad_()
            logits = search.classifier(search.generator.synthesis_from_styles(part))
            searched = part.detach()[:, : len(search.low)].float().cpu().numpy()
            ways = np.stack(
                [moved(searched, end, search.shift) - searched for end in (search.low, search.high)]
            )
            for key, odds, others in _class_odds(logits, search.heads):
                (slope,) = torch.autograd.grad(odds.sum(), part, retain_graph=True)
                slopes = slope[:, : len(search.low)].float().cpu().numpy()
                gains = np.maximum(ways * slopes, 0).astype(np.float64)[:, others]
                totals[key] = totals.get(key, 0) + gains.sum(1)
                counts[key] = counts.get(key, 0) + int(others.sum())
    means = [totals[key] / counts[key] for key in totals if counts[key]]
    rank: npt.NDArray[np.float64] = np.max([mean.max(0) for mean in means], axis=0)
    return rank


def _class_odds(
    logits: Tensor, heads: Mapping[str, int]
) -> Iterator[tuple[tuple[str, int], Tensor, npt.NDArray[np.bool_]]]:
    """Yield of every class its key, its log odds (B,) and which images are not of it."""
    for name, part in zip(heads, logits.split(list(heads.values()), 1), strict=True):
        if part.shape[1] == 1:
            part = torch.cat([-part / 2, part / 2], 1)
        found = part.argmax(1).cpu().numpy()
        for k in range(part.shape[1]):
            rest = torch.cat([part[:, :k], part[:, k + 1 :]], 1)
            yield (name, k), part[:, k] - rest.logsumexp(1), found != k


def _missed(full: StyleEffects, chosen: npt.NDArray[np.intp]) -> float | None:
    shares = []
    for name in full.heads:
        change, found = full.change(name), full.predicted(name)
        for k in range(change.shape[-1]):
            if not (found != k).any():
                continue
            best = np.maximum(change[found != k, ..., k], 0).mean(0).max(0)
            top = np.argsort(-best, kind="stable")[:TOP]
            top = top[best[top] > LEAST_GAIN]
            if len(top):
                shares.append(1 - np.isin(top, chosen).mean())
    return float(np.mean(shares)) if shares else None


def _within(folder: str | Path | None, name: str) -> Path | None:
    return None if folder is None else Path(folder) / name


def _fingerprint(search: _Search, styles: Tensor, wanted: npt.NDArray[np.bool_]) -> str:
    """Return a hash of all that the effects depend on."""
    digest = hashlib.sha256()
    for array in (styles.float().cpu().numpy(), search.low, search.high, wanted):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(json.dumps([dict(search.heads), search.shift]).encode())
    for network in (search.generator, search.classifier):
        if isinstance(network, nn.Module):
            for name, value in network.state_dict().items():
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
