"""The gate: closed doors stay closed, whoever knocks and however."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from app.conftest import LIMITS, Running
from typer.testing import CliRunner

from vitrail.app.admission import check_host, parse_auth
from vitrail.cli import app
from vitrail.errors import OptionError, how_to_install

httpx = pytest.importorskip("httpx", reason="needs the extra app: pip install 'vitrail[app]'")


def test_no_file_of_the_server_can_be_read(page_server, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("do not tell")
    for door in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/file/", "/gradio_api/stream/", "/assets/../../",
                 "/static/..%2f..%2f", "/assets/%2e%2e/%2e%2e/", "/gradio_api/file=http://169.254.169.254/",
                 "/gradio_api/proxy=", "/gradio_api/component_server/", "/gradio_api/upload",
                 "/gradio_api/custom_component/", "/monitoring", "/docs", "/openapi.json"):  # fmt: skip
        for target in (str(secret), "/etc/passwd", ""):
            answer = _raw(page_server.address, door + target)
            assert b"do not tell" not in answer, door
            assert b"root:" not in answer, door
            assert b" 200 " not in answer.split(b"\r\n")[0], door


def _raw(address: str, path: str) -> bytes:
    """A GET exactly as written; HTTP libraries would tidy the path up."""
    place = urlsplit(address)
    with socket.create_connection((place.hostname, place.port), timeout=20) as wire:
        wire.sendall(f"GET {path} HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: close\r\n\r\n".encode())
        wire.settimeout(2)
        got = b""
        try:
            while piece := wire.recv(65536):
                got += piece
        except TimeoutError:
            pass
    return got


def test_nothing_is_written_to_disk(page_server):
    """Neither by upload, whose door is closed, nor by a file named in a question."""
    answer = httpx.post(page_server.address + "/gradio_api/upload", files={"files": ("a.png", b"x")})
    assert answer.status_code == 404


def test_a_path_in_an_answer_is_not_opened(page_server):
    """Gradio's own way to hand files to the server, tried where the page takes pictures."""
    file = {"path": "/etc/passwd", "url": "http://169.254.169.254/", "meta": {"_type": "gradio.FileData"}}
    for sent in (file, {"name": "a.png", "content": file}, {"name": file, "content": "/etc/passwd"}):
        answer = ask(page_server, "upload", [sent, ""])
        assert "root:" not in answer
        assert "Traceback" not in answer


@contextmanager
def come(running: Running) -> Iterator[httpx.Client]:
    """A visitor: somebody with the page's cookie."""
    with httpx.Client(base_url=running.address, timeout=60) as client:
        assert client.get("/").status_code == 200
        yield client


def number_of(client: httpx.Client, name: str) -> int:
    config = client.get("/config").json()
    return next(one["id"] for one in config["dependencies"] if one["api_name"] == name)


def join(client: httpx.Client, name: str, data: list, session: str = "tests") -> httpx.Response:
    body = {"data": data, "fn_index": number_of(client, name), "session_hash": session}
    return client.post("/gradio_api/queue/join", json=body)


def ask(running: Running, name: str, data: list) -> str:
    """A question and its answer, as a visitor's browser fetches it; the refusal where there is one."""
    with come(running) as client:
        joined = join(client, name, data)
        if joined.status_code != 200:
            return joined.text
        with client.stream("GET", "/gradio_api/queue/data?session_hash=tests") as answer:
            for line in answer.iter_lines():
                if '"process_completed"' in line:
                    return line
    return ""


def test_other_names_and_other_origins_are_refused(page_server):
    host = page_server.address.removeprefix("http://")
    assert httpx.get(page_server.address, headers={"host": "evil.example"}).status_code == 403
    answer = httpx.post(
        page_server.address + "/gradio_api/queue/join", headers={"origin": "https://evil.example"}, json={}
    )
    assert answer.status_code == 403
    assert httpx.get(page_server.address, headers={"host": host.replace("127.0.0.1", "localhost")}).status_code == 200


def test_too_large_a_body_is_refused_before_it_is_read(page_server):
    def stream():
        for _ in range(80):
            yield b"x" * 100_000

    most = LIMITS.bytes * 4 // 3 + 100_000
    with come(page_server) as client:
        assert client.post("/gradio_api/queue/join", content=b"x" * (most + 1)).status_code == 413
        try:
            answer = client.post("/gradio_api/queue/join", content=stream())
        except httpx.TransportError:
            pass  # cut off in the middle
        else:
            assert answer.status_code == 413


def test_the_page_names_no_other_machine_and_lets_none_in(page_server):
    answer = httpx.get(page_server.address)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy.replace("https:", "").replace("'self'", "")
    with come(page_server) as client:
        assert "fonts.googleapis" not in client.get("/theme.css").text
        config = client.get("/config").json()
    assert config["analytics_enabled"] is False


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


def test_what_the_page_sends_is_json_without_paths(page_server):
    answer = ask(page_server, "arrive", ["view=map&example=pair"])
    data = json.loads(answer.removeprefix("data:"))["output"]["data"]
    assert any(isinstance(one, str) and "data:image/webp" in one for one in data)
    assert "/tmp" not in answer
