"""Admission of visitors: loopback or a password, the token of the printed address, the signed cookie, the throttle."""

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from html import escape
from urllib.parse import parse_qsl, urlencode

from ..errors import OptionError

__all__ = [
    "Admission",
    "Throttle",
    "check_host",
    "check_root_path",
    "is_loopback",
    "login_page",
    "parse_auth",
    "plain_page",
    "without_token",
]


def is_loopback(host: str) -> bool:
    """Returns whether only this machine itself can reach the address.

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
    """Returns user and password of "user:password".

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
    """Refuses to serve other machines without a password.

    Raises:
        OptionError: for an address that others reach, where there is no `auth`.
    """
    if auth is None and not is_loopback(host):
        raise OptionError(
            f"--host {host} can be reached from other machines: give --auth USER:PASSWORD, or stay on 127.0.0.1"
        )


def check_root_path(path: str) -> str:
    """Returns the path at which a reverse proxy serves the page, without a final slash; "" for none.

    Raises:
        OptionError: for anything but a plain path.

    >>> check_root_path("/vitrail/"), check_root_path("/")
    ('/vitrail', '')
    """
    trimmed = path.rstrip("/")
    parts = trimmed.split("/")
    plain = all(part.strip(".") and part.isascii() and not set(part) - _PLAIN for part in parts[1:])
    if trimmed and (parts[0] or not plain):
        raise OptionError(
            f"--root-path {path!r} is not a path such as /vitrail: begin with a slash, then letters, digits, . _ ~ -"
        )
    return trimmed


_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._~-")


class Throttle:
    """Lets each key act `burst` times at once, and after that once in `every` seconds.

    >>> throttle = Throttle(burst=2, every=10, clock=lambda: 0.0)
    >>> [throttle.wait("ada") for _ in range(3)], throttle.wait("eve")
    ([0.0, 0.0, 10.0], 0.0)
    """

    MOST_KEYS = 10_000

    def __init__(self, *, burst: int, every: float | int, clock: Callable[[], float] = time.monotonic) -> None:
        self.burst, self.every, self.clock = burst, every, clock
        self._spent: OrderedDict[str, float] = OrderedDict()  # by key: when everything is regained

    def wait(self, key: str, *, take: bool = True) -> float:
        """Returns the seconds until the key may act again; 0 if it may act now, which with `take` is counted."""
        now = self.clock()
        regained = max(self._spent.get(key, now), now)
        late = regained + self.every - now - self.burst * self.every
        if late > 0:
            return late
        if take:
            self._spent[key] = regained + self.every
            self._spent.move_to_end(key)
            while len(self._spent) > self.MOST_KEYS:
                self._spent.popitem(last=False)
        return 0.0


class Admission:
    """Recognises a visitor by a signed cookie, which is issued for the token or the password.

    A visitor's key is random, and no one else can make a cookie that holds it: the signature needs a secret that lives
    as long as the process. `token` and `auth` are None where none is asked for.

    >>> admission = Admission(token=None, auth=("ada", "lace"))
    >>> admission.visitor("vitrail=" + admission.cookie()) is None, admission.visitor("vitrail=me.me")
    (False, None)
    """

    NAME = "vitrail"

    def __init__(
        self,
        *,
        token: str | None = None,
        auth: tuple[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.token, self.auth = token, auth
        self._secret = secrets.token_bytes(32)
        self._clock = clock
        self._once, self._until = "", 0.0
        self.wrong = Throttle(burst=5, every=15, clock=clock)  # wrong passwords and tokens, by address
        self.arrivals = Throttle(burst=60, every=1, clock=clock)  # new visitors, by address

    @property
    def closed(self) -> bool:
        """Returns whether a token or a password is required."""
        return self.token is not None or self.auth is not None

    def invitation(self) -> str:
        """Returns a token that opens the page once, within a minute, for the browser that the command opens.

        Other users of the machine see the arguments of a browser's process, so the lasting token does not belong there.
        """
        self._once, self._until = secrets.token_urlsafe(24), self._clock() + 60
        return self._once

    def cookie(self) -> str:
        """Returns the value of a new visitor's cookie: a random key and its signature."""
        key = secrets.token_hex(16)
        return f"{key}.{self._sign(key)}"

    def visitor(self, header: str, name: str = NAME) -> str | None:
        """Returns the visitor's key from a Cookie header, or None where it holds no valid one."""
        for part in header.split(";")[:50]:
            found, _, value = part.strip().partition("=")
            key, _, signature = value.partition(".")
            if found == name and len(value) < 200 and _same(signature, self._sign(key)):
                return key
        return None

    def admits(self, given: dict[str, str]) -> bool:
        """Returns whether the given token or password opens the page; compared in constant time."""
        if self.auth is not None:
            user, password = given.get("username", ""), given.get("password", "")
            return _same(user, self.auth[0]) & _same(password, self.auth[1])
        token = given.get("token", "")
        if self._once and self._clock() < self._until and _same(token, self._once):
            self._once = ""
            return True
        return self.token is not None and _same(token, self.token)

    def _sign(self, key: str) -> str:
        return hmac.new(self._secret, key.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass"))


def without_token(query: str) -> tuple[dict[str, str], str]:
    """Returns the token in a query, and the rest of it.

    >>> without_token("token=abc&view=heads")
    ({'token': 'abc'}, 'view=heads')
    """
    pairs = parse_qsl(query)
    given = {name: value for name, value in pairs if name == "token"}
    return given, urlencode([pair for pair in pairs if pair[0] != "token"])


def login_page(problem: str, query: str, *, password: bool) -> str:
    """Returns the page that asks for the token, or for name and password: plain HTML without scripts."""
    if password:
        words = "Whoever runs this page has given you a name and a password."
        fields = (
            '<label>Name<input name="username" autocomplete="username" required autofocus></label>'
            '<label>Password<input name="password" type="password" autocomplete="current-password" required></label>'
        )
    else:
        words = "Open the address that the command printed, or paste the token that stands in it."
        fields = '<label>Token<input name="token" type="password" autocomplete="off" required autofocus></label>'
    alert = f'<p role="alert">{escape(problem)}</p>' if problem else ""
    body = (
        f'<p>{words}</p>{alert}<form method="post" action="./login{"?" + escape(query) if query else ""}">{fields}'
        "<button>Open the page</button></form>"
    )
    return plain_page(body)


def plain_page(body: str) -> str:
    """Returns a page of a few words, light or dark as the reader's system is."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Vitrail</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<style>:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:24rem;margin:15vh auto;"
        "padding:0 1rem}label{display:block;margin:.8rem 0}input,button{display:block;box-sizing:border-box;width:100%;"
        "font:inherit;padding:.5rem;margin-top:.2rem}[role=alert]{color:light-dark(#a01c1c,#ff9c93)}</style></head>"
        f"<body><h1>Vitrail</h1>{body}</body></html>"
    )
