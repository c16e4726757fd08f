"""What a client is told: a status and one sentence, whatever it sent."""

from __future__ import annotations

import json
import logging
import sys
import traceback
import zipfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import requests
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelException,
)
from monailabel.utils.sessions import Sessions
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.middleware import Middleware

from medvae.data.errors import CohortError
from medvae.label.addresses import refusal
from medvae.label.studies import NotThereError

__all__ = ["PrivateSessions", "guard_server", "refused"]

logger = logging.getLogger(__name__)

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


class PrivateSessions(Sessions):
    """Images that a client uploads for some time, within a private folder.

    Args:
        folder: it.
        expiry_s: seconds that an upload is kept.
        longest: bytes that an archive may hold.
    """

    def __init__(self, folder: str, expiry_s: int, longest: int) -> None:
        super().__init__(folder, expiry_s)
        self.longest = longest

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
            HTTPException: another archive, or one that unpacks to more than a body may have.
        """
        uncompress = kwargs.get("uncompress", args[1] if len(args) > 1 else False)
        if uncompress and not zipfile.is_zipfile(data_file):
            raise HTTPException(400, "The upload is no ZIP archive; expected one, to be unpacked.")
        if uncompress:
            with zipfile.ZipFile(data_file) as archive:  # which unpacks no more than is said here
                unpacked = sum(item.file_size for item in archive.infolist())
            if unpacked > self.longest:
                raise HTTPException(
                    413, f"The archive holds {unpacked} bytes; expected {self.longest} at most."
                )
        return super().add_session(data_file, *args, **kwargs)


def guard_server(longest: int, dicomweb: bool) -> None:
    """Give the running server its answers to errors, its addresses and a bound on uploads.

    MONAI Label has no hook for either, and answers to all errors with 500 and no word. Does
    nothing in its worker processes, which serve nobody.

    Args:
        longest: the longest body of a request, in bytes.
        dicomweb: whether the studies are those of a DICOMweb server.
    """
    module = sys.modules.get("monailabel.app")
    app: FastAPI | None = getattr(module, "app", None)
    if app is None:
        return
    app.middleware_stack = None  # is built again with these, at the next request
    # within what answers browsers of other origins, so that these can read why
    app.user_middleware.append(Middleware(Gate, longest=longest, dicomweb=dicomweb))
    app.add_exception_handler(AnyHTTPException, _own)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(CohortError, _told(400))
    app.add_exception_handler(NotThereError, _told(404))
    app.add_exception_handler(MONAILabelException, _told(400))
    app.add_exception_handler(ImageNotFoundException, _told(404))
    app.add_exception_handler(LabelNotFoundException, _told(404))
    app.add_exception_handler(json.JSONDecodeError, _told(400, "The parameters are not JSON: "))
    app.add_exception_handler(AssertionError, _told(400))
    for kind in (TypeError, ValueError, LookupError, AttributeError, RecursionError):
        app.add_exception_handler(kind, _unusable)
    app.add_exception_handler(requests.RequestException, _unreachable)
    app.add_exception_handler(Exception, _failed)


def _told(status: int, start: str = "") -> Callable[[Request, Exception], JSONResponse]:
    def handler(_: Request, error: Exception) -> JSONResponse:
        sentence = getattr(error, "msg", None) or (error.args[0] if error.args else error)
        return JSONResponse({"detail": f"{start}{sentence}"}, status)

    return handler


def _own(_: Request, error: Exception) -> JSONResponse:
    """Answer as MONAI Label does, which says 500 where the client asked for what cannot be."""
    status = getattr(error, "status_code", 500)
    headers = getattr(error, "headers", None)
    detail = {"detail": getattr(error, "detail", "")}
    return JSONResponse(detail, 400 if status == 500 else status, headers)


def _malformed(_: Request, error: Exception) -> JSONResponse:
    """Answer in a sentence for a body or an address of another form than its endpoint has."""
    first = getattr(error, "errors", list)()[0]
    place = " ".join(str(part) for part in first["loc"][:3])
    sentence = f"The request cannot be used: {first['msg']} (in its {place})."
    return JSONResponse({"detail": sentence[:300]}, 400)


def _unusable(request: Request, error: Exception) -> JSONResponse:
    """Answer for parameters of another kind than MONAI Label's own code takes for granted."""
    places = list(traceback.walk_tb(error.__traceback__))
    module = str(places[-1][0].f_globals.get("__name__", ""))
    if not module.startswith(("monailabel.", "json.decoder")):
        return _failed(request, error)
    logger.warning("Parameters that MONAI Label cannot use", exc_info=error)
    return JSONResponse({"detail": f"The parameters cannot be used: {error}"[:300]}, 400)


def _unreachable(_: Request, error: Exception) -> JSONResponse:
    logger.error("The DICOMweb server", exc_info=error)
    return JSONResponse({"detail": "The DICOMweb server does not answer as expected."}, 502)


def _failed(_: Request, error: Exception) -> JSONResponse:
    logger.error("A request failed", exc_info=error)
    sentence = f"The server failed ({type(error).__name__}); its log says why."
    return JSONResponse({"detail": sentence}, 500)


class Gate:
    """Refuse addresses that no client needs, and bodies that are too long or of unsaid length.

    Args:
        app: what is behind.
        longest: the longest body, in bytes.
        dicomweb: whether the studies are those of a DICOMweb server.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], longest: int, dicomweb: bool) -> None:
        self.app, self.longest, self.dicomweb = app, longest, dicomweb

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass what is not refused."""
        refused = self._refusal(scope) if scope["type"] == "http" else None
        answer = self.app
        if refused is not None:
            answer = JSONResponse({"detail": refused[1]}, refused[0])
        await answer(scope, receive, send)

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        headers = dict(scope.get("headers", ()))
        said = headers.get(b"content-length", b"0")
        if b"transfer-encoding" in headers:
            return 411, "The body's length is not said; expected the header Content-Length."
        if not said.isdigit() or int(said) > self.longest:
            found = said.decode("latin1")[:40]
            return 413, f"The body has {found} bytes; expected {self.longest} at most."
        path = scope["path"]
        for prefix in (scope.get("root_path", ""), settings.MONAI_LABEL_API_STR):
            path = path.removeprefix(prefix)
        query = scope.get("query_string", b"").decode("latin1")
        return refusal(scope["method"], path, query, self.dicomweb)
