"""The page's server: Gradio behind the gate, the content security policy, and limits for slow connections."""

import asyncio
import base64
import hashlib
import json
import re
import socket
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from .admission import Admission, check_host, check_root_path, is_loopback
from .gate import Gate
from .gradio_requests import calls_of

__all__ = ["application", "policy", "serve"]

# The browser itself refuses whatever would leave this server, and every script but ours and Gradio's files: no script
# in an attribute, none of text (strict.js stands in where Gradio makes code of its own texts).
POLICY = (
    "default-src 'self'; script-src 'self'{hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; media-src 'self' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
INLINE = re.compile(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE)
MANIFEST = re.compile(r'<link rel="manifest"[^>]*>')  # it asks at the root of the host, whatever the page's own root is

HEAD_WITHIN = 10.0  # seconds from the first byte of a request's head to its last, or from a connection to its first
MOST_CONNECTIONS = 512


def application(
    service: Any,
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
    import gradio as gr
    from fastapi import FastAPI

    from .page import HEAD, STYLE, build, theme  # before any other import of Gradio: it sets its switches

    blocks = build(service)
    blocks.queue(max_size=1000, api_open=False)  # the gate counts what each visitor asks
    blocks.state_session_capacity = 1000
    inner: FastAPI = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="",
        server_name=host,
        root_path=root_path or None,
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
    )
    blocks.has_launched = True  # else Gradio does not check paths of files, though none comes as far as that
    strict = _strict(blocks)

    def page(html: str) -> tuple[str, str]:
        """Returns Gradio's page with our scripts, and the policy that lets these run and no others."""
        html = MANIFEST.sub('<link rel="icon" href="data:,">', html, count=1)
        html = html.replace("<head>", f"<head><script>{strict}</script>", 1)
        before, end, after = html.rpartition("</body>")
        html = f"{before}{HEAD}{end}{after}"
        return html, policy(INLINE.findall(html))

    # An upload in base64 takes four bytes for three; the rest is for the words around it.
    most = service.limits.bytes * 4 // 3 + 100_000
    gate = Gate(
        inner,
        admission,
        calls_of(blocks),
        page=page,
        policy=policy(),
        loopback=is_loopback(host),
        most_bytes=most,
        root_path=root_path,
        hosts=hosts,
    )
    service.present = lambda visitor: gate.listeners.present(visitor.rpartition(":")[2])
    return gate


def policy(scripts: Iterable[str] = ()) -> str:
    """Returns the Content-Security-Policy of a page with these inline scripts.

    >>> "script-src 'self' 'sha256-" in policy(["1"]), "unsafe-eval" in policy()
    (True, False)
    """
    digests = (base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts)
    return POLICY.format(hashes="".join(f" 'sha256-{digest}'" for digest in dict.fromkeys(digests)))


def _strict(blocks: Any) -> str:
    """Returns the script that holds as code every text that Gradio's page would evaluate as code."""
    config = blocks.config
    values = {one["js"] for one in config["dependencies"] if isinstance(one.get("js"), str)}
    bodies = {one["props"].get("js_on_load") for one in config["components"]} - {None, ""}
    texts = [f"[{json.dumps(text)}, ({text})]" for text in sorted(values)]
    loads = [
        f"[{json.dumps(text)}, function (element, trigger, props, server, upload, watch) {{\n{text}\n}}]"
        for text in sorted(bodies)
    ]
    script = files("vitrail.app").joinpath("strict.js").read_text(encoding="utf-8")
    return script.replace("/* values */", ",\n".join(texts)).replace("/* bodies */", ",\n".join(loads))


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
