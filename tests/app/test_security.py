"""What a hostile visitor tries: files of the server, script in names, the whole queue, wrong passwords, open lines."""

import asyncio
import html.parser
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from app.conftest import LIMITS, Running, base64_of, new_service
from app.test_server import come, join, number_of

from vitrail.app import server
from vitrail.app.admission import Admission, check_root_path
from vitrail.app.gate import Gate
from vitrail.app.gradio_requests import Calls
from vitrail.app.jobs import BusyError, ModelQueue, Stopped
from vitrail.app.pictures import Picture
from vitrail.app.service import Service
from vitrail.app.session import ModelCache, Sessions
from vitrail.errors import OptionError

httpx = pytest.importorskip("httpx", reason="needs the extra app: pip install 'vitrail[app]'")
testclient = pytest.importorskip("starlette.testclient", reason="needs the extra app: pip install 'vitrail[app]'")

FILE = {"_type": "gradio.FileData"}


# -- a gate with nothing behind it -------------------------------------------------------------------------------------


class Echo:
    """Stands where Gradio stands, and keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict, bytes]] = []

    async def __call__(self, scope, receive, send) -> None:
        body = (await receive()).get("body", b"")
        self.asked.append((scope["path"], scope, body))
        kind = b"text/html" if scope["path"] == "/" else b"application/json"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": b"<html><head></head><body></body></html>"})


def gate_of(**words) -> tuple[Gate, Echo]:
    echo, calls = Echo(), Calls({3: (True, False), 7: (False,)}, {5: ()})
    admission = words.pop("admission", None) or Admission()
    given = {"page": lambda html: (html, "policy"), "policy": "policy", "loopback": True, "most_bytes": 100_000}
    return Gate(echo, admission, calls, **(given | words)), echo


def client_of(gate: Gate, base: str = "http://127.0.0.1:7860"):
    return testclient.TestClient(gate, base_url=base, follow_redirects=False)


def question(data: list | None = None, **words) -> dict:
    return {"fn_index": 7, "data": ["view=map"] if data is None else data, "session_hash": "tab1"} | words


JOIN, CALL = "/gradio_api/queue/join", "/gradio_api/run/predict"
DOORS = [
    ("GET", "/"), ("GET", "/config"), ("GET", "/theme.css"), ("GET", "/assets/index.js"), ("GET", "/static/x.js"),
    ("GET", "/gradio_api/info"), ("GET", "/gradio_api/heartbeat/tab1"), ("GET", "/gradio_api/app_id"),
    ("GET", "/gradio_api/queue/data?session_hash=tab1"), ("POST", JOIN), ("POST", CALL),
]  # fmt: skip
CLOSED = [
    ("POST", "/gradio_api/reset"), ("POST", "/gradio_api/cancel"), ("POST", "/gradio_api/upload"),
    ("POST", "/gradio_api/call/upload"), ("POST", "/gradio_api/api/upload"), ("POST", "/gradio_api/run/upload"),
    ("GET", "/gradio_api/file=/etc/passwd"), ("GET", "/gradio_api/proxy=http://x"), ("GET", "/gradio_api/deep_link"),
    ("POST", "/gradio_api/component_server"), ("GET", "/gradio_api/runs"), ("GET", "/monitoring"), ("GET", "/logout"),
    ("GET", "/gradio_api/startup-events"), ("POST", "/gradio_api/vibe-code/"), ("GET", "/user"), ("GET", "/token"),
    ("GET", "/assets/../x"), ("GET", "/assets//etc/passwd"), ("GET", "/gradio_api/queue/status"), ("PUT", "/"),
]  # fmt: skip


@pytest.mark.parametrize("admission", [Admission(token="t0ken"), Admission(auth=("ada", "lace"))])
def test_nothing_is_answered_without_the_token_or_the_password(admission):
    gate, echo = gate_of(admission=admission)
    client = client_of(gate)
    for method, path in (*DOORS, *CLOSED):
        answer = client.request(method, path, json={} if method == "POST" else None)
        assert answer.status_code in (401, 404, 405), path
        assert "vitrail-" not in answer.headers.get("set-cookie", "")
    assert not echo.asked
    login = client.get("/")
    assert "<form" in login.text
    assert "script-src 'none'" in login.headers["content-security-policy"]


def test_the_doors_that_the_page_does_not_need_are_shut_for_visitors_too():
    gate, echo = gate_of()
    client = client_of(gate)
    client.get("/")
    for method, path in CLOSED:
        assert client.request(method, path).status_code in (404, 405), path
    assert [path for path, _, _ in echo.asked] == ["/"]
    for method, path in DOORS:
        sent = {"json": question([], fn_index=5) if path == CALL else question()} if method == "POST" else {}
        assert client.request(method, path, **sent).status_code == 200, path


def test_a_token_opens_the_page_and_leaves_the_address():
    gate, _ = gate_of(admission=Admission(token="t0ken"))
    client = client_of(gate)
    answer = client.get("/?token=t0ken&view=heads")
    assert (answer.status_code, answer.headers["location"]) == (303, "/?view=heads")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert client.get("/?view=heads").status_code == 200
    assert client.get("/?my_token=1").status_code == 200
    assert client.get("/?" + "token=t0ken&" * 99).headers["location"] == "/"
    other = client_of(gate)
    assert other.get("/?token=no").status_code == 401
    assert other.post("/login?view=heads", data={"token": "t0ken"}).headers["location"] == "/?view=heads"
    assert other.get("/").status_code == 200


def test_the_browsers_own_token_serves_once_and_not_for_long():
    now = [0.0]
    admission = Admission(token="t0ken", clock=lambda: now[0])
    first = admission.invitation()
    assert [admission.admits({"token": first}) for _ in range(2)] == [True, False]
    second = admission.invitation()
    now[0] = 61.0
    assert not admission.admits({"token": second})
    assert not admission.admits({"token": ""})
    assert admission.admits({"token": "t0ken"})


def test_wrong_passwords_are_slowed_down_and_the_right_one_with_them():
    """60 wrong ones passed in 3 seconds before."""
    now = [0.0]
    gate, _ = gate_of(admission=Admission(auth=("ada", "lace"), clock=lambda: now[0]))
    client = client_of(gate)
    wrong = [client.post("/login", data={"username": "ada", "password": str(n)}).status_code for n in range(60)]
    assert wrong == [401] * 5 + [429] * 55
    told = client.post("/login", data={"username": "ada", "password": "lace"})
    assert told.status_code == 429
    assert 0 < int(told.headers["retry-after"]) <= 75
    now[0] = 16.0
    assert client.post("/login", data={"username": "ada", "password": "lace"}).status_code == 303
    assert client.get("/").status_code == 200


def test_nobody_names_anothers_session():
    """A tab's name was all that told visitors apart; it now counts only with its owner's cookie."""
    gate, echo = gate_of(admission=Admission(auth=("ada", "lace")))
    sessions = []
    for _ in range(2):
        client = client_of(gate)
        client.post("/login", data={"username": "ada", "password": "lace"})
        client.post(JOIN, json=question())
        client.get("/gradio_api/queue/data?session_hash=tab1")
        client.get("/gradio_api/heartbeat/tab1")
        (_, _, body), (_, scope, _), (path, _, _) = echo.asked[-3:]
        session = json.loads(body)["session_hash"]
        assert scope["query_string"].decode() == f"session_hash={session}"
        assert path == f"/gradio_api/heartbeat/{session}"
        key, _, tab = session.partition(".")
        assert (len(key), tab) == (32, "tab1")
        sessions.append(session)
    assert sessions[0] != sessions[1]
    for name in (sessions[0], "a.b", "a/b", "../x", "", "x" * 41):
        assert client.post(JOIN, json=question(session_hash=name)).status_code == 400
        assert client.get("/gradio_api/queue/data", params={"session_hash": name}).status_code == 400


@pytest.mark.parametrize("value", ["", "x.y", "%00.", "a" * 5000, "ä.ö", ";;;=", "0" * 32 + "." + "0" * 64])
def test_a_cookie_that_was_not_given_out_is_none(value):
    gate, echo = gate_of(admission=Admission(token="t0ken"))
    answer = client_of(gate).get("/config", headers={"cookie": f"vitrail-7860={value}".encode("latin-1")})
    assert answer.status_code == 401
    assert not echo.asked


FOREIGN = [
    {"path": "/etc/passwd", "meta": FILE}, {"path": "http://169.254.169.254/", "meta": FILE},
    {"name": "a.png", "content": {"path": "/etc/passwd", "meta": FILE}}, [{"path": "/etc/passwd", "meta": FILE}],
    {"a": [{"url": "http://x/"}]}, {"path": None}, {"meta": FILE}, [[[[1]]]], {"a": {"b": {"c": {}}}}, [0] * 65,
    {str(n): n for n in range(17)}, 1e400, 2**63, 10**400, "\ud800", {"\udfff": 1},
]  # fmt: skip


def test_only_what_the_page_sends_passes():
    gate, echo = gate_of()
    client = client_of(gate)
    client.get("/")
    for value in FOREIGN:
        for body in (question([value, ""], fn_index=3), question([value])):
            raw = json.dumps(body).replace("Infinity", "1e400")
            gate.asks = type(gate.asks)(burst=40, every=0)
            assert client.post(JOIN, content=raw).status_code == 400, value
    assert client.post(JOIN, json=question(["x"])).status_code == 200
    for body in (b"", b"[]", b"{", b"[" * 90_000, b'{"data":' * 900, b"NaN", b"\xff", b"1" * 5000,
                 json.dumps(question(fn_index=True)), json.dumps(question(fn_index=99)),
                 json.dumps(question(fn_index=5)), json.dumps(question([1, 2])),
                 json.dumps(question({}))):  # fmt: skip
        gate.asks = type(gate.asks)(burst=40, every=0)
        assert client.post(JOIN, content=body).status_code == 400, body[:40]
    asked = [body for path, _, body in echo.asked if path == JOIN]
    assert len(asked) == 1


def test_what_passes_is_written_anew():
    gate, echo = gate_of()
    client = client_of(gate)
    client.get("/")
    event = {"path": "/etc/passwd", "meta": FILE}
    body = question(event_data=event, request=event, event_id="x", batched=True, trigger_id="x", simple_format=event)
    headers = {"x-forwarded-host": "evil.example", "x-gradio-user": "app", "authorization": "Bearer x", "range": "x"}
    assert client.post(JOIN + "?deep_link=x", json=body, headers=headers).status_code == 200
    _, scope, sent = echo.asked[-1]
    assert set(json.loads(sent)) == {"data", "fn_index", "session_hash", "trigger_id", "event_data"}
    assert json.loads(sent)["event_data"] is None
    assert scope["query_string"] == b""
    assert not {name for name, _ in scope["headers"]} & {b"x-forwarded-host", b"x-gradio-user", b"cookie", b"range"}


# -- behind a reverse proxy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/vitrail", ""])  # a proxy may take the prefix off, or leave it
def test_the_page_on_a_sub_path_under_another_name(path):
    admission = Admission(auth=("ada", "lace"))
    gate, echo = gate_of(admission=admission, root_path="/vitrail", hosts=("Glass.example",))
    client = client_of(gate, "https://glass.example")
    told = client.post(path + "/login?view=map", data={"username": "ada", "password": "lace"},
                       headers={"origin": "https://glass.example"})  # fmt: skip
    assert told.headers["location"] == "/vitrail/?view=map"
    assert "Path=/vitrail/;" in told.headers["set-cookie"]
    assert "Secure" in told.headers["set-cookie"]
    client.cookies.set(*told.headers["set-cookie"].partition(";")[0].split("=", 1))
    assert client.get(path + "/").status_code == 200
    assert client.get(path + "/assets/a.js").status_code == 200
    assert [path for path, _, _ in echo.asked] == ["/", "/assets/a.js"]
    assert client.get("/vitrail").headers["location"] == "/vitrail/"
    assert client.get("/vitrailx/assets/a.js").status_code == 404


def test_names_that_were_not_given_are_refused():
    for host, status in (("evil.example", 403), ("glass.example", 200), ("localhost:1", 200), ("", 403), ("[::1]", 200),
                         ("127.0.0.1.evil.example", 403), ("glass.example.", 403)):  # fmt: skip
        gate, _ = gate_of(hosts=("glass.example",))
        assert client_of(gate).get("/", headers={"host": host}).status_code == status, host
    gate, _ = gate_of()
    client = client_of(gate)
    client.get("/")
    for origin, status in (
        ("http://evil.example", 403),
        ("null", 403),
        ("http://[", 403),
        ("http://127.0.0.1:7860", 200),
    ):
        assert client.post(JOIN, json=question(), headers={"origin": origin}).status_code == status


def test_root_paths():
    for word, path in (("", ""), ("/", ""), ("/vitrail/", "/vitrail"), ("/a/b-c", "/a/b-c")):
        assert check_root_path(word) == path
    for word in ("vitrail", "http://x/y", "/a//b", "/../a", "/a b", '/a"b', "/%2e", "/a;b", "//evil.example"):
        with pytest.raises(OptionError, match="--root-path"):
            check_root_path(word)


# -- shares ------------------------------------------------------------------------------------------------------------


def test_long_work_waits_in_line_and_nobody_fills_it():
    turn = ModelQueue(most=4, each=2)
    told: list[str] = []
    done: list[str] = []
    go = threading.Event()

    def work(person: str) -> None:
        try:
            with turn.long(person) as breathe:
                go.wait(10)
                breathe()
                done.append(person)
        except BusyError as error:
            told.append(str(error))

    threads = [threading.Thread(target=work, args=(person,)) for person in ("eve",) * 5 + ("ada", "bob", "cleo")]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    go.set()
    for thread in threads:
        thread.join(10)
    assert done == ["eve", "eve", "ada", "bob"]
    assert sum("of yours" in one for one in told) == 3
    assert sum("of other visitors" in one for one in told) == 1


def test_work_for_which_nobody_waits_leaves_the_line():
    turn, began = ModelQueue(), threading.Event()

    def first() -> None:
        with turn.long("ada"):
            began.set()
            time.sleep(0.6)

    thread = threading.Thread(target=first)
    thread.start()
    began.wait(5)

    def gone(ahead: int) -> None:
        raise Stopped

    with pytest.raises(Stopped), turn.long("eve", gone):
        pass
    thread.join(5)
    with turn.long("bob"):  # the line is in order
        pass


def test_nothing_is_drawn_for_one_who_has_gone():
    service = Service(ModelCache("bestiary", load=_bestiary), LIMITS)
    query = service.arrive("ada", "").question.query()
    service.present = lambda visitor: False
    began = time.monotonic()
    views = [
        shown.views.get("transfer", "") for shown in service.draw("ada", query, {"view": "transfer", "steps": 100})
    ]
    assert "Stopped" in views[-1]
    assert time.monotonic() - began < 3
    assert not service.choose("ada", query, 3).views


def test_one_persons_tabs_push_out_only_their_own():
    sessions = Sessions(each=3, most_bytes=4000)
    sessions.of("ada.1").put(Picture("a.png", bytes(100), 1))
    for tab in range(50):
        sessions.of(f"eve.{tab}").put(Picture("a.png", bytes(600), 1))
    assert sessions.of("ada.1").picture is not None
    assert len(sessions) <= 1 + 3
    assert "eve.49" in sessions


def _bestiary(name, checkpoint):
    from vitrail.models import load

    return load(name)


# -- script in names ---------------------------------------------------------------------------------------------------

EVIL = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>"


class Strange(html.parser.HTMLParser):
    """Collects what no view of the page has: scripts, handlers, addresses that are not data."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs) -> None:
        if tag in ("script", "iframe", "object", "embed", "base", "link", "meta", "form"):
            self.found.append(tag)
        for name, value in attrs:
            outside = name in ("src", "href", "action") and not (value or "").startswith("data:image/")
            if name.startswith("on") or outside:
                self.found.append(f"{tag} {name}={value}")


