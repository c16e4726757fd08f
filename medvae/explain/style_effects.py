"""What every style coordinate does to every output of a classifier, as one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

__all__ = ["StyleEffects", "class_log_odds"]

Array = npt.NDArray[np.float32]
DIRECTIONS = ("decrease", "increase")
LEAST_GAIN = 1e-3  # in log odds; less is rounding, or of no interest


@dataclass(frozen=True)
class StyleEffects:
    """A classifier's logits of images, and with every coordinate moved down and up, one at a time.

    The base is the generator's image of the unchanged styles, not the real image.

    Attributes:
        styles: the coordinates that were searched, of every image, shape (N, S).
        low: what they were lowered towards, shape (S,).
        high: what they were raised towards, shape (S,).
        base: logits of the unchanged images, heads side by side, shape (N, O).
        edited: logits with one coordinate moved, down and up, shape (N, 2, S, O).
        heads: outputs of every head by its name, O together; 1 is a binary head.
        evaluated: which coordinates were, shape (S,); `edited` is `base` at the others.
        shift: share of the way towards low and high that was gone; beyond 1 leaves the range.
    """

    styles: Array
    low: Array
    high: Array
    base: Array
    edited: Array
    heads: Mapping[str, int]
    evaluated: npt.NDArray[np.bool_]
    shift: float = 1.0

    def head(self, logits: Array, name: str) -> Array:
        """Return one head's log odds (..., K) of logits (..., O); see `class_log_odds`.

        Raises:
            ValueError: there is no such head.
        """
        if name not in self.heads:
            raise ValueError(f"there is no head '{name}', expected one of {list(self.heads)}")
        first = 0
        for head, size in self.heads.items():
            if head == name:
                return class_log_odds(logits[..., first : first + size])
            first += size
        raise AssertionError

    def change(self, name: str) -> Array:
        """Return the changes of the log odds of a head's classes, (N, 2, S, K)."""
        return self.head(self.edited, name) - self.head(self.base, name)[:, None, None]

    def probability_change(self, name: str) -> Array:
        """Return the changes of the probabilities of a head's classes, (N, 2, S, K)."""
        before = _sigmoid(self.head(self.base, name))
        return _sigmoid(self.head(self.edited, name)) - before[:, None, None]

    def predicted(self, name: str) -> npt.NDArray[np.intp]:
        """Return the most probable class of every unchanged image, (N,)."""
        return self.head(self.base, name).argmax(-1)

    def flips(self, name: str) -> npt.NDArray[np.bool_]:
        """Return which single edits change the most probable class, (N, 2, S)."""
        flipped: npt.NDArray[np.bool_] = (
            self.head(self.edited, name).argmax(-1) != self.predicted(name)[:, None, None]
        )
        return flipped

    def rows(self, chosen: npt.ArrayLike) -> StyleEffects:
        """Return the table of some of the images."""
        rows = np.asarray(chosen)
        return replace(
            self, styles=self.styles[rows], base=self.base[rows], edited=self.edited[rows]
        )


def class_log_odds(logits: npt.ArrayLike) -> Array:
    """Return log p / (1 - p) of every class for logits (..., K): (..., K), or (..., 2) for K = 1.

    A head of one logit, one of two and one of probabilities then have effects on one scale, which
    adding a constant to all logits does not change.
    """
    values: npt.NDArray[np.float64] = np.asarray(logits, dtype=np.float64)
    if values.shape[-1] == 1:
        values = np.concatenate([-values, values], -1)
    elif values.shape[-1] == 2:
        values = values - values[..., ::-1]
    else:
        others = [np.delete(values, k, -1) for k in range(values.shape[-1])]
        values = values - np.stack([np.logaddexp.reduce(part, -1) for part in others], -1)
    return values.astype(np.float32)


def moved(start: npt.ArrayLike, end: npt.ArrayLike, shift: float) -> Array:
    """Return where a share of the way from `start` to `end` leads; exact at 0 and at 1."""
    a, b = np.asarray(start, dtype=np.float32), np.asarray(end, dtype=np.float32)
    step = np.float32(shift) * (b - a) if shift < 0.5 else b - np.float32(1 - shift) * (b - a)
    found: Array = (a + step if shift < 0.5 else step).astype(np.float32)
    return found


def _sigmoid(x: Array) -> Array:
    return (0.5 * (1 + np.tanh(x / 2))).astype(np.float32)
