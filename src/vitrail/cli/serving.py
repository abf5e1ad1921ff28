"""What the commands that serve a page share: the socket, the printed address, the browser, and the end by a signal."""

import importlib.util
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vitrail.cli.console import show

if TYPE_CHECKING:
    from vitrail.app.admission import Admission
    from vitrail.app.gate import Gate

__all__ = ["admission_of", "ended_by_signals", "listening", "open_page", "say_where", "serve_until_ended"]

PACKAGES = ("starlette", "uvicorn", "python_multipart")


def admission_of(host: str, auth: str | None, *, no_token: bool) -> "Admission":
    """Returns who is admitted: by the password of `auth`, else by a token, unless `no_token`.

    Raises:
        OptionError: where a package of the page is missing, for an `auth` of another form, and for an address that
            others reach without one.
    """
    from vitrail.errors import OptionError, how_to_install

    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise OptionError(f"the page needs {package}; install it with: {how_to_install('app')}")
    from vitrail.app.admission import Admission, check_host, parse_auth

    known = parse_auth(auth)
    check_host(host, known)
    return Admission(token=None if known or no_token else secrets.token_urlsafe(24), auth=known)


def listening(host: str, port: int) -> socket.socket:
    """Opens the socket to serve at, before the page is made. Raises `OptionError` where it is not free."""
    from vitrail.errors import OptionError

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host, port))
        opened.listen(128)  # who opens the address while the page is made waits, and is not turned away
    except OSError as error:
        opened.close()
        raise OptionError(f"cannot serve at {host}, port {port}: {error.strerror}; choose another --port") from error
    return opened


def say_where(admission: "Admission", opened: socket.socket, host: str, prefix: str = "", what: str = "Vitrail") -> str:
    """Prints the address with its token, and returns it without."""
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{opened.getsockname()[1]}{prefix}/"
    token = f"?token={admission.token}" if admission.token else ""
    show(f"{what} is at {address}{token}  (Ctrl-C ends it)")
    return address


def open_page(admission: "Admission", address: str) -> None:
    """Opens the address in the reader's browser, in a moment."""
    import threading
    import webbrowser

    invited = f"{address}?token={admission.invitation()}" if admission.token else address
    opening = threading.Timer(0.5, webbrowser.open, [invited])
    opening.daemon = True
    opening.start()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Makes SIGTERM end the command as Ctrl-C does, with all temporary files removed and the status of the signal."""

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def serve_until_ended(server: "Gate", opened: socket.socket, *, proxied: bool = False) -> int:
    """Serves until Ctrl-C or SIGTERM, and returns the status of the command."""
    from vitrail.app.server import serve

    try:
        serve(server, opened, proxied=proxied)
    except KeyboardInterrupt:
        show()
        show("ended")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0
