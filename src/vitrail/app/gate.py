"""The gate before Gradio: which requests pass, in which form, for whom and how many; knows HTTP, not the page."""

import asyncio
import json
import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

from .admission import Admission, Throttle, is_loopback, login_page, plain_page, without_token

__all__ = ["Calls", "Gate", "Listeners", "Refused"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Server = Callable[[Message, Receive, Send], Awaitable[None]]
Page = Callable[[str], tuple[str, str]]

log = logging.getLogger("vitrail.app")

# All that the page needs of Gradio. Its other doors (files of the server by path, uploads to disk, addresses fetched
# for others, calls past the queue …) stay shut.
READ = (
    "/",
    "/config",
    "/theme.css",
    "/favicon.ico",
    "/gradio_api/info",
    "/gradio_api/app_id",
    "/gradio_api/queue/data",
)
READ_BELOW = ("/assets/", "/static/", "/gradio_api/heartbeat/")
JOIN, CALL, LOGIN = "/gradio_api/queue/join", "/gradio_api/run/predict", "/login"

# What Gradio hears of a request's headers.
HEARD = ("host", "accept", "accept-encoding", "accept-language", "user-agent")
# Gradio opens, copies or fetches what a dictionary with these keys names; the page sends none.
FILE_KEYS = frozenset({"path", "url", "meta", "_type", "orig_name", "mime_type", "is_stream", "file", "files"})

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


class Refused(Exception):  # noqa: N818  (an answer, not a fault)
    """A request is not let through: status, and the reason in words."""

    def __init__(self, status: int, reason: str, wait: float | int = 0) -> None:
        super().__init__(reason)
        self.status, self.reason, self.wait = status, reason, wait


class Calls:
    """The functions of the page by number: how many values each takes, and which of them may be structures.

    `queued` are asked for by joining the queue, `direct` without it; each maps a number to one truth per value.
    """

    def __init__(self, queued: Mapping[int, tuple[bool, ...]], direct: Mapping[int, tuple[bool, ...]]) -> None:
        self.queued, self.direct = dict(queued), dict(direct)

    def read(self, raw: bytes, *, queued: bool) -> tuple[dict[str, Any], str]:
        """The body as the page would have sent it, and the session that it names.

        Raises:
            Refused: for anything else; nothing that the body names is looked at.
        """
        if sum(map(raw.count, (b"{", b"[", b","))) > 2000:  # base64 has none of these
            raise Refused(400, "this is no question of the page: it has too many parts")
        try:
            body = json.loads(raw, parse_constant=_no_number)
        except (ValueError, RecursionError):
            raise Refused(400, "this is no question of the page: its body is not JSON") from None
        if not isinstance(body, dict):
            raise Refused(400, "this is no question of the page: its body is no JSON object")
        number, data = body.get("fn_index"), body.get("data")
        known = self.queued if queued else self.direct
        if type(number) is not int or number not in known:
            raise Refused(400, "the page has no such question: load it again, it may be older than the server")
        session = session_of(body.get("session_hash"))
        kinds = known[number]
        if not isinstance(data, list) or len(data) != len(kinds):
            raise Refused(400, f"this question of the page takes {len(kinds)} value(s): load the page again")
        for value, structure in zip(data, kinds, strict=True):
            _check(value, depth=3 if structure else 0)
        trigger = body.get("trigger_id")
        trigger = trigger if type(trigger) is int and 0 <= trigger < 10_000 else None
        return {"data": data, "fn_index": number, "trigger_id": trigger, "event_data": None}, session


def session_of(word: Any) -> str:
    """A tab's own name, which the browser draws.

    Raises:
        Refused: for anything but up to forty letters, digits and hyphens.
    """
    if isinstance(word, str) and 0 < len(word) <= 40 and word.isascii() and word.replace("-", "a").isalnum():
        return word
    raise Refused(400, "the session's name is not one that the page gives")


def _no_number(word: str) -> None:
    raise ValueError(word)


def _check(value: Any, depth: int) -> None:
    """Refuses what the page's components never send: files, deep or long structures, numbers beyond JSON's."""
    match value:
        case None | bool():
            return
        case str():
            if value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value):  # half a character
                return
        case int() | float():
            if abs(value) < 2**53:  # which neither infinity nor NaN is
                return
        case list() if depth and len(value) <= 64:
            for each in value:
                _check(each, depth - 1)
            return
        case dict() if FILE_KEYS & value.keys():
            raise Refused(400, "the page takes pictures themselves, not paths or addresses of files")
        case dict() if depth and len(value) <= 16:
            for name, each in value.items():
                _check(name, 0)
                _check(each, depth - 1)
            return
    raise Refused(400, "a value in this question is none that the page sends")