def _strange(shown) -> list[str]:
    from vitrail.app.components import taking_home

    parser = Strange()
    for text in (shown.status, shown.classes or "", *shown.views.values()):
        parser.feed(text)
    if shown.question is not None:  # a report of progress has none, and none is made where the work ends at once
        parser.feed(taking_home(shown.question.example, shown.files or (), shown.recipes or ("", "")))
    return parser.found


def _evil_service() -> Service:
    from dataclasses import replace

    def load(name, checkpoint):
        model = _bestiary("bestiary", None)
        return replace(model, name=EVIL, class_names=tuple(f"{n}{EVIL}" for n in range(len(model.class_names))))

    return Service(ModelCache(EVIL, load=load), LIMITS)


def test_names_from_outside_never_become_script(creature):
    """Files, classes, methods, models, errors: wherever a name is said, it is said as text."""
    service = _evil_service()
    shown = service.upload("ada", "", EVIL + ".png", base64_of(creature))
    found = _strange(shown)
    query = shown.question.query() + "&target=0&against=8"
    found += _strange(service.change("ada", query, {"row": 1, "col": 1}))
    found += _strange(service.guide("ada", query, EVIL, base64_of(creature)))
    found += _strange(service.guide("ada", query, EVIL, "no picture"))
    for name in ("method", "model", "gradient", "layout", "example", "methods", "view", "target"):
        found += _strange(service.change("ada", f"{query}&{name}={EVIL}", {}))
    found += _strange(service.example("ada", query, EVIL))
    assert found == []


