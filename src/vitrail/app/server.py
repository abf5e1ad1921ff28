"""The page's server, and the gate before it: what may be asked, by whom, how much, and where the page may reach."""

import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import OptionError
from .service import Service

if TYPE_CHECKING:
    pass

__all__ = ["Gate", "application", "check_host", "is_loopback", "parse_auth"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Server = Callable[[Message, Receive, Send], Awaitable[None]]

# All that the page needs of Gradio. Its other doors (files of the server by path, uploads to disk, addresses fetched
# for others …) stay shut.
OPEN = (
    "/assets/", "/static/", "/theme.css", "/favicon.ico", "/config", "/info", "/gradio_api/info", "/login", "/logout",
    "/token", "/user", "/manifest.json", "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/queue/status",
    "/gradio_api/heartbeat/", "/gradio_api/call/", "/gradio_api/run/", "/gradio_api/api/", "/gradio_api/reset",
    "/gradio_api/cancel", "/gradio_api/startup-events", "/gradio_api/app_id", "/gradio_api/login_check",
)  # fmt: skip

# The browser itself refuses whatever would leave this server: fonts, scripts, pictures, connections.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; media-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine itself reaches that address.

    >>> [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def parse_auth(text: str | None) -> tuple[str, str] | None:
    """User and password from "user:password".

    Raises:
        OptionError: where one of them is missing.

    >>> parse_auth("ada:lace:42")
    ('ada', 'lace:42')
    """
    if text is None:
        return None
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise OptionError("--auth is USER:PASSWORD, both of at least one character")
    return user, password


def check_host(host: str, auth: tuple[str, str] | None) -> None:
    """Refuse to serve others without a password.

    Raises:
        OptionError: for an address that others reach, where there is no `auth`.
    """
    if auth is None and not is_loopback(host):
        raise OptionError(
            f"--host {host} can be reached from other machines: give --auth USER:PASSWORD, or stay on 127.0.0.1"
        )


class Gate:
    """Before the server: closed doors, a limit for what comes in, the browser's rules for what goes out.

    A page on loopback answers to loopback's names only, so that no website can pass for it (DNS rebinding), and no
    other origin may post to it.
    """

    def __init__(self, inner: Server, *, loopback: bool, most_bytes: int) -> None:
        self.inner, self.loopback, self.most_bytes = inner, loopback, most_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.inner(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        status, reason = self._refusal(scope, headers)
        if status:
            await _refuse(send, status, reason)
            return
        begun = refused = False
        taken = 0

        async def take() -> Message:
            nonlocal taken, refused
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.most_bytes and not refused:
                refused = True
                if not begun:
                    await _refuse(send, 413, "the upload is larger than this page takes")
            return {"type": "http.disconnect"} if refused else message

        async def give(message: Message) -> None:
            nonlocal begun
            if refused:
                return
            if message["type"] == "http.response.start":
                begun = True
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [
                    *((k, v) for k, v in message.get("headers", []) if k.lower().decode() not in HEADERS), *own
                ]  # fmt: skip
            await send(message)

        await self.inner(scope, take, give)

    def _refusal(self, scope: Message, headers: dict[str, str]) -> tuple[int, str]:
        path, host = scope["path"], headers.get("host", "")
        if self.loopback and not is_loopback(_name(host)):
            return 403, "this page answers to 127.0.0.1 and localhost only"
        origin = headers.get("origin")
        if origin and scope["method"] not in ("GET", "HEAD") and urlsplit(origin).netloc != host:
            return 403, "another website may not ask this page"
        if path != "/" and not any(path == door or (door.endswith("/") and path.startswith(door)) or path == door + "/"
                                   for door in OPEN) and not path.startswith("/gradio_api/heartbeat"):  # fmt: skip
            return 404, "there is nothing here"
        if ".." in path:
            return 404, "there is nothing here"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.most_bytes:
            return 413, "the upload is larger than this page takes"
        return 0, ""


def application(service: Service, *, host: str = "127.0.0.1", auth: tuple[str, str] | None = None) -> Server:
    """The whole server as an ASGI application, to be run by uvicorn.

    Raises:
        OptionError: for an address that others reach, without `auth`.
    """
    check_host(host, auth)
    import gradio as gr
    from fastapi import FastAPI

    from .page import HEAD, STYLE, build, theme  # before any other import of Gradio: it sets its switches

    blocks = build(service)
    blocks.queue(max_size=200, api_open=False)
    inner: FastAPI = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="",
        server_name=host,
        auth=auth,
        auth_message=None if auth is None else "Whoever runs this page has given you a name and a password.",
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=1,
        theme=theme(),
        css=STYLE,
        head=HEAD,
    )
    # An upload in base64 takes four bytes for three; the rest is for the words around it.
    most = service.limits.bytes * 4 // 3 + 100_000
    return Gate(inner, loopback=is_loopback(host), most_bytes=most)


def _name(host: str) -> str:
    """The host in a Host header, without its port.

    >>> _name("localhost:7860"), _name("[::1]:80"), _name("::1")
    ('localhost', '::1', '::1')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host if host.count(":") > 1 else host.partition(":")[0]


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
