"""What a client is told: a status and one sentence, whatever it sent."""

from __future__ import annotations

import atexit
import json
import shutil
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelException,
)
from monailabel.utils.sessions import Sessions

from medvae.data.errors import CohortError
from medvae.label.studies import NotThereError

__all__ = ["PrivateSessions", "guard_server", "private_folder", "refused"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@contextmanager
def refused() -> Iterator[None]:
    """Turn what is wrong with a request into its status: 404 for what is not there, else 400."""
    try:
        yield
    except (ImageNotFoundException, LabelNotFoundException) as error:
        raise HTTPException(404, error.msg) from error
    except NotThereError as error:
        raise HTTPException(404, str(error)) from error
    except CohortError as error:
        raise HTTPException(400, str(error)) from error


def private_folder() -> Path:
    """Send all temporary files of this process to one new folder, which ends with it.

    MONAI Label writes uploads there and opens any path that a client names: within this folder a
    client cannot name more than such files.
    """
    folder = Path(tempfile.mkdtemp(prefix="medvae-label-")).resolve()
    tempfile.tempdir = str(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class PrivateSessions(Sessions):
    """Images that a client uploads for some time, within a private folder."""

    def get_session(self, session_id: str, *args: Any, **kwargs: Any) -> Any:
        """Return a session; None for an id that is no name of a folder."""
        plain = session_id.replace("-", "").isalnum()
        return super().get_session(session_id, *args, **kwargs) if plain else None

    def remove_session(self, session_id: str) -> None:
        """Remove a session that is there."""
        if session_id.replace("-", "").isalnum():
            super().remove_session(session_id)

    def add_session(self, data_file: str, *args: Any, **kwargs: Any) -> Any:
        """Keep an upload; of archives, only ZIP is unpacked, as tar files may leave their folder.

        Raises:
            HTTPException: another archive.
        """
        uncompress = kwargs.get("uncompress", args[1] if len(args) > 1 else False)
        if uncompress and not zipfile.is_zipfile(data_file):
            raise HTTPException(400, "The upload is no ZIP archive; expected one, to be unpacked.")
        return super().add_session(data_file, *args, **kwargs)


def guard_server(max_upload_mb: float) -> None:
    """Give the running server its answers to errors and a bound on uploads.

    MONAI Label has no hook for either, and answers to all errors with 500 and no word. Does
    nothing in its worker processes, which serve nobody.

    Args:
        max_upload_mb: the longest body of a request, in millions of bytes.
    """
    module = sys.modules.get("monailabel.app")
    app: FastAPI | None = getattr(module, "app", None)
    if app is None:
        return
    app.middleware_stack = None  # is built again with these, at the next request
    app.add_middleware(UploadLimit, longest=int(max_upload_mb * 1e6))
    app.add_exception_handler(CohortError, _told(400))
    app.add_exception_handler(NotThereError, _told(404))
    app.add_exception_handler(MONAILabelException, _told(400))
    app.add_exception_handler(ImageNotFoundException, _told(404))
    app.add_exception_handler(LabelNotFoundException, _told(404))
    app.add_exception_handler(json.JSONDecodeError, _told(400, "The parameters are not JSON: "))
    app.add_exception_handler(AssertionError, _told(400))
    app.add_exception_handler(TypeError, _unusable)
    app.add_exception_handler(ValueError, _unusable)


def _told(status: int, start: str = "") -> Callable[[Request, Exception], JSONResponse]:
    def handler(_: Request, error: Exception) -> JSONResponse:
        sentence = getattr(error, "msg", None) or (error.args[0] if error.args else error)
        return JSONResponse({"detail": f"{start}{sentence}"}, status)

    return handler


def _unusable(_: Request, error: Exception) -> JSONResponse:
    """Answer for parameters of another kind than MONAI Label's own endpoints take for granted.

    Raises:
        Exception: the error, where something else failed: it is ours.
    """
    places = list(traceback.walk_tb(error.__traceback__))
    if "monailabel.endpoints" not in places[-1][0].f_globals.get("__name__", ""):
        raise error
    return JSONResponse({"detail": f"The parameters cannot be used: {error}"}, 400)


class UploadLimit:
    """Refuse requests whose body is too long, or whose length is not said."""

    def __init__(self, app: Callable[..., Awaitable[None]], longest: int) -> None:
        self.app = app
        self.longest = longest

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass what is short enough."""
        headers = dict(scope.get("headers", ()))
        said = headers.get(b"content-length", b"0")
        refusal = None
        if b"transfer-encoding" in headers:
            refusal = JSONResponse({"detail": "The body's length is not said."}, 411)
        elif not said.isdigit() or int(said) > self.longest:
            sentence = (
                f"The body has {said.decode('latin1')} bytes; expected {self.longest} at most."
            )
            refusal = JSONResponse({"detail": sentence}, 413)
        await (refusal or self.app)(scope, receive, send)
