"""The page's server: three routes behind the gate, questions answered as a stream, limits for slow connections."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote

from anyio import CapacityLimiter, to_thread
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route, Router

from ..errors import VitrailError
from .admission import Admission, Throttle, check_host, check_root_path, is_loopback
from .fragments import on_page
from .gate import Bodies, Gate, Refused, page_file
from .jobs import MOST_LONG
from .page import examples, page, page_files, taking_home
from .question import OWN
from .service import PageUpdate, Service
from .session import person_of

__all__ = ["application", "serve"]

OPEN = 12  # questions of one visitor that are under way
WORDS = 20_000  # bytes of a question without its file

HEAD_WITHIN = 10.0  # seconds from the first byte of a request's head to its last, or from a connection to its first
MOST_CONNECTIONS = 512

ACTIONS = frozenset(("arrive", "upload", "example", "guide", "choose", "change", "draw", "download", "stop", "leave"))


def application(
    service: Service,
    *,
    host: str = "127.0.0.1",
    admission: Admission | None = None,
    root_path: str = "",
    hosts: Iterable[str] = (),
) -> Gate:
    """Returns the whole server as an ASGI application, to be run by `serve`.

    `root_path` is where a reverse proxy serves the page, and `hosts` are its names in addition to the machine's own.

    Raises:
        OptionError: for an address that others reach, where `admission` asks for no password; for a `root_path` that
            is no path.
    """
    admission = Admission() if admission is None else admission
    check_host(host, admission.auth)
    root_path = check_root_path(root_path)
    bodies = Bodies(service.limits.bytes + WORDS)
    pages = Pages(service, bodies)
    return Gate(pages.routes, admission, bodies, loopback=is_loopback(host), root_path=root_path, hosts=hosts)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Holds one question: the action, the tab that asks, the link of what it shows, the action's words and file."""

    do: str
    tab: str
    link: str = ""
    given: dict[str, Any]
    name: str = ""
    file: bytes | None = None

    def word(self, name: str) -> str:
        """Returns a word of the action where it is a text, else ""."""
        return value if isinstance(value := self.given.get(name), str) else ""


