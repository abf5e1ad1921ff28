"""`vitrail app`: the web page."""

import importlib.util
import os
import socket
from typing import Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import stop

__all__ = ["app_command"]


def app_command(
    model: Annotated[
        str, typer.Option("--model", "-m", help="The model that visitors meet: a name that `vitrail models` lists.")
    ] = "bestiary",
    checkpoint: shared.Checkpoint = None,
    host: Annotated[str, typer.Option("--host", help="Address to serve at; one that others reach needs --auth.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="0: any free one.")] = 7860,
    allow_models: Annotated[
        list[str] | None,
        typer.Option("--allow-models", metavar="NAME", help="A model that visitors may choose, too; several: repeat."),
    ] = None,
    auth: Annotated[
        str | None,
        typer.Option("--auth", metavar="USER:PASSWORD", envvar="VITRAIL_AUTH", help="Ask visitors for these."),
    ] = None,
    max_bytes: Annotated[int, typer.Option("--max-bytes", min=1000, help="Largest upload, in bytes.")] = 16_000_000,
    max_pixels: Annotated[int, typer.Option("--max-pixels", min=1000, help="Largest picture, in pixels.")] = 40_000_000,
    device: shared.Device = "cpu",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open the page in a browser.")] = False,
) -> None:
    """Serve the web page: a picture in, a click on a class, and the signed map; offline, on this machine alone.

    The built-in model is ready at once; --model and --checkpoint name another. Nothing is fetched but the weights of
    models that are named here without a checkpoint. Ctrl-C ends it.
    """
    from vitrail.errors import OptionError, VitrailError

    try:
        for package in ("gradio", "uvicorn"):
            if importlib.util.find_spec(package) is None:
                raise OptionError(f'the page needs {package}; install it with: pip install "vitrail[app]"')
        from vitrail.app.pictures import Limits
        from vitrail.app.server import application, check_host, parse_auth
        from vitrail.app.service import Service
        from vitrail.app.shelf import Shelf
        from vitrail.cli.loading import load_named

        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # whichever library loads a model: no pickle runs code
        known = parse_auth(auth)
        check_host(host, known)
        shelf = Shelf(
            model,
            load=lambda name, weights: load_named(name, weights, device=device),
            checkpoint=checkpoint,
            allowed=tuple(allow_models or ()),
        )
        with _listening(host, port) as listening:
            server = application(Service(shelf, Limits(max_bytes, max_pixels)), host=host, auth=known)
            _serve(server, listening, host, browser=not no_browser)
    except VitrailError as error:
        stop(error)


def _listening(host: str, port: int) -> socket.socket:
    """The place to serve at, taken before the work of making a page; `OptionError` where it is not free."""
    from vitrail.errors import OptionError

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise OptionError(f"cannot serve at {host}, port {port}: {error.strerror}; choose another --port") from error
    return listening


def _serve(server: Any, listening: socket.socket, host: str, *, browser: bool) -> None:
    """Serve until Ctrl-C, and say where."""
    import threading
    import webbrowser

    import uvicorn

    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}"
    typer.echo(f"Vitrail is at {address}  (Ctrl-C ends it)")
    if browser:
        opening = threading.Timer(1.0, webbrowser.open, [address])
        opening.daemon = True
        opening.start()
    uvicorn.Server(uvicorn.Config(server, log_level="warning", timeout_graceful_shutdown=2)).run(sockets=[listening])