@pytest.mark.slow
@pytest.mark.parametrize("view", ["layers", "heads", "detail", "methods", "guide", "transfer", "rewrite"])
def test_names_are_said_as_text_in_every_view(creature, view):
    service = _evil_service()
    query = service.upload("ada", "", EVIL + ".png", base64_of(creature)).question.query() + "&target=0&against=8"
    for more in ("", f"&layout={EVIL}", f"&methods={EVIL}"):
        for shown in service.draw("ada", query + more, {"view": view, "steps": 1, "until": 0.1}):
            assert _strange(shown) == []


def test_the_policy_lets_no_script_run_but_the_pages_own(page_server):
    answer = httpx.get(page_server.address)
    scripts = re.search(r"script-src ([^;]*)", answer.headers["content-security-policy"])[1].split()
    assert scripts[0] == "'self'"
    assert all(one.startswith("'sha256-") for one in scripts[1:])
    inline = re.findall(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", answer.text, re.DOTALL)
    assert server.policy(inline) == answer.headers["content-security-policy"]
    assert 'rel="manifest"' not in answer.text
    with come(page_server) as client:
        assert "unsafe-eval" not in client.get("/theme.css").headers["content-security-policy"]


# -- the page itself ---------------------------------------------------------------------------------------------------


def test_no_file_of_the_server_is_opened_or_copied(page_server, tmp_path):
    """A named pipe hung the server for everybody; any file was copied to disk and stayed there."""
    pipe, secret = tmp_path / "pipe", tmp_path / "secret.txt"
    os.mkfifo(pipe)
    secret.write_text("do not tell")
    before = temporary_files(page_server)
    for path in (str(pipe), str(secret), "http://169.254.169.254/x.png", f"http://127.0.0.1:{_free_port()}/x"):
        file = {"path": path, "meta": FILE}
        with come(page_server) as client:
            for name, data in (("upload", [file, ""]), ("upload", [{"name": "a", "content": file}, ""]),
                               ("download", [file, file]), ("choose", [[file], ""]), ("arrive", [file])):  # fmt: skip
                assert join(client, name, data).status_code == 400
            number = number_of(client, "upload")
            body = {"data": [1, ""], "fn_index": number, "session_hash": "t", "event_data": file}
            assert client.post(JOIN, json=body).status_code == 200  # nothing but what the page sends is heard of it
            assert client.post(CALL, json=body).status_code == 400
    began = time.monotonic()
    assert httpx.get(page_server.address, timeout=5).status_code == 200
    assert time.monotonic() - began < 2
    assert temporary_files(page_server) == before


def test_behind_the_gate_gradio_checks_paths_itself(tmp_path, monkeypatch):
    """A mounted page leaves Gradio's own check off, and whatever passed the gate would be copied and served."""
    pytest.importorskip("gradio", reason="needs the extra app: pip install 'vitrail[app]'")
    from gradio import context, processing_utils
    from gradio.exceptions import InvalidPathError

    cache, secret = tmp_path / "cache", tmp_path / "secret.txt"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(cache))
    secret.write_text("do not tell")
    upload = {"name": "a", "content": {"path": str(secret), "meta": FILE}}

    async def arrive() -> None:
        gradio = server.application(new_service()).inner.routes[-1].app
        context.LocalContext.blocks.set(gradio.get_blocks())
        [sent, *_] = [one for one in gradio.get_blocks().blocks.values() if type(one).__name__ == "JSON"]
        await processing_utils.async_move_files_to_cache(upload, sent, check_in_upload_folder=True)

    with pytest.raises(InvalidPathError, match="not uploaded by a user"):
        asyncio.run(arrive())
    assert not any(path.is_file() for path in cache.rglob("*"))