class Pages:
    """Answers at the page's routes: the page, its two files, and `POST /ask`.

    A question is JSON, `{"do": …, "tab": …, "link": …, "given": {…}}`, or a multipart form of that (`question`) and a
    `file`. The answer to `download` is the file; any other is a stream of events, a line of JSON each:
    `html` (fragments by the id of their element), `link` (the link of what is shown), `controls` (values by the name of
    the control), `names` (the model's classes) and `words` (what `showWords` shows of an answer; one with `pictures`
    begins anew, an empty one clears). Parts that stay as they are are not sent.
    """

    def __init__(self, service: Service, bodies: Bodies) -> None:
        self.service, self.bodies = service, bodies
        self.html = page(service.models.names, service.limits.bytes, service.vlms.names)
        self.asks = Throttle(burst=40, every=0.2)
        self._open: Counter[str] = Counter()
        self._quick, self._long = CapacityLimiter(4), CapacityLimiter(2 * MOST_LONG)  # the service has them wait
        self.routes = Router(
            [Route("/", self.show), Route("/static/{name}", self.file), Route("/ask", self.ask, methods=["POST"])],
            redirect_slashes=False,
        )

    async def show(self, request: Request) -> Response:
        """Returns the page."""
        del request
        return HTMLResponse(self.html, headers={"cache-control": "no-store"})

    async def file(self, request: Request) -> Response:
        """Returns the style sheet or the script."""
        return page_file(page_files(), request.path_params["name"])

    async def ask(self, request: Request) -> Response:
        """Answers a question of the page."""
        person = request.state.visitor
        if wait := self.asks.wait(person):
            raise Refused(429, "too many questions at once: wait a moment", wait)
        if self._open[person] >= OPEN:
            raise Refused(429, "too many questions at once: wait for the answers to the others", 1)
        with self._counted(person):
            asked = await _read(await self.bodies.read(request), request.headers)
        visitor = f"{person}.{asked.tab}"
        if asked.do in ("stop", "leave"):
            (self.service.stop if asked.do == "stop" else self.service.sessions.leave)(visitor)
            return Response(status_code=204)
        if asked.do == "download":
            with self._counted(person):
                return await to_thread.run_sync(self._download, visitor, asked, limiter=self._quick)
        headers = {"cache-control": "no-store"}
        return StreamingResponse(self._stream(visitor, asked), media_type="application/x-ndjson", headers=headers)

    @contextmanager
    def _counted(self, person: str) -> Iterator[None]:
        """Counts one more question of the person while it is under way."""
        self._open[person] += 1
        try:
            yield
        finally:
            self._open[person] -= 1
            if not self._open[person]:
                del self._open[person]

    async def _stream(self, visitor: str, asked: Asked) -> AsyncIterator[str]:
        """Yields the events as lines; where the reader leaves, Starlette ends this, and with it the work."""
        updates = self._updates(visitor, asked)

        def line() -> str:
            shown = next(updates, None)
            return "" if shown is None else json.dumps(self._event(shown, asked)) + "\n"

        try:
            with self._counted(person_of(visitor)):
                while text := await to_thread.run_sync(line, limiter=self._long if asked.do == "draw" else self._quick):
                    yield text
        finally:
            updates.close()

    def _updates(self, visitor: str, asked: Asked) -> Generator[PageUpdate]:
        if asked.do != "draw":
            yield from self.service.answer(lambda service: _answer(service, visitor, asked))
            return
        changes = dict(asked.given)
        if str(changes.get("budget", "")).isdecimal():  # in levels on the page, as a share in a link
            changes["budget"] = float(changes["budget"]) / 255
        yield from self.service.draw(visitor, asked.link, changes)

    def _event(self, shown: PageUpdate, asked: Asked) -> dict[str, Any]:
        """Returns the update as an event; a new picture or model comes with its names, an arrival with its controls."""
        html = {f"vt-view-{view}": text for view, text in shown.views.items()}
        event: dict[str, Any] = {"html": html} | ({} if shown.words is None else {"words": shown.words})
        question = shown.question
        if question is None:  # only how far a drawing has come
            html |= {"vt-status": shown.status} if shown.status else {}
            return event
        event["link"] = question.query()
        html["vt-status"] = shown.status
        if shown.classes is not None:
            html["vt-classes"] = shown.classes
        if shown.cells is not None:
            html["vt-cells"] = shown.cells
        if shown.recipes is not None:
            html["vt-taking"] = taking_home(question.example, shown.files or (), shown.recipes)
        elif asked.do == "draw":  # what there was answers another question
            html["vt-taking"] = ""
        models = self.service.models
        model = question.model if question.model in models.names else models.first
        vlms = self.service.vlms
        vlm = question.vlm if question.vlm in vlms.names else vlms.first
        anew = asked.do in ("arrive", "upload", "example") or "model" in asked.given
        if anew or not {"view", "vlm"}.isdisjoint(asked.given):
            html["vt-who"] = escape(vlm if question.view == "words" else model)
            html |= {} if shown.examples is None else {"vt-offer": examples(shown.examples)}
        if anew and shown.names is not None:
            event["names"] = shown.names
        if asked.do == "arrive":
            names = {"view", "method", "gradient", "methods", "layout", "steps", "until", *OWN["words"]}
            chosen = {name: getattr(question, name) for name in sorted(names)}
            event["controls"] = chosen | {"model": model, "vlm": vlm, "budget": round(255 * question.budget)}
        return event

    def _download(self, visitor: str, asked: Asked) -> Response:
        try:
            name, kind, content = self.service.download(visitor, asked.link, asked.word("kind"))
        except VitrailError as error:
            raise Refused(409, on_page(str(error))) from None
        headers = {"content-disposition": f"attachment; filename*=utf-8''{quote(name, safe='')}"}
        return Response(content, media_type=kind, headers=headers | {"cache-control": "no-store"})


