"""The gate: closed doors stay closed, whoever knocks and however."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

import pytest
from app.conftest import LIMITS, Running, ask, events_of
from typer.testing import CliRunner

from vitrail.app.admission import check_host, parse_auth
from vitrail.cli import app
from vitrail.errors import OptionError, how_to_install

httpx = pytest.importorskip("httpx2", reason="needs the extra app: pip install 'vitrail[app]'")


def test_no_file_of_the_server_can_be_read(page_server, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("do not tell")
    for door in ("/file=", "/file/", "/static/", "/static/../", "/static/..%2f..%2f", "/static/%2e%2e/%2e%2e/",
                 "/static//", "/ask/", "/docs", "/openapi.json", "/page.py"):  # fmt: skip
        for target in (str(secret), "/etc/passwd", "", "page.py", "../page.py"):
            answer = _raw(page_server.address, door + target)
            assert b"do not tell" not in answer, door
            assert b"root:" not in answer, door
            assert b" 200 " not in answer.split(b"\r\n")[0], door


def _raw(address: str, path: str) -> bytes:
    """A GET exactly as written, by a visitor; HTTP libraries would tidy the path up."""
    place = urlsplit(address)
    cookie = httpx.get(address).headers["set-cookie"].partition(";")[0]
    with socket.create_connection((place.hostname, place.port), timeout=20) as wire:
        head = f"GET {path} HTTP/1.1\r\nHost: {place.netloc}\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n"
        wire.sendall(head.encode())
        wire.settimeout(2)
        got = b""
        try:
            while piece := wire.recv(65536):
                got += piece
        except TimeoutError:
            pass
    return got


@contextmanager
def come(running: Running) -> Iterator[httpx.Client]:
    """A visitor: somebody with the page's cookie."""
    with httpx.Client(base_url=running.address, timeout=60) as client:
        assert client.get("/").status_code == 200
        yield client


def test_a_path_in_a_question_is_not_opened(page_server):
    with come(page_server) as client:
        for given in ({"path": "/etc/passwd"}, {"name": "/etc/passwd", "content": "/etc/passwd"}, {"url": "file:///x"}):
            [event] = events_of(ask(client, "upload", **given))
            assert "larger than this page takes" in event["html"]["vt-status"]  # as where the browser kept it back
            assert "root:" not in str(event)


def test_other_names_and_other_origins_are_refused(page_server):
    host = page_server.address.removeprefix("http://")
    assert httpx.get(page_server.address, headers={"host": "evil.example"}).status_code == 403
    answer = httpx.post(page_server.address + "/ask", headers={"origin": "https://evil.example"}, json={})
    assert answer.status_code == 403
    assert httpx.get(page_server.address, headers={"host": host.replace("127.0.0.1", "localhost")}).status_code == 200


def test_too_large_a_body_is_refused_before_it_is_read(page_server):
    def stream():
        for _ in range(80):
            yield b"x" * 100_000

    with come(page_server) as client:
        assert client.post("/ask", content=b"x" * (LIMITS.bytes + 20_001)).status_code == 413
        assert client.post("/ask", json={"do": "arrive", "tab": "a", "link": "x" * 20_000}).status_code == 413
        try:
            answer = client.post("/ask", content=stream())
        except httpx.TransportError:
            pass  # cut off in the middle
        else:
            assert answer.status_code == 413


def test_the_page_and_its_files_name_no_other_machine(page_server):
    with come(page_server) as client:
        html = client.get("/").text
        files = re.findall(r'(?:src|href)="(static/[^"]+)"', html)
        assert len(files) == 2
        for text in (html, *(client.get(file).text for file in files)):
            assert not re.findall(
                r"(?:https?:)?//[\w.-]+\.\w+", unquote(text).replace("http://www.w3.org/2000/svg", "")
            )
        style, script = (client.get(file).headers for file in files)
        assert style["content-type"].startswith("text/css")
        assert script["content-type"].startswith("text/javascript")
        assert "immutable" in script["cache-control"]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "example.org", ""])
def test_others_need_a_password(host):
    with pytest.raises(OptionError, match="give --auth USER:PASSWORD, or stay on 127"):
        check_host(host, None)
    check_host(host, ("ada", "lace"))


def test_the_command_refuses_kindly(monkeypatch):
    def refused(*words):
        result = CliRunner().invoke(app, ["app", "--no-browser", *words])
        assert result.exit_code == 2
        return result.stderr

    assert "give --auth USER:PASSWORD" in refused("--host", "0.0.0.0")
    assert "--auth is USER:PASSWORD" in refused("--auth", "ada")
    assert "no model 'bestiari" in refused("--model", "bestiari")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "choose another --port" in refused("--port", str(taken.getsockname()[1]))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert how_to_install("app") in refused()


def test_auth_words():
    assert parse_auth("ada:a:b") == ("ada", "a:b")
    assert parse_auth(None) is None
    for text in ("ada", ":x", "ada:"):
        with pytest.raises(OptionError, match="USER:PASSWORD"):
            parse_auth(text)


def test_an_answer_is_lines_of_json_without_paths(page_server):
    """What others may build on: `html` by the id of an element of the page, `link`, `controls`, `names`."""
    with come(page_server) as client:
        html, answer = client.get("/").text, ask(client, "arrive", link="view=map&example=pair")
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        [event] = events_of(answer)
        assert set(event) == {"html", "link", "controls", "names"}
        assert all(f'id="{name}"' in html for name in event["html"])
        assert all(f'name="{name}"' in html or name == "view" for name in event["controls"])
        assert "data:image/webp" in event["html"]["vt-view-map"]
        assert "/tmp" not in answer.text
        begun, *_, drawn = events_of(ask(client, "draw", link=event["link"], view="transfer", steps="5"))
        assert "steps=5" in begun["link"]
        assert "progressbar" in begun["html"]["vt-view-transfer"]
        assert "data:image/webp" in drawn["html"]["vt-view-transfer"]
        saved = ask(client, "download", link=drawn["link"], kind="webp")
        assert saved.headers["content-disposition"] == "attachment; filename*=utf-8''pair.transfer.webp"
        assert saved.content[8:12] == b"WEBP"
        refused = ask(client, "download", link="view=heads", kind="png")
        assert (refused.status_code, refused.json()["detail"]) == (409, "there is nothing to save yet: draw it first")