def _free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def temporary_files(running: Running) -> list[str]:
    import tempfile

    folders = list(Path(tempfile.gettempdir()).glob(f"vitrail-app-{running.process.pid}-*"))
    folders.append(Path(tempfile.gettempdir(), "gradio"))
    return sorted(str(path) for folder in folders for path in folder.rglob("*") if path.is_file())


def _crowd(eve) -> list[int]:
    """260 films, asked for under invented sessions: before, all others were refused, and the films drawn for nobody."""
    film, status = number_of(eve, "transfer"), []
    for number in range(260):
        body = {"data": ["view=transfer&example=pair", 100], "fn_index": film, "session_hash": f"invented{number}"}
        status.append(eve.post(JOIN, json=body).status_code)
    return status


@pytest.mark.slow  # a quarter of a minute
def test_one_visitor_does_not_starve_the_others(page_server):
    with come(page_server) as eve, come(page_server) as ada:
        status = _crowd(eve)
        assert status.count(200) <= 40
        assert set(status) == {200, 429}
        began = time.monotonic()
        assert join(ada, "arrive", ["example=single"], "a").status_code == 200
        assert '"success":true' in _answer(ada, "a")
    assert time.monotonic() - began < 12


@pytest.mark.slow
def test_films_for_nobody_make_room_for_those_that_are_waited_for(page_server):
    with come(page_server) as eve, come(page_server) as ada:
        _crowd(eve)
        began = time.monotonic()
        assert join(ada, "transfer", ["view=transfer&example=single", 5], "a").status_code == 200
        assert "data:image/webp" in _answer(ada, "a")
    assert time.monotonic() - began < 40


