"""The gate in front of the page's routes: admits visitors, reads their requests and sets the browser's rules."""

import asyncio
import logging
import math
import time
from collections.abc import Iterable, Mapping
from html import escape
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .admission import Admission, is_loopback, login_page, plain_page, without_token

__all__ = ["Bodies", "Gate", "Refused", "page_file"]

log = logging.getLogger("vitrail.app")

# The browser itself refuses whatever would leave this server, and every script and style sheet but our files: no
# script in an attribute, none in the page, none made of text. Widths and colours of drawings are style attributes.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
CLOSED = (
    "default-src 'none'; script-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with none at all, browsers say origin "null" when the password is posted
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
SILENCE = 15.0  # seconds without a byte of a body
SLOWEST = 180.0  # seconds for a whole body


class Refused(HTTPException):
    """Refuses a request with an HTTP status, the reason, and the seconds to wait before another try."""

    def __init__(self, status: int, reason: str, wait: float | int = 0) -> None:
        super().__init__(status, reason, {"retry-after": str(math.ceil(wait))} if wait else None)


def page_file(files: Mapping[str, tuple[bytes, str]], name: str) -> Response:
    """Answers with one of a page's files, each with its type; a page asks for them under names that change with them.

    Raises:
        Refused: for another name.
    """
    if name not in files:
        raise Refused(404, "there is nothing here")
    content, kind = files[name]
    return Response(content, media_type=kind, headers={"cache-control": "private, max-age=31536000, immutable"})


class Bodies:
    """Reads bodies of at most `most` bytes each, eight times that of all visitors together, within limits of time."""

    def __init__(self, most: int) -> None:
        self.most, self._held = most, 0

    async def read(self, request: Request, most: int | None = None) -> bytes:
        """Returns the body of a request.

        Raises:
            Refused: for one that is too large, does not come, or comes too slowly.
        """
        most = self.most if most is None else most
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 15 or int(length) > most:
            raise Refused(413, "the upload is larger than this page takes")
        body, ends = bytearray(), time.monotonic() + SLOWEST
        try:
            while True:
                left = min(SILENCE, ends - time.monotonic())
                try:
                    message = await asyncio.wait_for(request.receive(), max(left, 0.001))
                except TimeoutError:
                    raise Refused(408, "the question did not arrive in time: try again") from None
                if message["type"] == "http.disconnect":
                    raise Refused(400, "the question did not arrive whole")
                part = message.get("body", b"")
                self._held += len(part)
                body += part
                if len(body) > most:
                    raise Refused(413, "the upload is larger than this page takes")
                if self._held > 8 * self.most:
                    raise Refused(503, "too many pictures arrive at once: try again in a minute", 30)
                if not message.get("more_body"):
                    return bytes(body)
        finally:
            self._held -= len(body)


class Gate:
    """Stands before the routes: admits visitors, answers their refusals, and sets the rules of the browser.

    Every visitor has a signed cookie; its key is `request.state.visitor` behind the gate. A page on loopback answers to
    the names of loopback and to those in `hosts` only, so that no website can pose as it (DNS rebinding), and no other
    origin may post to it.
    """

    def __init__(
        self,
        routes: ASGIApp,
        admission: Admission,
        bodies: Bodies,
        *,
        loopback: bool,
        root_path: str = "",
        hosts: Iterable[str] = (),
    ) -> None:
        self.routes, self.admission, self.bodies = routes, admission, bodies
        self.loopback, self.root_path = loopback, root_path
        self.hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.routes(scope, receive, send)
        if scope["type"] != "http":
            return
        scope = dict(scope) | {"app": self, "state": {}, "root_path": ""}
        request = Request(scope, receive)
        begun = False

        async def ruled(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if cookie := scope["state"].get("cookie"):
                    headers.append("set-cookie", cookie)
            await send(message)

        try:
            answer = await self._admit(request, scope)
            await (self.routes if answer is None else answer)(scope, receive, ruled)
        except HTTPException as no:
            await _refusal(request, no)(scope, receive, ruled)
        except Exception as error:
            log.error("a request could not be answered", exc_info=error)
            if not begun:
                words = "something went wrong here; whoever runs this page finds the reason in its log"
                await _refusal(request, Refused(500, words))(scope, receive, ruled)

    async def _admit(self, request: Request, scope: Scope) -> Response | None:
        """Returns the answer to whoever asks for admission; None for a visitor, whose request goes on to the routes."""
        self._check_origin(request)
        query, path = scope["query_string"].decode("latin-1"), scope["path"]
        if self.root_path and (path + "/").startswith(self.root_path + "/"):
            path = scope["path"] = path[len(self.root_path) :]
            if not path:
                return self._redirect(query)
        name = f"{self.admission.NAME}-{(scope.get('server') or ('', 0))[1]}"  # browsers share cookies among ports
        visitor = self.admission.visitor(request.headers.get("cookie", ""), name)
        given, rest = without_token(query)
        if path == "/login" or (path == "/" and given):
            if request.method == "POST" and self.admission.closed:
                given = await self._typed(request)
            elif not self.admission.closed or visitor is not None:
                return self._redirect(rest)
            return self._log_in(request, given, rest, name)
        if visitor is None:
            if path != "/":
                raise Refused(401, "the page does not know you (any more): load it again")
            if self.admission.closed:
                return self._login(401, "", query)
            self._welcome(request, name)
        scope["state"]["visitor"] = visitor
        return None

    def _check_origin(self, request: Request) -> None:
        host = request.headers.get("host", "")
        name = _name(host)
        if (self.loopback or self.hosts) and not (is_loopback(name) or name in self.hosts):
            raise Refused(403, "this page answers to 127.0.0.1, localhost and the names that whoever runs it allows")
        origin = request.headers.get("origin")
        if origin and request.method not in ("GET", "HEAD"):
            asking = _netloc(origin)
            if asking != host.lower() and _name(asking) not in self.hosts:
                raise Refused(403, "another website may not ask this page")

    def _welcome(self, request: Request, name: str) -> None:
        """Has the answer give a new visitor a cookie."""
        if wait := self.admission.arrivals.wait(_address(request)):
            words = "too many visitors from your address at once: wait a moment and load the page again"
            raise Refused(429, words, wait)
        secure = "; Secure" if request.scope.get("scheme") == "https" else ""
        cookie = f"{name}={self.admission.cookie()}; Path={self.root_path}/; HttpOnly; SameSite=Lax{secure}"
        request.scope["state"]["cookie"] = cookie

    async def _typed(self, request: Request) -> dict[str, str]:
        """Returns the fields of the login form."""
        try:
            return dict(parse_qsl((await self.bodies.read(request, 10_000)).decode(), max_num_fields=5))
        except ValueError:
            raise Refused(400, "what was typed did not arrive whole: load the page and try again") from None

    def _log_in(self, request: Request, given: dict[str, str], rest: str, name: str) -> Response:
        """Redirects whoever has the token or the password to the page, with a cookie; asks others again."""
        address = _address(request)
        if not given:
            return self._login(401, "", rest)
        if wait := self.admission.wrong.wait(address, take=False):
            words = f"Too many wrong attempts from your address: wait {math.ceil(wait)} seconds."
            return self._login(429, words, rest, {"retry-after": str(math.ceil(wait))})
        if self.admission.admits(given):
            self._welcome(request, name)
            return self._redirect(rest)
        self.admission.wrong.wait(address)
        what = "the token" if self.admission.auth is None else "the name or the password"
        return self._login(401, f"This is not {what}.", rest)

    def _login(self, status: int, problem: str, query: str, headers: dict[str, str] | None = None) -> Response:
        html = login_page(problem, query, password=self.admission.auth is not None)
        return HTMLResponse(html, status, {"content-security-policy": CLOSED} | (headers or {}))

    def _redirect(self, query: str) -> Response:
        return RedirectResponse(f"{self.root_path}/{'?' + query if query else ''}", 303)


def _refusal(request: Request, no: HTTPException) -> Response:
    headers = {"content-security-policy": CLOSED} | dict(no.headers or {})
    if request.method in ("GET", "HEAD") and "text/html" in request.headers.get("accept", ""):
        return HTMLResponse(plain_page(f"<p>{escape(no.detail)}</p>"), no.status_code, headers)
    return JSONResponse({"detail": no.detail}, no.status_code, headers)


def _address(request: Request) -> str:
    """Returns the address that wrong passwords are counted for; in IPv6 that of the home network."""
    host = request.client.host if request.client else ""
    return ":".join(host.split(":")[:4]) if host.count(":") > 4 else host


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _name(host: str) -> str:
    """Returns the host of a Host header, in lower case and without its port.

    >>> _name("localhost:7860"), _name("[::1]:80"), _name("::1")
    ('localhost', '::1', '::1')
    """
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host if host.count(":") > 1 else host.partition(":")[0]
