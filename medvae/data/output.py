"""Where results go: whether they may be written, and writing a file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from medvae.data.errors import CohortError, listing

__all__ = [
    "check_overwrite",
    "check_results",
    "check_writable",
    "explained",
    "file_stem",
    "replacing",
    "write_bytes",
    "write_text",
]


def check_writable(folder: str | Path) -> None:
    """Refuse a folder that nothing can be written to; it need not exist and is not made.

    Raises:
        CohortError: the folder, or the nearest one above that exists, is read-only or no folder.
    """
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise CohortError(
            f"The output folder '{folder}' cannot be made, as '{existing}' is a file; "
            "expected a folder."
        )
    try:
        with tempfile.TemporaryDirectory(dir=existing):  # permission bits do not tell for root
            pass
    except OSError as error:
        raise CohortError(
            f"The output folder '{folder}' cannot be written to ({error.strerror} in "
            f"'{existing}'); expected a folder with permission to write."
        ) from error


def check_overwrite(paths: Sequence[str | Path], overwrite: bool = False) -> None:
    """Refuse to replace results that are already there, unless asked to.

    Raises:
        CohortError: one of ``paths`` exists and ``overwrite`` is false.
    """
    existing = [path for path in paths if Path(path).exists()]
    if existing and not overwrite:
        raise CohortError(
            f"The results {listing(existing)} are already there; "
            "expected another output folder, or the option overwrite."
        )


def file_stem(subject: str) -> str:
    """Return how the names of a subject's files begin: its id, where a slash makes no folder."""
    return str(subject).replace("/", "_")


def check_results(
    output_dir: str | Path, table: str, subjects: Iterable[str], overwrite: bool = False
) -> None:
    """Refuse to replace what an inference has written: its table or a subject's folder.

    Raises:
        CohortError: one of them exists and ``overwrite`` is false.
    """
    folders = [Path(output_dir) / file_stem(subject) for subject in subjects]
    check_overwrite([Path(output_dir) / table, *folders], overwrite)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to that becomes ``path`` at the end: the whole new file or the old one.

    Its name begins with a dot and ends like that of ``path``, since endings say the format. What
    a kill leaves there is written over the next time.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".partial_{target.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # before the name: a power cut must not leave an empty file
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Say in a sentence that a file cannot be written.

    Raises:
        CohortError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise CohortError(
            f"The file '{path}' cannot be written ({error.strerror}); "
            "expected a folder with space and permission to write."
        ) from error


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file so that an interruption leaves the old one, or none, but never half of it.

    Raises:
        CohortError: there is no space, or no permission.
    """
    with explained(path), replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8, as it is, by :func:`write_bytes`."""
    check_writable(Path(path).parent)
    write_bytes(path, text.encode())