def _answer(client, session: str) -> str:
    with client.stream("GET", f"/gradio_api/queue/data?session_hash={session}") as answer:
        return next(line for line in answer.iter_lines() if '"process_completed"' in line)


# -- lines that stay open ----------------------------------------------------------------------------------------------


@contextmanager
def served(monkeypatch, within: float, most: int, app=None) -> Iterator[int]:
    """A server with nothing behind it that waits this long for a head, and holds so many connections."""
    import uvicorn

    monkeypatch.setattr(server, "HEAD_WITHIN", within)
    monkeypatch.setattr(server, "MOST_CONNECTIONS", most)
    made: list[uvicorn.Server] = []
    create = uvicorn.Server.__init__

    def keep(self, config):
        create(self, config)
        made.append(self)

    monkeypatch.setattr(uvicorn.Server, "__init__", keep)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        thread = threading.Thread(target=server.serve, args=(app or gate_of()[0], listening))
        thread.start()
        until = time.monotonic() + 10
        while not (made and made[0].started):
            assert time.monotonic() < until
            time.sleep(0.02)
        try:
            yield listening.getsockname()[1]
        finally:
            made[0].should_exit = True
            thread.join(10)


def _open(port: int, words: bytes = b"") -> socket.socket:
    line = socket.create_connection(("127.0.0.1", port), timeout=10)
    line.sendall(words)
    return line


