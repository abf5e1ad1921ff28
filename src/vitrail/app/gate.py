"""The ASGI application in front of Gradio: admits visitors, checks their requests and sets the browser's rules."""

import asyncio
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

from .admission import Admission, is_loopback, login_page, plain_page, without_token
from .gradio_requests import CALL, HEARTBEAT, JOIN, LOGIN, QUEUE, Calls, Refused, check_route, session_of
from .limits import Listeners, OpenQuestions, Throttle, counted

__all__ = ["Gate"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Server = Callable[[Message, Receive, Send], Awaitable[None]]
Page = Callable[[str], tuple[str, str]]

log = logging.getLogger("vitrail.app")

# The request headers that Gradio receives.
HEARD = ("host", "accept", "accept-encoding", "accept-language", "user-agent")

HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with none at all, browsers say origin "null" when the password is posted
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
CLOSED = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "script-src 'none'"
)

SILENCE = 15.0  # seconds without a byte of a body
SLOWEST = 180.0  # seconds for a whole body
STREAMS = 64  # open answers of one visitor: two for each tab
BODIES = 8  # bodies on their way from one visitor
OPEN = 12  # questions of one visitor without an answer
ANSWERED = b'"msg":"process_completed"'


class Gate:
    """Stands before the server: admits visitors, limits what they ask, and sets the rules of the browser.

    Every visitor has a signed cookie, and Gradio's session is the visitor's key with the tab's name, so that nobody can
    name another's session. Bodies are read, checked and rebuilt before Gradio sees them. A page on loopback answers to
    the names of loopback and to those in `hosts` only, so that no website can pose as it (DNS rebinding), and no other
    origin may post to it.
    """

    def __init__(
        self,
        inner: Server,
        admission: Admission,
        calls: Calls,
        *,
        page: Page,
        policy: str,
        loopback: bool,
        most_bytes: int,
        root_path: str = "",
        hosts: Iterable[str] = (),
    ) -> None:
        self.inner, self.admission, self.calls, self.page, self.policy = inner, admission, calls, page, policy
        self.loopback, self.most_bytes, self.root_path = loopback, most_bytes, root_path
        self.hosts = frozenset(host.lower() for host in hosts)
        self.listeners = Listeners()
        self.asks = Throttle(burst=40, every=0.2)
        self.tabs = Throttle(burst=30, every=4)
        self._streams: Counter[str] = Counter()
        self.open = OpenQuestions(self.listeners, OPEN)
        self._bodies: Counter[str] = Counter()
        self._held = 0  # bytes of bodies on their way

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.inner(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            await self._pass(scope, headers, receive, send)
        except Refused as no:
            await self._answer(send, no.status, no.reason, wait=no.wait, page=_wants_page(scope, headers))

    async def _pass(self, scope: Message, headers: dict[str, str], receive: Receive, send: Send) -> None:
        method, path, query = scope["method"], scope["path"], scope["query_string"].decode("latin-1")
        self._check_origin(method, headers)
        if self.root_path and (path + "/").startswith(self.root_path + "/"):
            path = path[len(self.root_path) :]
            if not path:
                await self._redirect(send, query)
                return
        check_route(method, path)
        name = f"{self.admission.NAME}-{(scope.get('server') or ('', 0))[1]}"  # browsers share cookies among ports
        address = _address(scope)
        visitor = self.admission.visitor(headers.get("cookie", ""), name)
        given, rest = without_token(query)
        if path == LOGIN or (path == "/" and given):
            if method == "POST" and self.admission.closed:
                given = await self._typed(headers, receive)
            elif not self.admission.closed or visitor is not None:
                await self._redirect(send, rest)
                return
            await self._log_in(scope, send, given, rest, name, address)
            return
        fresh = None
        if visitor is None:
            if path == "/" and self.admission.closed:
                await self._ask_for_login(send, 401, "", query)
                return
            if path != "/":
                raise Refused(401, "the page does not know you (any more): load it again")
            fresh = self._new_visitor(scope, name, address)
        await self._forward(scope, headers, receive, send, method, path, query, visitor or "", fresh)

    # -- what is refused at once -------------------------------------------------------------------------------------

    def _check_origin(self, method: str, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        name = _name(host)
        if (self.loopback or self.hosts) and not (is_loopback(name) or name in self.hosts):
            raise Refused(403, "this page answers to 127.0.0.1, localhost and the names that whoever runs it allows")
        origin = headers.get("origin")
        if origin and method not in ("GET", "HEAD"):
            asking = _netloc(origin)
            if asking != host.lower() and _name(asking) not in self.hosts:
                raise Refused(403, "another website may not ask this page")

    # -- who comes in --------------------------------------------------------------------------------------------------

    def _new_visitor(self, scope: Message, name: str, address: str) -> bytes:
        """Returns the Set-Cookie header of a new visitor."""
        if wait := self.admission.arrivals.wait(address):
            raise Refused(
                429, "too many visitors from your address at once: wait a moment and load the page again", wait
            )
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        return (f"{name}={self.admission.cookie()}; Path={self.root_path}/; HttpOnly; SameSite=Lax{secure}").encode()

    async def _typed(self, headers: dict[str, str], receive: Receive) -> dict[str, str]:
        """Returns the fields of the login form."""
        raw = await self._body(headers, receive, 10_000)
        try:
            return dict(parse_qsl(raw.decode(), max_num_fields=5))
        except ValueError:
            raise Refused(400, "what was typed did not arrive whole: load the page and try again") from None

    async def _log_in(
        self, scope: Message, send: Send, given: dict[str, str], rest: str, name: str, address: str
    ) -> None:
        """Redirects whoever has the token or the password to the page, with a cookie; asks others again."""
        if not given:
            await self._ask_for_login(send, 401, "", rest)
        elif wait := self.admission.wrong.wait(address, take=False):
            words = f"Too many wrong attempts from your address: wait {math.ceil(wait)} seconds."
            await self._ask_for_login(send, 429, words, rest, wait)
        elif self.admission.admits(given):
            await self._redirect(send, rest, self._new_visitor(scope, name, address))
        else:
            self.admission.wrong.wait(address)
            what = "the token" if self.admission.auth is None else "the name or the password"
            await self._ask_for_login(send, 401, f"This is not {what}.", rest)

    async def _ask_for_login(self, send: Send, status: int, problem: str, query: str, wait: float | int = 0) -> None:
        html = login_page(problem, query, password=self.admission.auth is not None)
        await self._answer(send, status, html, wait=wait, page=True, whole=True)

    # -- what is let through -----------------------------------------------------------------------------------------

    async def _forward(
        self,
        scope: Message,
        headers: dict[str, str],
        receive: Receive,
        send: Send,
        method: str,
        path: str,
        query: str,
        visitor: str,
        fresh: bytes | None,
    ) -> None:
        kept = {name: value for name, value in headers.items() if name in HEARD}
        body, stream, asked = b"", None, ""
        if path in (JOIN, CALL):
            call, tab = await self._question(headers, receive, visitor, queued=path == JOIN)
            body = json.dumps(call | {"session_hash": self._session(visitor, tab)}).encode()
            kept |= {"content-type": "application/json", "content-length": str(len(body))}
        elif path == QUEUE:
            stream = self._session(visitor, session_of("".join(parse_qs(query).get("session_hash", []))))
            asked = f"session_hash={stream}"
        elif path.startswith(HEARTBEAT):
            stream = self._session(visitor, session_of(path.rpartition("/")[2]))
            path = f"{HEARTBEAT}{stream}"
        elif path == "/":
            kept.pop("accept-encoding", None)
        inner = dict(scope) | {
            "path": path,
            "raw_path": path.encode("utf-8", "replace"),
            "root_path": "",
            "query_string": asked.encode(),
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in kept.items()],
        }
        answer = _Answer(send, self, fresh, whole=path == "/" and method == "GET")
        if path == QUEUE and stream is not None:
            answer.answered = lambda count: self.open.answered(visitor, stream, count)
        try:
            if stream is None:
                await self.inner(inner, _once(body, receive), answer)
                return
            if self._streams[visitor] >= STREAMS:
                raise Refused(429, "this page is open in too many tabs: close some")
            try:
                with counted(self._streams, visitor), self.listeners.listening(stream):
                    await self.inner(inner, _once(body, receive), answer)
            finally:
                if answer.answered is not None:
                    self.open.answered(visitor, stream)
        except Refused:
            raise
        except Exception as error:
            log.error("a request could not be answered", exc_info=error)
            if not answer.begun:
                raise Refused(
                    500, "something went wrong here; whoever runs this page finds the reason in its log"
                ) from None

    async def _question(
        self, headers: dict[str, str], receive: Receive, visitor: str, *, queued: bool
    ) -> tuple[dict[str, Any], str]:
        """Returns the checked question in a body, and the tab that asks; both count towards the visitor's limits."""
        if wait := self.asks.wait(visitor):
            raise Refused(429, "too many questions at once: wait a moment", wait)
        if self._bodies[visitor] >= BODIES:
            raise Refused(429, "too many questions at once: wait until the others have arrived", 1)
        with counted(self._bodies, visitor):
            call, tab = self.calls.read(await self._body(headers, receive, self.most_bytes), queued=queued)
        session = self._session(visitor, tab)
        if not self.listeners.known(session) and (wait := self.tabs.wait(visitor)):
            raise Refused(429, "this page was opened too often in a short time: wait a moment", wait)
        self.listeners.touch(session)
        if queued and not self.open.add(visitor, session):
            raise Refused(429, "too many questions at once: wait for the answers to the others", 1)
        return call, tab

    async def _body(self, headers: dict[str, str], receive: Receive, most: int) -> bytes:
        """Reads a body within its limits of time and size."""
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 15 or int(length) > most:
            raise Refused(413, "the upload is larger than this page takes")
        read, ends = bytearray(), time.monotonic() + SLOWEST
        held = 0
        try:
            while True:
                try:
                    left = min(SILENCE, ends - time.monotonic())
                    message = await asyncio.wait_for(receive(), max(left, 0.001))
                except TimeoutError:
                    raise Refused(408, "the question did not arrive in time: try again") from None
                if message["type"] == "http.disconnect":
                    raise Refused(400, "the question did not arrive whole")
                read += message.get("body", b"")
                self._held += len(read) - held
                held = len(read)
                if held > most:
                    raise Refused(413, "the upload is larger than this page takes")
                if self._held > 8 * self.most_bytes:
                    raise Refused(503, "too many pictures arrive at once: try again in a minute", 30)
                if not message.get("more_body"):
                    return bytes(read)
        finally:
            self._held -= held

    @staticmethod
    def _session(visitor: str, tab: str) -> str:
        return f"{visitor}.{tab}"

    # -- what goes out -------------------------------------------------------------------------------------------------

    async def _redirect(self, send: Send, query: str, cookie: bytes | None = None) -> None:
        place = f"{self.root_path}/{'?' + query if query else ''}".encode("ascii", "replace")
        headers = [(b"location", place), (b"content-length", b"0"), *_own(CLOSED)]
        if cookie is not None:
            headers.append((b"set-cookie", cookie))
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def _answer(
        self, send: Send, status: int, words: str, *, wait: float | int = 0, page: bool = False, whole: bool = False
    ) -> None:
        if page:
            text, kind = words if whole else plain_page(f"<p>{words}</p>"), b"text/html; charset=utf-8"
        else:
            text, kind = json.dumps({"detail": words}), b"application/json"
        body = text.encode()
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *_own(CLOSED)]
        if wait:
            headers.append((b"retry-after", str(math.ceil(wait)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class _Answer:
    """Forwards an answer with our headers; the page itself (`whole`) with our scripts and their hashes."""

    def __init__(self, send: Send, gate: Gate, cookie: bytes | None, *, whole: bool) -> None:
        self.send, self.gate, self.cookie, self.whole = send, gate, cookie, whole
        self.begun = False
        self.answered: Callable[[int], None] | None = None
        self._start: Message = {}
        self._body = bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            if not (self.whole and message["status"] == 200):
                self.whole = False
                await self._begin(self.gate.policy)
        elif self.whole and message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                html, policy = self.gate.page(self._body.decode())
                body = html.encode()
                await self._begin(policy, len(body))
                await self.send({"type": "http.response.body", "body": body})
        else:
            if self.answered is not None and (count := message.get("body", b"").count(ANSWERED)):
                self.answered(count)
            await self.send(message)

    async def _begin(self, policy: str, length: int | None = None) -> None:
        dropped = {*HEADERS, "content-security-policy", "set-cookie", "server"}
        dropped |= set() if length is None else {"content-length", "cache-control"}
        headers = [pair for pair in self._start.get("headers", []) if pair[0].lower().decode() not in dropped]
        headers += _own(policy)
        if length is not None:
            headers += [(b"content-length", str(length).encode()), (b"cache-control", b"no-store")]
        if self.cookie is not None:
            headers.append((b"set-cookie", self.cookie))
        self.begun = True
        await self.send({**self._start, "headers": headers})


def _own(policy: str) -> list[tuple[bytes, bytes]]:
    own = HEADERS | {"content-security-policy": policy}
    return [(name.encode(), value.encode()) for name, value in own.items()]


def _once(body: bytes, receive: Receive) -> Receive:
    """Returns a receiver of the body that was read already, then of whatever comes."""
    given = False

    async def take() -> Message:
        nonlocal given
        if given:
            while (message := await receive())["type"] == "http.request":
                pass  # what a GET had for a body
            return message
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return take


def _wants_page(scope: Message, headers: dict[str, str]) -> bool:
    return scope["method"] in ("GET", "HEAD") and "text/html" in headers.get("accept", "")


def _address(scope: Message) -> str:
    """Returns the address that wrong passwords are counted for; in IPv6 that of the home network."""
    host = str((scope.get("client") or ("",))[0])
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
