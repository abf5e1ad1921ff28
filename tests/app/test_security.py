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
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from app.conftest import LIMITS, Running, ask, events_of
from app.test_server import come

from vitrail.app import server
from vitrail.app.admission import Admission, Throttle, check_root_path
from vitrail.app.gate import Bodies, Gate
from vitrail.app.jobs import BusyError, ModelQueue, Stopped
from vitrail.app.pictures import Picture
from vitrail.app.service import PageUpdate, Service
from vitrail.app.session import ModelCache, Sessions
from vitrail.errors import OptionError

httpx = pytest.importorskip("httpx2", reason="needs the extra app: pip install 'vitrail[app]'")
testclient = pytest.importorskip("starlette.testclient", reason="needs the extra app: pip install 'vitrail[app]'")


# -- the server with nothing behind it ---------------------------------------------------------------------------------


class Echo(Service):
    """Stands where the service stands, and keeps what it is asked: the action, the visitor, the rest."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []
        self.limits, self.models = LIMITS, SimpleNamespace(names=("bestiary",), first="bestiary")
        self.vlms = SimpleNamespace(names=("bestiary/captioner",), first="bestiary/captioner")
        for name in ("arrive", "upload", "example", "guide", "choose", "change", "draw", "stop"):
            setattr(self, name, partial(self._heard, name))
        self.sessions = SimpleNamespace(leave=partial(self._heard, "leave"))

    def _heard(self, name: str, *given, **named):
        self.asked.append((name, *given))
        return iter([PageUpdate(question=None)]) if name == "draw" else PageUpdate(question=None)


def gate_of(most: int = 100_000, **words) -> tuple[Gate, Echo]:
    echo, bodies = Echo(), Bodies(most)
    echo.pages = server.Pages(echo, bodies)
    return Gate(echo.pages.routes, **({"admission": Admission(), "bodies": bodies, "loopback": True} | words)), echo


def client_of(gate: Gate, base: str = "http://127.0.0.1:7860"):
    return testclient.TestClient(gate, base_url=base, follow_redirects=False)


DOORS = [("GET", "/"), ("GET", "/static/page.js"), ("GET", "/static/page.css"), ("POST", "/ask")]
CLOSED = [
    ("GET", "/ask"), ("PUT", "/ask"), ("PUT", "/"), ("POST", "/"), ("POST", "/static/page.js"),
    ("GET", "/static/page.py"), ("GET", "/static/"), ("GET", "/static/../page.js"), ("GET", "/static//etc/passwd"),
    ("GET", "/ask/"),
    ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/logout"), ("POST", "/upload"), ("GET", "/file=/etc/passwd"),
]  # fmt: skip


@pytest.mark.parametrize("admission", [Admission(token="t0ken"), Admission(auth=("ada", "lace"))])
def test_nothing_is_answered_without_the_token_or_the_password(admission):
    gate, echo = gate_of(admission=admission)
    client = client_of(gate)
    for method, path in (*DOORS, *CLOSED):
        answer = client.request(method, path, json={} if method == "POST" else None)
        assert answer.status_code in (401, 404, 405), path
        assert "vitrail-" not in answer.headers.get("set-cookie", "")
        assert "page.js" not in answer.text
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
    assert not echo.asked
    for method, path in DOORS:
        sent = {"json": {"do": "arrive", "tab": "tab1"}} if method == "POST" else {}
        answer = client.request(method, path, **sent)
        assert answer.status_code == 200, path
        assert "unsafe-eval" not in answer.headers["content-security-policy"]
    assert [one[0] for one in echo.asked] == ["arrive"]


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
    """A tab's name counts only with its owner's cookie."""
    gate, echo = gate_of(admission=Admission(auth=("ada", "lace")))
    visitors = []
    for _ in range(2):
        client = client_of(gate)
        client.post("/login", data={"username": "ada", "password": "lace"})
        for do in ("arrive", "draw", "stop", "leave", "upload"):
            assert ask(client, do, tab="tab1").status_code in (200, 204)
        [visitor] = {one[1] for one in echo.asked[-5:]}
        key, _, tab = visitor.partition(".")
        assert (len(key), tab) == (32, "tab1")
        visitors.append(visitor)
    assert visitors[0] != visitors[1]
    for name in (visitors[0], "a.b", "a/b", "../x", "", "x" * 41, None, 5, ["a"]):
        assert ask(client, "arrive", tab=name).status_code == 400


@pytest.mark.parametrize("value", ["", "x.y", "%00.", "a" * 5000, "ä.ö", ";;;=", "0" * 32 + "." + "0" * 64])
def test_a_cookie_that_was_not_given_out_is_none(value):
    gate, echo = gate_of(admission=Admission(token="t0ken"))
    answer = client_of(gate).get("/static/page.js", headers={"cookie": f"vitrail-7860={value}".encode("latin-1")})
    assert answer.status_code == 401
    assert not echo.asked


FOREIGN = [
    b"", b"[]", b"{", b"[" * 15_000, b'{"do":' * 900, b"NaN", b"\xff", b"1" * 5000, b"null", b'"arrive"',
    *(json.dumps({"do": "arrive", "tab": "a"} | words).replace("Infinity", "1e400").encode() for words in (
        {"do": "steal"}, {"do": None}, {"do": ["arrive"]}, {"do": "__init__"}, {"link": 5}, {"link": {"a": 1}},
        {"given": []}, {"given": "x"}, {"given": {"row": float("inf")}}, {"given": {"x": "\ud800"}},
    )),
]  # fmt: skip


def test_only_what_the_page_asks_passes():
    gate, echo = gate_of()
    client = client_of(gate)
    client.get("/")
    for body in FOREIGN:
        for sent in ({"content": body}, {"files": {"question": (None, body), "file": ("a.png", b"x")}}):
            echo.pages.asks = Throttle(burst=40, every=0)
            assert client.post("/ask", **sent).status_code == 400, body[:60]
    parts = {"question": (None, b'{"do": "upload", "tab": "a"}'), "file": ("a.png", b"x")}
    for more in ({"other": (None, b"x")}, {"second": ("b.png", b"x")}):
        assert client.post("/ask", files=parts | more).status_code == 400
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x; charset=base64"):
        assert client.post("/ask", content=b"--x", headers={"content-type": kind}).status_code == 400
    assert not echo.asked
    assert client.post("/ask", files=parts).status_code == 200
    assert echo.asked[0][3:] == ("a.png", b"x")


def test_an_upload_is_never_on_the_disk(monkeypatch):
    """Starlette keeps a file of more than a megabyte in a temporary one."""
    import tempfile

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: pytest.fail("written to disk"))
    gate, echo = gate_of(most=5_000_000)
    client = client_of(gate)
    client.get("/")
    assert ask(client, "upload", file=("a.png", b"x" * 3_000_000)).status_code == 200
    assert len(echo.asked[0][-1]) == 3_000_000


# -- behind a reverse proxy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/vitrail", ""])  # a proxy may take the prefix off, or leave it
def test_the_page_on_a_sub_path_under_another_name(path):
    admission = Admission(auth=("ada", "lace"))
    gate, _ = gate_of(admission=admission, root_path="/vitrail", hosts=("Glass.example",))
    client = client_of(gate, "https://glass.example")
    told = client.post(path + "/login?view=map", data={"username": "ada", "password": "lace"},
                       headers={"origin": "https://glass.example"})  # fmt: skip
    assert told.headers["location"] == "/vitrail/?view=map"
    assert "Path=/vitrail/;" in told.headers["set-cookie"]
    assert "Secure" in told.headers["set-cookie"]
    client.cookies.set(*told.headers["set-cookie"].partition(";")[0].split("=", 1))
    assert client.get(path + "/").status_code == 200
    assert client.get(path + "/static/page.js").status_code == 200
    assert client.post(path + "/ask", json={"do": "leave", "tab": "a"}).status_code == 204
    assert client.get("/vitrail").headers["location"] == "/vitrail/"
    assert client.get("/vitrailx/static/page.js").status_code == 404


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
        answer = client.post("/ask", json={"do": "arrive", "tab": "a"}, headers={"origin": origin})
        assert answer.status_code == status


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
    from vitrail.app.page import taking_home

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
    shown = service.upload("ada", "", EVIL + ".png", creature)
    found = _strange(shown)
    query = shown.question.query() + "&target=0&against=8"
    found += _strange(service.change("ada", query, {"row": 1, "col": 1}))
    found += _strange(service.guide("ada", query, EVIL, creature))
    found += _strange(service.guide("ada", query, EVIL, b"no picture"))
    for name in ("method", "model", "gradient", "layout", "example", "methods", "view", "target"):
        found += _strange(service.change("ada", f"{query}&{name}={EVIL}", {}))
    found += _strange(service.example("ada", query, EVIL))
    assert found == []


@pytest.mark.slow
@pytest.mark.parametrize("view", ["layers", "heads", "detail", "methods", "guide", "transfer", "rewrite"])
def test_names_are_said_as_text_in_every_view(creature, view):
    service = _evil_service()
    query = service.upload("ada", "", EVIL + ".png", creature).question.query() + "&target=0&against=8"
    for more in ("", f"&layout={EVIL}", f"&methods={EVIL}"):
        for shown in service.draw("ada", query + more, {"view": view, "steps": 1, "until": 0.1}):
            assert _strange(shown) == []


def test_the_policy_lets_no_script_run_but_the_pages_own(page_server):
    answer = httpx.get(page_server.address)
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "http" not in answer.headers["content-security-policy"]
    assert re.findall(r"<script\b[^>]*>(.*?)</script>", answer.text, re.DOTALL) == [""]
    assert not re.search(r"<style|\son\w+=|\sstyle=|javascript:", answer.text)


# -- the page itself ---------------------------------------------------------------------------------------------------


def temporary_files(running: Running) -> list[str]:
    import tempfile

    folders = Path(tempfile.gettempdir()).glob(f"vitrail-app-{running.process.pid}-*")
    return sorted(str(path) for folder in folders for path in folder.rglob("*") if path.is_file())


@contextmanager
def _crowd(eve) -> Iterator[list[int]]:
    """Sixty films, asked for from invented tabs, whose answers nobody reads to the end."""
    streams, status = [], []
    for number in range(60):
        words = {"do": "draw", "tab": f"invented{number}", "link": "view=transfer&example=pair"}
        words["given"] = {"view": "transfer", "steps": 100}
        streams.append(eve.send(eve.build_request("POST", "/ask", json=words), stream=True))
        status.append(streams[-1].status_code)
    yield status
    for stream in streams:
        stream.close()


@pytest.mark.slow
def test_one_visitor_does_not_starve_the_others(page_server):
    with come(page_server) as eve, come(page_server) as ada, _crowd(eve) as status:
        assert 2 <= status.count(200) <= 50
        assert set(status) == {200, 429}
        began = time.monotonic()
        [event] = events_of(ask(ada, "arrive", link="example=single"))
        assert "data:image/webp" in event["html"]["vt-view-map"]
        assert time.monotonic() - began < 12


@pytest.mark.slow
def test_films_for_nobody_make_room_for_those_that_are_waited_for(page_server):
    with come(page_server) as eve, come(page_server) as ada:
        with _crowd(eve):
            pass  # gone
        began = time.monotonic()
        events = events_of(ask(ada, "draw", link="example=single", view="transfer", steps=5))
        assert "data:image/webp" in events[-1]["html"]["vt-view-transfer"]
        assert time.monotonic() - began < 10
        assert ask(eve, "arrive").status_code == 200  # and the share of who has gone is free again


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


def test_an_answer_that_nobody_waits_for_ends_and_gives_its_share_back(monkeypatch):
    gate, echo = gate_of()
    ended = threading.Event()

    def draw(*given):
        try:
            while True:
                time.sleep(0.02)
                yield PageUpdate(question=None)
        finally:
            ended.set()

    echo.draw = draw
    with served(monkeypatch, within=10.0, most=100, app=gate) as port:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            client.get("/")
            with client.stream("POST", "/ask", json={"do": "draw", "tab": "a"}) as answer:
                assert next(answer.iter_lines()) == '{"html": {}}'
                assert len(echo.pages._open) == 1
        assert ended.wait(5)
        until = time.monotonic() + 5
        while echo.pages._open:
            assert time.monotonic() < until
            time.sleep(0.02)


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
    scope = {"type": "http", "method": "POST", "path": "/ask", "query_string": b"", "headers": headers,
             "server": ("127.0.0.1", 7860), "client": ("127.0.0.1", 1)}  # fmt: skip
    asyncio.run(asyncio.wait_for(gate(scope, silent, send), 5))
    assert sent[0]["status"] == 408
    assert not echo.asked


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
        words = {"do": "draw", "tab": "a", "link": "example=single", "given": {"view": "transfer", "steps": 100}}
        with client.stream("POST", "/ask", json=words) as answer:
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
        assert httpx.get(running.address + "/static/page.js").status_code == 401
        with httpx.Client(follow_redirects=True) as client:
            answer = client.get(running.printed)
            assert answer.status_code == 200
            assert "token" not in str(answer.url)
            assert client.get(running.address + "/static/page.js").status_code == 200
    finally:
        running.stop()
    assert [line.split()[0] for line in running.said[:3]] == ["Vitrail", "loading", "ready"]