@contextmanager
def _counted(counter: Counter[str], key: str) -> Iterator[None]:
    counter[key] += 1
    try:
        yield
    finally:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]


class Listeners:
    """Which tabs wait for an answer: those with an open stream, or with one until a moment ago.

    >>> now = [0.0]
    >>> listeners = Listeners(clock=lambda: now[0])
    >>> listeners.touch("a"); now[0] = 9.0
    >>> listeners.present("a")
    False
    """

    PATIENCE = 6.0  # seconds from a question to the stream that fetches its answer, or from one stream to the next
    MOST = 4000

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._open: Counter[str] = Counter()
        self._last: OrderedDict[str, float] = OrderedDict()

    def known(self, session: str) -> bool:
        """Whether the tab was heard of before."""
        return session in self._last

    def touch(self, session: str) -> None:
        """The tab was heard of now."""
        self._last[session] = self.clock()
        self._last.move_to_end(session)
        while len(self._last) > self.MOST:
            self._last.popitem(last=False)

    @contextmanager
    def listening(self, session: str) -> Iterator[None]:
        """For as long as a stream of answers to the tab is open."""
        self.touch(session)
        try:
            with _counted(self._open, session):
                yield
        finally:
            self.touch(session)

    def present(self, session: str) -> bool:
        """Whether anybody waits for answers to that tab."""
        return session in self._open or self.clock() - self._last.get(session, -math.inf) < self.PATIENCE


