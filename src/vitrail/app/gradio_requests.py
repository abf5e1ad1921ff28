"""The requests that the page makes of Gradio: their routes, bodies and sessions, and the reasons to refuse others."""

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["CALL", "JOIN", "LOGIN", "QUEUE", "Calls", "Refused", "calls_of", "check_route", "session_of"]

# All that the page needs of Gradio. Its other routes (files of the server by path, uploads to disk, addresses fetched
# for others, calls past the queue …) stay closed.
JOIN, CALL, LOGIN = "/gradio_api/queue/join", "/gradio_api/run/predict", "/login"
QUEUE, HEARTBEAT = "/gradio_api/queue/data", "/gradio_api/heartbeat/"
READ = ("/", "/config", "/theme.css", "/favicon.ico", "/gradio_api/info", "/gradio_api/app_id", QUEUE)
READ_BELOW = ("/assets/", "/static/", HEARTBEAT)

# Gradio opens, copies or fetches what a dictionary with these keys names; the page sends none.
FILE_KEYS = frozenset({"path", "url", "meta", "_type", "orig_name", "mime_type", "is_stream", "file", "files"})


class Refused(Exception):  # noqa: N818  (an answer, not a fault)
    """Refuses a request with an HTTP status, the reason, and the seconds to wait before another try."""

    def __init__(self, status: int, reason: str, wait: float | int = 0) -> None:
        super().__init__(reason)
        self.status, self.reason, self.wait = status, reason, wait


def check_route(method: str, path: str) -> None:
    """Refuses every route and method that the page does not use."""
    if any(part in ("..", ".") for part in path.split("/")) or "\\" in path or "\0" in path or "//" in path:
        raise Refused(404, "there is nothing here")
    reads = path in READ or any(path.startswith(door) and path != door for door in READ_BELOW)
    if not (reads or path in (JOIN, CALL, LOGIN)):
        raise Refused(404, "there is nothing here")
    if method not in (("GET", "HEAD") if reads else ("POST",)) and not (path == LOGIN and method in ("GET", "HEAD")):
        raise Refused(405, "this address is not asked in that way")


class Calls:
    """Knows the page's functions by number: how many values each takes, and which of them may be structures.

    `queued` are asked for by joining the queue, `direct` without it; each maps a number to one truth per value.
    """

    def __init__(self, queued: Mapping[int, tuple[bool, ...]], direct: Mapping[int, tuple[bool, ...]]) -> None:
        self.queued, self.direct = dict(queued), dict(direct)

    def read(self, raw: bytes, *, queued: bool) -> tuple[dict[str, Any], str]:
        """Returns the checked body, rebuilt from the fields that the page sends, and the session that it names.

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


def calls_of(blocks: Any) -> Calls:
    """Returns the functions of a page that a browser may call: not those that it runs itself, nor Gradio's own."""
    queued, direct = {}, {}
    for number, each in blocks.fns.items():
        if each.fn is None or any(event in ("unload", "load_model") for _, event in each.targets):
            continue
        kinds = tuple(type(component).__name__ == "JSON" for component in each.inputs)
        (queued if each.queue is not False else direct)[number] = kinds
    return Calls(queued, direct)


def session_of(word: Any) -> str:
    """Returns the name of a tab, which its browser draws at random.

    Raises:
        Refused: for anything but up to forty letters, digits and hyphens.
    """
    if isinstance(word, str) and 0 < len(word) <= 40 and word.isascii() and word.replace("-", "a").isalnum():
        return word
    raise Refused(400, "the session's name is not one that the page gives")


def _no_number(word: str) -> None:
    raise ValueError(word)


def _check(value: Any, depth: int) -> None:
    """Refuses what the page's components never send: files, deep or long structures, numbers outside JSON."""
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