def _answer(service: Service, visitor: str, asked: Asked) -> PageUpdate:
    link, given = asked.link, asked.given
    match asked.do:
        case "arrive":
            return service.arrive(visitor, link, back=given.get("back") is True)
        case "upload":
            return service.upload(visitor, link, asked.name, asked.file)
        case "guide":
            return service.guide(visitor, link, asked.name, asked.file)
        case "example":
            return service.example(visitor, link, asked.word("example"))
        case "choose":
            index = given.get("index")
            return service.choose(visitor, link, index if type(index) is int else None)
        case _:
            return service.change(visitor, link, given)


async def _read(body: bytes, headers: Headers) -> Asked:
    """Returns the question in a body.

    Raises:
        Refused: for anything else.
    """
    name, content, words = "", None, body
    try:
        if headers.get("content-type", "").startswith("multipart/form-data"):

            async def whole() -> AsyncIterator[bytes]:
                yield body

            parser = MultiPartParser(headers, whole(), max_files=1, max_fields=1, max_part_size=WORDS)  # type: ignore[arg-type]
            parser.spool_max_size = len(body)  # nothing goes to the disk
            form = await parser.parse()
            words, file = str(form.get("question", "")).encode(), form.get("file")
            if isinstance(file, UploadFile):
                name, content = file.filename or "", await file.read()
            await form.close()
        if len(words) > WORDS:
            raise Refused(413, "this is no question of the page: it is too long")
        told = json.loads(words)
        json.dumps(told, ensure_ascii=False, allow_nan=False).encode()  # neither infinite nor half a character
        asked = Asked(
            do=told["do"],
            tab=told["tab"],
            link=told.get("link", ""),
            given=told.get("given", {}),
            name=name,
            file=content,
        )
        if asked.do not in ACTIONS:
            raise Refused(400, "the page has no such question: load it again, it may be older than the server")
        if not (isinstance(asked.link, str) and isinstance(asked.given, dict) and _is_tab(asked.tab)):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, MultiPartException):
        raise Refused(400, "this is no question of the page: load it again") from None
    return asked


def _is_tab(word: Any) -> bool:
    """Returns whether it is a tab's name, which its browser draws at random: up to forty letters and digits."""
    return isinstance(word, str) and 0 < len(word) <= 40 and word.isascii() and word.isalnum()


def serve(server: Gate, listening: socket.socket, *, proxied: bool = False) -> None:
    """Serves until SIGINT or SIGTERM; with `proxied` a reverse proxy on this machine names the client.

    A connection that does not send a whole head in time is closed; where there are too many, the one that has waited
    longest for its first.
    """
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    unheard: dict[Any, None] = {}  # connections that have not asked yet, the longest first

    class Connection(H11Protocol):
        late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            unheard[self] = None
            self.late = self.loop.call_later(HEAD_WITHIN, transport.abort)
            if len(self.connections) > MOST_CONNECTIONS:
                longest = next(iter(unheard))
                del unheard[longest]
                longest.transport.abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            asked = self.cycle is not None and not self.cycle.response_complete
            if asked:
                self._heard()
            elif self.late is None and not self.transport.is_closing():  # between two requests: part of a head
                unheard[self] = None
                self.late = self.loop.call_later(HEAD_WITHIN, self.transport.abort)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._heard()

        def connection_lost(self, exc: Exception | None) -> None:
            self._heard()
            super().connection_lost(exc)

        def _heard(self) -> None:
            unheard.pop(self, None)
            if self.late is not None:
                self.late.cancel()
                self.late = None

    config = uvicorn.Config(
        server,
        http=Connection,
        ws="none",
        log_level="error",
        proxy_headers=proxied,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[listening])