def test_lines_that_say_nothing_are_closed(monkeypatch):
    """400 half-open connections stayed open before."""
    head = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    with served(monkeypatch, within=0.5, most=100) as port:
        lines = [_open(port, words) for words in (b"", b"GET", head) * 10]
        second = _open(port, head + b"\r\n")
        assert b" 200 " in second.recv(100)
        second.sendall(b"GET / HT")  # the second request of a connection is waited for no longer
        began = time.monotonic()
        for line in [*lines, second]:
            while True:
                try:
                    if not line.recv(65536):
                        break
                except ConnectionResetError:
                    break
            line.close()
        assert 0.2 < time.monotonic() - began < 4


def test_many_silent_lines_keep_nobody_out(monkeypatch):
    with served(monkeypatch, within=30.0, most=20) as port:
        lines = [_open(port, b"GET / HT") for _ in range(60)]
        time.sleep(0.2)
        assert httpx.get(f"http://127.0.0.1:{port}", timeout=5).status_code == 200
        still = sum(not _is_closed(line) for line in lines)
        for line in lines:
            line.close()
    assert still <= 20


def _is_closed(line: socket.socket) -> bool:
    line.setblocking(False)
    try:
        return line.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("vitrail.app.gate.SILENCE", 0.2)
    gate, echo = gate_of()

    async def silent():
        await asyncio.sleep(30)

    sent: list = []

    async def send(message):
        sent.append(message)

    cookie = client_of(gate).get("/").headers["set-cookie"].partition(";")[0]
    headers = [(b"host", b"127.0.0.1"), (b"cookie", cookie.encode()), (b"content-length", b"50")]
    scope = {"type": "http", "method": "POST", "path": JOIN, "query_string": b"", "headers": headers,
             "server": ("127.0.0.1", 7860), "client": ("127.0.0.1", 1)}  # fmt: skip
    asyncio.run(asyncio.wait_for(gate(scope, silent, send), 5))
    assert sent[0]["status"] == 408
    assert len(echo.asked) == 1


