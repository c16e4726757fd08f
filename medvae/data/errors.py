"""What a user is told about bad input: one sentence, whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import TypeVar

__all__ = ["CohortError", "FileError", "configured", "first_of_a_kind", "or_exit", "suggestion"]

LISTED = 5

Result = TypeVar("Result")


class CohortError(ValueError):
    """A cohort, or the folder its results go to, cannot be used; the message is one sentence."""


class FileError(CohortError):
    """One file of one subject cannot be used.

    Args:
        kind: what is wrong, equal for all files with the same problem.
        role: ``"image"`` or ``"mask"``.
        path: the file.
        found: what it holds, a clause that follows the file's name.
        expected: what it should hold.
    """

    def __init__(self, kind: str, role: str, path: object, found: str, expected: str) -> None:
        self.kind = kind
        self.subject = ""
        super().__init__(f"The {role} '{path}' {found}; expected {expected}.")


def first_of_a_kind(problems: Sequence[FileError], stopped: bool = False) -> CohortError:
    """The first problem as one sentence that also names the subjects it recurs in.

    Args:
        problems: at least one, each with its ``subject`` (the row's id) filled in.
        stopped: whether subjects were left that have not been looked at.
    """
    first = problems[0]
    alike = [problem.subject for problem in problems[1:] if problem.kind == first.kind]
    others = len(problems) - 1 - len(alike)
    notes = []
    if alike:
        notes.append(f"the same in {listing(alike)}")
    if others:
        notes.append(f"{others} more with other problems")
    if stopped:
        notes.append(f"reading stopped at {len(problems)}")
    sentence = str(first).rstrip(".")
    return CohortError(f"{sentence} ({'; '.join(notes)})." if notes else f"{sentence}.")


def listing(values: Iterable[object]) -> str:
    """Up to five values in quotes and how many more there are."""
    names = [f"'{value}'" for value in values]
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


def suggestion(name: str, known: Iterable[str]) -> str:
    """What to say after an unknown name: the names that look like it, else the known ones."""
    names = list(dict.fromkeys(known))
    near = get_close_matches(name, names, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {listing(names)}."


def or_exit(function: Callable[..., Result], *args: object, **kwargs: object) -> Result:
    """Call ``function``; bad input ends the program with its sentence alone and exit code 1.

    So does bad input that MONAI's transforms report as the cause of an error of their own.

    For a bundle's configuration, where an exception would arrive wrapped in the traceback of
    every expression that led to it: MONAI catches ``Exception``, which ``SystemExit`` is not.
    Python code calls ``function`` itself and catches :class:`CohortError`.

    Raises:
        SystemExit: in place of a :class:`CohortError`.
    """
    try:
        return function(*args, **kwargs)
    except Exception as error:
        cause = cause_of(error)
        if cause is None:
            raise
        raise SystemExit(f"Error: {cause}") from None


def cause_of(error: BaseException) -> CohortError | None:
    """Return the first CohortError of an error and its causes; None where bad input has no part."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, CohortError):
        cause = cause.__cause__
    return cause


def configured(component: Callable[..., Result], **kwargs: object) -> Result:
    """Make a configuration's component; arguments that it refuses end the program in a sentence.

    Only for constructors that check their arguments and do nothing else: a ``ValueError`` that
    comes up later is not the user's.

    Raises:
        SystemExit: in place of a ``ValueError``.
    """
    try:
        return component(**kwargs)
    except ValueError as error:
        raise SystemExit(f"Error: {error}") from None
