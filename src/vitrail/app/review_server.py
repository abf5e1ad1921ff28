"""The routes of the review page behind the gate: the page, its files, what it is told, decisions, and the export."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route, Router

from .. import __version__
from ..audit.decisions import VERDICTS
from ..errors import OptionError, OutputFileError, RunFolderInUseError
from .admission import Admission, check_host, is_loopback
from .gate import Bodies, Gate, Refused, page_file
from .page import marked, rose, served, template
from .review import Review, Stale

__all__ = ["review_application"]

WORDS = 1000  # bytes of a decision
THREADS = 4
KINDS = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}
KEPT_BACK = {"cache-control": "no-store"}  # another audit may be served at the same address


@cache
def review_files() -> Mapping[str, tuple[bytes, str]]:
    """Returns the files that the page asks for, by name: their bytes and their type."""
    scripts = ("shared", "review_fetch", "review")
    return served("review", [("app", name) for name in scripts], [("app", "page"), ("app", "review")])


def review_application(review: Review, *, host: str = "127.0.0.1", admission: Admission | None = None) -> Gate:
    """Returns the server of a review as an ASGI application, to be run by `serve`.

    Raises:
        OptionError: for an address that others reach, where `admission` asks for no password.
    """
    admission = Admission() if admission is None else admission
    check_host(host, admission.auth)
    bodies = Bodies(20_000)
    return Gate(ReviewPages(review, bodies).routes, admission, bodies, loopback=is_loopback(host))


class ReviewPages:
    """Answers at the routes of the review page.

    `GET /review`, `/state`, `/suspect/IMAGE`, `/typical/CLASS` and `/pair/SHOWN/OTHER` return what `Review` tells, as
    JSON. `POST /decide` takes `{"image": …, "verdict": …, "was": …}`, the last being the verdict that the page knows of
    (null for none), and `POST /undo` takes `{"image": …}`, the image of the decision that is to be taken back. Both
    answer with the news once they are on the disk; 409 with `state` where the page is behind the journal.
    """

    def __init__(self, review: Review, bodies: Bodies) -> None:
        self.review, self.bodies = review, bodies
        self._limiter = CapacityLimiter(THREADS)
        self.html = template("review").render(files=marked(review_files()), rose=rose(), version=__version__)
        self.routes = Router(
            [
                Route("/", self.show),
                Route("/static/{name}", self.file),
                Route("/review", self.overview),
                Route("/state", self.state),
                Route("/suspect/{image}", self.suspect),
                Route("/typical/{index}", self.typical),
                Route("/pair/{shown}/{other}", self.pair),
                Route("/decisions.{kind}", self.export),
                Route("/decide", self.decide, methods=["POST"]),
                Route("/undo", self.undo, methods=["POST"]),
            ],
            redirect_slashes=False,
        )

    async def show(self, request: Request) -> Response:
        """Returns the page."""
        del request
        return HTMLResponse(self.html, headers=KEPT_BACK)

    async def file(self, request: Request) -> Response:
        """Returns the style sheet or the script."""
        return page_file(review_files(), request.path_params["name"])

    async def overview(self, request: Request) -> Response:
        """Returns all suspects and pairs, and the state."""
        del request
        return await self._told(self.review.overview)

    async def state(self, request: Request) -> Response:
        """Returns what is decided."""
        del request
        return await self._told(self.review.state)

    async def suspect(self, request: Request) -> Response:
        """Returns the pictures of a suspect."""
        return await self._told(self.review.suspect, request, "image")

    async def typical(self, request: Request) -> Response:
        """Returns the typical images of a class."""
        return await self._told(self.review.typical, request, "index")

    async def pair(self, request: Request) -> Response:
        """Returns the images of a pair of classes."""
        return await self._told(self.review.pair, request, "shown", "other")

    async def export(self, request: Request) -> Response:
        """Returns the decisions as a file."""
        kind = request.path_params["kind"]
        if kind not in KINDS:
            raise Refused(404, "decisions are exported as decisions.csv and decisions.parquet")
        content = await to_thread.run_sync(self.review.export, kind, limiter=self._limiter)
        headers = {"content-disposition": f'attachment; filename="decisions.{kind}"'}
        return Response(content, media_type=KINDS[kind], headers=KEPT_BACK | headers)

    async def decide(self, request: Request) -> Response:
        """Writes a decision."""
        told = await self._words(request)
        image, verdict, was = told.get("image"), told.get("verdict"), told.get("was")
        if type(image) is not int or verdict not in VERDICTS or not (was is None or was in VERDICTS):
            raise Refused(400, "this is no decision of the page: load it again")
        return await self._acted(lambda: self.review.decide(image, verdict, was))

    async def undo(self, request: Request) -> Response:
        """Takes the last decision back."""
        image = (await self._words(request)).get("image")
        if type(image) is not int:
            raise Refused(400, "this is no decision of the page: load it again")
        return await self._acted(lambda: self.review.undo(image))

    async def _told(self, tell: Callable[..., Any], request: Request | None = None, *names: str) -> Response:
        numbers = [_number(request.path_params[name]) for name in names] if request else []
        try:
            found = await to_thread.run_sync(tell, *numbers, limiter=self._limiter)
        except OptionError as error:
            raise Refused(404, str(error)) from None
        return JSONResponse(found, headers=KEPT_BACK)

    async def _words(self, request: Request) -> dict[str, Any]:
        body = await self.bodies.read(request, WORDS)
        try:
            told = json.loads(body)
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            raise Refused(400, "this is no decision of the page: load it again")
        return told

    async def _acted(self, act: Callable[[], Any]) -> Response:
        try:
            # Not given up where the page is left meanwhile: what has begun to be written is written.
            news = await to_thread.run_sync(act, limiter=self._limiter)
        except Stale:
            words = "another tab has decided since; this page now shows it"
            return JSONResponse({"detail": words, "state": self.review.state()}, 409, KEPT_BACK)
        except OptionError as error:
            raise Refused(404, str(error)) from None
        except OutputFileError as error:
            cause = error.__cause__
            reason = (cause.strerror if isinstance(cause, OSError) else None) or "the disk refuses it"
            raise Refused(507, f"it cannot be written: {reason}") from error
        except RunFolderInUseError:
            raise Refused(507, "another process has written to the decisions: start the review again") from None
        return JSONResponse(news, headers=KEPT_BACK)


def _number(text: str) -> int:
    """Returns the number in a part of a path.

    Raises:
        Refused: for another text.
    """
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise Refused(404, "there is nothing here")
    return int(text)