class Gate:
    """Before the server: who may come in, what may be asked and how often, the browser's rules for what goes out.

    Every visitor has a signed cookie, and what Gradio takes for a session is the visitor's key with the tab's name:
    so nobody can name another's session. Bodies are read, checked and written anew before Gradio sees them. A page on
    loopback answers to loopback's names only, and to those in `hosts`, so that no website can pass for it (DNS
    rebinding), and no other origin may post to it.
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
        self._open: dict[str, Counter[str]] = {}  # by visitor and session: questions without an answer yet
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
        self._check_route(method, path)
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

    def _check_route(self, method: str, path: str) -> None:
        if any(part in ("..", ".") for part in path.split("/")) or "\\" in path or "\0" in path or "//" in path:
            raise Refused(404, "there is nothing here")
        reads = path in READ or any(path.startswith(door) and path != door for door in READ_BELOW)
        if not (reads or path in (JOIN, CALL, LOGIN)):
            raise Refused(404, "there is nothing here")
        if method not in (("GET", "HEAD") if reads else ("POST",)) and not (
            path == LOGIN and method in ("GET", "HEAD")
        ):
            raise Refused(405, "this address is not asked in that way")

    # -- who comes in --------------------------------------------------------------------------------------------------

    def _new_visitor(self, scope: Message, name: str, address: str) -> bytes:
        """The header that makes somebody a visitor."""
        if wait := self.admission.arrivals.wait(address):
            raise Refused(
                429, "too many visitors from your address at once: wait a moment and load the page again", wait
            )
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        return (f"{name}={self.admission.cookie()}; Path={self.root_path}/; HttpOnly; SameSite=Lax{secure}").encode()

    async def _typed(self, headers: dict[str, str], receive: Receive) -> dict[str, str]:
        """What was typed where the page asks who comes."""
        raw = await self._body(headers, receive, 10_000)
        try:
            return dict(parse_qsl(raw.decode(), max_num_fields=5))
        except ValueError:
            raise Refused(400, "what was typed did not arrive whole: load the page and try again") from None

    async def _log_in(
        self, scope: Message, send: Send, given: dict[str, str], rest: str, name: str, address: str
    ) -> None:
        """Sends who has the token or the password on to the page, with a cookie; others are asked again."""
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
        elif path == "/gradio_api/queue/data":
            stream = self._session(visitor, session_of("".join(parse_qs(query).get("session_hash", []))))
            asked = f"session_hash={stream}"
        elif path.startswith("/gradio_api/heartbeat/"):
            stream = self._session(visitor, session_of(path.rpartition("/")[2]))
            path = f"/gradio_api/heartbeat/{stream}"
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
        if path == "/gradio_api/queue/data" and stream is not None:
            answer.answered = lambda count: self._answered(visitor, stream, count)
        try:
            if stream is None:
                await self.inner(inner, _once(body, receive), answer)
                return
            if self._streams[visitor] >= STREAMS:
                raise Refused(429, "this page is open in too many tabs: close some")
            try:
                with _counted(self._streams, visitor), self.listeners.listening(stream):
                    await self.inner(inner, _once(body, receive), answer)
            finally:
                if answer.answered is not None:
                    self._answered(visitor, stream, OPEN)
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
        """The question in a body, checked, and the tab that asks; counted against the visitor's share."""
        if wait := self.asks.wait(visitor):
            raise Refused(429, "too many questions at once: wait a moment", wait)
        if self._bodies[visitor] >= BODIES:
            raise Refused(429, "too many questions at once: wait until the others have arrived", 1)
        with _counted(self._bodies, visitor):
            call, tab = self.calls.read(await self._body(headers, receive, self.most_bytes), queued=queued)
        session = self._session(visitor, tab)
        if not self.listeners.known(session) and (wait := self.tabs.wait(visitor)):
            raise Refused(429, "this page was opened too often in a short time: wait a moment", wait)
        self.listeners.touch(session)
        if queued:
            self._count(visitor, session)
        return call, tab

    def _count(self, visitor: str, session: str) -> None:
        """One more question of the visitor that waits for an answer; those for which nobody waits do not count."""
        if len(self._open) > 1000:
            for absent in [one for one, tabs in self._open.items() if not any(map(self.listeners.present, tabs))]:
                del self._open[absent]
        mine = self._open.setdefault(visitor, Counter())
        for other in [other for other in mine if not self.listeners.present(other)]:
            del mine[other]
        if mine.total() >= OPEN:
            raise Refused(429, "too many questions at once: wait for the answers to the others", 1)
        mine[session] += 1

    def _answered(self, visitor: str, session: str, count: int) -> None:
        mine = self._open.get(visitor, Counter())
        mine[session] -= count
        if mine[session] <= 0:
            del mine[session]
        if not mine:
            self._open.pop(visitor, None)

    async def _body(self, headers: dict[str, str], receive: Receive, most: int) -> bytes:
        """The body, in time and within bounds."""
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
    """Sends an answer on under the browser's rules; the page itself (`whole`) with our scripts and their hashes."""

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
    """Gives the body that was read already, then whatever comes."""
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
    """Whom wrong passwords are counted against: an address, or a home's network in IPv6."""
    host = str((scope.get("client") or ("",))[0])
    return ":".join(host.split(":")[:4]) if host.count(":") > 4 else host


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _name(host: str) -> str:
    """The host in a Host header, in lower case and without its port.

    >>> _name("localhost:7860"), _name("[::1]:80"), _name("::1")
    ('localhost', '::1', '::1')
    """
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host if host.count(":") > 1 else host.partition(":")[0]