# -- what is left behind -----------------------------------------------------------------------------------------------


def test_temporary_files_go_at_the_end_and_those_of_killed_servers_at_the_next_start(tmp_path, monkeypatch):
    import tempfile

    from vitrail.cli.app import _own_folder

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f"vitrail-app-{ended.pid}-a", f"vitrail-app-{os.getpid()}-b", "vitrail-app-notes", "vitrail-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    with _own_folder():
        own = Path(tempfile.gettempdir())
        assert own.parent == tmp_path
        assert own.stat().st_mode & 0o777 == 0o700
        assert os.environ["GRADIO_TEMP_DIR"] == str(own)
        Path(tempfile.mkdtemp(), "left").write_text("x")
    assert tempfile.gettempdir() == str(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"vitrail-app-notes", f"vitrail-app-{os.getpid()}-b", "vitrail-x"}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_at_once_with_work_under_way(how, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    running = Running()
    with come(running) as client:
        assert join(client, "transfer", ["view=transfer&example=single", 100], "a").status_code == 200
        with client.stream("GET", "/gradio_api/queue/data?session_hash=a") as answer:
            next(line for line in answer.iter_lines() if "moving attention" in line)
            began = time.monotonic()
            running.process.send_signal(how)
            running.process.wait(20)
    assert time.monotonic() - began < 6
    assert running.process.returncode == (143 if how == signal.SIGTERM else 0)
    running.stop()
    assert "Traceback" not in "".join(running.said)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.slow
def test_the_printed_address_opens_the_page_and_no_other_does():
    running = Running(token=True)
    try:
        assert "?token=" in running.printed
        assert httpx.get(running.address).status_code == 401
        assert httpx.get(running.address + "/config").status_code == 401
        with httpx.Client(follow_redirects=True) as client:
            answer = client.get(running.printed)
            assert answer.status_code == 200
            assert "token" not in str(answer.url)
            assert client.get(running.address + "/config").status_code == 200
    finally:
        running.stop()
    assert [line.split()[0] for line in running.said[:3]] == ["Vitrail", "loading", "ready"]
